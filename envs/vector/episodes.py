"""The return and the length of the episodes under way, kept for all environments at once.

Axes: N environments.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Episodes:
    """What Stable-Baselines3's Monitor keeps for one environment, for N of them, at one addition a step."""

    def __init__(self, num_envs: int) -> None:
        self._since = time.time()
        self._returns = np.zeros(num_envs)
        self._steps = 0
        self._started_at = [0] * num_envs

    def start(self, rows: Iterable[int]) -> None:
        """The next step is the first of an episode of the environments `rows`."""
        for row in rows:
            self._returns[row] = 0.0
            self._started_at[row] = self._steps

    def add(self, rewards: NDArray[np.float32]) -> None:
        """One step everywhere, (N,)."""
        np.add(self._returns, rewards, self._returns)
        self._steps += 1

    def end(self, rows: Iterable[int]) -> list[dict[str, Any]]:
        """The episodes of `rows` are over: each one's return "r", steps "l", and seconds since this was made "t"."""
        now = round(time.time() - self._since, 6)
        returns, started_at, steps = self._returns, self._started_at, self._steps
        ended = []
        # Few episodes end in one step: for a handful of rows, indexing with arrays costs more than this loop.
        for row in rows:
            ended.append({"r": round(returns.item(row), 6), "l": steps - started_at[row], "t": now})
            returns[row] = 0.0
            started_at[row] = steps
        return ended

    def state(self) -> dict[str, Any]:
        """Return and length of the episodes under way, (N,) each."""
        lengths = self._steps - np.array(self._started_at, dtype=np.int64)
        return {"returns": self._returns.copy(), "lengths": lengths}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._returns[:] = state["returns"]
        self._started_at = (self._steps - state["lengths"]).tolist()
