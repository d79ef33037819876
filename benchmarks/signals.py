"""Tiny tasks that show the same thing in every kind of observation, and take it in every kind of action.

    python train.py --env.id signals:Signal --env.kwargs 'kind="gray image"'       with this folder on PYTHONPATH

Axes: T steps of an episode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.spaces import GraphInstance
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.random import Generator

LENGTH = 9
BYTES = np.uint8
Shown = Callable[[Generator, int], Any]


class Kind(NamedTuple):
    """A space, and an observation in it that shows a bit among what is random."""

    space: spaces.Space[Any]
    show: Shown


def _box(low: float, high: float, shape: tuple[int, ...], dtype: Any = np.float32) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype)


def _image(rng: Generator, bit: int, height: int = 40, width: int = 40) -> Any:
    """(height, width) bytes: the left half bright for 0, the right for 1."""
    image = rng.integers(0, 60, (height, width), BYTES)
    image[:, width // 2 * bit :][:, : width // 2] += 180
    return image


def _colors(rng: Generator, bit: int, height: int = 40, width: int = 40) -> Any:
    return np.repeat(_image(rng, bit, height, width)[..., None], 3, axis=2)


def _frames(rng: Generator, bit: int) -> Any:
    """Of four frames the newest shows it, those before anything."""
    return np.stack([*(_image(rng, int(rng.integers(2))) for _ in range(3)), _image(rng, bit)])


def _codes(rng: Generator, bit: int, shape: tuple[int, ...], of: tuple[int, int], others: int) -> Any:
    """Codes below ``others``, and in one cell one of two that stand for the bit."""
    cells = rng.integers(0, others, shape)
    cells.reshape(-1)[cells.size // 2] = of[bit]
    return cells


def _graph(rng: Generator, bit: int) -> GraphInstance:
    """Three to five nodes in a ring; the bit is the sign of what they have in common."""
    n = int(rng.integers(3, 6))
    nodes = rng.normal(2.0 * bit - 1.0, 0.3, (n, 2)).clip(-2, 2).astype(np.float32)
    links = np.stack((np.arange(n), (np.arange(n) + 1) % n), axis=1)
    return GraphInstance(nodes, rng.integers(0, 3, n), links)


def _sign(rng: Generator, bit: int, shape: tuple[int, ...] = (3,), dtype: Any = np.float32) -> Any:
    return np.asarray(rng.uniform(0.2, 1.0, shape) * (2 * bit - 1), dtype)


def _large(rng: Generator, bit: int) -> int:
    return int(rng.choice((7, 5_000, 12_345) if bit else (60, 9_999, 19_999)))


def _elements(rng: Generator, bit: int) -> tuple[Any, ...]:
    return tuple(_sign(rng, bit, (2,)) for _ in range(int(rng.integers(1, 5))))


def _words(rng: Generator, bit: int) -> tuple[int, ...]:
    return (*rng.integers(3, 9, int(rng.integers(0, 4))).tolist(), 1 + bit)


def _apart(rng: Generator, bit: int) -> dict[str, Any]:
    """Now the image shows it, and the vector is 0; now the vector, and the image is dark."""
    if rng.integers(2):
        return {"camera": _colors(rng, bit), "speed": np.zeros(3, np.float32)}
    return {"camera": rng.integers(0, 60, (40, 40, 3), BYTES), "speed": _sign(rng, bit)}


def _nested(rng: Generator, bit: int) -> dict[str, Any]:
    """The innermost part shows it, the others anything."""
    return {
        "a.b": {"": (_sign(rng, bit, ()), int(rng.integers(1, 4))), "items": rng.integers(0, 2, (2, 3), np.int8)},
        "self": _sign(rng, int(rng.integers(2))),
    }


_NESTED = spaces.Dict(
    {
        "a.b": spaces.Dict(
            {"": spaces.Tuple((_box(-1, 1, ()), spaces.Discrete(3, start=1))), "items": spaces.MultiBinary((2, 3))}
        ),
        "self": _box(-1, 1, (3,)),
    }
)
KINDS: dict[str, Kind] = {
    "vector": Kind(_box(-1, 1, (3,)), _sign),
    "no axis": Kind(_box(-1, 1, ()), lambda rng, bit: _sign(rng, bit, ())),
    "doubles in rows": Kind(_box(-1, 1, (2, 2), np.float64), lambda rng, bit: _sign(rng, bit, (2, 2), np.float64)),
    "bytes of a machine": Kind(
        _box(0, 255, (128,), BYTES), lambda rng, bit: np.where(np.arange(128) % 2 == bit, 200, 20).astype(BYTES)
    ),
    "image, no channel axis": Kind(_box(0, 255, (40, 40), BYTES), _image),
    "image, channels last": Kind(_box(0, 255, (40, 40, 3), BYTES), _colors),
    "image, channels first": Kind(
        _box(0, 255, (3, 40, 40), BYTES), lambda rng, bit: np.moveaxis(_colors(rng, bit), 2, 0)
    ),
    "image, small": Kind(_box(0, 255, (9, 12, 3), BYTES), lambda rng, bit: _colors(rng, bit, 9, 12)),
    "image of floats": Kind(
        _box(0, 1, (40, 40, 3)), lambda rng, bit: (_colors(rng, bit) / np.float32(255)).astype(np.float32)
    ),
    "stacked frames": Kind(_box(0, 255, (4, 40, 40), BYTES), _frames),
    "stacked frames of colors": Kind(
        _box(0, 255, (4, 40, 40, 3), BYTES), lambda rng, bit: np.repeat(_frames(rng, bit)[..., None], 3, axis=3)
    ),
    "grid of codes": Kind(
        _box(0, 255, (7, 7, 3), BYTES), lambda rng, bit: _codes(rng, bit, (7, 7, 3), (5, 6), 4).astype(BYTES)
    ),
    "board of integers": Kind(
        _box(-1, 9, (4, 6), np.int64), lambda rng, bit: _codes(rng, bit, (4, 6), (-1, 9), 4).astype(np.int64)
    ),
    "Discrete": Kind(spaces.Discrete(6, start=3), lambda rng, bit: int(3 + 2 * rng.integers(3) + bit)),
    "Discrete, large": Kind(spaces.Discrete(20_000), _large),
    "MultiDiscrete": Kind(spaces.MultiDiscrete([3, 2]), lambda rng, bit: np.array([rng.integers(3), bit])),
    "MultiDiscrete in rows": Kind(
        spaces.MultiDiscrete([[3, 2], [4, 5]]),
        lambda rng, bit: np.array([[rng.integers(3), bit], [rng.integers(4), rng.integers(5)]]),
    ),
    "MultiDiscrete, large": Kind(
        spaces.MultiDiscrete([900, 7]), lambda rng, bit: np.array([400 * bit + rng.integers(3), rng.integers(7)])
    ),
    "MultiBinary": Kind(
        spaces.MultiBinary((2, 3)), lambda rng, bit: np.array([rng.integers(0, 2, 3), [bit] * 3], np.int8)
    ),
    "Text": Kind(spaces.Text(6), lambda rng, bit: ("left", "right")[bit]),
    "Sequence of Discrete": Kind(spaces.Sequence(spaces.Discrete(9)), _words),
    "Sequence": Kind(spaces.Sequence(_box(-1, 1, (2,))), _elements),
    "Graph": Kind(spaces.Graph(_box(-2, 2, (2,)), spaces.Discrete(3)), _graph),
    "Tuple": Kind(
        spaces.Tuple((spaces.Discrete(3, start=1), _box(-1, 1, (3,)))),
        lambda rng, bit: (int(rng.integers(1, 4)), _sign(rng, bit)),
    ),
    "Dict in a Dict, odd keys": Kind(_NESTED, _nested),
    "Dict of image and vector": Kind(
        spaces.Dict(camera=_box(0, 255, (40, 40, 3), BYTES), speed=_box(-1, 1, (3,))), _apart
    ),
}
"""By name. A Dict of image and vector needs both: with one of them alone at most 0.75."""


def is_seen_as_images(kind: str) -> bool:
    """Whether a step costs a convolutional network."""
    return any(word in kind for word in ("image", "frames"))


ACTIONS: dict[str, tuple[spaces.Space[Any], Callable[[Any], int]]] = {
    "Discrete": (spaces.Discrete(2), int),
    "Box": (_box(-1, 1, (2,)), lambda action: int(action[0] + action[1] > 0)),
    "MultiBinary": (spaces.MultiBinary(3), lambda action: int(action.sum() > 1)),
}
"""By name: a space, and the bit that an action stands for."""


class Signal(gymnasium.Env[Any, Any]):
    """Each of nine steps shows a random bit in an observation of some kind; the right action names the bit before it.

    Observations: ``KINDS[kind].space``. Actions: ``ACTIONS[actions]``. Rewards: 1/8 for the right bit, from the second
    step on. Best return 1; without memory, and at random, 0.5.
    """

    def __init__(self, kind: str = "vector", actions: str = "Discrete") -> None:
        self._show = KINDS[kind].show
        self.observation_space = KINDS[kind].space
        self.action_space, self._bit_of = ACTIONS[actions]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._bits, self._t = self.np_random.integers(0, 2, LENGTH + 1).tolist(), 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        right = self._t > 0 and self._bit_of(action) == self._bits[self._t - 1]
        self._t += 1
        return self._observe(), right / (LENGTH - 1), self._t == LENGTH, False, {}

    def _observe(self) -> Any:
        return self._show(self.np_random, self._bits[self._t])


class Locks(gymnasium.Env[Any, Any]):
    """Two dials with three and four places; each step shows the places that open the lock of the next one.

    Of the places of each dial some are jammed: ``action_masks()`` forbids them, and turning to one is an error.

    Observations: MultiDiscrete([3, 4]), the places to remember. Actions: MultiDiscrete([3, 4]). Rewards: 1/16 for each
    dial that is right, from the second of nine steps on. Best return 1; without memory, at random among the places that
    are free, 0.53.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.MultiDiscrete([3, 4])
        self.action_space = spaces.MultiDiscrete([3, 4])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._places, self._t = self.np_random.integers(0, (3, 4), (LENGTH + 1, 2)), 0
        self._jam()
        return self._places[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not all(allowed[place] for allowed, place in zip(self._allowed, action, strict=True)):
            raise ValueError(f"a dial is jammed at {action}: of the places {self._allowed} are free")
        right = 0 if self._t == 0 else int((action == self._places[self._t - 1]).sum())
        self._t += 1
        self._jam()
        return self._places[self._t], right / (2 * (LENGTH - 1)), self._t == LENGTH, False, {}

    def action_masks(self) -> Any:
        """(7,) bool: the places of the first dial, then of the second."""
        return np.concatenate(self._allowed)

    def _jam(self) -> None:
        """Half of the places, never the one that opens."""
        self._allowed = [self.np_random.random(n) < 0.5 for n in (3, 4)]
        for allowed, place in zip(self._allowed, self._places[max(self._t - 1, 0)], strict=True):
            allowed[place] = True


def vector(num_envs: int, mode: AutoresetMode, kind: str = "vector") -> SyncVectorEnv:
    """A gymnasium vector environment that resets in the given mode."""
    return SyncVectorEnv([lambda: Signal(kind)] * num_envs, autoreset_mode=mode)


def id_of(mode: AutoresetMode) -> str:
    return f"Signal{mode.name.title().replace('_', '')}-v0"


for _mode in AutoresetMode:
    gymnasium.register(
        id_of(_mode),
        entry_point=Signal,
        vector_entry_point=lambda num_envs, mode=_mode, **kwargs: vector(num_envs, mode, **kwargs),
    )
