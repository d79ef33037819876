"""A comparison of groups of runs as one HTML page that needs nothing else: no network, no other file."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import numpy as np

from agents.analysis import statistics
from agents.analysis.report import data
from agents.analysis.report.blocks import Block, Chart, chart, page, span, table
from agents.analysis.report.groups import (
    AGGREGATED,
    COLUMNS,
    Aggregate,
    Group,
    aggregates,
    bounds,
    differences,
    improvements,
    plain,
    score_rows,
    tasks_of,
)
from agents.analysis.report.history import Curve, RunHistory
from agents.analysis.report.page import RETURN
from agents.analysis.statistics import between, number

POINTS = 101  # of a performance profile


def comparison_page(
    groups: Sequence[Group],
    note: str = "",
    place: Path | None = None,
    *,
    title: str = "Comparison of runs",
    before: Mapping[str, Sequence[Block]] = MappingProxyType({}),
) -> str:
    """The comparison of groups of runs, on one task or several.

    Args:
        place: the page's file, from which it links to the runs' own reports.
        before: sections that come first.
    """
    tasks, n_runs = tasks_of(groups), sum(len(group.runs) for group in groups)
    sections = {
        **before,
        "Results": [*_scores(groups, place), ("quiet", note)],
        "Aggregates over runs" if len(tasks) == 1 else f"Aggregates over {len(tasks)} tasks": _aggregates(groups),
        "Learning": _curves(tasks),
        "Probability of improvement": _improvements(groups),
        "In what the groups differ": [block for of_task in tasks.items() for block in _differences(*of_task)],
    }
    about = f"{', '.join(tasks)}: {n_runs} runs in {len(groups)} groups of the same settings"
    return page(title, about, sections)


def _scores(groups: Sequence[Group], place: Path | None) -> list[Block]:
    notes = [
        "A group's interval draws its seeds, then episodes of each; with fewer than about five seeds it is too narrow. "
        "One seed says nothing of others: it has no interval of its group."
    ]
    twice = [group.label for group in groups if len(group.by_seed) < len(group.runs)]
    notes += [f"A seed of {label} was run more than once and counts as one." for label in twice]
    links = [_link(run.history, place) for group in groups for run in group.runs]
    if any(links):
        notes.append("A run's name leads to its report.")
    else:
        notes.append("A run's name leads to its report once there is one: evaluate it alone with --report.")
    rows = _linked(score_rows(groups), links)
    listed = table("Results", ("group and run", *COLUMNS), rows, styled=True)
    return [listed, *(("quiet", note) for note in notes)]


def _linked(rows: Iterator[tuple[str, tuple[str, ...]]], links: Sequence[str]) -> list[tuple[str, list[Any]]]:
    """The rows with the names of runs as links, in the order of the links; groups have none."""
    left = iter(links)
    cells = [(kind, "" if kind == "group" else next(left), row) for kind, row in rows]
    return [(kind, [{"text": name, "link": link}, *figures]) for kind, link, (name, *figures) in cells]


def _link(history: RunHistory, place: Path | None) -> str:
    """The run's latest report, from where the page lies; nothing where there is none or it lies elsewhere."""
    reports = sorted(history.path.glob("report*.html"), key=lambda path: path.stat().st_mtime_ns)
    if place is None or not reports:
        return ""
    try:
        return quote(Path(os.path.relpath(reports[-1].resolve(), place.resolve().parent)).as_posix())
    except ValueError:  # another drive
        return ""


def _aggregates(groups: Sequence[Group]) -> list[Block]:
    found = aggregates(groups)
    if not found:
        return [("quiet", "It takes several seeds on every task: one seed says nothing of others.")]
    limits = {task: bounds(of_task) for task, of_task in tasks_of(groups).items()}
    scale = "; ".join(f"{task} {number(low)} to {number(high)}" for task, (low, high) in limits.items())
    note = (
        "As rliable aggregates (Agarwal et al. 2021): every run of every task is one score, its mean return, where 0 "
        f"is the lowest and 1 the highest of any run here on its task ({scale}). The optimality gap is how far scores "
        "stay below 1 on average. Intervals draw runs within each task (stratified bootstrap). Groups without several "
        "seeds on every task are left out."
    )
    located = [[each.located(statistic) for statistic in AGGREGATED.values()] for each in found]
    rows = [
        (
            each.label,
            *(cell for value, interval in values for cell in (number(value), between(interval))),
            len(each.scores),
        )
        for each, values in zip(found, located, strict=True)
    ]
    columns = [column for name in AGGREGATED for column in (name, "interval")]
    return [
        table("Aggregates", ("group", *columns, "runs"), rows),
        ("quiet", note),
        ("charts", [_profiles(found)]),
    ]


def _profiles(found: Sequence[Aggregate]) -> Chart:
    """The share of runs above every score, a curve a group."""
    thresholds = np.linspace(0, 1, POINTS)
    series = []
    for each in found:
        share, low, high = each.profile(thresholds)
        series.append(data.curve(each.label, Curve(thresholds, share), low, high))
    return chart("Performance profile", series, "share of runs above", "normalized score")


def _curves(tasks: Mapping[str, Sequence[Group]]) -> list[Block]:
    """Curves on the axis of environment steps, with intervals over seeds where a group has several."""
    captions: dict[str, Callable[[RunHistory], Curve | None]] = {
        "Periodic evaluation": RunHistory.evaluation_curve,
        "Return in training": lambda history: history.metrics().get(RETURN),
    }
    charts = []
    labels = list(dict.fromkeys(group.label for groups in tasks.values() for group in groups))
    for task, groups in tasks.items():
        for caption, curve_of in captions.items():
            drawn = [(group.label, curve) for group in groups for curve in _group_curves(group, curve_of)]
            # A label has the same color on every task.
            if series := [{**curve, "hue": labels.index(label)} for label, curve in drawn]:
                charts.append(chart(caption if len(tasks) == 1 else f"{caption}: {task}", series, "mean return"))
    if not charts:
        return [("quiet", "None of the runs has measured anything while training.")]
    note = (
        "Lines: the mean over a group's seeds, up to the last step that all of them reached. Bands: the interval of "
        "that mean over seeds, where there are several. Thin lines: single seeds."
    )
    return [("charts", charts), ("quiet", note)]


def _group_curves(group: Group, curve_of: Callable[[RunHistory], Curve | None]) -> list[dict[str, Any]]:
    """A group's mean curve and those of its seeds; nothing where its runs share no step."""
    last_of_seed = {run.seed: run.history for run in group.runs}
    found = {seed: (each, curve) for seed, each in last_of_seed.items() if (curve := curve_of(each))}
    curves = [curve for _, curve in found.values()]
    steps, values = statistics.aligned(curves) if curves else (np.zeros(0), np.zeros(0))
    if not len(steps):  # also where one run had ended before another began to measure
        return []
    times = {seed: each.elapsed() for seed, (each, _) in found.items()}
    if len(curves) == 1:
        return [data.curve(group.label, curves[0], elapsed=next(iter(times.values())))]
    known = [time for time in times.values() if time is not None]
    elapsed = Curve(steps, np.mean([np.interp(steps, *time) for time in known], axis=0)) if known else None
    middle, low, high = statistics.curve_over_seeds(values)
    name = f"{group.label} ({len(curves)} seeds)"
    single = [data.curve(f"seed {seed}", curve, elapsed=times[seed], of=name) for seed, (_, curve) in found.items()]
    return [data.curve(name, Curve(steps, middle), low, high, elapsed=elapsed), *single]


def _improvements(groups: Sequence[Group]) -> list[Block]:
    if len(groups) < 2:
        return [("quiet", "There is one group alone; give runs with other settings too.")]
    rows = []
    for each in improvements(groups):
        low, high = each.interval
        bar = span(low, each.probability, high)
        rows.append((each.task, each.ours, each.theirs, f"{each.probability:.2f}", f"{low:.2f} to {high:.2f}", bar))
    if not rows:
        return [("quiet", "It takes at least two seeds of each of two groups: one seed says nothing of others.")]
    columns = ("task", "this group", "beats that group", "probability", "interval", "0 to 1")
    note = (
        "How often the mean return of a seed of the one is above that of a seed of the other, a tie counting half "
        "(Agarwal et al. 2021); 0.5 is no difference. Groups of one seed are left out."
    )
    return [table("Probability of improvement", columns, rows, range(3, 5)), ("quiet", note)]


def _differences(task: str, groups: Sequence[Group]) -> list[Block]:
    rows = [(key, *map(plain, values)) for key, values in differences([group.settings for group in groups]).items()]
    if not rows:
        return [("heading", task), ("quiet", "In nothing but the seed.")]
    listed = table(f"Differing settings, {task}", ("setting", *(group.label for group in groups)), rows, range(0))
    return [("heading", task), listed]
