"""A schedule that is a function, as data: the points between which it is a straight line."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRID = 128  # equal parts of training at which a function is looked at first
PRECISION = 1e-7  # of the largest value: how far a straight line may be from the function
NARROWEST = 2.0**-40  # of training: a jump is found to this
MOST_POINTS = 2**13


class TableSchedule:
    """A function of the progress remaining, kept as points; a straight line lies between two of them.

    Args:
        progress: rising, from 0 (the end of training) to 1 (its start).
        values: as many.
    """

    def __init__(self, progress: Any, values: Any) -> None:
        self.progress: NDArray[np.float64] = np.array(progress, np.float64)
        self.values: NDArray[np.float64] = np.array(values, np.float64)
        if self.progress.ndim != 1 or self.progress.shape != self.values.shape or len(self.progress) < 2:
            raise ValueError("a table holds two or more points, a value for each")
        if not (np.isfinite(self.values).all() and (np.diff(self.progress) > 0).all()):
            raise ValueError("the points of a table rise and its values are finite")

    def __call__(self, progress_remaining: float) -> float:
        return float(np.interp(progress_remaining, self.progress, self.values))

    def __repr__(self) -> str:
        first, last = self(1.0), self(0.0)
        return f"TableSchedule({len(self.progress)} points, from {first:g} at the start to {last:g} at the end)"


def sampled(function: Callable[[float], Any]) -> TableSchedule | None:
    """The table of a function of the progress remaining; None if it is none, or needs too many points.

    A straight line is kept as its two ends, and so is exact; a curve as many points as approximate it to ``PRECISION``,
    a jump as two that are next to each other.
    """
    try:
        points = {part / GRID: float(function(part / GRID)) for part in range(GRID + 1)}
        if any(float(function(progress)) != value for progress, value in reversed(points.items())):
            return None  # it depends on more than the progress
        if not all(math.isfinite(value) for value in points.values()):
            return None
        return _refined(function, points)
    except Exception:  # whatever a user's function raises: it is no function of one number
        return None


def _refined(function: Callable[[float], Any], points: dict[float, float]) -> TableSchedule | None:
    tolerance = PRECISION * max(abs(value) for value in points.values())
    start, end = points[0.0], points[1.0]
    exact = 1e-8 * tolerance
    if all(abs(value - (start + (end - start) * progress)) <= exact for progress, value in points.items()):
        return TableSchedule([0.0, 1.0], [start, end])
    left = list(pairwise(sorted(points)))
    while left:
        low, high = left.pop()
        middle = (low + high) / 2
        value = points[middle] = float(function(middle))
        quarter, between = (low + middle) / 2, (points[low] + value) / 2
        straight = abs(value - (points[low] + points[high]) / 2) <= tolerance
        if (straight and abs(float(function(quarter)) - between) <= tolerance) or high - low <= NARROWEST:
            continue
        if len(points) > MOST_POINTS:
            return None
        left += [(low, middle), (middle, high)]
    return TableSchedule(*zip(*sorted(points.items()), strict=True))
