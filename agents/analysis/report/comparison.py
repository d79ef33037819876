"""A comparison of groups of runs as one HTML page that needs nothing else: no network, no other file."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from agents.analysis import statistics
from agents.analysis.report import data
from agents.analysis.report.blocks import Block, chart, page, span, table
from agents.analysis.report.groups import COLUMNS, Group, differences, improvements, plain, score_rows
from agents.analysis.report.history import Curve, RunHistory
from agents.analysis.report.page import RETURN


def comparison_page(groups: Sequence[Group], note: str = "", place: Path | None = None) -> str:
    """The comparison of groups of runs on one task.

    Args:
        place: the page's file, from which it links to the runs' own reports.
    """
    runs = [run for group in groups for run in group.runs]
    environment = runs[0].history.settings["env"]["id"]
    sections = {
        "Results": [*_scores(groups, place), ("quiet", note)],
        "Learning": _curves(groups),
        "Probability of improvement": _improvements(groups),
        "In what the groups differ": [_differences(groups)],
    }
    about = f"{environment}, {len(runs)} runs in {len(groups)} groups of the same settings"
    return page("Comparison of runs", about, sections)


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


def _curves(groups: Sequence[Group]) -> list[Block]:
    """Curves on the axis of environment steps, with intervals over seeds where a group has several."""
    captions: dict[str, Callable[[RunHistory], Curve | None]] = {
        "Periodic evaluation": RunHistory.evaluation_curve,
        "Return in training": lambda history: history.metrics().get(RETURN),
    }
    charts = []
    for caption, curve_of in captions.items():
        if series := [drawn for group in groups for drawn in _group_curves(group, curve_of)]:
            charts.append(chart(caption, series, "mean return"))
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
        rows.append((each.ours, each.theirs, f"{each.probability:.2f}", f"{low:.2f} to {high:.2f}", bar))
    if not rows:
        return [("quiet", "It takes at least two seeds of each of two groups: one seed says nothing of others.")]
    columns = ("this group", "beats that group", "probability", "interval", "0 to 1")
    note = (
        "How often the mean return of a seed of the one is above that of a seed of the other, a tie counting half "
        "(Agarwal et al. 2021); 0.5 is no difference. Groups of one seed are left out."
    )
    return [table("Probability of improvement", columns, rows, range(2, 4)), ("quiet", note)]


def _differences(groups: Sequence[Group]) -> Block:
    rows = [(key, *map(plain, values)) for key, values in differences([group.settings for group in groups]).items()]
    if not rows:
        return "quiet", "In nothing but the seed."
    return table("Differing settings", ("setting", *(group.label for group in groups)), rows, range(0))
