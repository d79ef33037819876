"""What is learned: returns against published results and known optima, and curves against sb3-contrib's.

    python benchmarks/learning.py                        all runs that have no result yet, then the page and the plot
    python benchmarks/learning.py --only pendulum        those whose name contains this
    python benchmarks/learning.py --report               the page and the plot of what there is

A run's result is appended to docs/results/learning.jsonl when the run ends, so a benchmark that was killed goes on with
the next seed; deleting a line repeats its run. Two kinds of runs:

- *tasks*: ``train.py`` with the settings in configs/, then 300 episodes of the best checkpoint by periodic evaluation.
- *equal*: sb3-contrib's RecurrentPPO and ours, the same script for both with RL Baselines3 Zoo's settings, evaluated
  every so many steps. The last network counts, not the best.

Axes: S seeds, E episodes, P points of a curve.
"""

import csv
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import records
import tyro
from numpy.typing import NDArray
from records import Run

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
RESULTS = DOCS / "results" / "learning.jsonl"
EPISODES = 300
RESAMPLES = 10_000
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Settings(records.Settings):
    """Learning of RecuRL against published results and sb3-contrib."""

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
    Task(
        "cartpole",
        "CartPole without velocities",
        "cartpole_novel",
        ("lstm",),
        goal=500.0,
        source="RL Zoo: 500.0 +- 0.0",
    ),
    Task(
        "pendulum",
        "Pendulum without velocities",
        "pendulum_novel",
        ("lstm",),
        goal=-217.9,
        source="RL Zoo: -217.9 +- 140.1",
    ),
    Task(
        "mountaincar",
        "MountainCarContinuous without velocities",
        "mountaincar_novel",
        ("lstm",),
        goal=91.5,
        source="RL Zoo: 91.5 +- 1.8",
    ),
    Task(
        "tmaze",
        "T-maze, length 20",
        "tmaze",
        ("lstm", "gru", "none"),
        goal=0.95,
        source="best possible: 1",
        memoryless=0.5,
    ),
    Task(
        "repeat",
        "RepeatPrevious, k = 4",
        "repeat_previous",
        ("lstm", "gru", "none"),
        goal=0.95,
        source="best possible: 1",
        memoryless=-25 / 51,
    ),
]


def main(settings: Settings) -> None:
    sys.path.insert(0, str(ROOT))  # from a checkout, installed or not
    records.run_all(settings, all_runs, RESULTS, _said, write_docs)


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


def _said(result: dict[str, Any]) -> str:
    returns, steps, seconds = result["returns"], result["steps"], result["seconds"]
    return f"{result['name']}: {np.mean(returns):.2f} after {steps} steps, {seconds:.0f} s"


# Tasks, by train.py


def _task_run(task: Task, memory: str, seed: int) -> Callable[[int], dict[str, Any]]:
    return lambda steps: trained(["--config", task.config, "--policy.memory", memory, "--seed", str(seed)], steps)


def trained(words: list[str], steps: int = 0) -> dict[str, Any]:
    """What ``train.py`` with these words comes to: its steps, seconds, curve and the returns of its best checkpoint.

    ``steps`` in place of the settings' own; 0: those.
    """
    import configs
    import train

    with tempfile.TemporaryDirectory() as folder:
        asked = configs.parse(
            [
                *words,
                *("--total-timesteps", str(steps)) * bool(steps),
                *("--evaluation.final-episodes", str(EPISODES), "--checkpoint.every", "0"),
                *("--tracking.no-tensorboard", "--no-progress"),
                *("--device", "cpu", "--runs", folder, "--name", "run"),
            ]
        )
        total = asked.settings.total_timesteps
        began = time.perf_counter()
        run = train.train(asked.settings)
        seconds = time.perf_counter() - began
        with open(run.path / "evaluations.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        (final,) = (run.path / "evaluations").glob("best-*.json")
        returns = json.loads(final.read_text())["returns"]
    curve = [[int(row["step"]), float(row["mean_reward"])] for row in rows]
    return dict(steps=total, seconds=seconds, curve=curve, returns=returns)


# Equal settings, by one script for both


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


def _equal_run(name: str, learner: str, seed: int) -> Callable[[int], dict[str, Any]]:
    def start(steps: int) -> dict[str, Any]:
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
            evaluation = EvalCallback(
                test_env,
                eval_freq=max(total // POINTS // chosen["n_envs"], 1),
                n_eval_episodes=20,
                log_path=folder,
                deterministic=True,
                verbose=0,
            )
            began = time.perf_counter()
            model.learn(total, callback=evaluation)
            seconds = time.perf_counter() - began
            with np.load(pathlib.Path(folder) / "evaluations.npz") as written:
                steps_of, returns = written["timesteps"].tolist(), written["results"].mean(axis=1).tolist()
                last = written["results"][-1].tolist()
        return dict(
            steps=total,
            seconds=seconds,
            curve=[list(point) for point in zip(steps_of, returns, strict=True)],
            returns=last,
        )

    return start


# Statistics


def interquartile_mean(values: Values) -> Values:
    """(..., N) -> (...): the mean of the middle half, a quarter (rounded down) cut off on each side."""
    cut = values.shape[-1] // 4
    result: Values = np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1)
    return result


def interval(returns: Values, statistic: Callable[[Values], Values]) -> tuple[float, float]:
    """(S, E) -> 95 % bootstrap interval of a statistic of all episodes: seeds are drawn, then episodes of each."""
    rng = np.random.default_rng(0)
    n_seeds, n_episodes = returns.shape
    drawn = []
    for _ in range(RESAMPLES // 100):
        seeds = rng.integers(n_seeds, size=(100, n_seeds, 1))
        episodes = rng.integers(n_episodes, size=(100, n_seeds, n_episodes))
        drawn.append(statistic(returns[seeds, episodes].reshape(100, -1)))
    low, high = np.percentile(np.concatenate(drawn), [2.5, 97.5])
    return float(low), float(high)


def mean(values: Values) -> Values:
    result: Values = values.mean(axis=-1)
    return result


def curve_interval(curves: Values) -> tuple[Values, Values]:
    """(S, P) -> (P,), (P,): 95 % bootstrap interval over seeds of the mean at every point."""
    rng = np.random.default_rng(0)
    drawn = curves[rng.integers(len(curves), size=(RESAMPLES, len(curves)))].mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return low, high


# The page and the plot


def write_docs(found: list[dict[str, Any]]) -> None:
    lines = [
        "# Learning",
        "",
        "    python benchmarks/learning.py",
        "",
        "Intervals are 95 % bootstrap intervals: seeds are drawn, then episodes of each. The middle half's mean is the",
        "interquartile mean.",
        "",
        "## Tasks",
        "",
        f"Trained by `train.py` with the settings in `configs/`; {EPISODES} episodes a seed of the best",
        "checkpoint, the most probable action taken.",
        "",
        "The rows were measured before the defaults changed on which those files build. With today's, CartPole",
        "without velocities returned 500 with the last policy, sampled and deterministic, with nine of the seeds 0",
        "to 9, and 499.8 (499.2 to 500) sampled and 500 deterministic with the other: 200,000 steps, 100 episodes",
        "each way, 41 to 62 CPU seconds on one thread of an AMD EPYC.",
        "",
        "| task | memory | seeds | steps | mean | interval | middle half's mean | interval | goal | verdict | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(row for task in TASKS for memory in task.memories for row in _task_rows(task, memory, found)),
        "",
        "## Equal settings and seeds as sb3-contrib",
        "",
        "The same script with RL Baselines3 Zoo's settings for both; mean return of 20 episodes at each point, the",
        "network as it is then. *Inside*: points at which our mean lies in sb3-contrib's interval.",
        "",
        "| task | seeds | inside | sb3-contrib at the end | RecuRL at the end | sb3-contrib, s | RecuRL, s |",
        "|---|---|---|---|---|---|---|",
        *(row for name in EQUAL for row in _equal_rows(name, found)),
        "",
        "![curves](learning.png)",
    ]
    DOCS.mkdir(exist_ok=True)
    (DOCS / "learning.md").write_text("\n".join(lines) + "\n")
    plot(found, DOCS / "learning.png")


def of(found: list[dict[str, Any]], prefix: str) -> list[dict[str, Any]]:
    """The results of all seeds of one kind of run, by seed."""
    chosen = [result for result in found if result["name"].startswith(prefix + "/")]
    return sorted(chosen, key=lambda result: int(result["name"].rsplit("/", 1)[1]))


def _task_rows(task: Task, memory: str, found: list[dict[str, Any]]) -> list[str]:
    runs = of(found, f"task/{task.name}/{memory}")
    if not runs:
        return []
    returns = np.array([run["returns"] for run in runs])
    whole, middle = returns.ravel().mean(), float(interquartile_mean(returns.ravel()))
    spans = [interval(returns, statistic) for statistic in (mean, interquartile_mean)]
    texts = [f"{low:.3g} to {high:.3g}" for low, high in spans]
    seconds = np.median([run["seconds"] for run in runs])
    verdict = _verdict(task, memory, whole, spans[0])
    goal = f"{task.goal:g} ({task.source})" if memory != "none" else f"{task.memoryless:.3g} without memory"
    return [
        f"| {task.title} | {memory} | {len(runs)} | {runs[0]['steps']:,} | {whole:.3f} | {texts[0]} | {middle:.3f} "
        f"| {texts[1]} | {goal} | {verdict} | {seconds:.0f} |"
    ]


def _verdict(task: Task, memory: str, whole: float, span: tuple[float, float]) -> str:
    """A known optimum is reached by the mean; a published figure where it does not lie above the interval."""
    if memory == "none" and task.memoryless is not None:
        return "stays memoryless" if span[0] <= task.memoryless + 0.05 else "above the memoryless return"
    best = whole if task.memoryless is not None else span[1]
    return "reached" if best >= task.goal else "not reached"


def _equal_rows(name: str, found: list[dict[str, Any]]) -> list[str]:
    curves = equal_curves(name, found)
    if curves is None:
        return []
    steps, theirs, ours = curves
    low, high = curve_interval(theirs)
    inside = int(((ours.mean(axis=0) >= low) & (ours.mean(axis=0) <= high)).sum())
    last_low, last_high = curve_interval(ours)
    seconds = [
        np.median([run["seconds"] for run in of(found, f"equal/{name}/{who}")]) for who in ("sb3-contrib", "recurl")
    ]
    return [
        f"| {name} | {len(theirs)} and {len(ours)} | {inside} of {len(steps)} "
        f"| {theirs[:, -1].mean():.1f} ({low[-1]:.1f} to {high[-1]:.1f}) "
        f"| {ours[:, -1].mean():.1f} ({last_low[-1]:.1f} to {last_high[-1]:.1f}) | {seconds[0]:.0f} "
        f"| {seconds[1]:.0f} |"
    ]


def equal_curves(name: str, found: list[dict[str, Any]]) -> tuple[Values, Values, Values] | None:
    """Steps (P,), curves of theirs (S, P) and of ours (S, P); None before both have a run."""
    sides = [of(found, f"equal/{name}/{who}") for who in ("sb3-contrib", "recurl")]
    if not all(sides):
        return None
    n_points = min(len(run["curve"]) for side in sides for run in side)
    theirs, ours = (np.array([[value for _, value in run["curve"][:n_points]] for run in side]) for side in sides)
    return np.array([step for step, _ in sides[0][0]["curve"][:n_points]]), theirs, ours


def plot(found: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Curves: sb3-contrib and ours with their intervals, then every task's seeds by memory."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = {"lstm": "#c44e52", "gru": "#4c72b0", "none": "#8c96a3", "sb3-contrib": "#8c96a3", "RecuRL": "#c44e52"}
    panels = [name for name in EQUAL if equal_curves(name, found) is not None]
    tasks = [task for task in TASKS if any(of(found, f"task/{task.name}/{memory}") for memory in task.memories)]
    count = max(len(panels) + len(tasks), 1)
    figure, axes = plt.subplots(
        -(-count // 3), min(count, 3), figsize=(4.6 * min(count, 3), 3.1 * -(-count // 3)), squeeze=False
    )
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[count:]:
        axis.axis("off")
    for axis, name in zip(axes.flat, panels, strict=False):
        steps, theirs, ours = equal_curves(name, found) or (np.array([]),) * 3
        for label, curves in (("sb3-contrib", theirs), ("RecuRL", ours)):
            low, high = curve_interval(curves)
            axis.plot(steps, curves.mean(axis=0), color=colours[label], label=label)
            axis.fill_between(steps, low, high, color=colours[label], alpha=0.2, linewidth=0)
        axis.set_title(f"{name}, equal settings and seeds", fontsize=9)
        axis.legend(fontsize=7, frameon=False)
    for axis, task in zip(list(axes.flat)[len(panels) :], tasks, strict=False):
        for memory in task.memories:
            for seed, run in enumerate(of(found, f"task/{task.name}/{memory}")):
                steps, returns = np.array(run["curve"]).T
                axis.plot(steps, returns, color=colours[memory], linewidth=1, label=memory if seed == 0 else None)
        axis.axhline(task.goal, color="black", linewidth=0.6, linestyle=":")
        axis.set_title(task.title, fontsize=9)
        axis.legend(fontsize=7, frameon=False)
    figure.supxlabel("environment steps", fontsize=9)
    figure.supylabel("mean return", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
