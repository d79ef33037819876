"""Observations of many environments as arrays: one for a plain space, a dict or tuple of them for a composed one.

Axes: N environments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
