"""Which memory learns what: every memory on three tasks at two memory lengths, with the same steps for all.

    python benchmarks/memories.py                        all runs that have no result yet, then the page and the plot
    python benchmarks/memories.py --only copy            those whose name contains this
    python benchmarks/memories.py --steps 10000          a trial whose results are printed, not kept
    python benchmarks/memories.py --report               the page and the plot of what there is

Two kinds of runs:

- *task/length/learner/seed*: ``train.py`` with no settings file, then 300 episodes of the last policy and of the best
  checkpoint by periodic evaluation. The learners are all of ``agents.memory.MEMORIES`` ("none" among them), 64 units
  each, and "stack": no memory, but the last 64 observations at once. A memory with a window has one of 64 too.
- *cost/learner*: seconds of collecting and of training, state and parameters, on one of the tasks.
"""

import inspect
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import records
import tyro
from measuring import processor
from records import Result, Run, by_seed

WINDOW = 64
STACK = "stack"
GOAL = 0.95
"""A mean return of the last policy that counts as solved."""
ENOUGH = 0.99
"""A mean return of a periodic evaluation that ends a run early: there is nothing left to learn."""


@dataclass(frozen=True)
class Settings(records.Settings):
    """Every memory on tasks of rising memory length."""

    seeds: int = 10
    """Seeds of every task, length and learner."""


class Level(NamedTuple):
    """A task at one memory length: arguments of the environment, and the steps that every learner gets."""

    length: int
    kwargs: dict[str, int]
    steps: int


@dataclass(frozen=True)
class Task:
    """A task of rising memory length. ``unit`` is what the length counts."""

    name: str
    title: str
    id: str
    unit: str
    levels: tuple[Level, ...]


def _levels(*lengths: tuple[int, int]) -> tuple[Level, ...]:
    return tuple(Level(length, dict(length=length), steps) for length, steps in lengths)


TASKS = [
    Task("tmaze", "T-maze", "TMaze-v0", "steps a sign is kept", _levels((30, 300_000), (100, 600_000))),
    Task(
        "associative_recall",
        "Associative recall",
        "AssociativeRecall-v0",
        "pairs of key and value kept",
        tuple(
            Level(pairs, dict(pairs=pairs, keys=2 * pairs, queries=pairs), steps)
            for pairs, steps in ((2, 300_000), (4, 600_000))
        ),
    ),
    Task("copy", "Copy", "Copy-v0", "symbols kept, in order", _levels((4, 300_000), (8, 600_000))),
]
COST = "associative_recall"
"""The task on which costs are measured, at its longest."""


def main(settings: Settings) -> None:
    records.run_all(settings, "memories", all_runs(settings), summary, write_docs)


def learners() -> list[str]:
    """The memories there are, the stack of observations, and last what has neither."""
    from agents.memory import MEMORIES

    return [*(name for name in MEMORIES if name != "none"), STACK, "none"]


def all_runs(settings: records.Settings) -> list[Run]:
    """Costs, then the longest level of every task, seed by seed, then the shorter ones."""
    runs = [Run(f"cost/{learner}", _cost_run(learner)) for learner in learners()]
    for place in reversed(range(max(len(task.levels) for task in TASKS))):
        for seed in range(settings.seeds):
            for task in TASKS:
                level = task.levels[place]
                for learner in learners():
                    name = f"{task.name}/{level.length}/{learner}/{seed}"
                    runs.append(Run(name, _task_run(task, level, learner, seed)))
    return runs


def summary(result: Result) -> str:
    if "returns" in result:
        return f"{np.mean(result['returns']):.2f} after {result['curve'][-1][0]} steps, {result['seconds']:.0f} s"
    return f"acting {result['acting']:.1f}, training {result['training']:.1f} microseconds a step"


def words(task: Task, level: Level, learner: str, seed: int) -> list[str]:
    """The command line of ``train.py``: its defaults, but noise that does not last; 64 units or so many frames, as many
    steps for all."""
    return [
        *("--env.id", task.id, "--seed", str(seed), "--threads", "1"),
        *("--total-timesteps", str(level.steps), "--evaluation.stop-at-return", str(ENOUGH)),
        *("--evaluation.every", "50000", "--evaluation.share", "None", "--algorithm.noise-correlation", "0"),
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
    return lambda steps: {**records.trained(words(task, level, learner, seed), steps), "cpu": processor()}


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
        rollout = math.prod(settings.rollout)
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
            training=1e6 * statistics.median(training[later]) / rollout / agent.n_epochs,
            state=state,
            parameters=sum(parameter.numel() for parameter in agent.policy.parameters()),
            cpu=processor(),
        )

    return start


PAGE = """# Which memory learns what

    python benchmarks/memories.py

Every memory on three tasks, with the defaults of `train.py` and independent noise, the same budget of steps and 64
units for all; windows hold 64 steps. A run ends early when an evaluation, every 50,000 steps, reaches 0.99.
*stack* has no memory and sees the last 64 observations at once, *none* sees the present one alone. The defaults were
chosen with an LSTM; nothing was tuned for the others.

![return of every memory](memories.png)

Dots are means of the last policies, bars their 95 % bootstrap intervals, rings the best checkpoints; dashed is the best
that is possible without memory.

## The best memories of each task

The highest mean, and those whose interval contains it: not significantly different.

{}

Associative recall against a plain GRU, by intervals that do not overlap:

{}

## Costs

Microseconds an environment step: acting with the environments and normalization, training one epoch. State:
numbers carried for each environment between steps (stack: those of its window). {}

{}

## Returns

Mean return of 300 episodes a seed of the last policy, deterministic actions, with its 95 % bootstrap interval: seeds
are resampled, then episodes of each. *Best checkpoint*: the best of the periodic evaluations, evaluated again. The best
possible is 1. *Solved*: a mean of the last policy of at least 0.95 with every seed, or with as many as are named.
*Memoryless*: with none, and an interval that reaches down to what is possible without memory, or within 0.05 of it. A
return of 0 in the T-maze is an agent that walks to the junction and has not found that a turn pays there: only the last
step of an episode can show it.
*Steps*: after how many a run was solved or out of its budget, the median. Seconds are those of a complete run,
evaluations included; the median. {}

{}
"""


def write_docs(found: list[Result]) -> None:
    known = all_intervals(found)
    levels = [(task, level) for task in TASKS for level in task.levels]
    costs = [result for result in found if result["name"].startswith("cost/")]
    returns = "task | length | memory | seeds | last policy | best checkpoint | verdict | steps | budget | s"
    records.write_page(
        "memories",
        PAGE,
        records.table(
            "task | length | highest mean | not significantly different",
            [_best_row(task, level, known) for task, level in levels if known[task.name, level.length]],
        ),
        _recall_lines(known),
        [records.processors(costs)],
        records.table("memory | state | parameters | acting | training", [_cost_row(result) for result in costs]),
        [records.processors(result for result in found if "last" in result)],
        records.table(
            returns,
            [_row(task, level, learner, found) for task, level in levels for learner in known[task.name, level.length]],
        ),
    )
    plot(found, known)


Interval = tuple[float, float, float]
Known = dict[tuple[str, int], dict[str, Interval]]


def all_intervals(found: list[Result]) -> Known:
    """(task, length) -> learner -> mean, low, high of the last policies; in the order of the registry, and only those
    with a result.

    Learners that the registry no longer has come last.
    """
    there = {result["name"].split("/")[2] for result in found if "last" in result}
    ordered = [*(name for name in learners() if name in there), *sorted(there - set(learners()))]
    known: Known = {(task.name, level.length): {} for task in TASKS for level in task.levels}
    for name, length in known:
        for learner in ordered:
            if runs := by_seed(found, f"{name}/{length}/{learner}"):
                returns = np.array([run["last"] for run in runs])
                known[name, length][learner] = (float(returns.mean()), *records.interval(returns))
    return known


def memoryless_return(task: Task, level: Level) -> float:
    """That of the environment's specification."""
    import gymnasium

    import envs  # noqa: F401  (registers the ids)

    env = gymnasium.make(task.id, **level.kwargs)
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


def _row(task: Task, level: Level, learner: str, found: list[Result]) -> list[object]:
    runs = by_seed(found, f"{task.name}/{level.length}/{learner}")
    last, best = (np.array([run[name] for run in runs]) for name in ("last", "returns"))
    solved = int((last.mean(axis=1) >= GOAL).sum())
    verdict = _verdict(solved, len(runs), records.interval(last)[0], memoryless_return(task, level))
    seconds = f"{np.median([run['seconds'] for run in runs]):.0f}"
    steps = (f"{count / 1000:.0f}k" for count in (np.median([run["curve"][-1][0] for run in runs]), level.steps))
    returns = [records.figure(last), f"{best.mean():.3f}"]
    return [task.title, level.length, learner, len(runs), *returns, verdict, *steps, seconds]


def _verdict(solved: int, seeds: int, low: float, memoryless: float) -> str:
    if solved:
        return "solved" if solved == seeds else f"solved by {solved} of {seeds}"
    return "memoryless" if low <= memoryless + 0.05 else "in part"


def plot(found: list[Result], known: Known) -> None:
    """The last policy's return with its interval, and the best checkpoint's: a panel a level, a line a memory."""
    levels = [(task, level) for task in TASKS for level in task.levels if known[task.name, level.length]]
    figure, axes = records.subplots(1, len(levels), 3.2, 3.4)
    names = list(dict.fromkeys(learner for here in known.values() for learner in here))
    for axis, (task, level) in zip(axes[0], levels, strict=True):
        here = known[task.name, level.length]
        rows = [len(names) - 1 - names.index(learner) for learner in here]
        value, low, high = np.array(list(here.values())).T
        best = [
            np.mean([run["returns"] for run in by_seed(found, f"{task.name}/{level.length}/{learner}")])
            for learner in here
        ]
        axis.errorbar(value, rows, xerr=np.maximum([value - low, high - value], 0), fmt="o", color="#4c72b0", capsize=2)
        axis.plot(best, rows, "o", markerfacecolor="none", markeredgecolor="#c44e52", markersize=8)
        axis.axvline(memoryless_return(task, level), color="black", linewidth=0.6, linestyle="--")
        axis.axvline(1.0, color="black", linewidth=0.6)
        axis.set_yticks(range(len(names)), names[::-1], fontsize=8)
        axis.set_title(f"{task.title}: {level.length} {task.unit}", fontsize=8)
    figure.supxlabel("mean return", fontsize=9)
    records.save_plot(figure, records.DOCS / "memories.png")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
