"""Which memory learns what: every memory on three tasks of rising memory length, with the same steps for all.

    python benchmarks/memories.py                        all runs that have no result yet, then the page and the plot
    python benchmarks/memories.py --only copy            those whose name contains this
    python benchmarks/memories.py --steps 10000          a trial whose results are printed, not kept
    python benchmarks/memories.py --report               the page and the plot of what there is

Two kinds of runs:

- *task/length/learner/seed*: ``train.py`` with the task's settings in configs/, then 300 episodes of the best
  checkpoint by periodic evaluation. The learners are all of ``agents.memory.MEMORIES`` ("none" among them), 64 units
  each, and "stack": no memory, but the last 64 observations at once. A memory with a window has one of 64 too.
- *cost/learner*: seconds of collecting and of training, state and parameters, on one of the tasks.
"""

import inspect
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import records
import tyro
from records import Result, Run, by_seed

WINDOW = 64
STACK = "stack"
GOAL = 0.95
"""A mean return of the last evaluation that counts as solved."""
ENOUGH = 0.99
"""A mean return of a periodic evaluation that ends a run early: there is nothing left to learn."""


@dataclass(frozen=True)
class Settings(records.Settings):
    """Every memory on tasks of rising memory length."""


class Level(NamedTuple):
    """A task at one memory length: arguments of the environment, and the steps that every learner gets."""

    length: int
    kwargs: dict[str, int]
    steps: int


@dataclass(frozen=True)
class Task:
    """A task of rising memory length. ``config`` is a file of configs/, ``unit`` what the length counts."""

    name: str
    title: str
    config: str
    unit: str
    levels: tuple[Level, ...]


TASKS = [
    Task(
        "tmaze",
        "T-maze",
        "tmaze",
        "steps a sign is kept",
        tuple(
            Level(length, dict(length=length), steps)
            for length, steps in ((10, 200_000), (30, 300_000), (100, 600_000))
        ),
    ),
    Task(
        "associative_recall",
        "Associative recall",
        "associative_recall",
        "pairs of key and value kept",
        tuple(
            Level(pairs, dict(pairs=pairs, keys=2 * pairs, queries=pairs), steps)
            for pairs, steps in ((2, 300_000), (4, 500_000), (8, 600_000))
        ),
    ),
    Task(
        "copy",
        "Copy",
        "copy",
        "symbols kept, in order",
        tuple(
            Level(length, dict(length=length), steps) for length, steps in ((2, 300_000), (4, 500_000), (8, 600_000))
        ),
    ),
]
COST = "associative_recall"
"""The task on which costs are measured, at its middle length."""


def main(settings: Settings) -> None:
    records.run_all(settings, "memories", all_runs(settings), summary, write_docs)


def learners() -> list[str]:
    """The memories there are, the stack of observations, and last what has neither."""
    from agents.memory import MEMORIES

    return [*(name for name in MEMORIES if name != "none"), STACK, "none"]


def all_runs(settings: records.Settings) -> list[Run]:
    """Costs, then seed by seed, so that a first seed of everything is there early."""
    runs = [Run(f"cost/{learner}", _cost_run(learner)) for learner in learners()]
    for seed in range(settings.seeds):
        for task in TASKS:
            for level in task.levels:
                for learner in learners():
                    name = f"{task.name}/{level.length}/{learner}/{seed}"
                    runs.append(Run(name, _task_run(task, level, learner, seed)))
    return runs


def summary(result: Result) -> str:
    if "returns" in result:
        return f"{np.mean(result['returns']):.2f} after {result['curve'][-1][0]} steps, {result['seconds']:.0f} s"
    return f"acting {result['acting']:.1f}, training {result['training']:.1f} microseconds a step"


def words(task: Task, level: Level, learner: str, seed: int) -> list[str]:
    """The command line of ``train.py``: the task's settings, 64 units or so many frames, the same steps for all."""
    return [
        *("--config", task.config, "--seed", str(seed), "--threads", "1"),
        *("--total-timesteps", str(level.steps), "--evaluation.stop-at-return", str(ENOUGH)),
        *("--env.kwargs", *(f"{name}={value}" for name, value in level.kwargs.items())),
        *_learner_words(learner),
    ]


def _learner_words(learner: str) -> list[str]:
    if learner == STACK:
        return ["--policy.memory", "none", "--env.wrappers", f"{{history: {{length: {WINDOW}}}}}"]
    from agents.memory import memory_class

    has_window = "window" in inspect.signature(memory_class(learner)).parameters
    return ["--policy.memory", learner, *["--policy.memory-kwargs", f"window={WINDOW}"] * has_window]


def _task_run(task: Task, level: Level, learner: str, seed: int) -> Callable[[int], Result]:
    return lambda steps: records.trained(words(task, level, learner, seed), steps)


def _cost_run(learner: str) -> Callable[[int], Result]:
    """Medians over rollouts, the first left out, of the agent as it is trained: environments and heads included."""

    def start(steps: int) -> Result:
        from stable_baselines3.common.callbacks import BaseCallback

        class Clock(BaseCallback):
            def __init__(self) -> None:
                super().__init__()
                self.marks: list[float] = []

            def _on_rollout_start(self) -> None:
                self.marks.append(time.perf_counter())

            _on_rollout_end = _on_rollout_start

            def _on_step(self) -> bool:
                return True

        (task,) = (task for task in TASKS if task.name == COST)
        agent, settings = records.agent_of(words(task, task.levels[1], learner, seed=0))
        rollout = settings.env.n_envs * settings.algorithm.n_steps
        clock = Clock()
        agent.learn(steps or 8 * rollout, clock)
        marks = [*clock.marks, time.perf_counter()]  # rollout, training, rollout, training, ...
        collecting, training = np.diff(marks)[0::2], np.diff(marks)[1::2]
        state = sum(part[0].numel() for part in agent.policy.memory_actor.initial_state(1))
        if learner == STACK:
            state = int(np.prod(agent.observation_space.shape or ()))
        agent.env.close()
        later = slice(1, None) if len(collecting) > 1 else slice(None)
        return dict(
            acting=1e6 * statistics.median(collecting[later]) / rollout,
            training=1e6 * statistics.median(training[later]) / rollout / settings.algorithm.n_epochs,
            state=state,
            parameters=sum(parameter.numel() for parameter in agent.policy.parameters()),
        )

    return start


PAGE = """# Which memory learns what

    python benchmarks/memories.py

Every memory on three tasks of rising memory length, with the same settings (those in `configs/`), the same
budget of steps and 64 units for all; windows hold 64 steps. A run ends early when an evaluation,
every 50,000 steps, reaches 0.99. *stack* has no memory and sees the last 64 observations at
once, *none* sees the present one alone. The settings suit an LSTM; nothing was tuned for the others.

![return against memory length](memories.png)

Bars are 95 % bootstrap intervals; dashed is the best that is possible without memory.

## The best memories of each task

The highest mean, and those whose interval contains it: not significantly different.

{}

Associative recall against a plain GRU, by intervals that do not overlap:

{}

## Costs

Microseconds an environment step: acting with the environments and normalization, training one epoch. State:
numbers carried for each environment between steps (stack: those of its window).

{}

## Returns

Mean return of 300 episodes a seed of the best checkpoint, deterministic actions,
with its 95 % bootstrap interval: seeds are resampled, then episodes of each. The best possible is 1. *Solved*: a
mean of at least 0.95 with every seed, or with as many as are named. *Memoryless*: with none, and an
interval that reaches down to what is possible without memory, or within 0.05 of it. A return of 0 in the
T-maze is an agent that walks to the junction and has not found that a turn pays there: only the last step of
an episode can show it.
*Ended*: the environment step at which a run was solved or out of steps, of each seed.
Seconds are those of a complete run, evaluations included; the median.

{}
"""


def write_docs(found: list[Result]) -> None:
    known = all_intervals(found)
    levels = [(task, level) for task in TASKS for level in task.levels]
    costs = [result for result in found if result["name"].startswith("cost/")]
    returns = "task | length | memory | budget | ended | mean | interval | verdict | s"
    records.write_page(
        "memories",
        PAGE,
        records.table(
            "task | length | highest mean | not significantly different",
            [_best_row(task, level, known) for task, level in levels if known[task.name, level.length]],
        ),
        _recall_lines(known),
        records.table("memory | state | parameters | acting | training", [_cost_row(result) for result in costs]),
        records.table(
            returns,
            [
                _row(task, level, learner, found, known)
                for task, level in levels
                for learner in known[task.name, level.length]
            ],
        ),
    )
    plot(known)


Interval = tuple[float, float, float]
Known = dict[tuple[str, int], dict[str, Interval]]


def all_intervals(found: list[Result]) -> Known:
    """(task, length) -> learner -> mean, low, high; in the order of the registry, and only those with a result.

    Learners that the registry no longer has come last.
    """
    there = {result["name"].split("/")[2] for result in found if "returns" in result}
    ordered = [*(name for name in learners() if name in there), *sorted(there - set(learners()))]
    known: Known = {(task.name, level.length): {} for task in TASKS for level in task.levels}
    for name, length in known:
        for learner in ordered:
            if runs := by_seed(found, f"{name}/{length}/{learner}"):
                returns = np.array([run["returns"] for run in runs])
                known[name, length][learner] = (float(returns.mean()), *records.interval(returns))
    return known


def memoryless_return(task: Task, level: Level) -> float:
    """That of the environment's specification."""
    import gymnasium

    import configs
    import envs  # noqa: F401  (registers the ids)

    settings = configs.read(records.ROOT / "configs" / f"{task.config}.yaml")
    env = gymnasium.make(settings.env.id, **{**settings.env.kwargs, **level.kwargs})
    return float(env.get_wrapper_attr("memoryless_return"))


def _best_row(task: Task, level: Level, known: Known) -> list[object]:
    here = known[task.name, level.length]
    first = max(here, key=lambda learner: here[learner][0])
    best = here[first][0]
    near = [name for name in here if name != first and here[name][2] >= best]
    return [task.title, level.length, f"{first} ({best:.3f})", ", ".join(near) or "none of them"]


def _recall_lines(known: Known) -> list[str]:
    """Whether associative recall separates the other memories from a plain GRU."""
    lines = []
    for (name, length), here in known.items():
        if name != "associative_recall" or "gru" not in here:
            continue
        _, low, high = here["gru"]
        above = [learner for learner, (_, lowest, _) in here.items() if lowest > high]
        below = [learner for learner, (_, _, highest) in here.items() if highest < low]
        others = [learner for learner in here if learner not in (*above, *below, "gru")]
        sides = (("above", above), ("below", below), ("not separated", others))
        text = "; ".join(f"{side}: {', '.join(names) or 'none of them'}" for side, names in sides)
        lines.append(f"- {length} pairs: {text}.")
    return lines


def _cost_row(result: Result) -> list[object]:
    figures = [f"{result['state']:,}", f"{result['parameters']:,}"]
    return [result["name"].removeprefix("cost/"), *figures, *(f"{result[way]:.1f}" for way in ("acting", "training"))]


def _row(task: Task, level: Level, learner: str, found: list[Result], known: Known) -> list[object]:
    runs = by_seed(found, f"{task.name}/{level.length}/{learner}")
    value, low, high = known[task.name, level.length][learner]
    solved = sum(float(np.mean(run["returns"])) >= GOAL for run in runs)
    verdict = _verdict(solved, len(runs), low, memoryless_return(task, level))
    seconds = np.median([run["seconds"] for run in runs])
    budget = f"{runs[0]['steps'] / 1000:.0f}k"
    ended = ", ".join(f"{run['curve'][-1][0] / 1000:.0f}k" for run in runs)
    figures = [f"{value:.3f}", f"{low:.3g} to {high:.3g}"]
    return [task.title, level.length, learner, budget, ended, *figures, verdict, f"{seconds:.0f}"]


def _verdict(solved: int, seeds: int, low: float, memoryless: float) -> str:
    if solved:
        return "solved" if solved == seeds else f"solved by {solved} of {seeds}"
    return "memoryless" if low <= memoryless + 0.05 else "in part"


COLORS = {
    "rnn": "#937860",
    "lstm": "#c44e52",
    "gru": "#4c72b0",
    "mingru": "#64b5cd",
    "lru": "#55a868",
    "ffm": "#8c8c8c",
    "gtrxl": "#8172b3",
    "deltanet": "#da8bc3",
    "attention": "#dd8452",
    STACK: "#555555",
    "none": "#b0b6be",
}


def plot(known: Known) -> None:
    """Return against memory length, a panel a task, a line a memory with its interval."""
    figure, axes = records.subplots(1, len(TASKS), 4.2, 3.6)
    import matplotlib.pyplot as plt

    there = list(dict.fromkeys(learner for here in known.values() for learner in here))
    further = (plt.get_cmap("tab20")(number) for number in range(20))
    lines: dict[str, Any] = {}
    for place, learner in enumerate(there):
        color = COLORS.get(learner) or next(further)
        for axis, task in zip(axes[0], TASKS, strict=True):
            lengths = [level.length for level in task.levels if learner in known[task.name, level.length]]
            if not lengths:
                continue
            value, low, high = np.array([known[task.name, length][learner] for length in lengths]).T
            # Shifted, so that equal values can be distinguished.
            at = np.array(lengths) * 1.035 ** (place - (len(there) - 1) / 2)
            lines[learner] = axis.errorbar(
                at,
                value,
                yerr=np.maximum([value - low, high - value], 0),
                color=color,
                linestyle=":" if learner in (STACK, "none") else "-",
                marker="o",
                markersize=3.5,
                linewidth=1.2,
                elinewidth=0.8,
            )
    for axis, task in zip(axes[0], TASKS, strict=True):
        lengths = [level.length for level in task.levels]
        memoryless = [memoryless_return(task, level) for level in task.levels]
        axis.plot(lengths, memoryless, color="black", linewidth=0.6, linestyle="--")
        axis.axhline(1.0, color="black", linewidth=0.6)
        axis.set_xscale("log")
        axis.set_xticks(lengths, [str(length) for length in lengths])
        axis.set_xticks([], minor=True)
        axis.set_title(task.title, fontsize=10)
        axis.set_xlabel(task.unit, fontsize=9)
    axes[0, 0].set_ylabel("mean return", fontsize=9)
    figure.legend(lines.values(), lines.keys(), ncols=max(len(lines), 1), loc="lower center", fontsize=8, frameon=False)
    records.save_plot(figure, records.DOCS / "memories.png", rect=(0, 0.07, 1, 1))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
