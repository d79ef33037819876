"""What a run's directory says about the run, read without loading its agent.

Nothing here fails on a run that is young, broken off or damaged: what cannot be read is left out.
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

from agents.analysis.evaluation import Evaluation
from agents.analysis.statistics import Values

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
class RunHistory:
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
        rows = [row for row in _rows(self.path / "metrics.csv") if "step" in row]
        names = dict.fromkeys(name for row in rows for name in row)
        found = {name: [(row["step"], row[name]) for row in rows if name in row] for name in names}
        return {name: _curve(points) for name, points in found.items() if len(points) > 1}

    def periodic(self) -> list[dict[str, float]]:
        """The rows of evaluations.csv, each with what in it is a number; "low" and "high" bound the mean."""
        rows = [row for row in _rows(self.path / "evaluations.csv") if {"step", "mean_reward"} <= row.keys()]
        for row in rows:
            if "std_reward" in row and row.get("episodes", 0) > 1:
                half = 1.96 * row["std_reward"] / math.sqrt(row["episodes"] - 1)
                row |= {"low": row["mean_reward"] - half, "high": row["mean_reward"] + half}
        return rows

    def evaluation_curve(self) -> Curve | None:
        """The mean return of every periodic evaluation."""
        points = [(row["step"], row["mean_reward"]) for row in self.periodic()]
        return _curve(points) if points else None

    def results(self) -> list[tuple[str, Evaluation]]:
        """The checkpoints evaluated after training, oldest first."""
        found = (path for path in (self.path / "evaluations").glob("*.json") if "ablation" not in path.stem)
        results = []
        for path in sorted(found, key=lambda path: path.stat().st_mtime_ns):
            content = _json(path)
            with suppress(KeyError, TypeError, ValueError, ArithmeticError):  # not what an evaluation writes
                results.append((str(dict(content).get("checkpoint", "?")), Evaluation.from_json(content)))
        return results

    def insights(self) -> list[Insight]:
        """Ablations and what insight/ holds, JSON and PNG."""
        folder, evaluations = self.path / "insight", self.path / "evaluations"
        texts = [*sorted(evaluations.glob("*ablation*.json")), *sorted(folder.glob("*.json"))]
        found = [Insight(path.stem, content) for path in texts if (content := _json(path)) is not None]
        pictures = [Insight(path.stem, _bytes(path, LARGEST_FINDING)) for path in sorted(folder.glob("*.png"))]
        return found + [each for each in pictures if each.content.startswith(b"\x89PNG\r\n\x1a\n")]


def _curve(points: list[tuple[float, float]]) -> Curve:
    """Of two measurements at the same step the later one."""
    by_step = sorted(dict(points).items())
    return Curve(*np.array(by_step).T)


def _rows(path: Path) -> Iterator[dict[str, float]]:
    """What is a finite number in the rows of a CSV file.

    The file may be growing: its last line may be incomplete and is left out then.
    """
    text = _bytes(path).decode("utf-8", "replace")
    with suppress(csv.Error):
        for row in csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")):
            if None not in row and None not in row.values():
                values = {name: _number(value) for name, value in row.items()}
                yield {name: value for name, value in values.items() if math.isfinite(value)}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _json(path: Path) -> Any:
    try:
        return json.loads(_bytes(path, LARGEST_FINDING))
    except (ValueError, RecursionError):
        return None


def _bytes(path: Path, largest: int | None = None) -> bytes:
    """A file's content; nothing if it is too large or cannot be read."""
    try:
        return b"" if largest is not None and path.stat().st_size > largest else path.read_bytes()
    except OSError:
        return b""
