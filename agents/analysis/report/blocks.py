"""What pages are made of: blocks, ``(kind, content)``, and the template that they go into.

``page.html`` has a form for every kind; charts are drawn by ``page.charts.js`` with uPlot (``uplot.js``), heat maps by
the script alone. All that is put in is escaped; a content security policy in the page forbids it to load anything,
whatever is in it.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2

from agents.analysis.statistics import CONFIDENCE
from agents.checks.text import printable

Block = tuple[str, Any]
Chart = dict[str, Any]
"""What a chart is drawn from: its caption, labels of the axes, series as :func:`agents.analysis.report.data.curve`
gives them; "kind" is "line", "points" or "bars"."""

STEPS = "environment steps"


def page(
    title: str, subtitle: str, sections: Mapping[str, Sequence[Block]], heading: str | None = None, **more: Any
) -> str:
    """A page of sections; those without blocks are left out."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, ""),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    named = dict(title=title, heading=heading or title, subtitle=subtitle, made=time.strftime("%Y-%m-%d %H:%M"))
    given = {"summary": (), "stepped": None, "sections": sections, "confidence": f"{CONFIDENCE:.0%}", **named, **more}
    return environment.get_template("page.html").render(given)


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Any], numeric: range | None = None, *, styled: bool = False
) -> Block:
    """Rows of cells, the first a row's heading; ``styled``: (CSS class, cells). Numbers stand on the right.

    A cell may be a :func:`span`, or a mapping of "text" and "link".
    """
    content = rows if styled else [("", list(cells)) for cells in rows]
    numeric = range(1, len(columns)) if numeric is None else numeric
    return "table", {"caption": caption, "columns": columns, "rows": content, "numeric": numeric}


def measured(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows without the columns that are empty in every row."""
    rows = list(rows)
    kept = [i for i in range(len(columns)) if any(row[i] != "" for row in rows)]
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def span(low: float, at: float, high: float, edges: tuple[float, float] = (0.0, 1.0)) -> dict[str, float]:
    """A cell that draws an interval and what lies in it between two edges."""
    width = (edges[1] - edges[0]) or 1.0
    return {name: 100 * (value - edges[0]) / width for name, value in (("low", low), ("at", at), ("high", high))}


def chart(caption: str, series: list[dict[str, Any]], y: str, x: str = STEPS, **more: Any) -> Chart:
    """What the page's script draws series from."""
    return {"caption": caption, "series": series, "x": x, "y": y, "label": f"{caption}: {y} over {x}", **more}


def details(summary: str, *blocks: Block) -> Block:
    """Blocks behind a line that opens them."""
    return "details", {"summary": summary, "blocks": blocks}
