"""Observations of any space as arrays of one shape each: what vector environments, rollouts and networks hold.

    Box, MultiBinary                as they are; a Box without an axis gets one
    Discrete, MultiDiscrete         counted from 0
    Dict, Tuple                     a Dict without another inside: keys "outer/inner", "outer/0"
    Text                            "text", MultiDiscrete: the places of its characters in the charset, from 1 on
    other spaces of strings         "text", MultiDiscrete: the hashes of its words; nothing if there is one string alone
    Sequence of Discrete            "text", MultiDiscrete: its last elements, from 1 on
    Sequence                        "window" and "mask", as the wrapper `pad_sequence`
    Graph                           "nodes", "edges", "edge_index", "node_mask", "edge_mask", as `pad_graph`

What is shorter than there is room for ends in zeros. Of a longer sequence the newest elements are kept, of a longer
text the first; a larger graph is an error.

Axes: N environments, K places.
"""

from __future__ import annotations

import copy
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.tasks.observations import Tree, is_array_space
from envs.wrappers.padding import GraphArrays, SequenceArrays

Arrays = dict[str, NDArray[Any]]
"""By the end of its key, "" for a part that is one array; (N, ...) each."""

WORDS = 4096
"""Numbers that the words of a text without a charset are hashed to."""


class Room(NamedTuple):
    """How much there is room for, where a space does not say it."""

    max_length: int = 32
    max_text: int = 64
    max_nodes: int = 32
    max_edges: int = 128


class Leaf(NamedTuple):
    """A part that is no Dict or Tuple: where it is, the spaces of its arrays, and how N values become them."""

    path: tuple[Any, ...]
    spaces: dict[str, spaces.Space[Any]]
    convert: Callable[[Sequence[Any]], Arrays]


class Arranged:
    """The observations of a space as arrays: one for a plain space, else a dict of them.

    Raises ValueError, naming the part and the cure, for a space that has no such form.
    """

    def __init__(self, space: spaces.Space[Any], room: Room | None = None) -> None:
        self._leaves = list(_leaves(space, (), room or Room()))
        self._names = _names(self._leaves)
        found: dict[str, spaces.Space[Any]] = {}
        for leaf, names in zip(self._leaves, self._names, strict=True):
            found |= {names[end]: part for end, part in leaf.spaces.items()}
        if not found:
            raise ValueError(f"observations of {space} hold nothing: give them a constant number in a wrapper")
        self._plain = "" in found
        self.space: spaces.Space[Any] = found[""] if self._plain else spaces.Dict(list(found.items()))

    def batch(self, observations: Tree) -> Any:
        """Of N environments, as a gymnasium vector environment gives them: (N, ...), or a tuple of N without arrays."""
        return self._arranged(reduce(_part, leaf.path, observations) for leaf in self._leaves)

    def rows_of_one(self, observation: Any) -> Any:
        """One observation -> a batch of one."""
        return self._arranged([reduce(_part, leaf.path, observation)] for leaf in self._leaves)

    def _arranged(self, values: Iterator[Sequence[Any]]) -> Any:
        arrays = {}
        for leaf, names, of_leaf in zip(self._leaves, self._names, values, strict=True):
            for end, array in leaf.convert(of_leaf).items():
                arrays[names[end]] = array
        return arrays[""] if self._plain else arrays


def needs_arranging(space: spaces.Space[Any]) -> bool:
    """Whether observations have another form as arrays than the one they come in."""
    if isinstance(space, spaces.Dict):
        return not all(isinstance(key, str) and key and _is_arranged(part) for key, part in space.items())
    return not _is_arranged(space)


def needs_arranging_one_by_one(space: spaces.Space[Any]) -> bool:
    """Whether there are parts that no array of one shape holds, before they are arranged."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return any(map(needs_arranging_one_by_one, space.values() if isinstance(space, spaces.Dict) else space))
    return not is_array_space(space)


def _is_arranged(space: spaces.Space[Any]) -> bool:
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return not np.any(space.start)
    return is_array_space(space) and not (isinstance(space, spaces.Box) and space.shape == ())


def _leaves(space: spaces.Space[Any], path: tuple[Any, ...], room: Room) -> Iterator[Leaf]:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for key, part in space.items() if isinstance(space, spaces.Dict) else enumerate(space):
            yield from _leaves(part, (*path, key), room)
        return
    try:
        converted = _converted(space, room)
    except ValueError as error:
        raise ValueError(f"{_where(path)}: {error}") from error
    if converted is not None:
        yield Leaf(path, *converted)


def _converted(space: Any, room: Room) -> tuple[dict[str, spaces.Space[Any]], Callable[[Sequence[Any]], Arrays]] | None:
    """The spaces of a part's arrays, and what makes them; None for what holds nothing to be learned from."""
    if isinstance(space, spaces.Box) and space.dtype.kind not in "biuf":
        raise ValueError(f"{space} does not hold real numbers: make them such in a gymnasium.ObservationWrapper")
    if isinstance(space, spaces.Box) and space.shape == ():
        column = spaces.Box(space.low.reshape(1), space.high.reshape(1), dtype=space.dtype)
        return {"": column}, lambda values: {"": np.asarray(values, column.dtype).reshape(-1, 1)}
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start):
        return {"": _from_zero(space)}, lambda values: {"": np.asarray(values, space.dtype) - space.start}
    if is_array_space(space):
        return {"": space}, lambda values: {"": np.asarray(values)}
    if isinstance(space, spaces.Graph):
        return _one_by_one(GraphArrays(space, room.max_nodes, room.max_edges))
    if isinstance(space, spaces.Sequence):
        if isinstance(space.feature_space, spaces.Discrete):
            return _one_by_one(_Symbols(space.feature_space, room.max_length))
        return _one_by_one(SequenceArrays(space, room.max_length, truncate=True))
    if isinstance(space, spaces.Text):
        return _one_by_one(_Characters(space, room.max_text))
    if isinstance(space.dtype, np.dtype) and space.dtype.kind == "U":
        return None if _is_constant(space) else _one_by_one(_Words(room.max_text))
    raise ValueError(
        f"observations of {space} have no form as arrays: make a Box, Discrete, MultiDiscrete, MultiBinary, Text, "
        "Sequence or Graph of them, or a Dict or Tuple of these, in a gymnasium.ObservationWrapper"
    )


def _one_by_one(convert: Any) -> tuple[dict[str, spaces.Space[Any]], Callable[[Sequence[Any]], Arrays]]:
    def of_all(values: Sequence[Any]) -> Arrays:
        rows = [convert(value) for value in values]
        return {end: np.stack([row[end] for row in rows]) for end in convert.spaces}

    return dict(convert.spaces), of_all


class _Tokens:
    """Texts as numbers from 1 to `count`, and 0 after their end: {"text": (K,)}."""

    def __init__(self, count: int, length: int) -> None:
        self.spaces = {"text": spaces.MultiDiscrete(np.full(length, count + 1))}
        self._length = length

    def __call__(self, value: Any) -> Arrays:
        tokens = np.zeros(self._length, np.int64)
        found = self._tokens(value)
        tokens[: len(found)] = found
        return {"text": tokens}

    def _tokens(self, value: Any) -> list[int]:
        raise NotImplementedError


class _Characters(_Tokens):
    def __init__(self, space: spaces.Text, longest: int) -> None:
        self._places = {character: place for place, character in enumerate(sorted(space.character_set), 1)}
        super().__init__(len(self._places), min(space.max_length, longest))

    def _tokens(self, value: str) -> list[int]:
        try:
            return [self._places[character] for character in value[: self._length]]
        except KeyError as error:
            raise ValueError(f"a text was observed with {error}, which its space's charset does not have") from None


class _Words(_Tokens):
    def __init__(self, longest: int) -> None:
        super().__init__(WORDS, longest)

    def _tokens(self, value: str) -> list[int]:
        words = re.findall(r"\w+|[^\w\s]", value.lower())[: self._length]
        return [zlib.crc32(word.encode()) % WORDS + 1 for word in words]


class _Symbols(_Tokens):
    def __init__(self, space: spaces.Discrete, longest: int) -> None:
        self._first, self._n = int(space.start), int(space.n)
        super().__init__(self._n, longest)

    def _tokens(self, value: Any) -> list[int]:
        places = [int(each) - self._first for each in value][-self._length :]
        if any(not 0 <= place < self._n for place in places):
            raise ValueError(f"a sequence was observed with elements beyond its space: {value}")
        return [place + 1 for place in places]


def _is_constant(space: spaces.Space[str]) -> bool:
    """Whether one string alone is ever seen, such as the mission of most of MiniGrid's tasks."""
    sampler = copy.deepcopy(space)
    text = sampler.sample()
    others = (f"{text} again", "some other text")
    return all(sampler.sample() == text for _ in range(32)) and not any(map(space.contains, others))


def _from_zero(space: spaces.Discrete | spaces.MultiDiscrete) -> spaces.Space[Any]:
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n))
    return spaces.MultiDiscrete(space.nvec, dtype=space.dtype)


def _names(leaves: list[Leaf]) -> list[dict[str, str]]:
    """The key of every array, by its end, of every part. "a/b" may be a key, and a key's key."""
    names, taken = [], set[str]()
    for leaf in leaves:
        of_leaf = {}
        for end in leaf.spaces:
            name = "/".join(map(str, (*leaf.path, *([end] if end else []))))
            name = name or ("_" if leaf.path else "")
            while name in taken:
                name += "~"
            taken.add(name)
            of_leaf[end] = name
        names.append(of_leaf)
    return names


def _part(tree: Any, key: Any) -> Any:
    return tree[key]


def _where(path: tuple[Any, ...]) -> str:
    return f"the part {'/'.join(map(str, path))!r} of the observation" if path else "the observation"
