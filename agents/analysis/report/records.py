"""What a run's directory says about the run, read without loading its agent.

Nothing here fails on a run that is young, broken off or damaged: what cannot be read is not there.
"""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

LARGEST_FINDING = 2**25  # bytes of a file that a page shows


class Curve(NamedTuple):
    """(P,) environment steps, rising, and what was measured there."""

    steps: Values
    values: Values


class Insight(NamedTuple):
    """A finding about the agent's memory that was left in the run's directory."""

    name: str
    content: Any
    """What a JSON file holds, or the bytes of a PNG."""


@dataclass(frozen=True)
class Record:
    """A run.

    Args:
        path: its directory.
        settings: as plain values, groups as mappings.
    """

    path: Path
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def versions(self) -> dict[str, Any]:
        content = _json(self.path / "versions.json")
        return content if isinstance(content, dict) else {}

    def metrics(self) -> dict[str, Curve]:
        """Every metric of metrics.csv that was measured more than once."""
        found: dict[str, list[tuple[float, float]]] = {}
        for row in _rows(self.path / "metrics.csv"):
            step = _number(row.get("step"))
            for name, text in row.items():
                value = _number(text)
                if step is not None and value is not None:
                    found.setdefault(name, []).append((step, value))
        return {name: _curve(points) for name, points in found.items() if len(points) > 1}

    def periodic(self) -> list[dict[str, float]]:
        """The rows of evaluations.csv, each with what in it is a number; "low" and "high" bound the mean."""
        rows = []
        for row in _rows(self.path / "evaluations.csv"):
            numbers = {name: value for name, text in row.items() if (value := _number(text)) is not None}
            if {"step", "mean_reward"} <= numbers.keys():
                rows.append({**numbers, **_bounds(numbers)})
        return rows

    def evaluation_curve(self) -> Curve | None:
        """The mean return of every periodic evaluation."""
        points = [(row["step"], row["mean_reward"]) for row in self.periodic()]
        return _curve(points) if points else None

    def results(self) -> list[dict[str, Any]]:
        """The evaluations made after training, oldest first."""
        found = (path for path in (self.path / "evaluations").glob("*.json") if "ablation" not in path.stem)
        files = sorted(found, key=lambda path: path.stat().st_mtime_ns)
        contents = [content for path in files if isinstance(content := _json(path), dict)]
        return [each for each in contents if _is_evaluation(each)]

    def insights(self) -> list[Insight]:
        """Ablations and what insight/ holds, JSON and PNG."""
        folder, evaluations = self.path / "insight", self.path / "evaluations"
        texts = [*sorted(evaluations.glob("*ablation*.json")), *sorted(folder.glob("*.json"))]
        found = [Insight(path.stem, content) for path in texts if (content := _json(path)) is not None]
        return found + [Insight(path.stem, content) for path in sorted(folder.glob("*.png")) if (content := _png(path))]


def _curve(points: list[tuple[float, float]]) -> Curve:
    """Of two measurements at the same step the later one."""
    by_step = dict(points)
    steps = np.array(sorted(by_step))
    return Curve(steps, np.array([by_step[step] for step in steps]))


def _bounds(row: Mapping[str, float]) -> dict[str, float]:
    """The mean return, and 1.96 of its standard errors below and above."""
    if "std_reward" not in row or row.get("episodes", 0) < 2:
        return {}
    half = 1.96 * row["std_reward"] / math.sqrt(row["episodes"] - 1)
    return {"low": row["mean_reward"] - half, "high": row["mean_reward"] + half}


def _is_evaluation(content: Mapping[str, Any]) -> bool:
    """Whether what a table shows of an evaluation is there, and numbers."""
    told, returns = content.get("return"), content.get("returns")
    figures = ("mean", "interquartile_mean", "median", "min", "max")
    return (
        isinstance(told, dict)
        and all(_is_number(told.get(name)) for name in figures)
        and all(_is_span(told.get(f"{name}_interval")) for name in figures)
        and (content.get("success_rate") is None or _is_number(content["success_rate"]))
        and isinstance(returns, list)
        and len(returns) > 0
        and all(map(_is_number, returns))
    )


def _is_span(value: Any) -> bool:
    return value is None or (isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a CSV file, which may be growing: its last line may be cut off and is left out then."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    whole = text[: text.rfind("\n") + 1]
    with suppress(csv.Error):
        for row in csv.DictReader(io.StringIO(whole, newline="")):
            if None not in row and None not in row.values():
                yield row


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _json(path: Path) -> Any:
    try:
        if path.stat().st_size > LARGEST_FINDING:
            return None
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _png(path: Path) -> bytes | None:
    try:
        content = b"" if path.stat().st_size > LARGEST_FINDING else path.read_bytes()
    except OSError:
        return None
    return content if content.startswith(b"\x89PNG\r\n\x1a\n") else None
