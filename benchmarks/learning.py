"""What is learned: returns against published results and known optima, and curves against sb3-contrib's.

    python benchmarks/learning.py                        all runs that have no result yet, then the page and the plot
    python benchmarks/learning.py --only pendulum        those whose name contains this
    python benchmarks/learning.py --report               the page and the plot of what there is

Two kinds of runs:

- *tasks*: ``train.py`` with the settings in configs/, then 300 episodes of the last policy and of the best
  checkpoint by periodic evaluation.
- *equal*: sb3-contrib's RecurrentPPO and ours, the same script for both with RL Baselines3 Zoo's settings, evaluated
  every so many steps. The last network counts, not the best.

Axes: S seeds, P points of a curve.
"""

import pathlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import published
import records
import solution
import tyro
from measuring import processor
from records import Result, Run, Values, by_seed


@dataclass(frozen=True)
class Settings(records.Settings):
    """Learning of RecuRL against published results and sb3-contrib."""

    seeds: int = 10
    """Seeds of every task and memory."""
    equal_seeds: int = 5
    """Seeds of every curve against sb3-contrib."""


@dataclass(frozen=True)
class Task:
    """A task, how it is trained, and what a return of it means.

    ``config`` is a file of configs/. ``goal`` is the mean return to reach and ``source`` where it comes from;
    ``memoryless`` is the best return without memory, if it is known.
    """

    name: str
    title: str
    config: str
    memories: tuple[str, ...]
    goal: float
    source: str
    memoryless: float | None = None


# Published are RL Baselines3 Zoo's figures for ppo_lstm, from its benchmark table: mean +- deviation between episodes.
TASKS = [
    Task("cartpole", "CartPole without velocities", "cartpole_novel", ("lstm",), 500.0, "RL Zoo: 500.0 +- 0.0"),
    Task(
        "pendulum",
        "Pendulum without velocities",
        "pendulum_novel",
        ("hybrid", "lstm"),
        -217.9,
        "RL Zoo: -217.9 +- 140.1",
    ),
    Task(
        "mountaincar",
        "MountainCarContinuous without velocities",
        "mountaincar_novel",
        ("lstm",),
        91.5,
        "RL Zoo: 91.5 +- 1.8",
    ),
    Task("tmaze", "T-maze, length 20", "tmaze", ("lstm", "gru", "none"), 0.95, "best possible: 1", 0.5),
    Task(
        "repeat",
        "RepeatPrevious, k = 4",
        "repeat_previous",
        ("lstm", "gru", "none"),
        0.95,
        "best possible: 1",
        -25 / 51,
    ),
]


def main(settings: Settings) -> None:
    records.run_all(settings, "learning", all_runs(settings), summary, write_docs)


def all_runs(settings: Settings) -> list[Run]:
    """Seed by seed, so that a first seed of everything is there early."""
    runs = []
    for seed in range(max(settings.seeds, settings.equal_seeds)):
        for task in TASKS:
            for memory in task.memories if seed < settings.seeds else ():
                runs.append(Run(f"task/{task.name}/{memory}/{seed}", _task_run(task, memory, seed)))
        for name in EQUAL if seed < settings.equal_seeds else ():
            for learner in ("recurl", "sb3-contrib"):
                runs.append(Run(f"equal/{name}/{learner}/{seed}", _equal_run(name, learner, seed)))
    return runs


def summary(result: Result) -> str:
    return f"{np.mean(result['returns']):.2f} after {result['steps']} steps, {result['seconds']:.0f} s"


def _task_run(task: Task, memory: str, seed: int) -> Callable[[int], Result]:
    words = ["--config", task.config, "--policy.memory", memory, "--seed", str(seed)]
    return lambda steps: {**records.trained(words, steps), "cpu": processor()}


EQUAL: dict[str, dict[str, Any]] = {
    "cartpole": dict(
        task="early",
        n_envs=8,
        steps=100_000,
        linear=True,
        algorithm=dict(n_steps=32, batch_size=256, n_epochs=20, gamma=0.98, gae_lambda=0.8, learning_rate=1e-3),
        policy=dict(lstm_hidden_size=64, enable_critic_lstm=True, net_arch=dict(pi=[64], vf=[64])),
    ),
    "pendulum": dict(
        task="pendulum",
        n_envs=4,
        steps=100_000,
        linear=False,
        algorithm=dict(
            n_steps=1024,
            batch_size=128,
            n_epochs=10,
            gamma=0.9,
            gae_lambda=0.95,
            learning_rate=1e-3,
            use_sde=True,
            sde_sample_freq=4,
        ),
        policy=dict(lstm_hidden_size=64, enable_critic_lstm=True, net_arch=dict(pi=[64], vf=[64]), ortho_init=False),
    ),
}
POINTS = 10


def _equal_run(name: str, learner: str, seed: int) -> Callable[[int], Result]:
    def start(steps: int) -> Result:
        import sb3_contrib
        import torch
        from cases import Case, Network, usual_env
        from stable_baselines3.common.callbacks import EvalCallback
        from stable_baselines3.common.utils import LinearSchedule
        from stable_baselines3.common.vec_env import VecNormalize

        import agents

        torch.set_num_threads(1)
        chosen = EQUAL[name]
        total, gamma = steps or chosen["steps"], chosen["algorithm"]["gamma"]

        def environments(n_envs: int, at: int) -> Any:
            case = Case(name, chosen["task"], Network(), (), n_envs=n_envs)
            return usual_env(case, seed=at)

        algorithm: dict[str, Any] = dict(chosen["algorithm"])
        if chosen["linear"]:
            algorithm["learning_rate"] = LinearSchedule(algorithm["learning_rate"], 0.0, 1.0)
            algorithm["clip_range"] = LinearSchedule(0.2, 0.0, 1.0)
        env = VecNormalize(environments(chosen["n_envs"], 1000 * seed), gamma=gamma)
        test_env = VecNormalize(environments(chosen["n_envs"], 1000 * seed + 500), training=False, norm_reward=False)
        made: Any = sb3_contrib.RecurrentPPO if learner == "sb3-contrib" else agents.RecurrentPPO
        policy_kwargs = dict(chosen["policy"], activation_fn=torch.nn.ReLU)
        model = made("MlpLstmPolicy", env, seed=seed, device="cpu", policy_kwargs=policy_kwargs, **algorithm)
        with tempfile.TemporaryDirectory() as folder:
            every = max(total // POINTS // chosen["n_envs"], 1)
            evaluation = EvalCallback(test_env, eval_freq=every, n_eval_episodes=20, log_path=folder, verbose=0)
            began = time.perf_counter()
            model.learn(total, callback=evaluation)
            seconds = time.perf_counter() - began
            with np.load(pathlib.Path(folder) / "evaluations.npz") as written:
                steps_of, returns = written["timesteps"].tolist(), written["results"].mean(axis=1).tolist()
                last = written["results"][-1].tolist()
        curve = [list(point) for point in zip(steps_of, returns, strict=True)]
        return dict(steps=total, seconds=seconds, curve=curve, returns=last, cpu=processor())

    return start


PAGE = """# Learning

    python benchmarks/learning.py

Intervals are 95 % bootstrap intervals: seeds are resampled, then episodes of each.

## Tasks

Trained by `train.py` with the settings in `configs/`, deterministic actions. *Last policy*: the one that training ends
with{}. *Best checkpoint*: the best of the periodic evaluations, evaluated again on
300 episodes; which of them was the best was chosen knowing the returns, so the verdict is about the last policy. It is
*reached* where the interval lies above the goal, *not reached* where it lies below, and *undecided* where it holds the
goal.

One thread each; seconds include the evaluations. {}

{}

## Equal settings and seeds as sb3-contrib

The same script with RL Baselines3 Zoo's settings for both; mean return of 20 episodes at each point, with the
network at that point, the last and not the best. *Inside*: points at which RecuRL's mean lies in sb3-contrib's
interval. {}

{}

![curves](learning.png)

Bands are 95 % intervals of the mean over seeds; of each task a line is a seed, and the dotted line the goal.

## Against published results

Ours: the last policy, 100 episodes each way, the worse of sampled and deterministic actions, the mean over seeds, of
runs with the one default, or in brackets a switch of [robustness.md](robustness.md) where the default has not run; for
RL Zoo's rows with a settings file for each task, as there, deterministic actions. A row is met by a return that is at
least the published one, in three decimals, after no more environment steps. Published figures differ in what they are:
see the sources.

<!-- published -->
<!-- /published -->

## Time to solution

    python benchmarks/solution.py

RecuRL and sb3-contrib in turn on one thread, until three evaluations in a row reach the level (475, -250, 90): 20
episodes each, deterministic actions, after the same number of steps for both. sb3-contrib has RL Baselines3 Zoo's
settings and gymnasium's environments, as its users run it. Medians over seeds; of runs that did not get there within
RL Zoo's steps, the seconds until their end. *Processor*: seconds of training that the processor spent on it, which
other work on the machine does not lengthen, and by which *times ours* is. Eighteen settings of ours for CartPole were
tried with the same seeds: these are among the best, which differ by less than their seeds do, and no run of any took
less than 1.6 seconds. The fastest of twenty more with seeds 5 to 9, a GRU with 32 environments x 64 steps, three epochs
and twice the rate, took 1.4 seconds there, but with these five seeds 2.2 and left one unsolved: 19 times.

<!-- solution -->
<!-- /solution -->
"""


def write_docs(found: list[Result]) -> None:
    tasks = [_task_row(task, memory, found) for task in TASKS for memory in task.memories]
    equal = [_equal_row(name, found) for name in EQUAL]
    columns = "task | memory | seeds | steps | last policy | best checkpoint | goal | verdict | s"
    kept = [run for run in found if run["name"].startswith("task/")]
    measured = " on 300 episodes" if all("last" in run for run in kept) else ", in its last periodic evaluation"
    equal_columns = "task | seeds | inside | sb3-contrib at the end | RecuRL at the end | sb3-contrib, s | RecuRL, s"
    records.write_page(
        "learning",
        PAGE,
        [measured],
        [records.processors(kept)],
        records.table(columns, [row for row in tasks if row]),
        [records.processors(run for run in found if run["name"].startswith("equal/"))],
        records.table(equal_columns, [row for row in equal if row]),
    )
    published.write_section()
    solution.write_section()
    plot(found)


def _task_row(task: Task, memory: str, found: list[Result]) -> list[object]:
    runs = by_seed(found, f"task/{task.name}/{memory}")
    if not runs:
        return []
    last, best = (np.array([of(run) for run in runs]) for of in (_last, lambda run: run["returns"]))
    figures = [records.figure(returns) for returns in (last, best)]
    goal = f"{task.goal:g} ({task.source})" if memory != "none" else f"{task.memoryless:.3g} without memory"
    seconds = f"{np.median([run['seconds'] for run in runs]):.0f}"
    return [
        task.title,
        memory,
        len(runs),
        f"{runs[0]['steps']:,}",
        *figures,
        goal,
        _verdict(task, memory, last),
        seconds,
    ]


def _last(run: Result) -> list[float]:
    """Returns of the last policy; of older results there is only the mean of its last periodic evaluation."""
    return run["last"] if "last" in run else [run["curve"][-1][1]]


def _verdict(task: Task, memory: str, returns: Values) -> str:
    """Where the interval lies against the goal; without a memory, against what is possible without one."""
    low, high = records.interval(returns)
    if memory == "none" and task.memoryless is not None:
        most = task.memoryless + 0.05
        return "stays memoryless" if high <= most else "above the memoryless return" if low > most else "undecided"
    return "reached" if low >= task.goal else "not reached" if high < task.goal else "undecided"


def _equal_row(name: str, found: list[Result]) -> list[object]:
    curves = equal_curves(name, found)
    if curves is None:
        return []
    steps, theirs, ours = curves
    low, high = records.curve_interval(theirs)
    inside = int(((ours.mean(axis=0) >= low) & (ours.mean(axis=0) <= high)).sum())
    row: list[object] = [name, f"{len(theirs)} and {len(ours)}", f"{inside} of {len(steps)}"]
    for side in (theirs, ours):
        low, high = records.curve_interval(side)
        row.append(f"{side[:, -1].mean():.1f} ({low[-1]:.1f} to {high[-1]:.1f})")
    for learner in ("sb3-contrib", "recurl"):
        row.append(f"{np.median([run['seconds'] for run in by_seed(found, f'equal/{name}/{learner}')]):.0f}")
    return row


def equal_curves(name: str, found: list[Result]) -> tuple[Values, Values, Values] | None:
    """Steps (P,), curves of theirs (S, P) and of ours (S, P); None before both have a run."""
    sides = [by_seed(found, f"equal/{name}/{learner}") for learner in ("sb3-contrib", "recurl")]
    if not all(sides):
        return None
    n_points = min(len(run["curve"]) for side in sides for run in side)
    theirs, ours = (np.array([[value for _, value in run["curve"][:n_points]] for run in side]) for side in sides)
    return np.array([step for step, _ in sides[0][0]["curve"][:n_points]]), theirs, ours


COLORS = {"lstm": "#c44e52", "hybrid": "#55a868", "gru": "#4c72b0", "none": "#8c96a3"}
COLORS |= {"sb3-contrib": "#8c96a3", "RecuRL": "#c44e52"}


def plot(found: list[Result]) -> None:
    """Curves: sb3-contrib and ours with their intervals, then every task's seeds by memory."""
    equal = {name: curves for name in EQUAL if (curves := equal_curves(name, found)) is not None}
    tasks = [task for task in TASKS if any(by_seed(found, f"task/{task.name}/{memory}") for memory in task.memories)]
    count = max(len(equal) + len(tasks), 1)
    figure, axes = records.subplots(-(-count // 3), min(count, 3), 4.6, 3.1)
    panels = list(axes.flat)
    for axis in panels[count:]:
        axis.axis("off")
    for axis, (name, (steps, theirs, ours)) in zip(panels, equal.items(), strict=False):
        for label, curves in (("sb3-contrib", theirs), ("RecuRL", ours)):
            low, high = records.curve_interval(curves)
            axis.plot(steps, curves.mean(axis=0), color=COLORS[label], label=label)
            axis.fill_between(steps, low, high, color=COLORS[label], alpha=0.2, linewidth=0)
        axis.set_title(f"{name}, equal settings and seeds", fontsize=9)
    for axis, task in zip(panels[len(equal) :], tasks, strict=False):
        for memory in task.memories:
            for seed, run in enumerate(by_seed(found, f"task/{task.name}/{memory}")):
                steps, returns = np.array(run["curve"]).T
                axis.plot(steps, returns, color=COLORS[memory], linewidth=1, label=memory if seed == 0 else None)
        axis.axhline(task.goal, color="black", linewidth=0.6, linestyle=":")
        axis.set_title(task.title, fontsize=9)
    for axis in panels[: len(equal) + len(tasks)]:
        axis.legend(fontsize=7, frameon=False)
        axis.xaxis.set_major_formatter(lambda steps, _: f"{steps / 1000:.0f}k")
    figure.supxlabel("environment steps", fontsize=9)
    figure.supylabel("mean return", fontsize=9)
    records.save_plot(figure, records.DOCS / "learning.png")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
