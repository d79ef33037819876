"""Observations: an array or tensor, or a (nested) dict of them."""

from collections.abc import Callable, Iterator
from typing import Any


def map_observations(function: Callable[..., Any], *observations: Any) -> Any:
    """Applies a function to observations of the same keys, leaf by leaf."""
    if isinstance(observations[0], dict):
        return {key: map_observations(function, *(each[key] for each in observations)) for key in observations[0]}
    return function(*observations)


def leaves(observations: Any) -> Iterator[Any]:
    """The arrays or tensors, one after the other."""
    if not isinstance(observations, dict):
        yield observations
        return
    for part in observations.values():
        yield from leaves(part)
