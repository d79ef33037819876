"""What the parts of an observation are: measurements, images, categories, tokens, graphs.

    measurement   Box of numbers; of integers with bounds, scaled by them
    image         Box of 2 to 4 axes, of bytes at least 8 x 8, or of floats in [0, 1] or [0, 255] at least 36 x 36;
                  channels first, last or none, frames stacked or not
    category      Discrete, MultiDiscrete, MultiBinary; a grid of integers of few values, or of bytes below 8 x 8
    token         a text's or a sequence's elements, as ``envs.make`` lays them out: "text", or "window" and "mask"
    graph         "nodes", "edge_index", "node_mask", "edge_mask" and perhaps "edges"

The kind of a part is decided by its space alone. Which encoder reads which is chosen in ``agents.encoders.selection``.

Axes: C channels, K frames, H rows, W columns.
"""

from collections.abc import Container, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

Kind = Literal["measurement", "image", "category", "token", "graph"]

SMALLEST_IMAGE = 8
SMALLEST_IMAGE_OF_FLOATS = 36
MOST_CODES = 32
"""An integer grid of at most so many values holds categories."""

GRAPH = ("nodes", "edge_index", "node_mask", "edge_mask")
SEQUENCE = ("window", "mask")
TEXT = "text"


class Part(NamedTuple):
    """A part of an observation that one encoder reads.

    Args:
        name: its key in a Dict; of several keys what they begin with; "" for an observation that is one part.
        space: of one key the space under it, else a Dict by the ends of the keys.
        keys: of the observation, by the keys of ``space``; None where the part is one array.
    """

    name: str
    kind: Kind
    space: spaces.Space[Any]
    keys: Mapping[str, str] | None = None

    def of(self, observations: Any) -> Any:
        """What of the observations, a tensor or a dict of them, belongs to this part."""
        if self.keys is not None:
            return {end: observations[key] for end, key in self.keys.items()}
        return observations[self.name] if isinstance(observations, dict) else observations

    def all_keys(self) -> tuple[str, ...]:
        """Of the observation, ("",) for a plain one."""
        return (self.name,) if self.keys is None else tuple(self.keys.values())


class Layout(NamedTuple):
    """Where the axes of a grid of cells are, without that of the batch: their order for (frames and channels, H, W)."""

    order: tuple[int, ...]
    channels: int
    frames: int
    height: int
    width: int


def parts_of(space: spaces.Space[Any], normalized_image: bool = False, apart: Container[str] = ()) -> list[Part]:
    """The parts of an observation in the order of their first keys.

    Args:
        normalized_image: every Box of 3 axes, of any type and range, is an image, as Stable-Baselines3 has it.
        apart: keys that are parts of their own.
    """
    if not isinstance(space, spaces.Dict):
        return [Part("", kind_of(space, normalized_image), space)]
    parts, taken = [], set[str]()
    for key in space.spaces:
        if key not in taken:
            part = _group(space, key)
            if part is None or (part.keys is not None and any(each in apart for each in part.all_keys())):
                part = Part(key, kind_of(space[key], normalized_image), space[key])
            taken.update(part.all_keys())
            parts.append(part)
    return parts


def kind_of(space: spaces.Space[Any], normalized_image: bool = False) -> Kind:
    """What a part is that is one array."""
    if not isinstance(space, spaces.Box):
        return "category"
    if _is_image(space, normalized_image):
        return "image"
    return "category" if _is_grid_of_codes(space) else "measurement"


def codes_of(space: spaces.Space[Any]) -> tuple[int, int]:
    """The smallest value of a grid of codes, and how many there are."""
    assert isinstance(space, spaces.Box)
    low = int(space.low.min())
    return low, int(space.high.max()) - low + 1


def layout_of(shape: tuple[int, ...]) -> Layout:
    """Of the axes of a grid: of three the first or the last holds the channels, the one beside a square or else the
    smaller; of four the first holds frames, and the others are as three."""
    if len(shape) == 2:
        return Layout((0, 1), 1, 1, *shape)
    frames, (a, b, c) = shape[0] if len(shape) == 4 else 1, shape[-3:]
    last = a == b or (b != c and c <= a)
    order: tuple[int, ...] = (2, 0, 1) if last else (0, 1, 2)
    if len(shape) == 4:
        order = (0, *(axis + 1 for axis in order))
    channels, height, width = (c, a, b) if last else (a, b, c)
    return Layout(order, channels, frames, height, width)


def described(part: Part) -> str:
    """A part in a few words: "image 84 x 84, 4 frames"."""
    space = part.space
    if part.keys is not None:
        return _described_group(part)
    if part.kind == "token":
        assert isinstance(space, spaces.MultiDiscrete)
        return f"text of up to {space.nvec.size} tokens"
    shape = tuple(space.shape or ())
    if part.kind == "measurement":
        return f"{_by(shape)} measurement{'s' * (shape != (1,))}"
    if isinstance(space, spaces.Discrete):
        return f"a category of {space.n}"
    if isinstance(space, spaces.MultiDiscrete):
        return f"{_by(shape)} categories of up to {space.nvec.max()}"
    if isinstance(space, spaces.MultiBinary):
        return f"{_by(shape)} bits"
    grid = layout_of(shape)
    what = "image" if part.kind == "image" else "grid"
    words = [f"{what} {grid.height} x {grid.width}"]
    if grid.frames > 1 or (grid.order[0] == 0 and grid.channels == 4):
        words.append(f"{grid.frames if grid.frames > 1 else grid.channels} frames")
    if grid.channels in (1, 3) or len(words) == 1 or grid.frames > 1:
        words.append(f"{grid.channels} channel{'s' * (grid.channels > 1)}")
    if part.kind == "category":
        words.append(f"categories of up to {codes_of(space)[1]}")
    return ", ".join(words)


def _described_group(part: Part) -> str:
    assert isinstance(part.space, spaces.Dict)
    if part.kind == "graph":
        nodes, edges = part.space["nodes"].shape, part.space["edge_index"].shape
        assert nodes is not None
        assert edges is not None
        return f"graph of up to {nodes[0]} nodes and {edges[0]} edges"
    window = part.space["window"].shape
    assert window is not None
    return f"sequence of up to {window[0]} elements of {window[1]}"


def _group(space: spaces.Dict, key: str) -> Part | None:
    """The part of several keys, or of tokens, that a key belongs to."""
    prefix, end = key[: key.rfind("/") + 1], key[key.rfind("/") + 1 :]
    name = prefix.removesuffix("/")
    if end == TEXT and isinstance(space[key], spaces.MultiDiscrete):
        return Part(key, "token", space[key])
    for kind, ends, more in (("graph", GRAPH, ("edges",)), ("token", SEQUENCE, ())):
        if end in (*ends, *more) and all(prefix + each in space.spaces for each in ends):
            keys = {each: prefix + each for each in (*ends, *more) if prefix + each in space.spaces}
            if name in space.spaces:
                continue
            inner = spaces.Dict([(each, space[full]) for each, full in keys.items()])
            if all(_fits(each, inner[each]) for each in ends):
                return Part(name, kind, inner, keys)  # type: ignore[arg-type]
    return None


def _fits(end: str, space: spaces.Space[Any]) -> bool:
    """Whether a space is as the wrappers lay it out, and not the user's own of the same name."""
    if end.endswith("mask"):
        return isinstance(space, spaces.MultiBinary) and len(space.shape) == 1
    return isinstance(space, spaces.Box) and len(space.shape) == 2


def _is_image(space: spaces.Box, normalized_image: bool) -> bool:
    if not 2 <= len(space.shape) <= 4:
        return False
    grid = layout_of(space.shape)
    smallest = min(grid.height, grid.width)
    if normalized_image and len(space.shape) == 3:
        return smallest >= SMALLEST_IMAGE
    low, high = space.low.min(), space.high.max()
    if space.dtype == np.uint8:
        return bool(smallest >= SMALLEST_IMAGE and low == 0 and high == 255)
    return bool(smallest >= SMALLEST_IMAGE_OF_FLOATS and space.dtype.kind == "f" and low >= 0 and high in (1, 255))


def _is_grid_of_codes(space: spaces.Box) -> bool:
    if space.dtype.kind not in "iub" or len(space.shape) < 2 or 0 in space.shape:
        return False
    n_codes = codes_of(space)[1]
    if len(space.shape) > 4 or n_codes <= MOST_CODES:
        return n_codes <= MOST_CODES and len(space.shape) <= 4
    grid = layout_of(space.shape)
    return n_codes <= 256 and max(grid.height, grid.width) < SMALLEST_IMAGE


def is_scaled_before(space: spaces.Space[Any]) -> bool:
    """Whether Stable-Baselines3's preprocessing divides by 255, unless it is told ``normalize_images=False``."""
    return is_image_space(space)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "1"
