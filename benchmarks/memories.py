"""Which memory learns what: every memory on three tasks of rising memory length, with the same steps for all.

    python benchmarks/memories.py                        all runs that have no result yet, then the page and the plot
    python benchmarks/memories.py --only copy            those whose name contains this
    python benchmarks/memories.py --steps 10000          a trial whose results are printed, not kept
    python benchmarks/memories.py --report               the page and the plot of what there is

A run's result is appended to docs/results/memories.jsonl when the run ends, so a benchmark that was killed goes on with
the next; deleting a line repeats its run. Two kinds of runs:

- *task/length/learner/seed*: ``train.py`` with the task's settings in configs/, then 300 episodes of the best
  checkpoint by periodic evaluation. The learners are all of ``agents.memory.MEMORIES`` ("none" among them), 64 units
  each, and "stack": no memory, but the last 64 observations at once. A memory with a window has one of 64 too.
- *cost/learner*: seconds of collecting and of training, state and parameters, on one of the tasks.

Axes: S seeds, E episodes.
"""

import inspect
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tyro
from numpy.typing import NDArray

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # from a checkout, installed or not

import learning  # noqa: E402
import records  # noqa: E402
from learning import interval, mean  # noqa: E402
from records import Run  # noqa: E402

DOCS = ROOT / "docs"
RESULTS = DOCS / "results" / "memories.jsonl"
WINDOW = 64
STACK = "stack"
GOAL = 0.95
"""A mean return of the last evaluation that counts as solved."""
ENOUGH = 0.99
"""A mean return of a periodic evaluation that ends a run early: there is nothing left to learn."""
Values = NDArray[np.float64]


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
        (
            Level(10, dict(length=10), 200_000),
            Level(30, dict(length=30), 300_000),
            Level(100, dict(length=100), 600_000),
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
    records.run_all(settings, all_runs, RESULTS, _said, write_docs)


def learners() -> list[str]:
    """The memories there are, the stack of observations, and last what has neither."""
    from agents.memory import MEMORIES

    return [*(name for name in MEMORIES if name != "none"), STACK, "none"]


def all_runs(settings: Settings) -> list[Run]:
    """Costs, then seed by seed, so that a first seed of everything is there early."""
    runs = [Run(f"cost/{learner}", _cost_run(learner)) for learner in learners()]
    for seed in range(settings.seeds):
        for task in TASKS:
            for level in task.levels:
                for learner in learners():
                    name = f"{task.name}/{level.length}/{learner}/{seed}"
                    runs.append(Run(name, _task_run(task, level, learner, seed)))
    return runs


def _said(result: dict[str, Any]) -> str:
    if "returns" in result:
        said = f"{np.mean(result['returns']):.2f} after {result['curve'][-1][0]} steps, {result['seconds']:.0f} s"
    else:
        said = f"acting {result['acting']:.1f}, training {result['training']:.1f} microseconds a step"
    return f"{result['name']}: {said}"


# Runs


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


def _task_run(task: Task, level: Level, learner: str, seed: int) -> Callable[[int], dict[str, Any]]:
    return lambda steps: learning.trained(words(task, level, learner, seed), steps)


def _cost_run(learner: str) -> Callable[[int], dict[str, Any]]:
    """Medians over rollouts, the first left out, of the agent as it is trained: environments and heads included."""

    def start(steps: int) -> dict[str, Any]:
        from stable_baselines3.common.callbacks import BaseCallback

        import configs
        from agents.runs.construction import make_agent, make_environments
        from agents.runs.normalization import normalize

        class Clock(BaseCallback):
            def __init__(self) -> None:
                super().__init__()
                self.marks: list[float] = []

            def _on_rollout_start(self) -> None:
                self.marks.append(time.perf_counter())

            def _on_rollout_end(self) -> None:
                self.marks.append(time.perf_counter())

            def _on_step(self) -> bool:
                return True

        (task,) = (task for task in TASKS if task.name == COST)
        settings = configs.parse(words(task, task.levels[1], learner, seed=0)).settings
        env = normalize(make_environments(settings, settings.env.n_envs, settings.seed))
        agent = make_agent(
            env, vars(settings.algorithm).copy(), vars(settings.policy).copy(), seed=settings.seed, device="cpu"
        )
        rollout = settings.env.n_envs * settings.algorithm.n_steps
        clock = Clock()
        agent.learn(steps or 8 * rollout, clock)
        marks = [*clock.marks, time.perf_counter()]  # rollout, training, rollout, training, ...
        collecting, training = np.diff(marks)[0::2], np.diff(marks)[1::2]
        memory = agent.policy.memory_actor
        state = sum(part[0].numel() for part in memory.initial_state(1))
        if learner == STACK:
            state = int(np.prod(env.observation_space.shape or ()))
        env.close()
        later = slice(1, None) if len(collecting) > 1 else slice(None)
        return dict(
            acting=1e6 * statistics.median(collecting[later]) / rollout,
            training=1e6 * statistics.median(training[later]) / rollout / settings.algorithm.n_epochs,
            state=state,
            parameters=sum(parameter.numel() for parameter in agent.policy.parameters()),
        )

    return start


# The page and the plot


def write_docs(found: list[dict[str, Any]]) -> None:
    known = all_spans(found)
    lines = [
        "# Which memory learns what",
        "",
        "    python benchmarks/memories.py",
        "",
        "Every memory on three tasks of rising memory length, with the same settings (those in `configs/`), the same",
        f"budget of steps and 64 units for all; windows hold {WINDOW} steps. A run ends early when an evaluation,",
        f"every 50,000 steps, reaches {ENOUGH:g}. *stack* has no memory and sees the last {WINDOW} observations at",
        "once, *none* sees the present one alone. The settings suit an LSTM; nothing was tuned for the others.",
        "",
        "![return against memory length](memories.png)",
        "",
        "Bars are 95 % bootstrap intervals; dashed is the best that is possible without memory.",
        "",
        "## Who wins where",
        "",
        "The highest mean, and those whose interval reaches it: they are not told apart.",
        "",
        "| task | length | highest mean | not told apart from it |",
        "|---|---|---|---|",
        *(row for task in TASKS for level in task.levels for row in _winner_rows(task, level, known)),
        "",
        *_attention_lines(known),
        "## Costs",
        "",
        "Microseconds an environment step: acting with the environments and normalisation, training one epoch. State:",
        "numbers carried for each environment between steps (stack: those of its window).",
        "",
        "| memory | state | parameters | acting | training |",
        "|---|---|---|---|---|",
        *(_cost_row(result) for result in found if result["name"].startswith("cost/")),
        "",
        "## Returns",
        "",
        f"Mean return of {learning.EPISODES} episodes a seed of the best checkpoint, the most probable action taken,",
        "with its 95 % bootstrap interval: seeds are drawn, then episodes of each. The best possible is 1. *Solved*: a",
        f"mean of at least {GOAL:g} with every seed, or with as many as are named. *Memoryless*: with none, and an",
        "interval that reaches down to what is possible without memory, or within 0.05 of it. A return of 0 in the",
        "T-maze is an agent that walks to the junction and has not found that a turn pays there: only the last step of",
        "an episode can show it.",
        "*Ended*: the environment step at which a run was solved or out of steps, of each seed.",
        "Seconds are those of a whole run, evaluations included; the median.",
        "",
        "| task | length | memory | budget | ended | mean | interval | verdict | s |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            row
            for task in TASKS
            for level in task.levels
            for learner in known[task.name, level.length]
            for row in _rows(task, level, learner, found, known)
        ),
    ]
    DOCS.mkdir(exist_ok=True)
    (DOCS / "memories.md").write_text("\n".join(lines) + "\n")
    plot(known, DOCS / "memories.png")


def named(found: list[dict[str, Any]]) -> list[str]:
    """The learners that have a result, in the order of the registry; those that it has no more come last."""
    there = {result["name"].split("/")[2] for result in found if "returns" in result}
    return [*(name for name in learners() if name in there), *sorted(there - set(learners()))]


Span = tuple[float, float, float]
Known = dict[tuple[str, int], dict[str, Span]]


def all_spans(found: list[dict[str, Any]]) -> Known:
    """(task, length) -> learner -> mean, low, high; in the order of the registry, and only those with a result."""
    return {
        (task.name, level.length): {
            learner: _span(learning.of(found, f"{task.name}/{level.length}/{learner}"))
            for learner in named(found)
            if learning.of(found, f"{task.name}/{level.length}/{learner}")
        }
        for task in TASKS
        for level in task.levels
    }


def _span(runs: list[dict[str, Any]]) -> Span:
    returns: Values = np.array([run["returns"] for run in runs])  # (S, E)
    return float(returns.mean()), *interval(returns, mean)


def memoryless_return(task: Task, level: Level) -> float:
    """What the environment itself says."""
    import gymnasium

    import configs
    import envs  # noqa: F401  (registers the ids)

    settings = configs.read(ROOT / "configs" / f"{task.config}.yaml")
    env = gymnasium.make(settings.env.id, **{**settings.env.kwargs, **level.kwargs})
    return float(env.get_wrapper_attr("memoryless_return"))


def _winner_rows(task: Task, level: Level, known: Known) -> list[str]:
    here = known[task.name, level.length]
    if not here:
        return []
    first = max(here, key=lambda learner: here[learner][0])
    best = here[first][0]
    near = [name for name in here if name != first and here[name][2] >= best]
    return [f"| {task.title} | {level.length} | {first} ({best:.3f}) | {', '.join(near) or 'nobody'} |"]


def _attention_lines(known: Known) -> list[str]:
    """Whether associative recall separates the other memories from a plain GRU."""
    lines = []
    for (name, length), here in known.items():
        if name != "associative_recall" or "gru" not in here:
            continue
        _, low, high = here["gru"]
        above = [learner for learner, span in here.items() if span[1] > high]
        below = [learner for learner, span in here.items() if span[2] < low]
        alike = [learner for learner in here if learner not in (*above, *below, "gru")]
        sides = (("above", above), ("below", below), ("not separated", alike))
        said = "; ".join(f"{side}: {', '.join(names) or 'nobody'}" for side, names in sides)
        lines.append(f"- {length} pairs: {said}.")
    head = "Associative recall against a plain GRU, by intervals that do not meet:"
    return [head, "", *lines, ""] if lines else []


def _cost_row(result: dict[str, Any]) -> str:
    name, state, parameters = result["name"].removeprefix("cost/"), result["state"], result["parameters"]
    return f"| {name} | {state:,} | {parameters:,} | {result['acting']:.1f} | {result['training']:.1f} |"


def _rows(task: Task, level: Level, learner: str, found: list[dict[str, Any]], known: Known) -> list[str]:
    runs = learning.of(found, f"{task.name}/{level.length}/{learner}")
    value, low, high = known[task.name, level.length][learner]
    solved = sum(float(np.mean(run["returns"])) >= GOAL for run in runs)
    verdict = _verdict(solved, len(runs), low, memoryless_return(task, level))
    seconds = np.median([run["seconds"] for run in runs])
    ended = ", ".join(f"{run['curve'][-1][0] / 1000:.0f}k" for run in runs)
    return [
        f"| {task.title} | {level.length} | {learner} | {runs[0]['steps'] / 1000:.0f}k | {ended} | {value:.3f} "
        f"| {low:.3g} to {high:.3g} | {verdict} | {seconds:.0f} |"
    ]


def _verdict(solved: int, seeds: int, low: float, memoryless: float) -> str:
    if solved:
        return "solved" if solved == seeds else f"solved by {solved} of {seeds}"
    return "memoryless" if low <= memoryless + 0.05 else "in part"


COLOURS = {
    "rnn": "#937860",
    "lstm": "#c44e52",
    "gru": "#4c72b0",
    "mingru": "#64b5cd",
    "lru": "#55a868",
    "gtrxl": "#8172b3",
    "attention": "#dd8452",
    STACK: "#555555",
    "none": "#b0b6be",
}


def plot(known: Known, path: pathlib.Path) -> None:
    """Return against memory length, a panel a task, a line a memory with its interval."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    there = list(dict.fromkeys(learner for here in known.values() for learner in here))
    further = (plt.get_cmap("tab20")(number) for number in range(20))
    figure, axes = plt.subplots(1, len(TASKS), figsize=(4.2 * len(TASKS), 3.6))
    lines: dict[str, Any] = {}
    for place, learner in enumerate(there):
        colour = COLOURS.get(learner) or next(further)
        for axis, task in zip(axes, TASKS, strict=True):
            lengths = [level.length for level in task.levels if learner in known[task.name, level.length]]
            if not lengths:
                continue
            value, low, high = np.array([known[task.name, length][learner] for length in lengths]).T
            # Beside each other, so that equal values can be told apart.
            at = np.array(lengths) * 1.035 ** (place - (len(there) - 1) / 2)
            lines[learner] = axis.errorbar(
                at,
                value,
                yerr=np.maximum([value - low, high - value], 0),
                color=colour,
                linestyle=":" if learner in (STACK, "none") else "-",
                marker="o",
                markersize=3.5,
                linewidth=1.2,
                elinewidth=0.8,
            )
    for axis, task in zip(axes, TASKS, strict=True):
        lengths = [level.length for level in task.levels]
        axis.plot(
            lengths,
            [memoryless_return(task, level) for level in task.levels],
            color="black",
            linewidth=0.6,
            linestyle="--",
        )
        axis.axhline(1.0, color="black", linewidth=0.6)
        axis.set_xscale("log")
        axis.set_xticks(lengths, [str(length) for length in lengths])
        axis.set_xticks([], minor=True)
        axis.set_title(task.title, fontsize=10)
        axis.set_xlabel(task.unit, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("mean return", fontsize=9)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.legend(lines.values(), lines.keys(), ncols=max(len(lines), 1), loc="lower center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
