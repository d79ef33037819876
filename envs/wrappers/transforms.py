"""What hides, garbles or adds to observations, on any environment.

    keep                     the observation as it is here, under a key of its own
    mask                     entries are zero, or left out
    flicker                  the whole observation is zero now and then
    dropout                  single sensors fail for some steps
    delay                    observations come some steps late
    noise                    Gaussian noise on them
    previous_action_reward   the last action and reward are seen too
    history                  the last few observations are seen at once
    flatten                  observations of any space become arrays; see `envs.wrappers.arrays`
    pad_graph, pad_sequence  graphs and sequences become arrays of one size with masks; see `envs.wrappers.padding`
    action_delay, randomize, trials
                             what changes the environment itself; see `envs.wrappers.dynamics`
    atari                    small gray frames; see `envs.wrappers.frames`

Each but those of the last four lines is written once, as a `Transform` of N environments' observations, and serves a
single `gymnasium.Env` (N = 1, see `wrap`) and a whole vector environment (`envs.make(..., wrappers=...)`) alike. At an
episode's end its last observation belongs to the episode, with its history, delay, action and reward; the next
episode's first knows nothing of it.

Axes: N environments, R some of them ("rows"), K observations of a history.
"""

from __future__ import annotations

import difflib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from envs.tasks.batch import Rows
from envs.tasks.observations import Tree, is_array_space, only, tree_map
from envs.tasks.streams import Streams
from envs.wrappers.arrays import Arranged, Room, needs_arranging
from envs.wrappers.dynamics import ActionDelay, Randomize, Trials
from envs.wrappers.encoding import Encoder, repeated, with_zero
from envs.wrappers.frames import Atari
from envs.wrappers.padding import PadGraph, PadSequence, checked_count

# The arrays of an observation by name, (N, ...) or (R, ...); a plain observation is the one named "".
Parts = dict[str, NDArray[Any]]
LARGEST_ONE_HOT = 2048
Spaces = dict[str, spaces.Space[Any]]


class Transform(ABC):
    """Turns the observations of N environments into others, knowing what came before in each episode.

    A subclass reads its settings in its constructor, gives the spaces of its observations in `_spaces`, and these in
    `_first` (an episode's first observation) and `_next` (all others), without changing the arrays it is given.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        num_envs: int,
        *,
        keys: Sequence[str] | None = None,
    ) -> None:
        """`keys`: which parts of a Dict observation are meant (None: all of them); the others stay as they are."""
        self.num_envs = num_envs
        self.action_space = action_space
        self._plain = not isinstance(observation_space, spaces.Dict)
        self._inner: Spaces = {"": observation_space} if self._plain else dict(observation_space.items())  # type: ignore[attr-defined]
        for key, space in self._inner.items():
            if not is_array_space(space):
                raise ValueError(
                    f"{self._name} needs arrays to observe, not {space}{_under(key)}; put 'flatten' before it"
                )
        if keys is not None and (self._plain or not set(keys) <= set(self._inner)):
            has = "no keys" if self._plain else f"the keys {sorted(self._inner)}"
            raise ValueError(f"{self._name}: keys={list(keys)}, but the observation has {has}")
        self._keys = list(self._inner) if keys is None else list(keys)
        self._every_row: Rows = np.arange(num_envs)
        outer = self._spaces()
        self.observation_space = outer[""] if "" in outer else spaces.Dict(outer)

    def seed(self, seeds: Sequence[int | None], level: int = 0) -> None:
        """Restart the random numbers from a seed an environment, (N,); None goes on with those there are.

        `level` is how many transforms are inside: equal ones around one environment draw different numbers.
        """
        for which, streams in enumerate(self._random()):
            for row, seed in enumerate(seeds):
                if seed is not None:
                    streams.seed(row, np.random.default_rng([seed, level, which]))

    def begin(self, observations: Tree, rows: Rows) -> Tree:
        """The first observations of episodes of the environments `rows`, (R, ...) -> (R, ...)."""
        parts = self._first(self._unpacked(observations), rows)
        return parts.get("", parts)

    def follow(self, observations: Tree, actions: NDArray[Any], rewards: NDArray[np.float32]) -> Tree:
        """The observations that the actions, (N, ...), led to, with their rewards, (N,): (N, ...) -> (N, ...)."""
        parts = self._next(self._unpacked(observations), actions, rewards)
        return parts.get("", parts)

    def begin_one(self, observation: Any) -> Any:
        """`begin` of a single environment."""
        return only(self.begin(_batched(observation), np.arange(1)))

    def follow_one(self, observation: Any, action: Any, reward: Any) -> Any:
        """`follow` of a single environment."""
        return only(self.follow(_batched(observation), np.asarray(action)[None], np.array([reward], np.float32)))

    @abstractmethod
    def _spaces(self) -> Spaces:
        """The spaces of what comes out. A single one named "" is no Dict."""

    @abstractmethod
    def _first(self, parts: Parts, rows: Rows) -> Parts: ...

    def _next(self, parts: Parts, actions: NDArray[Any], rewards: NDArray[np.float32]) -> Parts:
        return self._first(parts, self._every_row)

    def _random(self) -> Iterable[Streams]:
        """The random streams in use."""
        return ()

    @property
    def _name(self) -> str:
        return str(_name(type(self)))

    def _box(self, key: str) -> spaces.Box:
        """The space under `key`, which has to be a Box."""
        space = self._inner[key]
        if not isinstance(space, spaces.Box):
            raise ValueError(
                f"{self._name} works on Box observations, not {space}{_under(key)}; give keys=[...] to choose"
            )
        return space

    def _unpacked(self, observations: Tree) -> Parts:
        return {"": observations} if self._plain else observations


class Keep(Transform):
    """The observation as it is here is seen under a key of its own too, whatever wrappers around it do to the rest.

    For a teacher, or a critic, that sees what the agent does not: `keep`, then `mask` with `keys`. What was no Dict
    becomes one: "observation", and the key. Of a Dict, one part is kept (`of`).
    """

    def __init__(self, *around: Any, key: str = "kept", of: str | None = None):
        """`key`: the name; `of`: the part of a Dict observation that is meant."""
        self._key, self._of = key, of
        super().__init__(*around)

    def _spaces(self) -> Spaces:
        if self._plain != (self._of is None) or (self._of or "") not in self._inner:
            raise ValueError(
                f"{self._name}: of={self._of!r} must name a part of a Dict observation, and nothing else; the "
                f"observation has the keys {sorted(self._inner)}"
            )
        outer = {"observation" if self._plain else key: space for key, space in self._inner.items()}
        if self._key in outer:
            raise ValueError(f"{self._name}: the observation has a key {self._key!r} already; choose another")
        return {**outer, self._key: self._inner[self._of or ""]}

    def _first(self, parts: Parts, rows: Rows) -> Parts:
        outer = {"observation" if self._plain else key: values for key, values in parts.items()}
        return {**outer, self._key: parts[self._of or ""].copy()}


class Mask(Transform):
    """Entries of a one-dimensional Box are zero (the space stays as it is) or, with `remove`, left out."""

    def __init__(self, *around: Any, indices: Sequence[int], remove: bool = False, keys: Sequence[str] | None = None):
        """`indices`: which entries; negative ones count from the end."""
        self._indices, self._remove = list(indices), remove
        super().__init__(*around, keys=keys)

    def _spaces(self) -> Spaces:
        self._kept: dict[str, NDArray[np.bool_]] = {}
        result = dict(self._inner)
        for key in self._keys:
            box = self._box(key)
            if len(box.shape) != 1 or not all(-box.shape[0] <= i < box.shape[0] for i in self._indices):
                raise ValueError(f"{self._name}: indices {self._indices} are not all entries of {box}")
            kept = np.ones(box.shape, dtype=np.bool_)
            kept[self._indices] = False
            if self._remove and not kept.any():
                raise ValueError(f"{self._name}: indices {self._indices} with remove=True leave nothing of {box}")
            self._kept[key] = kept
            removed = spaces.Box(box.low[kept], box.high[kept], dtype=box.dtype)
            result[key] = removed if self._remove else with_zero(box)
        return result

    def _first(self, parts: Parts, rows: Rows) -> Parts:
        masked = {}
        for key, kept in self._kept.items():
            masked[key] = parts[key][:, kept] if self._remove else np.where(kept, parts[key], parts[key].dtype.type(0))
        return {**parts, **masked}


class Flicker(Transform):
    """With some probability nothing is seen in a step: the observation is zero, whole, and for all `keys` together.

    Discrete, MultiDiscrete and MultiBinary observations come out one-hot, so that nothing is not mistaken for category
    0.
    """

    def __init__(self, *around: Any, probability: float = 0.5, keys: Sequence[str] | None = None):
        """`probability` of seeing nothing, for each step and environment alone."""
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"probability must lie in [0, 1], not be {probability}")
        self._probability = probability
        super().__init__(*around, keys=keys)
        self._streams = Streams(self.num_envs, 1)

    def _random(self) -> Iterable[Streams]:
        return (self._streams,)

    def _spaces(self) -> Spaces:
        self._encoders = {key: Encoder(self._inner[key]) for key in self._keys}
        return {**self._inner, **{key: with_zero(encoder.space) for key, encoder in self._encoders.items()}}

    def _first(self, parts: Parts, rows: Rows) -> Parts:
        unseen = self._streams.take(rows)[:, 0] < self._probability
        seen = {key: encoder(parts[key]).copy() for key, encoder in self._encoders.items()}
        for values in seen.values():
            values[unseen] = 0
        return {**parts, **seen}


class Dropout(Transform):
    """Each entry of a floating-point Box fails now and then, alone and for `duration` steps: then it is zero, or with
    `hold` what it was last (zero where that was never)."""

    def __init__(
        self,
        *around: Any,
        probability: float = 0.1,
        duration: int = 1,
        hold: bool = False,
        keys: Sequence[str] | None = None,
    ):
        """`probability` that an entry that works fails at a step."""
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"probability must lie in [0, 1], not be {probability}")
        if duration < 1:
            raise ValueError(f"duration must be at least 1, not {duration}")
        self._probability, self._duration, self._hold = probability, duration, hold
        super().__init__(*around, keys=keys)
        sizes = {key: int(np.prod(_shape(self._inner[key]))) for key in self._keys}
        self._streams = {key: Streams(self.num_envs, size) for key, size in sizes.items()}
        # Steps that an entry still fails for, and what it shows meanwhile, (N, entries).
        self._left = {key: np.zeros((self.num_envs, size), np.int64) for key, size in sizes.items()}
        self._last = {key: np.zeros((self.num_envs, size), self._inner[key].dtype) for key, size in sizes.items()}

    def _random(self) -> Iterable[Streams]:
        return self._streams.values()

    def _spaces(self) -> Spaces:
        for key in self._keys:
            if self._box(key).dtype.kind != "f":
                raise ValueError(f"{self._name} works on floating-point observations, not {self._inner[key]}")
        return {**self._inner, **{key: with_zero(self._box(key)) for key in self._keys}}

    def _first(self, parts: Parts, rows: Rows) -> Parts:
        for key in self._keys:
            self._left[key][rows], self._last[key][rows] = 0, 0
        return self._shown(parts, rows)

    def _next(self, parts: Parts, actions: NDArray[Any], rewards: NDArray[np.float32]) -> Parts:
        return self._shown(parts, self._every_row)

    def _shown(self, parts: Parts, rows: Rows) -> Parts:
        shown = {}
        for key, streams in self._streams.items():
            values, left = parts[key].reshape(len(rows), -1), np.maximum(self._left[key][rows] - 1, 0)
            left[(left == 0) & (streams.take(rows) < self._probability)] = self._duration
            self._left[key][rows] = left
            if self._hold:
                self._last[key][rows] = np.where(left > 0, self._last[key][rows], values)
            shown[key] = np.where(left > 0, self._last[key][rows], values).reshape(parts[key].shape)
        return {**parts, **shown}


class Delay(Transform):
    """Observations come `steps` steps late; until there are any, the episode's first is seen.

    With `vary`, each episode's delay is drawn from 0 to `steps`.
    """

    def __init__(self, *around: Any, steps: int = 1, vary: bool = False, keys: Sequence[str] | None = None):
        if steps < 0:
            raise ValueError(f"steps must be 0 or more, not {steps}")
        self._steps, self._vary = steps, vary
        super().__init__(*around, keys=keys)
        self._streams = Streams(self.num_envs, 1)
        self._late = np.full(self.num_envs, steps)
        # A ring of the last observations, (steps + 1, N, ...).
        self._now = 0
        self._past = {
            key: np.zeros((steps + 1, self.num_envs, *_shape(self._inner[key])), self._inner[key].dtype)
            for key in self._keys
        }

    def _spaces(self) -> Spaces:
        return self._inner

    def _random(self) -> Iterable[Streams]:
        return (self._streams,) if self._vary else ()

    def _first(self, parts: Parts, rows: Rows) -> Parts:
        if self._vary:
            self._late[rows] = self._streams.take(rows)[:, 0] * (self._steps + 1)
        for key, past in self._past.items():
            past[:, rows] = parts[key]
        return {**parts, **{key: parts[key].copy() for key in self._keys}}

    def _next(self, parts: Parts, actions: NDArray[Any], rewards: NDArray[np.float32]) -> Parts:
        self._now = (self._now + 1) % (self._steps + 1)
        seen = (self._now - self._late) % (self._steps + 1)
        for key, past in self._past.items():
            past[self._now] = parts[key]
        return {**parts, **{key: past[seen, self._every_row] for key, past in self._past.items()}}


class Noise(Transform):
    """Gaussian noise, alone for each entry, step and environment, on floating-point Box observations."""

    def __init__(self, *around: Any, std: float = 0.1, keys: Sequence[str] | None = None):
        """`std`: standard deviation, in the observation's own unit."""
        if not std >= 0.0:
            raise ValueError(f"std must be 0 or more, not {std}")
        self._std = std
        super().__init__(*around, keys=keys)
        self._streams = {
            key: Streams(self.num_envs, int(np.prod(_shape(self._inner[key]))), "normal") for key in self._keys
        }

    def _random(self) -> Iterable[Streams]:
        return self._streams.values()

    def _spaces(self) -> Spaces:
        for key in self._keys:
            if not np.issubdtype(self._box(key).dtype, np.floating):
                raise ValueError(f"{self._name} works on floating-point observations, not {self._inner[key]}")
        boxes = {key: self._box(key) for key in self._keys}
        noisy = {key: spaces.Box(-np.inf, np.inf, box.shape, dtype=box.dtype) for key, box in boxes.items()}
        return {**self._inner, **noisy}

    def _first(self, parts: Parts, rows: Rows) -> Parts:
        noisy = {}
        for key, streams in self._streams.items():
            values = parts[key]
            noise = streams.take(rows).reshape(values.shape)
            noisy[key] = (values + self._std * noise).astype(values.dtype)
        return {**parts, **noisy}


class PreviousActionReward(Transform):
    """The action and the reward that led here are seen too; at an episode's start both are null, that is zero.

    Discrete, MultiDiscrete and MultiBinary actions are one-hot, so that null is not mistaken for action 0. Appended to
    a one-dimensional floating-point Box: observation, action, reward. Otherwise a Dict: "observation" (or the keys that
    were there), "previous_action", "previous_reward" (1,).

    With `start`, whether an episode starts is seen as well: 1 at its first observation, else 0, after the reward or as
    "episode_start" (1,). An observation that is a category, or several, is then one-hot and appended to, unless that
    takes over 2048 numbers.
    """

    def __init__(self, *around: Any, start: bool = False):
        self.start = start
        super().__init__(*around)

    def _spaces(self) -> Spaces:
        self._encode = Encoder(self.action_space)
        self._action_size = size = int(np.prod(self._encode.space.shape))
        low, high = self._encode.space.low.reshape(size), self._encode.space.high.reshape(size)
        added: dict[str, spaces.Box] = {
            "previous_action": spaces.Box(np.minimum(low, 0, dtype=np.float32), np.maximum(high, 0, dtype=np.float32)),
            "previous_reward": spaces.Box(-np.inf, np.inf, (1,), np.float32),
        }
        if self.start:
            added["episode_start"] = spaces.Box(0.0, 1.0, (1,), np.float32)
        self._seen: Encoder | None = None
        space = self._inner.get("")
        if space is not None and (self.start or isinstance(space, spaces.Box)):
            encoder = Encoder(space)
            is_row = len(encoder.space.shape) == 1 and encoder.space.dtype.kind == "f"
            if is_row and (isinstance(space, spaces.Box) or encoder.space.shape[0] <= LARGEST_ONE_HOT):
                self._seen = encoder
        if self._seen is not None:
            parts = (self._seen.space, *added.values())
            low, high = (np.concatenate(side) for side in zip(*((part.low, part.high) for part in parts), strict=True))
            return {"": spaces.Box(low.astype(np.float32), high.astype(np.float32))}
        if set(added) & set(self._inner):
            raise ValueError(f"{self._name}: the observation has keys of these names already: {sorted(self._inner)}")
        return {"observation" if self._plain else key: space for key, space in self._inner.items()} | added

    def _first(self, parts: Parts, rows: Rows) -> Parts:
        nothing = np.zeros((len(rows), self._action_size), np.float32)
        return self._joined(parts, nothing, np.zeros((len(rows), 1), np.float32), 1.0)

    def _next(self, parts: Parts, actions: NDArray[Any], rewards: NDArray[np.float32]) -> Parts:
        previous = self._encode(actions).reshape(self.num_envs, self._action_size).astype(np.float32)
        return self._joined(parts, previous, np.array(rewards, np.float32)[:, None], 0.0)

    def _joined(self, parts: Parts, actions: NDArray[np.float32], rewards: NDArray[np.float32], starts: float) -> Parts:
        added: Parts = {"previous_action": actions, "previous_reward": rewards}
        if self.start:
            added["episode_start"] = np.full((len(actions), 1), starts, np.float32)
        if self._seen is not None:
            return {"": np.concatenate((self._seen(parts[""]), *added.values()), axis=1, dtype=np.float32)}
        named = {"observation" if self._plain else key: values.copy() for key, values in parts.items()}
        return {**named, **added}


class History(Transform):
    """The last `length` observations at once, (K, ...), the newest last; those before the episode began are zero.

    Discrete, MultiDiscrete and MultiBinary observations come out one-hot, (K, categories). With `mask`, a Dict:
    "history" (or the keys that were there) and "mask" (K,), 1 for an observation, 0 for before the episode began.
    """

    def __init__(self, *around: Any, length: int = 4, mask: bool = False, keys: Sequence[str] | None = None):
        if length < 1:
            raise ValueError(f"length must be at least 1, not {length}")
        self._length, self._with_mask = length, mask
        super().__init__(*around, keys=keys)
        self._past = {
            key: np.zeros((self.num_envs, length, *_shape(encoder.space)), encoder.space.dtype)
            for key, encoder in self._encoders.items()
        }
        self._real = np.zeros((self.num_envs, length), dtype=np.int8)

    def _spaces(self) -> Spaces:
        self._encoders = {key: Encoder(self._inner[key]) for key in self._keys}
        result = dict(self._inner)
        for key, encoder in self._encoders.items():
            result[key] = repeated(encoder.space, self._length)
        if not self._with_mask:
            return result
        if "mask" in result:
            raise ValueError(f"{self._name}: the observation has a key 'mask' already")
        return {**self._named(result), "mask": spaces.MultiBinary(self._length)}

    def _first(self, parts: Parts, rows: Rows) -> Parts:
        for key, encoder in self._encoders.items():
            self._past[key][rows] = 0
            self._past[key][rows, -1] = encoder(parts[key])
        self._real[rows] = 0
        self._real[rows, -1] = 1
        return self._shown(parts, rows)

    def _next(self, parts: Parts, actions: NDArray[Any], rewards: NDArray[np.float32]) -> Parts:
        for key, encoder in self._encoders.items():
            past = self._past[key]
            past[:, :-1] = past[:, 1:]
            past[:, -1] = encoder(parts[key])
        self._real[:, :-1] = self._real[:, 1:]
        self._real[:, -1] = 1
        return self._shown(parts, self._every_row)

    def _shown(self, parts: Parts, rows: Rows) -> Parts:
        shown = {**parts, **{key: past[rows] for key, past in self._past.items()}}
        return {**self._named(shown), "mask": self._real[rows]} if self._with_mask else shown

    def _named(self, parts: dict[str, Any]) -> dict[str, Any]:
        return {"history": parts[""]} if self._plain else parts


class Flatten(Transform):
    """Observations of any space become arrays, with no Dict or Tuple in another: see `envs.wrappers.arrays`."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        num_envs: int,
        *,
        max_length: int = Room().max_length,
        max_text: int = Room().max_text,
        max_nodes: int = Room().max_nodes,
        max_edges: int = Room().max_edges,
    ) -> None:
        """For how many there is room: elements of a sequence, characters or words of a text, nodes and edges."""
        room = {"max_length": max_length, "max_text": max_text, "max_nodes": max_nodes, "max_edges": max_edges}
        for name, count in room.items():
            checked_count(name, count)
        self._arranged = Arranged(observation_space, Room(**room))
        super().__init__(self._arranged.space, action_space, num_envs)

    def begin_one(self, observation: Any) -> Any:
        return only(self._arranged.rows_of_one(observation))

    def follow_one(self, observation: Any, action: Any, reward: Any) -> Any:
        return only(self._arranged.rows_of_one(observation))

    def begin(self, observations: Tree, rows: Rows) -> Tree:
        return self._arranged.batch(observations)

    def follow(self, observations: Tree, actions: NDArray[Any], rewards: NDArray[np.float32]) -> Tree:
        return self._arranged.batch(observations)

    def _spaces(self) -> Spaces:
        return self._inner

    def _first(self, parts: Parts, rows: Rows) -> Parts:
        return parts


class WrappedEnv(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """One environment with a transform around it."""

    def __init__(
        self, env: gymnasium.Env[Any, Any], transform: str | type[Transform], settings: Mapping[str, Any] | None = None
    ) -> None:
        """`transform`: a name of `WRAPPERS`, or a class."""
        RecordConstructorArgs.__init__(self, transform=transform, settings=settings)
        super().__init__(env)
        self.transform = build(_resolved(transform), settings or {}, env.observation_space, env.action_space, 1)
        self.observation_space = self.transform.observation_space
        self._level = sum(isinstance(wrapper, WrappedEnv) for wrapper in wrappers_of(env))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self.transform.seed([seed], self._level)
        return self.transform.begin_one(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        seen = self.transform.follow_one(observation, action, reward)
        return seen, float(reward), terminated, truncated, info


WRAPPERS: dict[str, type[Transform] | type[gymnasium.Wrapper[Any, Any, Any, Any]]] = {
    "keep": Keep,
    "mask": Mask,
    "flicker": Flicker,
    "dropout": Dropout,
    "delay": Delay,
    "noise": Noise,
    "previous_action_reward": PreviousActionReward,
    "history": History,
    "flatten": Flatten,
    "pad_graph": PadGraph,
    "pad_sequence": PadSequence,
    "action_delay": ActionDelay,
    "randomize": Randomize,
    "trials": Trials,
    "atari": Atari,
}


def wrappers_of(env: Any) -> list[gymnasium.Wrapper[Any, Any, Any, Any]]:
    """The wrappers around an environment, from the outermost in."""
    wrappers = []
    while isinstance(env, gymnasium.Wrapper):
        wrappers.append(env)
        env = env.env
    return wrappers


def wrap(env: gymnasium.Env[Any, Any], wrappers: Sequence[Any]) -> gymnasium.Env[Any, Any]:
    """A single environment with `wrappers`, the first innermost, around it; each as `envs.make` takes them."""
    for name, settings in named(wrappers):
        if name in WRAPPERS.values():
            _check_settings(name, settings)
        env = WrappedEnv(env, _name(name), settings) if is_transform(name) else name(env, **settings)
    return env


def as_arrays(env: gymnasium.Env[Any, Any], **room: int) -> gymnasium.Env[Any, Any]:
    """The environment with observations that are arrays, in a plain Dict if they are several; itself if they are.

    `room`: the settings of `Flatten`, for how much there is room where the space does not say it.
    """
    return WrappedEnv(env, Flatten, room) if needs_arranging(env.observation_space) else env


def named(wrappers: Sequence[Any]) -> list[tuple[Any, dict[str, Any]]]:
    """Wrappers with their settings.

    Each is a name, a pair (name, settings), or a dict {name: settings}; in place of a name stands a `Transform`,
    "module:Class", or anything that makes a gymnasium environment out of one.
    """
    result: list[tuple[Any, dict[str, Any]]] = []
    for entry in [wrappers] if isinstance(wrappers, str | Mapping) else wrappers:
        if isinstance(entry, tuple | list):
            if len(entry) != 2 or not isinstance(entry[1], Mapping | None):
                raise ValueError(f"expected a wrapper as a name, (name, settings) or {{name: settings}}, got {entry!r}")
            pairs: Any = [entry]
        else:
            pairs = entry.items() if isinstance(entry, Mapping) else [(entry, None)]
        result += [(_resolved(name), dict(settings or {})) for name, settings in pairs]
    return result


def is_transform(wrapper: Any) -> bool:
    return isinstance(wrapper, type) and issubclass(wrapper, Transform)


def build(
    transform: type[Transform],
    settings: Mapping[str, Any],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    num_envs: int,
) -> Transform:
    """Make a transform; a setting it does not have, or lacks, is an error that lists those it has."""
    _check_settings(transform, settings)
    return transform(observation_space, action_space, num_envs, **settings)


def _check_settings(wrapper: Any, settings: Mapping[str, Any]) -> None:
    parameters = inspect.signature(wrapper).parameters.items()
    has = {name: parameter for name, parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY}
    unknown = sorted(set(settings) - set(has))
    missing = sorted(name for name, p in has.items() if p.default is inspect.Parameter.empty and name not in settings)
    if unknown or missing:
        wrong = f"has no setting {unknown[0]!r}" if unknown else f"needs a value for {missing[0]!r}"
        raise ValueError(f"wrapper {_name(wrapper)!r} {wrong}; its settings are: {', '.join(has) or 'none'}")


def _resolved(wrapper: Any) -> Any:
    if not isinstance(wrapper, str):
        if callable(wrapper):
            return wrapper
        raise ValueError(f"expected a wrapper's name, a class or a function, got {wrapper!r}")
    if wrapper in WRAPPERS:
        return WRAPPERS[wrapper]
    if ":" in wrapper:
        module, _, name = wrapper.partition(":")
        return getattr(__import__(module, fromlist=[name]), name)
    near = difflib.get_close_matches(wrapper, WRAPPERS, n=1, cutoff=0.4)
    meant = f" Perhaps you meant {near[0]!r}." if near else ""
    raise ValueError(f"there is no wrapper {wrapper!r}.{meant} There are: {', '.join(WRAPPERS)}, or 'module:Class'.")


def _name(transform: Any) -> Any:
    """The name a transform is registered under, else itself."""
    return next((name for name, wrapper in WRAPPERS.items() if wrapper is transform), transform)


def _under(key: str) -> str:
    return f" under {key!r}" if key else ""


def _shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    assert space.shape is not None
    return space.shape


def _batched(observation: Any) -> Tree:
    """One observation -> a batch of one."""
    return tree_map(lambda part: np.asarray(part)[None], observation)
