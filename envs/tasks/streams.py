"""Random numbers for many environments, one independent stream for each.

An environment's numbers depend on its own seed alone, not on how many environments are stepped with it. They are
drawn in blocks, so that taking the next number of many environments is one indexing operation.

Axes: R of the environments, W numbers taken at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray


class Streams:
    """Streams of W numbers at a time, float64: uniform in [0, 1) or standard normal.

    The order within a stream is that of the generator: taking W numbers twice gives what one draw of (2, W) gives.
    """

    def __init__(self, rows: int, width: int, distribution: Literal["uniform", "normal"] = "uniform") -> None:
        self._block = max(1, min(64, 1024 // max(width, 1)))
        self._numbers: NDArray[np.float64] = np.empty((rows, self._block, width))
        self._cursor = np.full(rows, self._block, dtype=np.intp)
        self.generators: list[np.random.Generator | None] = [None] * rows
        self._distribution = distribution

    def seed(self, row: int, generator: np.random.Generator) -> None:
        """The stream `row` goes on with `generator`'s numbers."""
        self.generators[row] = generator
        self._cursor[row] = self._block

    def state(self) -> dict[str, Any]:
        """Where the streams are, as plain data."""
        generators = [None if each is None else each.bit_generator.state for each in self.generators]
        return {"numbers": self._numbers.copy(), "cursor": self._cursor.copy(), "generators": generators}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """The streams go on from there. Raises ValueError for streams of another number or width."""
        if state["numbers"].shape != self._numbers.shape:
            raise ValueError(f"streams {state['numbers'].shape} were saved, these are {self._numbers.shape}")
        self._numbers[...], self._cursor[...] = state["numbers"], state["cursor"]
        for row, saved in enumerate(state["generators"]):
            # Gymnasium's generators are of this kind.
            self.generators[row] = generator = None if saved is None else np.random.Generator(np.random.PCG64())
            if generator is not None:
                generator.bit_generator.state = saved

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
        generator = self.generators[row]
        if generator is None:
            generator = self.generators[row] = seeding.np_random()[0]
        draw: Any = generator.random if self._distribution == "uniform" else generator.standard_normal
        draw(out=self._numbers[row])
        self._cursor[row] = 0
