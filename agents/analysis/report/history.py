"""What a run's directory says about the run, read without loading its agent.

Nothing of :class:`RunHistory` fails on a run that is young, broken off or damaged: what cannot be read is left out.
"""

import csv
import io
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.analysis.evaluation import Evaluation
from agents.analysis.statistics import Values

LARGEST_FINDING = 2**25  # bytes of a file that a page shows
ELAPSED = "time/time_elapsed"  # seconds, counted from 0 after a resume


class RunError(Exception):
    """A run's directory cannot be made, is none, or holds what cannot be read."""


class Curve(NamedTuple):
    """(P,) environment steps, rising, and what was measured there."""

    steps: Values
    values: Values


class Insight(NamedTuple):
    """A finding about the agent's memory that was left in the run's directory."""

    name: str
    content: Any  # what a JSON file holds, or the bytes of a PNG


@dataclass(frozen=True)
class RunHistory:
    """A run."""

    path: Path  # its directory
    settings: Mapping[str, Any]  # as plain values, groups as mappings

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def metrics(self) -> dict[str, Curve]:
        """Every metric of metrics.csv that was measured more than once."""
        rows = figures(self.path / "metrics.csv")
        names = dict.fromkeys(name for row in rows for name in row)
        found = {name: [(row["step"], row[name]) for row in rows if name in row] for name in names}
        return {name: _curve(points) for name, points in found.items() if len(points) > 1}

    def periodic(self) -> list[dict[str, float]]:
        """The rows of evaluations.csv, each with what in it is a number; "low" and "high" bound the mean."""
        rows = [row for row in figures(self.path / "evaluations.csv") if "mean_reward" in row]
        for row in rows:
            if "std_reward" in row and row.get("episodes", 0) > 1:
                half = 1.96 * row["std_reward"] / math.sqrt(row["episodes"] - 1)
                row |= {"low": row["mean_reward"] - half, "high": row["mean_reward"] + half}
        return rows

    def elapsed(self) -> Curve | None:
        """Seconds of training up to every row of metrics.csv, those before a resume included."""
        rows = [(row["step"], row[ELAPSED]) for row in figures(self.path / "metrics.csv") if ELAPSED in row]
        if not rows:
            return None
        steps, seconds = np.array(rows).T
        restarts = np.where(np.diff(seconds) < 0, seconds[:-1], 0.0)
        return Curve(steps, seconds + np.concatenate([[0.0], np.cumsum(restarts)]))

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
        pictures = [Insight(path.stem, _bytes(path)) for path in sorted(folder.glob("*.png"))]
        return found + [each for each in pictures if each.content.startswith(b"\x89PNG\r\n\x1a\n")]


def read_versions(run: Path) -> dict[str, Any]:
    """What a run was made with; empty where that was not written or cannot be read."""
    content = _json(run / "versions.json")
    return content if isinstance(content, dict) else {}


def figures(path: Path) -> list[dict[str, float]]:
    """What is a finite number in the rows of a CSV file; nothing of one that cannot be read."""
    rows: list[dict[str, str]] = []
    with suppress(RunError, OSError):
        rows = rows_until(path)[1]
    return [{name: number for name, text in row.items() if math.isfinite(number := _number(text))} for row in rows]


def rows_until(path: Path, step: float = math.inf) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a CSV file up to a step; none where there is no file.

    The file may be growing, or its writer may have been killed: a row that is torn is left out.

    Raises:
        RunError: it is no text.
    """
    content = path.read_bytes() if path.is_file() else b""
    content = content[: content.rfind(b"\n") + 1]
    try:
        columns, *rows = [*csv.reader(io.StringIO(content.decode("utf-8"), newline=""))] or [[]]
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RunError(
            f"line {line} of {path} is not UTF-8 (byte {error.start} is {content[error.start]:#04x}): repair it, or "
            "move the file away"
        ) from error
    except csv.Error as error:
        raise RunError(f"{path} cannot be read ({error}): repair it, or move the file away") from error
    complete = [dict(zip(columns, row, strict=True)) for row in rows if len(row) == len(columns)]
    if "step" not in columns:
        return [], []
    return columns, [row for row in complete if row["step"].isdigit() and int(row["step"]) <= step]


def _curve(points: list[tuple[float, float]]) -> Curve:
    """Of two measurements at the same step the later one."""
    return Curve(*np.array(sorted(dict(points).items())).T)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _json(path: Path) -> Any:
    try:
        return json.loads(_bytes(path))
    except (ValueError, RecursionError):
        return None


def _bytes(path: Path) -> bytes:
    """A file's content; nothing if it is too large or cannot be read."""
    try:
        return b"" if path.stat().st_size > LARGEST_FINDING else path.read_bytes()
    except OSError:
        return b""
