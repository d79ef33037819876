"""Where environments stand, as plain data, and how they are brought back to it.

What steps in NumPy is its arrays, numbers and random streams: these are copied out and in. What does not is brought
back by living through it again: every episode has a seed of its own, the actions of the episodes under way are kept,
and an episode that is deterministic given both ends where it ended before.

Axes: N environments, T steps.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.tasks.observations import write
from envs.tasks.streams import Streams

LONGEST_REPLAY = 1_000_000  # steps; an episode that is longer cannot be lived through again
_FIRST_CAPACITY = 256


def state_of(owner: Any) -> dict[str, Any]:
    """A copy of the arrays, numbers and random streams that are attributes of an object."""
    return {name: _told(value) for name, value in vars(owner).items() if _is_state(value)}


def set_state(owner: Any, state: Mapping[str, Any]) -> None:
    """The inverse, into an object made alike.

    Raises ValueError where it is not alike.
    """
    kept = {name for name, value in vars(owner).items() if _is_state(value)}
    if kept != set(state):
        differing = ", ".join(sorted(kept ^ set(state)))
        raise ValueError(f"{type(owner).__name__} keeps other things here than where it was saved: {differing}")
    for name, value in state.items():
        current = vars(owner)[name]
        if isinstance(current, np.ndarray | Streams | dict):
            _fill(current, value, name)
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
        words: Any = [self.first, self.environment, self.episode]
        return int(np.random.SeedSequence(words).generate_state(1)[0] >> 1)

    def next(self) -> EpisodeSeed:
        return self._replace(episode=self.episode + 1)


class Journal:
    """The episodes under way in N environments: the seed of each, and the actions it has taken."""

    def __init__(self, num_envs: int) -> None:
        self.seeds: list[EpisodeSeed] = []
        self._num_envs = num_envs
        self._actions: NDArray[Any] | None = None  # (T, N, ...), of which the first _length are taken
        self._length = 0
        self._started_at = [0] * num_envs

    def start_all(self, first: Sequence[int | None]) -> list[EpisodeSeed]:
        """Episodes begin everywhere: the first ones after these seeds, (N,), or the next ones where there is none."""
        for row, seed in enumerate(first):
            if seed is not None:
                begun = EpisodeSeed(int(seed), row, 0)
            elif row < len(self.seeds):
                begun = self.seeds[row].next()
            else:
                begun = EpisodeSeed(secrets.randbelow(2**31), row, 0)
            self.seeds[row:] = [begun, *self.seeds[row + 1 :]]
        self._length, self._started_at = 0, [0] * self._num_envs
        return list(self.seeds)

    def add(self, actions: NDArray[Any]) -> None:
        """One step everywhere, (N, ...)."""
        if self._actions is None:
            self._actions = np.empty((_FIRST_CAPACITY, *actions.shape), actions.dtype)
        elif self._length == len(self._actions):
            self._make_room()
        self._actions[self._length] = actions
        self._length += 1

    def end(self, row: int) -> None:
        """The episode of environment `row` is over; the next one begins."""
        self.seeds[row] = self.seeds[row].next()
        self._started_at[row] = self._length

    def actions(self, row: int) -> NDArray[Any] | None:
        """A copy of those of the episode under way, (T, ...); None where they are too many to be kept."""
        if self._started_at[row] < 0:
            return None
        if self._actions is None:
            return np.empty((0,))
        return self._actions[self._started_at[row] : self._length, row].copy()

    def state(self) -> dict[str, Any]:
        """The seeds and actions of the episodes under way, as plain data."""
        return {
            "seeds": [list(seed) for seed in self.seeds],
            "actions": [self.actions(row) for row in range(self._num_envs)],
        }

    def refill(self, seeds: list[EpisodeSeed], actions: list[NDArray[Any]]) -> None:
        """Episodes of these seeds are under way and have taken these actions, (T, ...) each."""
        longest = max(map(len, actions))
        self.seeds = list(seeds)
        self._length, self._started_at = longest, [longest - len(taken) for taken in actions]
        some = next((taken for taken in actions if len(taken)), None)
        self._actions = None
        if some is not None:
            capacity = max(_FIRST_CAPACITY, 2 * longest)
            self._actions = np.zeros((capacity, self._num_envs, *some.shape[1:]), some.dtype)
            for row, taken in enumerate(actions):
                self._actions[longest - len(taken) : longest, row] = taken

    def _make_room(self) -> None:
        """Forgets what no episode under way needs; where that is too little, takes twice the memory."""
        assert self._actions is not None
        if self._length >= LONGEST_REPLAY:
            too_long = self._length - LONGEST_REPLAY // 2
            self._started_at = [start if start >= too_long else -1 for start in self._started_at]
        first = min((start for start in self._started_at if start >= 0), default=self._length)
        needed = self._actions[first : self._length]
        capacity = len(self._actions) * (2 if 2 * len(needed) > len(self._actions) else 1)
        room = np.empty((capacity, *needed.shape[1:]), needed.dtype)
        room[: len(needed)] = needed
        self._actions, self._length = room, len(needed)
        self._started_at = [start - first if start >= 0 else -1 for start in self._started_at]


def lived_again(
    state: Mapping[str, Any], journal: Journal, blank: Callable[[], Any], replay: Callable[[dict[int, Any]], list[Any]]
) -> bool:
    """Lives the episodes of a snapshot again. False where one did not come to where it was: start new ones then.

    `replay` is told seed and actions by environment and gives the last observations; `blank()` is a tree for them.
    """
    journal.seeds = [EpisodeSeed(*seed) for seed in state["seeds"]]
    if any(taken is None for taken in state["actions"]):
        return False
    seen = replay(dict(enumerate(zip(journal.seeds, state["actions"], strict=True))))
    if any(observation is None for observation in seen):
        return False
    observations = blank()
    for row, observation in enumerate(seen):
        write(observations, row, observation)
    if not same(observations, state["observations"]):
        return False
    journal.refill(journal.seeds, state["actions"])
    return True


def same(one: Any, other: Any) -> bool:
    """Whether two observations, arrays or dicts and tuples of them, are equal to the last bit."""
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, tuple):
        return isinstance(other, tuple) and len(one) == len(other) and all(map(same, one, other))
    one, other = np.asarray(one), np.asarray(other)
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def _is_state(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    if isinstance(value, dict):
        return bool(value) and all(
            isinstance(part, np.ndarray | Streams) and _is_state(part) for part in value.values()
        )
    return isinstance(value, Streams | bool | int | float)


def _told(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: _told(part) for key, part in value.items()}
    return value.state() if isinstance(value, Streams) else value


def _fill(current: Any, value: Any, name: str) -> None:
    if isinstance(current, Streams):
        current.set_state(value)
    elif isinstance(current, dict):
        if current.keys() != value.keys():
            raise ValueError(f"{name} holds {sorted(current)}, where it was saved {sorted(value)}")
        for key, part in current.items():
            _fill(part, value[key], f"{name}[{key!r}]")
    elif current.shape != value.shape or current.dtype != value.dtype:
        raise ValueError(
            f"{name} is {current.dtype} of shape {current.shape}, where it was saved {value.dtype} of {value.shape}"
        )
    else:
        current[...] = value
