"""Values of spaces as numbers a network can take."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray


class Encoder:
    """Values of a space as numbers a network can take: a Box as it is, categories one-hot, float32.

    Discrete(n): (n,). MultiDiscrete([n, m]): (n + m,). MultiBinary(n): (n,), as it is. `Discrete(n, start=s)` counts
    from s.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self._sizes: NDArray[np.int64] | None = None
        if isinstance(space, spaces.Box):
            self.space = space
            return
        if isinstance(space, spaces.Discrete):
            self._sizes, self._starts = np.array([space.n]), np.array([space.start])
        elif isinstance(space, spaces.MultiDiscrete):
            self._sizes, self._starts = np.array(space.nvec).ravel(), np.array(space.start).ravel()
        elif not isinstance(space, spaces.MultiBinary):
            raise ValueError(f"expected Box, Discrete, MultiDiscrete or MultiBinary, got {space}")
        size = math.prod(space.shape or ()) if self._sizes is None else int(self._sizes.sum())
        self.space = spaces.Box(0.0, 1.0, (size,), np.float32)

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """(R, ...) -> (R, *space.shape)."""
        if self._sizes is None:
            return values if values.shape[1:] == self.space.shape else values.reshape(len(values), -1)
        categories = values.reshape(len(values), -1) - self._starts
        offsets = np.concatenate(([0], np.cumsum(self._sizes)[:-1]))
        encoded = np.zeros((len(values), *self.space.shape), np.float32)
        np.put_along_axis(encoded, (categories + offsets).astype(np.intp), 1.0, axis=1)
        return encoded


def with_zero(box: spaces.Box) -> spaces.Box:
    """The box, wide enough to hold zero."""
    low, high = np.minimum(box.low, 0), np.maximum(box.high, 0)
    return spaces.Box(low.astype(box.dtype), high.astype(box.dtype), dtype=box.dtype)


def repeated(box: spaces.Box, count: int) -> spaces.Box:
    """The space of `count` elements of the box, or zeros, (count, ...)."""
    wide = with_zero(box)
    low, high = (np.repeat(bound[None], count, axis=0) for bound in (wide.low, wide.high))
    return spaces.Box(low, high, dtype=box.dtype)
