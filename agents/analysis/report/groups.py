"""Runs of the same settings but the seed, as groups, and what is said of each group.

Axes: S seeds, E episodes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.analysis.evaluation import Interval, interquartile_mean
from agents.analysis.report.records import Record
from agents.analysis.report.statistics import improvement_interval, over_seeds, probability_of_improvement
from agents.checks.text import printable

Values = NDArray[np.float64]

# What names, places or shows a run and does not decide what it learns.
INCIDENTAL = ("seed", "name", "group", "runs", "threads", "progress", "device", "tracking", "checkpoint")


@dataclass(frozen=True)
class Scored:
    """A run and the (E,) returns of an evaluation of its agent."""

    record: Record
    returns: Values

    @classmethod
    def of(cls, record: Record, result: Mapping[str, Any]) -> "Scored":
        """A run and an evaluation of it, as ``Evaluation.to_json`` gives it."""
        return cls(record, np.array(result["returns"], dtype=np.float64))

    @property
    def seed(self) -> int:
        return int(self.record.settings["seed"])

    @property
    def mean(self) -> float:
        return float(self.returns.mean())

    @property
    def interval(self) -> Interval:
        """Of the mean, over episodes."""
        return over_seeds([self.returns])


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    Args:
        label: what tells it from the other groups.
        runs: in the order of their seeds.
    """

    label: str
    runs: tuple[Scored, ...]

    def seeds(self) -> dict[int, Values]:
        """Seed -> (E,) returns; a seed that was run twice is one seed and no second witness."""
        found: dict[int, list[Values]] = {}
        for run in self.runs:
            found.setdefault(run.seed, []).append(run.returns)
        return {seed: np.concatenate(returns) for seed, returns in found.items()}

    def by_seed(self) -> list[Scored]:
        """One run for every seed, the last of those with it."""
        return list({run.seed: run for run in self.runs}.values())

    @property
    def episodes(self) -> Values:
        """The returns of all seeds' episodes."""
        return np.concatenate(list(self.seeds().values()))

    @property
    def scores(self) -> Values:
        """(S,) the mean return of every seed."""
        return np.array([returns.mean() for returns in self.seeds().values()])

    @property
    def mean(self) -> float:
        return float(self.scores.mean())

    @cached_property
    def interval(self) -> Interval:
        """Of the mean: seeds are drawn, then episodes of each; with one seed, over its episodes alone."""
        return over_seeds(list(self.seeds().values()))

    @property
    def interquartile_mean(self) -> float:
        """Of all episodes."""
        return float(interquartile_mean(self.episodes))

    @cached_property
    def interquartile_interval(self) -> Interval:
        return over_seeds(list(self.seeds().values()), interquartile_mean)

    def to_json(self) -> dict[str, Any]:
        """The group's figures, as what ``json`` writes."""
        return {
            "label": self.label,
            "runs": [str(run.record.path) for run in self.runs],
            "seeds": list(self.seeds()),
            "means": self.scores.tolist(),
            "mean": self.mean,
            "mean_interval": list(self.interval),
            "interquartile_mean": self.interquartile_mean,
            "interquartile_mean_interval": list(self.interquartile_interval),
        }


class Improvement(NamedTuple):
    """How probable it is that one group scores higher than another.

    ``over`` says what is compared: the mean returns of "seeds", or "episodes" where a group has one seed alone.
    """

    ours: str
    theirs: str
    probability: float
    interval: Interval
    over: str


def grouped(runs: Sequence[Scored]) -> list[Group]:
    """The groups, in the order of their first runs."""
    found: dict[str, list[Scored]] = {}
    for run in runs:
        found.setdefault(_identity(run.record.settings), []).append(run)
    labels = _labels([members[0].record.settings for members in found.values()])
    return [
        Group(label, tuple(sorted(members, key=lambda run: run.seed)))
        for label, members in zip(labels, found.values(), strict=True)
    ]


def improvements(groups: Sequence[Group]) -> list[Improvement]:
    """Every pair of groups, the one with the higher mean first."""
    ranked = sorted(groups, key=lambda group: -group.mean)
    pairs = [(ours, theirs) for i, ours in enumerate(ranked) for theirs in ranked[i + 1 :]]
    return [improvement(ours, theirs) for ours, theirs in pairs]


def improvement(ours: Group, theirs: Group) -> Improvement:
    """Over seeds where both groups have several, else over episodes, which says less: seeds differ too."""
    several = min(len(ours.scores), len(theirs.scores)) > 1
    a, b = (group.scores if several else group.episodes for group in (ours, theirs))
    probability = float(probability_of_improvement(a, b))
    over = "seeds" if several else "episodes"
    return Improvement(ours.label, theirs.label, probability, improvement_interval(a, b), over)


def differences(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Setting -> its value in every group, for the settings in which they differ; None where a group has none."""
    return _differences([group.runs[0].record.settings for group in groups])


def table(groups: Sequence[Group]) -> Table:
    """A row a run under a row a group, for a person."""
    shown = Table("", "seed", "mean return", "95 % interval", "interquartile mean", "episodes", box=box.SIMPLE_HEAD)
    for column in shown.columns[1:]:
        column.justify = "right"
    for group in groups:
        several = len(group.runs) > 1
        for run in group.runs:
            middle = number(float(interquartile_mean(run.returns)))
            name = f"  {run.record.name}" if several else run.record.name
            label = "" if several else f" ({group.label})"
            shown.add_row(
                Text(printable(f"{name}{label}")),
                str(run.seed),
                number(run.mean),
                between(run.interval),
                middle,
                str(len(run.returns)),
            )
        if several:
            shown.add_row(
                Text(printable(group.label), style="bold"),
                f"{len(group.scores)} seeds",
                f"[bold]{number(group.mean)}[/bold]",
                between(group.interval),
                number(group.interquartile_mean),
                str(len(group.episodes)),
                end_section=True,
            )
    return shown


def print_whole(shown: Table) -> None:
    """Prints a table as wide as it is: a name that is cut short can be given to no command."""
    width = Console(width=10_000).measure(shown).maximum
    Console(width=max(Console().width, width)).print(shown, crop=False)


def number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def between(interval: Interval) -> str:
    return f"{number(interval.low)} to {number(interval.high)}"


def flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every setting, mappings taken apart."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _identity(settings: Mapping[str, Any]) -> str:
    return json.dumps({key: value for key, value in settings.items() if key not in INCIDENTAL}, sort_keys=True)


def _differences(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    deciding = [{key: value for key, value in each.items() if key not in INCIDENTAL} for each in settings]
    flat = [{key: value for key, value in flattened(each) if value != {}} for each in deciding]
    keys = dict.fromkeys(key for each in flat for key in each)
    values = {key: [each.get(key) for each in flat] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def _labels(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings in which groups differ; the memory's name where there is nothing to tell apart.

    An argument that some have not, and that is the same for all others, goes with what tells them apart anyway.
    """
    differing = _differences(settings)
    several = [key for key, row in differing.items() if len({_said(value) for value in row if value is not None}) > 1]
    told = sorted(several or differing, key=lambda key: key != "policy.memory")[:4]
    labels = []
    for i, each in enumerate(settings):
        words = [
            f"{key.rpartition('.')[2]} {_said(differing[key][i])}" for key in told if differing[key][i] is not None
        ]
        labels.append(", ".join(words) or f"memory {each['policy']['memory']}")
    twice = {label for label in labels if labels.count(label) > 1}
    return [f"{label} #{i + 1}" if label in twice else label for i, label in enumerate(labels)]


def _said(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
