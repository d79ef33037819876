"""Observations of many environments as arrays: one for a plain space, a dict or tuple of them for a composed one.

Axes: N environments.
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


def is_nested(space: spaces.Space[Any]) -> bool:
    """Whether the space is composed of more than a plain Dict of arrays, which Stable-Baselines3 cannot take."""
    if isinstance(space, spaces.Dict):
        return not all(is_array_space(part) for part in space.values())
    return isinstance(space, spaces.Tuple)


def leaves(space: spaces.Space[Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], spaces.Space[Any]]]:
    """The arrays an observation is made of, with the keys that lead to each. A tuple's keys are its positions."""
    if isinstance(space, spaces.Dict):
        for key, part in space.items():
            yield from leaves(part, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for position, part in enumerate(space):
            yield from leaves(part, (*path, str(position)))
    elif is_array_space(space):
        yield path, space
    else:
        where = f" at {'/'.join(path)!r}" if path else ""
        raise ValueError(
            "observations must be arrays of one shape (Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple "
            f"of these); {space}{where} is not: the wrappers 'pad_graph' and 'pad_sequence' make arrays of a Graph and "
            "of a Sequence, a gymnasium.ObservationWrapper of yours of all else"
        )


def allocate(space: spaces.Space[Any], num_envs: int, array: Callable[[tuple[int, ...], Any], NDArray[Any]]) -> Tree:
    """A tree of arrays, (N, ...), that holds one observation an environment; `array(shape, dtype)` makes each."""
    if isinstance(space, spaces.Dict):
        return {key: allocate(part, num_envs, array) for key, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(allocate(part, num_envs, array) for part in space)
    assert space.shape is not None
    return array((num_envs, *space.shape), space.dtype)


def write(tree: Tree, row: Any, observation: Any) -> None:
    """Put an observation into row `row`; or several, (R, ...), where `row` is an array of R rows."""
    if isinstance(tree, dict):
        for key, part in tree.items():
            write(part, row, observation[key])
    elif isinstance(tree, tuple):
        for part, value in zip(tree, observation, strict=True):
            write(part, row, value)
    else:
        tree[row] = observation


def put(tree: Tree, row: int, observation: Any, space: spaces.Space[Any], every: bool = True, path: str = "") -> None:
    """As `write`, of an environment's observation, which must be what the space says: nothing is bent to fit.

    Whatever NumPy would convert is looked at. `every`: the choices of a MultiDiscrete or MultiBinary are, too, where
    they need no conversion. The bounds of a Box are not.

    Raises ValueError, naming the part and the value, for another shape or a number that the space or dtype cannot hold.
    """
    if isinstance(tree, np.ndarray):
        if type(observation) is np.ndarray:
            as_it_is = observation.dtype is tree.dtype and observation.shape == tree.shape[1:]
            if as_it_is and (type(space) is spaces.Box or not every):
                tree[row] = observation
                return
        elif (
            type(space) is spaces.Discrete
            and isinstance(observation, int | np.int64)
            and 0 <= observation - space.start < space.n
        ):
            tree[row] = observation
            return
        tree[row] = _fitted(observation, tree.shape[1:], tree.dtype, space, path)
    elif isinstance(tree, dict):
        if not isinstance(observation, Mapping) or observation.keys() != tree.keys():
            raise ValueError(f"the observation{path} must be a dict of {', '.join(tree)}, got {_shown(observation)}")
        for key, part in tree.items():
            put(part, row, observation[key], space[key], every, f"{path}[{key!r}]")  # type: ignore[index]
    else:
        if not isinstance(observation, tuple | list) or len(observation) != len(tree):
            raise ValueError(f"the observation{path} must be a tuple of {len(tree)}, got {_shown(observation)}")
        for i, part in enumerate(tree):
            put(part, row, observation[i], space[i], every, f"{path}[{i}]")  # type: ignore[index]


def _fitted(observation: Any, shape: tuple[int, ...], dtype: Any, space: spaces.Space[Any], path: str) -> NDArray[Any]:
    """The observation as an array of the shape and dtype, where that loses nothing."""
    try:
        array = np.asarray(observation)
    except ValueError as error:  # of rows of several lengths
        raise ValueError(f"the observation{path} is no array of numbers: {_shown(observation)}") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"the observation{path} must hold numbers, got {_shown(observation)} of {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"the observation{path} must have the shape {shape}, got {array.shape}: {_shown(observation)}")
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        count = 2 if isinstance(space, spaces.MultiBinary) else space.n if shape == () else space.nvec  # type: ignore[union-attr]
        start = getattr(space, "start", 0)
        fits = (array >= start) & (array < start + count) & (array == np.floor(array))
        holds = f"whole numbers that {space} holds"
    elif dtype.kind == "f":
        return array.astype(dtype)
    else:
        lowest, highest = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        fits = (array >= lowest) & (array <= highest) & (array == np.floor(array))
        holds = f"whole numbers from {lowest} to {highest}, which {dtype} holds"
    if not fits.all():
        raise ValueError(f"the observation{path} must hold {holds}, got {array[~fits].flat[0]}")
    return array.astype(dtype)


def truth(value: Any, name: str) -> bool:
    """What an environment says of an episode's end, as a bool; raises ValueError where it is neither true nor false."""
    if value is True or value is False:
        return value
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf" or array.item() not in (0, 1):
        raise ValueError(f"{name} must be True or False, got {_shown(value)}")
    return bool(array.item())


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def take(tree: Tree, row: Any) -> Tree:
    """A copy of row `row`; or of several, (R, ...), where `row` is an array of R rows."""
    if isinstance(tree, dict):
        return {key: take(part, row) for key, part in tree.items()}
    if isinstance(tree, tuple):
        return tuple(take(part, row) for part in tree)
    return np.array(np.asarray(tree)[row])


def copied(tree: Tree) -> Tree:
    if isinstance(tree, dict):
        return {key: copied(part) for key, part in tree.items()}
    if isinstance(tree, tuple):
        return tuple(copied(part) for part in tree)
    return tree.copy()
