"""The return and the length of the episodes under way, kept for all environments at once.

Axes: N environments, R some of them ("rows").
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

    def end(self, rows: NDArray[np.intp]) -> list[dict[str, Any]]:
        """The episodes of `rows`, (R,), are over: each one's return "r", steps "l", and seconds since the start "t"."""
        now = round(time.time() - self._since, 6)
        returns, lengths = self._returns[rows].tolist(), (self._steps - self._started_at[rows]).tolist()
        self.start(rows)
        return [{"r": round(r, 6), "l": length, "t": now} for r, length in zip(returns, lengths, strict=True)]

    def start(self, rows: NDArray[np.intp]) -> None:
        """The next step is the first of an episode of the environments `rows`, (R,)."""
        self._returns[rows] = 0.0
        self._started_at[rows] = self._steps


def note_ends(
    infos: list[dict[str, Any]],
    resets: dict[int, dict[str, Any]],
    episodes: Episodes,
    reset_infos: list[dict[str, Any]],
) -> None:
    """Where `resets` says that an episode ended and what the next one's reset said, note both."""
    for (i, reset_info), episode in zip(resets.items(), episodes.end(np.array(list(resets))), strict=True):
        # A Monitor among the wrappers knows better: it may see rewards that a wrapper outside it then clips.
        infos[i].setdefault("episode", episode)
        reset_infos[i] = reset_info
