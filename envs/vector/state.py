"""Where environments stand, as plain data, and how they are brought back to it.

What steps in NumPy is its arrays, numbers and random streams: these are copied out and in. Other environments are
brought back by replaying: every episode has a seed of its own, the actions of the episodes under way are kept, and an
episode that is deterministic given both ends where it ended before.

Axes: N environments, T steps.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from copy import copy
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.tasks.observations import tree_map
from envs.tasks.streams import Streams

LONGEST_REPLAY = 1_000_000  # steps; an episode that is longer cannot be replayed


def state_of(owner: Any) -> dict[str, Any]:
    """A copy of the arrays, numbers and random streams that are attributes of an object."""
    return {name: tree_map(_copy, value) for name, value in vars(owner).items() if _is_state(value)}


def set_state(owner: Any, state: Mapping[str, Any]) -> None:
    """The inverse, into an object made alike. Raises ValueError where it is not alike."""
    kept = {name for name, value in vars(owner).items() if _is_state(value)}
    if kept != set(state):
        differing = ", ".join(sorted(kept ^ set(state)))
        raise ValueError(f"{type(owner).__name__} keeps other things here than where it was saved: {differing}")
    for name, value in state.items():
        current = vars(owner)[name]
        if isinstance(current, np.ndarray | Streams | dict):
            tree_map(_fill, current, value)
        else:
            setattr(owner, name, value)


class EpisodeSeed(NamedTuple):
    """Which episode of which environment of a run this is: what decides its random numbers."""

    first: int
    """The seed of the environment's first episode."""
    environment: int
    episode: int

    @property
    def value(self) -> int:
        """Between 0 and 2**31 - 1; the first episode's is `first`, as everywhere with Stable-Baselines3."""
        if self.episode == 0:
            return self.first
        return int(np.random.SeedSequence(list(self)).generate_state(1)[0] >> 1)

    def next(self) -> EpisodeSeed:
        return self._replace(episode=self.episode + 1)


class Journal:
    """The episodes under way in N environments: the seed of each, and the actions it has taken."""

    def __init__(self, num_envs: int) -> None:
        self.first = 0  # the number of the first of them, where other processes have those before it
        self.seeds: list[EpisodeSeed] = []
        self._actions: deque[NDArray[Any]] = deque(maxlen=LONGEST_REPLAY)  # of the last steps, (N, ...) each
        self._steps = 0
        self._started_at = [0] * num_envs

    def start_all(self, first: Sequence[int | None]) -> list[EpisodeSeed]:
        """Episodes begin everywhere: the first ones after these seeds, (N,), or the next ones where there is none."""
        following = [seed.next() for seed in self.seeds] or [
            EpisodeSeed(secrets.randbelow(2**31), self.first + row, 0) for row in range(len(first))
        ]
        self.seeds = [
            following[row] if seed is None else EpisodeSeed(int(seed), self.first + row, 0)
            for row, seed in enumerate(first)
        ]
        self._started_at = [self._steps] * len(first)
        self._actions.clear()
        return self.seeds.copy()

    def add(self, actions: NDArray[Any]) -> None:
        """One step everywhere, (N, ...)."""
        self._actions.append(np.array(actions))
        self._steps += 1

    def end(self, row: int) -> None:
        """The episode of environment `row` is over; the next one begins."""
        self.seeds[row] = self.seeds[row].next()
        self._started_at[row] = self._steps
        needed = self._steps - min(self._started_at)
        while len(self._actions) > needed:
            self._actions.popleft()

    def actions(self, row: int) -> NDArray[Any] | None:
        """Those of the episode under way, (T, ...); None where they are too many to be kept."""
        start = self._started_at[row] - (self._steps - len(self._actions))
        return None if start < 0 else np.array([step[row] for step in islice(self._actions, start, None)])

    def state(self) -> dict[str, Any]:
        """The seeds and actions of the episodes under way, as plain data."""
        return {
            "seeds": [list(seed) for seed in self.seeds],
            "actions": [self.actions(row) for row in range(len(self.seeds))],
        }

    def set_state(self, seeds: list[EpisodeSeed], actions: list[NDArray[Any]]) -> None:
        """Episodes of these seeds are under way and have taken these actions, (T, ...) each."""
        self.seeds, self._steps = list(seeds), max(map(len, actions))
        self._started_at = [self._steps - len(taken) for taken in actions]
        self._actions.clear()
        # Where an episode had not begun yet, any action will do: nobody reads it.
        some = next((taken[0] for taken in actions if len(taken)), None)
        for step in range(self._steps):
            rows = zip(self._started_at, actions, strict=True)
            self._actions.append(np.array([taken[step - start] if step >= start else some for start, taken in rows]))


def same(one: Any, other: Any) -> bool:
    """Whether two observations, arrays or dicts and tuples of them, are equal to the last bit."""
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, tuple):
        return isinstance(other, tuple) and len(one) == len(other) and all(map(same, one, other))
    return np.array_equal(one, other, equal_nan=True)


def _is_state(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value) and all(
            isinstance(part, np.ndarray | Streams) and _is_state(part) for part in value.values()
        )
    return (
        value.dtype.kind in "biuf" if isinstance(value, np.ndarray) else isinstance(value, Streams | bool | int | float)
    )


def _copy(value: Any) -> Any:
    return value.state() if isinstance(value, Streams) else copy(value)


def _fill(current: Any, saved: Any) -> None:
    if isinstance(current, Streams):
        current.set_state(saved)
    elif current.shape != saved.shape or current.dtype != saved.dtype:
        raise ValueError(
            f"{current.dtype} of shape {current.shape} is needed, {saved.dtype} of shape {saved.shape} was saved"
        )
    else:
        current[...] = saved
