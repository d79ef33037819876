"""Runs of the same settings but the seed, as groups, and the statistics of each group.

Axes: S seeds, E episodes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.analysis import statistics
from agents.analysis.report.history import RunHistory
from agents.analysis.statistics import Interval, Values, between, interquartile_mean, mean, number
from agents.checks.text import printable

# What names, places or shows a run and does not decide what it learns.
INCIDENTAL = ("seed", "name", "group", "runs", "threads", "progress", "device", "tracking", "checkpoint")


class Scored(NamedTuple):
    """A run and the (E,) returns of an evaluation of its agent."""

    history: RunHistory
    returns: Values

    @property
    def seed(self) -> int:
        return int(self.history.settings["seed"])

    @property
    def task(self) -> str:
        return str(self.history.settings["env"]["id"])


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, in the order of their seeds."""

    label: str  # what tells it from the other groups of its task
    runs: tuple[Scored, ...]

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.runs[0].history.settings

    @property
    def task(self) -> str:
        return self.runs[0].task

    @cached_property
    def by_seed(self) -> dict[int, Values]:
        """Seed -> (E,) returns; a seed that was run twice is one seed and no second witness."""
        seeds = dict.fromkeys(run.seed for run in self.runs)
        return {seed: np.concatenate([run.returns for run in self.runs if run.seed == seed]) for seed in seeds}

    @property
    def has_seeds(self) -> bool:
        """Whether there are several seeds: one says nothing of others."""
        return len(self.by_seed) > 1

    @property
    def episodes(self) -> Values:
        """The returns of all seeds' episodes."""
        return np.concatenate(list(self.by_seed.values()))

    @property
    def scores(self) -> Values:
        """(S,) the mean return of every seed."""
        return np.array([returns.mean() for returns in self.by_seed.values()])

    @property
    def mean(self) -> float:
        return float(self.scores.mean())

    @cached_property
    def interval(self) -> Interval:
        """Of the mean: seeds are drawn, then episodes of each; with one seed, over its episodes alone."""
        return statistics.over_seeds(list(self.by_seed.values()), mean)

    @property
    def interquartile_mean(self) -> float:
        """Of all episodes."""
        return float(interquartile_mean(self.episodes))

    @cached_property
    def interquartile_interval(self) -> Interval:
        return statistics.over_seeds(list(self.by_seed.values()), interquartile_mean)

    def to_json(self) -> dict[str, Any]:
        """The group's figures, as what ``json`` writes."""
        return {
            "label": self.label,
            "task": self.task,
            "runs": [str(run.history.path) for run in self.runs],
            "seeds": list(self.by_seed),
            "means": self.scores.tolist(),
            "mean": self.mean,
            "mean_interval": list(self.interval) if self.has_seeds else None,
            "interquartile_mean": self.interquartile_mean,
            "interquartile_mean_interval": list(self.interquartile_interval) if self.has_seeds else None,
        }


class Improvement(NamedTuple):
    """How probable it is that a seed of one group scores higher than a seed of another on the same task."""

    task: str
    ours: str
    theirs: str
    probability: float
    interval: Interval


def grouped(runs: Sequence[Scored]) -> list[Group]:
    """The groups, task by task, in the order of their first runs."""
    by_task = [[run for run in runs if run.task == task] for task in dict.fromkeys(run.task for run in runs)]
    return [group for of_task in by_task for group in _grouped(of_task)]


def _grouped(runs: Sequence[Scored]) -> list[Group]:
    found: dict[str, list[Scored]] = {}
    for run in runs:
        found.setdefault(json.dumps(_deciding(run.history.settings), sort_keys=True), []).append(run)
    labels = _labels([members[0].history.settings for members in found.values()])
    return [
        Group(label, tuple(sorted(members, key=lambda run: run.seed)))
        for label, members in zip(labels, found.values(), strict=True)
    ]


def tasks_of(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """The groups of every task."""
    return {task: [group for group in groups if group.task == task] for task in dict.fromkeys(g.task for g in groups)}


@dataclass(frozen=True)
class Aggregate:
    """The groups of one label over all tasks, as Agarwal et al. 2021 (rliable) aggregate them.

    Intervals draw runs within every task (stratified bootstrap).
    """

    label: str
    tasks: tuple[Values, ...]  # (S,) a task: mean returns of the seeds, 0 the lowest and 1 the highest of any run there

    @property
    def scores(self) -> Values:
        """Of all runs."""
        return np.concatenate(self.tasks)

    def located(self, statistic: statistics.Statistic) -> tuple[float, Interval]:
        """A statistic of all runs, and its interval."""
        return float(statistic(self.scores)), Interval(*statistics.stratified(self.tasks, statistic).tolist())

    def profile(self, thresholds: Values) -> tuple[Values, Values, Values]:
        """(P,) -> the share of runs above every threshold and its interval, (P,) each."""
        statistic = partial(statistics.performance_profile, thresholds=thresholds)
        return statistic(self.scores), *statistics.stratified(self.tasks, statistic, len(thresholds))

    def to_json(self) -> dict[str, Any]:
        found = {name: self.located(statistic) for name, statistic in AGGREGATED.items()}
        return {"label": self.label, **{name: {"value": v, "interval": list(i)} for name, (v, i) in found.items()}}


AGGREGATED = {
    "interquartile mean": interquartile_mean,
    "mean": mean,
    "optimality gap": statistics.optimality_gap,
}


def bounds(groups: Sequence[Group]) -> tuple[float, float]:
    """The lowest and the highest mean return of any run on a task."""
    scores = np.concatenate([group.scores for group in groups])
    return float(scores.min()), float(scores.max())


def aggregates(groups: Sequence[Group]) -> list[Aggregate]:
    """For every label that has several seeds on every task."""
    found: dict[str, list[Values]] = {}
    tasks = tasks_of(groups)
    for of_task in tasks.values():
        low, high = bounds(of_task)
        for group in of_task:
            if group.has_seeds:
                found.setdefault(group.label, []).append((group.scores - low) / ((high - low) or 1.0))
    return [Aggregate(label, tuple(scores)) for label, scores in found.items() if len(scores) == len(tasks)]


def improvements(groups: Sequence[Group]) -> list[Improvement]:
    """Every pair of groups of several seeds, the one with the higher mean first; one seed says nothing of others."""
    ranked = sorted((group for group in groups if group.has_seeds), key=lambda group: -group.mean)
    found = []
    for ours, theirs in combinations(ranked, 2):
        if ours.task != theirs.task:
            continue
        a, b = ours.scores, theirs.scores
        chance = float(statistics.probability_of_improvement(a, b))
        found.append(Improvement(ours.task, ours.label, theirs.label, chance, statistics.improvement_interval(a, b)))
    return found


COLUMNS = ("seed", "mean return", "95 % interval", "interquartile mean", "95 % interval", "episodes")


def score_rows(groups: Sequence[Group]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """("group", "member" of it or "single" run, its name and a figure for every column).

    A member's intervals are over its own episodes; a seed that stands for its group has none, since one says nothing
    of others.
    """
    is_one_task = len(tasks_of(groups)) == 1
    for group in groups:
        several, label = len(group.runs) > 1, group.label if is_one_task else f"{group.task}, {group.label}"
        if several:
            seeds = f"{len(group.by_seed)} seed{'s' if group.has_seeds else ''}"
            yield "group", (label, seeds, *_figures(group, group.has_seeds))
        for run in group.runs:
            name = run.history.name if several else f"{run.history.name} ({label})"
            yield "member" if several else "single", (name, str(run.seed), *_figures(Group("", (run,)), several))


def _figures(group: Group, intervals: bool) -> tuple[str, ...]:
    located = ((group.mean, group.interval), (group.interquartile_mean, group.interquartile_interval))
    cells = [cell for value, edges in located for cell in (number(value), between(edges) if intervals else "one seed")]
    return (*cells, str(len(group.episodes)))


def score_table(groups: Sequence[Group]) -> Table:
    """For a person."""
    shown = statistics.table("", *COLUMNS)
    for kind, (name, *figures) in score_rows(groups):
        indented = f"  {name}" if kind == "member" else name
        shown.add_row(Text(printable(indented)), *figures, style="bold" if kind == "group" else None)
    return shown


def print_uncut(shown: Table) -> None:
    """Prints a table as wide as it is: a name that is cut short can be given to no command."""
    width = Console(width=10_000).measure(shown).maximum
    Console(width=max(Console().width, width)).print(shown, crop=False)


def flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every setting, mappings taken apart."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def plain(value: Any) -> str:
    """A setting's value as a person writes it."""
    if isinstance(value, list | tuple):
        return " ".join(map(plain, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in INCIDENTAL}


def differences(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Setting -> its value in every group, for the settings in which they differ; None where a group has none."""
    flat = [{key: value for key, value in flattened(_deciding(each)) if value != {}} for each in settings]
    values = {key: [each.get(key) for each in flat] for each in flat for key in each}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def _labels(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings in which groups differ; the memory's name where there is nothing to tell apart.

    An argument that some have not, and that is the same for all others, goes with what tells them apart anyway.
    """
    differing = differences(settings)
    several = [key for key, row in differing.items() if len({plain(value) for value in row if value is not None}) > 1]
    keys = sorted(several or differing, key=lambda key: key != "policy.memory")[:4]
    labels = []
    for i, each in enumerate(settings):
        values = {key.rpartition(".")[2]: differing[key][i] for key in keys}
        words = [f"{name} {plain(value)}" for name, value in values.items() if value is not None]
        labels.append(", ".join(words) or f"memory {each['policy']['memory']}")
    return [f"{label} #{i + 1}" if labels.count(label) > 1 else label for i, label in enumerate(labels)]
