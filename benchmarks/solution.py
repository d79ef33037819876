"""How long until a task is solved: RecuRL and sb3-contrib in turn, each with settings that suit it.

    python benchmarks/solution.py                               all runs that have no result yet, then the section
    python benchmarks/solution.py --only cartpole               those whose name contains this
    python benchmarks/solution.py --report                      the section of what there is
    python benchmarks/solution.py --only cartpole/recurl --steps 100000 --words="--algorithm.n-epochs 10"
                                                                a trial with other settings of ours, printed, not kept

A task is solved once three evaluations in a row of 20 episodes each, deterministic actions, reach its level. Both are
evaluated after the same number of environment steps, or after the first update that ends later. A run stops where the
task is solved, or after its limit of steps. Clocks start when learning does; one thread.

sb3-contrib's RecurrentPPO has RL Baselines3 Zoo's settings for ppo_lstm and its environments, gymnasium's behind a
DummyVecEnv, as its users run it. Ours is what ``train.py`` makes of the words below.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import records
import tyro
from measuring import processor
from records import Result, Run, by_seed

EPISODES, IN_A_ROW = 20, 3
CLOCKS = ("processor",)
OURS, THEIRS = "recurl", "sb3-contrib"


@dataclass(frozen=True)
class Settings(records.Settings):
    """Seconds until a task is solved."""

    seeds: int = 5
    """Seeds of every task and learner."""
    words: str = ""
    """Further words for ``train.py``, for a trial of other settings of ours."""


@dataclass(frozen=True)
class Task:
    """A task, what solves it, and the settings of both.

    ``original`` is gymnasium's id and ``velocities`` the entries of its observation that are hidden from sb3-contrib,
    which has ``n_envs`` such environments and learns at most ``limit`` steps with ``zoo``'s arguments; ``falling``: its
    learning rate and clip range fall to 0 by then. ``ours`` are words for ``train.py``.
    """

    name: str
    title: str
    level: float
    every: int
    ours: str
    original: str
    velocities: tuple[int, ...]
    n_envs: int
    limit: int
    zoo: dict[str, Any]
    falling: bool = False
    hidden: int = 64


TASKS = [
    Task(
        "cartpole",
        "CartPole without velocities",
        475.0,
        4_096,
        "--env.id CartPoleNoVel-v1 --policy.memory lstm --env.n-envs 16 --algorithm.n-steps 128 "
        "--algorithm.noise-correlation 0 --total-timesteps 100000",
        "CartPole-v1",
        (1, 3),
        8,
        100_000,
        dict(n_steps=32, batch_size=256, n_epochs=20, gamma=0.98, gae_lambda=0.8, learning_rate=1e-3, clip_range=0.2),
        falling=True,
    ),
    Task(
        "pendulum",
        "Pendulum without velocities",
        -250.0,
        4_096,
        "--config pendulum_novel --policy.memory lstm",
        "Pendulum-v1",
        (2,),
        4,
        100_000,
        dict(n_steps=1024, n_epochs=10, gamma=0.9, learning_rate=1e-3, use_sde=True, sde_sample_freq=4),
    ),
    Task(
        "mountaincar",
        "MountainCarContinuous without velocities",
        90.0,
        8_192,
        "--config mountaincar_novel",
        "MountainCarContinuous-v0",
        (1,),
        8,
        300_000,
        dict(
            n_steps=1024,
            batch_size=256,
            n_epochs=10,
            gamma=0.9999,
            gae_lambda=0.9,
            learning_rate=7.77e-5,
            clip_range=0.1,
            ent_coef=0.00429,
            vf_coef=0.19,
            max_grad_norm=5.0,
            use_sde=True,
            sde_sample_freq=8,
        ),
        hidden=32,
    ),
]


def main(settings: Settings) -> None:
    records.run_all(settings, "solution", all_runs(settings), summary, lambda _: write_section())


def all_runs(settings: Settings) -> list[Run]:
    """In turn, seed by seed."""
    if settings.words and not settings.steps:
        raise SystemExit("error: --words are for a trial: add --steps")
    return [
        Run(f"{task.name}/{learner}/{seed}", _run(task, learner, seed, settings.words))
        for seed in range(settings.seeds)
        for task in TASKS
        for learner in (OURS, THEIRS)
    ]


def _run(task: Task, learner: str, seed: int, words: str) -> Callable[[int], Result]:
    def start(steps: int) -> Result:
        import torch

        torch.set_num_threads(1)
        make = _ours if learner == OURS else _theirs
        model, evaluate, limit = make(task, seed, words, steps)
        return {**timed(model, evaluate, task, limit), "cpu": processor()}

    return start


def timed(model: Any, evaluate: Callable[[Any], float], task: Task, limit: int) -> Result:
    """Learns until the task is solved: seconds of training, by the clock and by the processor, and of evaluating."""
    from stable_baselines3.common.callbacks import BaseCallback

    class Solved(Exception):
        """Ends learning, from within it."""

    class Watch(BaseCallback):
        """Evaluates between two updates."""

        def __init__(self) -> None:
            super().__init__()
            self.curve: list[tuple[int, float]] = []
            self.spent, self.spent_processor = 0.0, 0.0

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            if self.num_timesteps - (self.curve[-1][0] if self.curve else 0) >= task.every:
                self.look()

        def _on_training_end(self) -> None:
            if not self.curve or self.curve[-1][0] < self.num_timesteps:
                self.look()

        def look(self) -> None:
            began, began_processor = time.perf_counter(), time.process_time()
            self.curve.append((self.num_timesteps, evaluate(model)))
            self.spent += time.perf_counter() - began
            self.spent_processor += time.process_time() - began_processor
            if is_solved(self.curve, task.level):
                raise Solved

    watch = Watch()
    began, began_processor = time.perf_counter(), time.process_time()
    with contextlib.suppress(Solved):
        model.learn(limit, callback=watch)
    seconds, of_processor = time.perf_counter() - began, time.process_time() - began_processor
    return dict(
        solved=is_solved(watch.curve, task.level),
        steps=watch.curve[-1][0],
        training=seconds - watch.spent,
        processor=of_processor - watch.spent_processor,
        in_all=seconds,
        curve=watch.curve,
    )


def is_solved(curve: list[tuple[int, float]], level: float) -> bool:
    last = [value for _, value in curve[-IN_A_ROW:]]
    return len(last) == IN_A_ROW and min(last) >= level


def _ours(task: Task, seed: int, words: str, steps: int) -> tuple[Any, Callable[[Any], float], int]:
    from agents.analysis.evaluation import evaluate
    from agents.runs.construction import make_environments

    typed = [*task.ours.split(), *words.split(), "--seed", str(seed)]
    typed += ["--total-timesteps", str(steps)] if steps else []
    model, settings = records.agent_of(typed)
    test_env = make_environments(settings, EPISODES, seed + 500)

    def returns(model: Any) -> float:
        return evaluate(model, test_env, EPISODES, deterministic=True, seed=1000 * seed + 500).mean

    return model, returns, settings.total_timesteps


def _theirs(task: Task, seed: int, words: str, steps: int) -> tuple[Any, Callable[[Any], float], int]:
    import gymnasium
    import torch
    from cases import HideVelocities
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.utils import LinearSchedule
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize, sync_envs_normalization

    def environments(at: int) -> Any:
        make = lambda: Monitor(HideVelocities(gymnasium.make(task.original), task.velocities))  # noqa: E731
        env = DummyVecEnv([make for _ in range(task.n_envs)])
        env.seed(at)
        return env

    arguments = dict(task.zoo)
    if task.falling:
        arguments |= {name: LinearSchedule(arguments[name], 0.0, 1.0) for name in ("learning_rate", "clip_range")}
    env = VecNormalize(environments(1000 * seed), gamma=arguments["gamma"])
    test_env = VecNormalize(environments(1000 * seed + 500), training=False, norm_reward=False)
    heads: Any = dict(pi=[64], vf=[64])
    policy = dict(lstm_hidden_size=task.hidden, enable_critic_lstm=True, net_arch=heads, ortho_init=False)
    if not task.name.startswith("mountaincar"):
        policy["activation_fn"] = torch.nn.ReLU
    model = RecurrentPPO("MlpLstmPolicy", env, seed=seed, device="cpu", policy_kwargs=policy, **arguments)

    def returns(model: Any) -> float:
        sync_envs_normalization(env, test_env)
        mean, _ = evaluate_policy(model, test_env, EPISODES, deterministic=True)
        return float(mean)

    return model, returns, steps or task.limit


def summary(result: Result) -> str:
    verdict = "solved" if result["solved"] else "not solved"
    clocks = f"{result['training']:.1f} s of training, {result['processor']:.1f} s of the processor"
    values = " ".join(f"{value:.0f}" for _, value in result["curve"])
    return f"{verdict} after {result['steps']:,} steps, {clocks}, {result['in_all']:.1f} s with evaluations: {values}"


# The section of docs/learning.md


def write_section() -> None:
    """Between the marks in docs/learning.md."""
    found = records.read("solution")
    rows = [row for task in TASKS for learner in (OURS, THEIRS) if (row := _row(task, learner, found))]
    columns = "task | learner | solved | steps | processor, s | times ours"
    settings = [f"- {task.title}: `{task.ours}`" for task in TASKS]
    lines = ["Settings of RecuRL, as words for `train.py`:", "", *settings, "", records.processors(found), ""]
    records.write_between("learning", "solution", ["", *lines, *records.table(columns, rows), ""])


def _row(task: Task, learner: str, found: list[Result]) -> list[object]:
    runs, ours = (by_seed(found, f"{task.name}/{each}") for each in (learner, OURS))
    if not runs:
        return []
    solved = sum(run["solved"] for run in runs)
    clocks = [_median(runs, key) for key in CLOCKS]
    name = "RecuRL" if learner == OURS else learner
    steps = f"{_median(runs, 'steps'):,.0f}"
    ratio = "" if learner == OURS or not ours else f"{clocks[-1] / _median(ours, CLOCKS[-1]):.0f}"
    return [task.title, name, f"{solved} of {len(runs)}", steps, *(f"{clock:.1f}" for clock in clocks), ratio]


def _median(runs: list[Result], key: str) -> float:
    """Over seeds; a run that was not solved counts with what it took until its limit, so it is a lower bound."""
    return float(np.median([run[key] for run in runs]))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
