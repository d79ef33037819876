"""Random numbers for many environments, one independent stream for each.

An environment's numbers depend on its own seed alone, not on how many environments are stepped beside it. They are
drawn in blocks, so that taking the next number of many environments is one indexing operation.

Axes: N environments, W numbers taken at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray


class Streams:
    """N streams of W numbers a time, float64: uniform in [0, 1) or standard normal.

    The order within a stream is that of the generator: taking W numbers twice gives what one draw of (2, W) gives.
    """

    def __init__(self, rows: int, width: int, distribution: Literal["uniform", "normal"] = "uniform") -> None:
        self._block = max(1, min(64, 1024 // max(width, 1)))
        self._numbers: NDArray[np.float64] = np.empty((rows, self._block, width))
        self._cursor = np.full(rows, self._block, dtype=np.intp)
        self._generators: list[np.random.Generator | None] = [None] * rows
        self._distribution = distribution

    def seed(self, row: int, generator: np.random.Generator) -> None:
        """The stream `row` goes on with `generator`'s numbers."""
        self._generators[row] = generator
        self._cursor[row] = self._block

    def generator(self, row: int) -> np.random.Generator | None:
        return self._generators[row]

    def state(self) -> dict[str, Any]:
        """Where the streams are, as plain data."""
        generators = [None if each is None else each.bit_generator.state for each in self._generators]
        return {"numbers": self._numbers.copy(), "cursor": self._cursor.copy(), "generators": generators}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """The streams go on from there. Raises ValueError for streams of another number or width."""
        if state["numbers"].shape != self._numbers.shape:
            raise ValueError(f"streams {state['numbers'].shape} were saved, these are {self._numbers.shape}")
        self._numbers[...], self._cursor[...] = state["numbers"], state["cursor"]
        self._generators = [None if each is None else _generator(each) for each in state["generators"]]

    def take(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """The next numbers of the streams `rows`, each named once, (R,) -> (R, W)."""
        cursor = self._cursor[rows]
        exhausted = rows[cursor == self._block]
        if exhausted.size:
            for row in exhausted.tolist():
                self._refill(row)
            cursor = self._cursor[rows]
        self._cursor[rows] = cursor + 1
        numbers: NDArray[np.float64] = self._numbers[rows, cursor]
        return numbers

    def _refill(self, row: int) -> None:
        generator = self._generators[row]
        if generator is None:
            generator, _ = seeding.np_random()
            self._generators[row] = generator
        draw: Any = generator.random if self._distribution == "uniform" else generator.standard_normal
        draw(out=self._numbers[row])
        self._cursor[row] = 0


def _generator(state: Mapping[str, Any]) -> np.random.Generator:
    """A generator of gymnasium's kind in this state."""
    generator = np.random.Generator(np.random.PCG64())
    generator.bit_generator.state = state
    return generator
