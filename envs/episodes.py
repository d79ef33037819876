"""The return and the length of the episodes under way, kept for all environments at once.

Axes: N environments.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Episodes:
    """What Stable-Baselines3's Monitor keeps for one environment, for N of them, at one addition a step."""

    def __init__(self, num_envs: int) -> None:
        self._since = time.time()
        self._returns = np.zeros(num_envs)
        self._steps = 0
        self._started_at = np.zeros(num_envs, dtype=np.int64)

    def start_all(self) -> None:
        self._returns[:] = 0.0
        self._started_at[:] = self._steps

    def add(self, rewards: NDArray[np.float32]) -> None:
        """One step everywhere, (N,)."""
        np.add(self._returns, rewards, self._returns)
        self._steps += 1

    def end(self, row: int) -> dict[str, Any]:
        """The episode of environment `row` is over: its return, its steps, and seconds since this object was made."""
        episode = {
            "r": round(float(self._returns[row]), 6),
            "l": int(self._steps - self._started_at[row]),
            "t": round(time.time() - self._since, 6),
        }
        self.start(row)
        return episode

    def start(self, row: int) -> None:
        """The next step is the first of an episode of environment `row`."""
        self._returns[row] = 0.0
        self._started_at[row] = self._steps
