"""A memory's state as callers hand it in, read as the policy's own: one flat tuple of tensors, batch first.

Axes: B environments (or sequences).

Three forms are read: the policy's own, ``(B, ...)`` each; the one that ``predict`` returns, which of the LSTM policies
is ``(layers, B, units)`` each; and sb3-contrib's ``RNNStates``, or any pair of the states of actor and critic, in the
layout of ``predict``. Arrays and pairs are read in the layout of ``predict`` where that fits, tensors batch first where
that fits: the two look alike only where there are as many layers as environments. Nothing is ever broadcast.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.memory.core import State

Flip = Callable[[State], State]


class Part(NamedTuple):
    """One part of a state, but for its leading axis of B."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Given(NamedTuple):
    """A state that was handed in: what the policy computes with, and its state after, in the layout that came in."""

    state: State
    returned: Callable[[State], Any]


def parts_of(state: State) -> tuple[Part, ...]:
    return tuple(Part(tuple(part.shape[1:]), part.dtype) for part in state)


def is_own(state: Any, parts: Sequence[Part], batch_size: int) -> bool:
    """Whether a state is in the policy's own layout and types, as it nearly always is: nothing need be read."""
    return (
        type(state) is tuple
        and len(state) == len(parts)
        and all(
            isinstance(part, Tensor) and part.dtype is expected.dtype and part.shape == (batch_size, *expected.shape)
            for part, expected in zip(state, parts, strict=True)
        )
    )


def is_pair(state: Any) -> bool:
    """Whether this is an actor's and a critic's state: sb3-contrib's ``RNNStates`` or its tuple."""
    return isinstance(state, tuple | list) and len(state) == 2 and all(isinstance(part, tuple | list) for part in state)


def read_state(
    state: Any, parts: Sequence[Part], batch_size: int, flip: Flip, device: torch.device, as_predict: bool = False
) -> Given:
    """A state of ``parts`` for ``batch_size`` observations.

    Args:
        flip: between the policy's own layout and that of ``predict``; its own inverse.
        as_predict: what fits both layouts is in that of ``predict``, as arrays always are.

    Raises:
        ValueError: it fits neither layout; the message has the shapes of both.
    """
    if not isinstance(state, tuple | list):
        raise ValueError(f"state must be a tuple of tensors or arrays, got {type(state).__name__}; {_EXPECTED}")
    given = tuple(_tensor(part, device) for part in state)
    flipped = flip(given) if all(part.dim() > 1 for part in given) else given
    fits = _fits(given, parts, batch_size)
    as_predict = as_predict or any(isinstance(part, np.ndarray) for part in state)
    if _fits(flipped, parts, batch_size) and (as_predict or not fits):
        return Given(_typed(flipped, parts), flip)
    if fits:
        return Given(_typed(given, parts), lambda after: after)
    own = [(batch_size, *part.shape) for part in parts]
    of_predict = [tuple(part.shape) for part in flip(tuple(torch.empty(shape, device="meta") for shape in own))]
    layouts = f"{own} (batch first)" + (f" or {of_predict} (as predict() gives it)" if of_predict != own else "")
    raise ValueError(
        f"state has shapes {[tuple(part.shape) for part in given]}, expected {layouts} for {batch_size} "
        f"observations; {_EXPECTED}, and None or a new one when the number of environments changes"
    )


def read_episode_starts(starts: Any, shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """Episode starts, numbers or truth values, as a tensor of bool in exactly this shape.

    Raises:
        ValueError: they have another number of entries.
    """
    if starts is None:
        raise ValueError(
            "state and episode_starts are missing: a policy with memory computes from both; start with "
            "initial_state(n) and torch.ones(n)"
        )
    tensor = torch.as_tensor(starts, device=device)
    if tensor.numel() != np.prod(shape) or tensor.dim() > len(shape) + 1:
        raise ValueError(
            f"episode_starts has shape {tuple(tensor.shape)}, expected {shape}: one entry for each observation, true "
            "where it is the first of an episode"
        )
    return tensor.reshape(shape).bool()


_EXPECTED = "hand in what initial_state() or the last call returned"


def _tensor(part: Any, device: torch.device) -> Tensor:
    try:
        return torch.as_tensor(part, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"state must hold tensors or arrays, got {type(part).__name__}; {_EXPECTED}") from error


def _fits(state: State, parts: Sequence[Part], batch_size: int) -> bool:
    return len(state) == len(parts) and all(
        part.shape == (batch_size, *expected.shape)
        and not part.is_complex()
        and (expected.dtype.is_floating_point or not part.is_floating_point())
        for part, expected in zip(state, parts, strict=True)
    )


def _typed(state: State, parts: Sequence[Part]) -> State:
    return tuple(part.to(expected.dtype) for part, expected in zip(state, parts, strict=True))
