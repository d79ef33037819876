"""What hides, garbles or adds to observations, on any environment.

    mask                     entries are zero, or left out
    flicker                  the whole observation is zero now and then
    delay                    observations come some steps late
    noise                    Gaussian noise on them
    previous_action_reward   the last action and reward are seen too
    history                  the last few observations are seen at once
    flatten                  nested Dict and Tuple observations become a plain Dict
    pad_graph, pad_sequence  graphs and sequences become arrays of one size with masks; see `envs.wrappers.padding`

Each but the last two is written once, as a `Transform` of N environments' observations, and serves a single
`gymnasium.Env` (N = 1, see `wrap`) and a whole vector environment (`envs.make(..., wrappers=...)`) alike. At an
episode's end its last observation belongs to the episode, with its history, delay, action and reward; the next
episode's first knows nothing of it.

Axes: N environments, R some of them ("rows"), K observations of a history.
"""

from __future__ import annotations

import difflib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from envs.tasks.batch import Rows
from envs.tasks.observations import Tree, is_array_space, leaves
from envs.tasks.streams import Streams
from envs.wrappers.padding import PadGraph, PadSequence

# The arrays of an observation by name, (N, ...) or (R, ...); a plain observation is the one named "".
Parts = dict[str, NDArray[Any]]
Spaces = dict[str, spaces.Space[Any]]


class Transform(ABC):
    """Turns the observations of N environments into others, knowing what came before in each episode.

    A subclass reads its settings in its constructor, says the spaces of what it gives in `_spaces`, and gives it in
    `_first` (an episode's first observation) and `_next` (all others), leaving alone the arrays it is given.
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
        for name, space in self._inner.items():
            if not is_array_space(space):
                where = "" if self._plain else f" under {name!r}"
                raise ValueError(f"{self._name} needs arrays to observe, not {space}{where}; put 'flatten' before it")
        if keys is not None and (self._plain or not set(keys) <= set(self._inner)):
            has = "no keys" if self._plain else f"the keys {sorted(self._inner)}"
            raise ValueError(f"{self._name}: keys={list(keys)}, but the observation has {has}")
        self._keys = list(self._inner) if keys is None else list(keys)
        self._every_row: Rows = np.arange(num_envs)
        self.observation_space = self._packed_space(self._spaces())

    def seed(self, seeds: Sequence[int | None], level: int = 0) -> None:
        """Draw random numbers anew, from a seed an environment, (N,); None goes on with those there are.

        `level` is how many transforms lie below: equal ones around one environment draw different numbers.
        """
        for streams, which in self._random():
            for row, seed in enumerate(seeds):
                if seed is not None:
                    streams.seed(row, np.random.default_rng([seed, level, which]))

    def begin(self, observations: Tree, rows: Rows) -> Tree:
        """The first observations of episodes of the environments `rows`, (R, ...) -> (R, ...)."""
        return self._packed(self._first(self._unpacked(observations), rows))

    def follow(self, observations: Tree, actions: NDArray[Any], rewards: NDArray[np.float32]) -> Tree:
        """The observations that the actions, (N, ...), led to, with their rewards, (N,): (N, ...) -> (N, ...)."""
        return self._packed(self._next(self._unpacked(observations), actions, rewards))

    @abstractmethod
    def _spaces(self) -> Spaces:
        """The spaces of what comes out. A single one named "" is no Dict."""

    @abstractmethod
    def _first(self, parts: Parts, rows: Rows) -> Parts: ...

    @abstractmethod
    def _next(self, parts: Parts, actions: NDArray[Any], rewards: NDArray[np.float32]) -> Parts: ...

    def _random(self) -> list[tuple[Streams, int]]:
        """The random streams in use, each with a number of its own."""
        return []

    @property
    def _name(self) -> str:
        return str(_name(type(self)))

    def _box(self, key: str) -> spaces.Box:
        """The space under `key`, which has to be a Box."""
        space = self._inner[key]
        if not isinstance(space, spaces.Box):
            where = "" if self._plain else f" under {key!r}"
            raise ValueError(f"{self._name} works on Box observations, not {space}{where}; give keys=[...] to choose")
        return space

    def _unpacked(self, observations: Tree) -> Parts:
        return {"": observations} if self._plain else observations

    def _packed(self, parts: Parts) -> Tree:
        return parts.get("", parts)

    def _packed_space(self, parts: Spaces) -> spaces.Space[Any]:
        return parts[""] if "" in parts else spaces.Dict(parts)


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
            if self._remove:
                result[key] = spaces.Box(box.low[kept], box.high[kept], dtype=box.dtype)
            else:
                result[key] = _with_zero(box)
        return result

    def _first(self, parts: Parts, rows: Rows) -> Parts:
        masked = {}
        for key, kept in self._kept.items():
            masked[key] = parts[key][:, kept] if self._remove else np.where(kept, parts[key], parts[key].dtype.type(0))
        return {**parts, **masked}

    def _next(self, parts: Parts, actions: NDArray[Any], rewards: NDArray[np.float32]) -> Parts:
        return self._first(parts, self._every_row)


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

    def _random(self) -> list[tuple[Streams, int]]:
        return [(self._streams, 0)]

    def _spaces(self) -> Spaces:
        self._encoders = {key: Encoder(self._inner[key]) for key in self._keys}
        return {**self._inner, **{key: _with_zero(encoder.space) for key, encoder in self._encoders.items()}}

    def _first(self, parts: Parts, rows: Rows) -> Parts:
        unseen = self._streams.take(rows)[:, 0] < self._probability
        seen = {key: encoder(parts[key]).copy() for key, encoder in self._encoders.items()}
        for values in seen.values():
            values[unseen] = 0
        return {**parts, **seen}

    def _next(self, parts: Parts, actions: NDArray[Any], rewards: NDArray[np.float32]) -> Parts:
        return self._first(parts, self._every_row)


class Delay(Transform):
    """Observations come `steps` steps late; until there are any, the episode's first is seen."""

    def __init__(self, *around: Any, steps: int = 1, keys: Sequence[str] | None = None):
        if steps < 0:
            raise ValueError(f"steps must be 0 or more, not {steps}")
        self._steps = steps
        super().__init__(*around, keys=keys)
        # A ring of the last observations, (steps + 1, N, ...); the oldest is the one to show.
        self._now = 0
        self._past = {
            key: np.zeros((steps + 1, self.num_envs, *_shape(self._inner[key])), self._inner[key].dtype)
            for key in self._keys
        }

    def _spaces(self) -> Spaces:
        return self._inner

    def _first(self, parts: Parts, rows: Rows) -> Parts:
        for key, past in self._past.items():
            past[:, rows] = parts[key]
        return {**parts, **{key: parts[key].copy() for key in self._keys}}

    def _next(self, parts: Parts, actions: NDArray[Any], rewards: NDArray[np.float32]) -> Parts:
        self._now = (self._now + 1) % (self._steps + 1)
        oldest = (self._now + 1) % (self._steps + 1)
        for key, past in self._past.items():
            past[self._now] = parts[key]
        return {**parts, **{key: past[oldest].copy() for key, past in self._past.items()}}


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

    def _random(self) -> list[tuple[Streams, int]]:
        return [(streams, which) for which, streams in enumerate(self._streams.values())]

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

    def _next(self, parts: Parts, actions: NDArray[Any], rewards: NDArray[np.float32]) -> Parts:
        return self._first(parts, self._every_row)


class PreviousActionReward(Transform):
    """The action and the reward that led here are seen too; at an episode's start both are null, that is zero.

    Discrete, MultiDiscrete and MultiBinary actions are one-hot, so that null is not mistaken for action 0. Appended to
    a one-dimensional floating-point Box: observation, action, reward. Otherwise a Dict: "observation" (or the keys that
    were there), "previous_action", "previous_reward" (1,).

    With `start`, whether an episode starts is seen as well: 1 at its first observation, else 0, after the reward or as
    "episode_start" (1,). An observation that is a category, or several, is then one-hot and appended to.
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
            if len(encoder.space.shape) == 1 and encoder.space.dtype.kind == "f":
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
            box = _with_zero(encoder.space)
            low, high = (np.repeat(bound[None], self._length, axis=0) for bound in (box.low, box.high))
            result[key] = spaces.Box(low, high, dtype=box.dtype)
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
    """A nested Dict or Tuple becomes a plain Dict, which Stable-Baselines3 can take: keys "outer/inner", "outer/0"."""

    def __init__(self, *around: Any):
        observation_space, action_space, num_envs = around
        self._paths = {"/".join(path): (path, space) for path, space in leaves(observation_space)}
        super().__init__(spaces.Dict(dict[str, Any](self._plain_spaces())), action_space, num_envs)

    def _plain_spaces(self) -> Spaces:
        return {name: space for name, (_, space) in self._paths.items()}

    def _spaces(self) -> Spaces:
        return self._plain_spaces()

    def _unpacked(self, observations: Tree) -> Parts:
        return {name: _follow_path(observations, path) for name, (path, _) in self._paths.items()}

    def _first(self, parts: Parts, rows: Rows) -> Parts:
        return parts

    def _next(self, parts: Parts, actions: NDArray[Any], rewards: NDArray[np.float32]) -> Parts:
        return parts


class Encoder:
    """Values of a space as numbers a network can take: a Box as it is, categories one-hot, float32.

    Discrete(n): (n,). MultiDiscrete([n, m]): (n + m,). MultiBinary(n): (n,), as it is. `Discrete(n, start=s)` counts
    from s.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self._codes: NDArray[np.float32] | None = None
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
        size = int(np.prod(_shape(space))) if self._sizes is None else int(self._sizes.sum())
        self.space = spaces.Box(0.0, 1.0, (size,), np.float32)

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """(R, ...) -> (R, *space.shape)."""
        if self._sizes is None:
            return values if values.shape[1:] == self.space.shape else values.reshape(len(values), -1)
        categories = values.reshape(len(values), -1) - self._starts
        offsets = np.concatenate(([0], np.cumsum(self._sizes)[:-1]))
        encoded = np.zeros((len(values), *_shape(self.space)), np.float32)
        np.put_along_axis(encoded, (categories + offsets).astype(np.intp), 1.0, axis=1)
        return encoded


class WrappedEnv(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """One environment with a transform around it."""

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        transform: str | type[Transform],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """`transform`: a name of `WRAPPERS`, or a class."""
        RecordConstructorArgs.__init__(self, transform=transform, settings=settings)
        super().__init__(env)
        kind = _resolved(transform)
        self.transform = build(kind, settings or {}, env.observation_space, env.action_space, 1)
        self.observation_space = self.transform.observation_space
        self._level = 0
        inner = env
        while isinstance(inner, gymnasium.Wrapper):
            self._level += isinstance(inner, WrappedEnv)
            inner = inner.env

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self.transform.seed([seed], self._level)
        return _single(self.transform.begin(_batched(observation), np.arange(1))), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        seen = self.transform.follow(_batched(observation), np.asarray(action)[None], np.array([reward], np.float32))
        return _single(seen), float(reward), terminated, truncated, info


WRAPPERS: dict[str, type[Transform] | type[gymnasium.Wrapper[Any, Any, Any, Any]]] = {
    "mask": Mask,
    "flicker": Flicker,
    "delay": Delay,
    "noise": Noise,
    "previous_action_reward": PreviousActionReward,
    "history": History,
    "flatten": Flatten,
    "pad_graph": PadGraph,
    "pad_sequence": PadSequence,
}


def wrap(env: gymnasium.Env[Any, Any], wrappers: Sequence[Any]) -> gymnasium.Env[Any, Any]:
    """A single environment with `wrappers`, the first innermost, around it; each as `envs.make` takes them."""
    for name, settings in named(wrappers):
        if name in WRAPPERS.values():
            _check_settings(name, settings)
        env = WrappedEnv(env, _name(name), settings) if is_transform(name) else name(env, **settings)
    return env


def named(wrappers: Sequence[Any]) -> list[tuple[Any, dict[str, Any]]]:
    """Wrappers with their settings.

    Each is a name, a pair (name, settings), or a dict {name: settings}; in place of a name stands a `Transform`,
    "module:Class", or anything that makes a gymnasium environment out of one.
    """
    if isinstance(wrappers, str | Mapping):
        wrappers = [wrappers]
    result: list[tuple[Any, dict[str, Any]]] = []
    for entry in wrappers:
        if isinstance(entry, Mapping):
            result += [(_resolved(name), dict(settings or {})) for name, settings in entry.items()]
        elif isinstance(entry, tuple | list):
            if len(entry) != 2 or not isinstance(entry[1], Mapping | None):
                raise ValueError(f"expected a wrapper as a name, (name, settings) or {{name: settings}}, got {entry!r}")
            result.append((_resolved(entry[0]), dict(entry[1] or {})))
        else:
            result.append((_resolved(entry), {}))
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
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(wrapper).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    unknown = sorted(set(settings) - set(parameters))
    missing = sorted(
        name for name, p in parameters.items() if p.default is inspect.Parameter.empty and name not in settings
    )
    if unknown or missing:
        wrong = f"has no setting {unknown[0]!r}" if unknown else f"needs a value for {missing[0]!r}"
        raise ValueError(f"wrapper {_name(wrapper)!r} {wrong}; its settings are: {', '.join(parameters) or 'none'}")


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


def _with_zero(box: spaces.Box) -> spaces.Box:
    low, high = np.minimum(box.low, 0), np.maximum(box.high, 0)
    return spaces.Box(low.astype(box.dtype), high.astype(box.dtype), dtype=box.dtype)


def _shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    assert space.shape is not None
    return space.shape


def _follow_path(observations: Tree, path: tuple[str, ...]) -> NDArray[Any]:
    for key in path:
        observations = observations[int(key)] if isinstance(observations, tuple) else observations[key]
    return observations  # type: ignore[no-any-return]


def _batched(observation: Any) -> Tree:
    """One observation -> a batch of one."""
    if isinstance(observation, dict):
        return {key: _batched(part) for key, part in observation.items()}
    if isinstance(observation, tuple):
        return tuple(_batched(part) for part in observation)
    return np.asarray(observation)[None]


def _single(observations: Tree) -> Any:
    """A batch of one -> the observation."""
    if isinstance(observations, dict):
        return {key: _single(part) for key, part in observations.items()}
    return observations[0]
