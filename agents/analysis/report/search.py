"""A search over settings as sections of a page: what was tried, what decided, and how.

Axes: P parameters.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from agents.analysis import plots
from agents.analysis.report.groups import plain
from agents.analysis.statistics import number
from agents.checks.extras import is_installed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Tried(NamedTuple):
    """Settings that were tried."""

    number: int
    state: str  # complete, pruned, failed, unfinished
    value: float | None  # over its seeds; None where it has not ended
    scores: Sequence[float]  # of the seeds that have ended
    chosen: Mapping[str, Any]  # (P,) values by the names of settings
    note: str = ""

    @property
    def is_complete(self) -> bool:
        return self.state == "complete"


def ranked(tried: Sequence[Tried]) -> list[Tried]:
    """The complete ones, the best first, then the others in their order."""
    complete = sorted((each for each in tried if each.is_complete), key=lambda each: -(each.value or 0.0))
    return [*complete, *(each for each in tried if not each.is_complete)]


def row(each: Tried, names: Sequence[str]) -> list[str]:
    """The cells of a table: trial, state, value, its seeds, (P,) values, note."""
    value = "" if each.value is None else number(each.value)
    chosen = [short(each.chosen[name]) if name in each.chosen else "" for name in names]
    return [str(each.number), each.state, value, " ".join(map(number, each.scores)), *chosen, each.note]


def short(value: Any) -> str:
    """A value that was chosen, for a person."""
    return f"{value:.3g}" if isinstance(value, float) else plain(value)


def columns(names: Sequence[str]) -> list[str]:
    """The names of these cells."""
    return ["trial", "state", "return", "of its seeds", *(name.rpartition(".")[2] for name in names), "note"]


def sections(tried: Sequence[Tried], names: Sequence[str], importances: Mapping[str, float]) -> dict[str, list[Any]]:
    """Blocks of a page by heading. ``names``: the parameters; ``importances``: theirs, summing to 1, where known."""
    complete = [each for each in tried if each.is_complete]
    blocks: list[Any] = []
    if len(complete) > 1 and is_installed("plots"):
        lines = _encoded(plots.parallel_coordinates(complete, names))
        pictures = [("Return by what was chosen, a line a trial", lines)]
        if importances:
            pictures.append(("Share of the return's differences", _encoded(plots.importances(importances))))
        blocks.append(("pictures", pictures))
    cells = [("", row(each, names)) for each in ranked(tried)]
    table = {"caption": "Trials", "columns": columns(names), "rows": cells, "numeric": range(2, 4)}
    counts = {state: sum(each.state == state for each in tried) for state in dict.fromkeys(t.state for t in tried)}
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    note = "A trial's return is the interquartile mean over its seeds of the last policy's final evaluation."
    return {"Search": [("plain", f"{len(tried)} trials: {states}. {note}"), *blocks, ("table", table)]}


def _encoded(figure: "Figure") -> str:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    return base64.b64encode(content.getvalue()).decode("ascii")
