"""Observations of many environments as arrays: one for a plain space, a dict or tuple of them for a composed one.

Axes: N environments, R some of them ("rows").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

# An array, (N, ...), or a dict or tuple of trees.
Tree = Any


def is_array_space(space: spaces.Space[Any]) -> bool:
    """Whether the space's elements are arrays (or numbers) of one shape."""
    return isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary)


def leaves(space: spaces.Space[Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], spaces.Space[Any]]]:
    """The arrays an observation is made of, with the keys that lead to each. A tuple's keys are its positions.

    Raises ValueError for a space that is not made of arrays.
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
        for key, part in parts:
            yield from leaves(part, (*path, str(key)))
    elif is_array_space(space):
        yield path, space
    else:
        where = f" at {'/'.join(path)!r}" if path else ""
        raise ValueError(
            "observations must be arrays of one shape (Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple "
            f"of these); {space}{where} is not: make the environments with envs.make, or wrap each in envs.as_arrays"
        )


def tree_map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """The function's values, for every array of a tree and what the others have in its place, as a tree."""
    if isinstance(tree, dict):
        return {key: tree_map(function, part, *(other[key] for other in others)) for key, part in tree.items()}
    if isinstance(tree, tuple):
        return tuple(tree_map(function, *parts) for parts in zip(tree, *others, strict=True))
    return function(tree, *others)


def write(tree: Tree, row: Any, observation: Any) -> None:
    """Put an observation into row `row`; or several, (R, ...), where `row` is an array of R rows."""
    tree_map(lambda part, value: part.__setitem__(row, value), tree, observation)


def take(tree: Tree, row: Any) -> Tree:
    """A copy of row `row`; or of several, (R, ...), where `row` is an array of R rows."""
    return tree_map(lambda part: np.array(part[row]), tree)


def only(tree: Tree) -> Tree:
    """What a batch of one holds."""
    return tree_map(lambda part: part[0], tree)


def copied(tree: Tree) -> Tree:
    return tree_map(np.array, tree)


def put(tree: Tree, row: int, observation: Any, space: spaces.Space[Any], every: bool = True, path: str = "") -> None:
    """As `write`, of an environment's observation, which must be what the space says: nothing is converted with loss.

    Whatever NumPy would convert is checked. `every`: the choices of a MultiDiscrete or MultiBinary are, too, where
    they need no conversion. The bounds of a Box are not.

    Raises ValueError, naming the part and the value, for another shape or a number that the space or dtype cannot hold.
    """
    if isinstance(tree, np.ndarray):
        if not _fits_as_it_is(observation, tree, space, every):
            observation = _fitted(observation, tree.shape[1:], tree.dtype, space, path)
        tree[row] = observation
    elif isinstance(tree, dict):
        if not isinstance(observation, Mapping) or observation.keys() != tree.keys():
            raise ValueError(f"the observation{path} must be a dict of {', '.join(tree)}, got {_brief(observation)}")
        for key, part in tree.items():
            put(part, row, observation[key], space[key], every, f"{path}[{key!r}]")  # type: ignore[index]
    else:
        if not isinstance(observation, tuple | list) or len(observation) != len(tree):
            raise ValueError(f"the observation{path} must be a tuple of {len(tree)}, got {_brief(observation)}")
        for i, part in enumerate(tree):
            put(part, row, observation[i], space[i], every, f"{path}[{i}]")  # type: ignore[index]


def _fits_as_it_is(observation: Any, array: NDArray[Any], space: spaces.Space[Any], every: bool) -> bool:
    if type(observation) is np.ndarray:
        alike = observation.dtype is array.dtype and observation.shape == array.shape[1:]
        return alike and (type(space) is spaces.Box or not every)
    return (
        type(space) is spaces.Discrete
        and isinstance(observation, int | np.int64)
        and bool(0 <= observation - space.start < space.n)
    )


def _fitted(observation: Any, shape: tuple[int, ...], dtype: Any, space: spaces.Space[Any], path: str) -> NDArray[Any]:
    """The observation as an array of the shape and dtype, where that loses nothing."""
    try:
        array = np.asarray(observation)
    except ValueError as error:  # of rows of several lengths
        raise ValueError(f"the observation{path} is no array of numbers: {_brief(observation)}") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"the observation{path} must hold numbers, got {_brief(observation)} of {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"the observation{path} must have the shape {shape}, got {array.shape}: {_brief(observation)}")
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        lowest = getattr(space, "start", 0)
        count = 2 if isinstance(space, spaces.MultiBinary) else space.n if shape == () else space.nvec  # type: ignore[union-attr]
        highest = lowest + count - 1
        holds = f"whole numbers that {space} holds"
    elif dtype.kind == "f":
        return array.astype(dtype)
    else:
        lowest, highest = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        holds = f"whole numbers from {lowest} to {highest}, which {dtype} holds"
    fits = (array >= lowest) & (array <= highest) & (array == np.floor(array))
    if not fits.all():
        raise ValueError(f"the observation{path} must hold {holds}, got {array[~fits].flat[0]}")
    return array.astype(dtype)


def truth(value: Any, name: str) -> bool:
    """An environment's `terminated` or `truncated` as a bool; raises ValueError where it is neither true nor false."""
    if value is True or value is False:
        return value
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf" or array.item() not in (0, 1):
        raise ValueError(f"{name} must be True or False, got {_brief(value)}")
    return bool(array.item())


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
