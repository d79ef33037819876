"""A memory's state as callers hand it in, read as the policy's own: one flat tuple of tensors, batch first.

Axes: B environments (or sequences).

Three forms are read: the policy's own, ``(B, ...)`` each; the one that ``predict`` returns, which of the LSTM policies
is ``(layers, B, units)`` each; and sb3-contrib's ``RNNStates``, or any pair of the states of actor and critic, in the
layout of ``predict``. Arrays and pairs are read in the layout of ``predict`` where that fits, tensors batch first where
that fits: the two look alike only where there are as many layers as environments. Nothing is ever broadcast.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.checks.observations import leaves
from agents.memory.core import State

Of = Literal["both", "actor", "critic"]
Layout = Callable[[State], State]


class Given(NamedTuple):
    """A state that was handed in: what the policy computes with, and its state after, in the layout that came in."""

    state: State
    returned: Callable[[State], Any]


class StateReader:
    """Reads states of a policy from any layout.

    Args:
        actor: a state of the actor's memory, (1, ...) each.
        critic: the same of a memory of the critic's own; ``()`` if there is none.
        flip: between the policy's own layout and that of ``predict``; its own inverse.
    """

    def __init__(self, actor: State, critic: State, flip: Layout) -> None:
        self._actor, self._critic, self._flip = actor, critic, flip

    def read(
        self, state: Any, batch_size: int, device: torch.device, of: Of = "both", as_predict: bool = False
    ) -> Given:
        """The state of both memories, of the actor's, or of both where only the critic's part matters.

        Args:
            as_predict: what fits both layouts is in that of ``predict``, as arrays always are.

        Raises:
            ValueError: it fits neither layout; the message has the shapes of both.
        """
        actor, both = self._actor, self._actor + self._critic
        if not as_predict and _is_own(state, actor if of == "actor" else both, batch_size):
            return Given(state, _unchanged)
        if _is_pair(state):
            return self._read_pair(state, batch_size, device, of)
        given = _tensors(state, device)
        as_predict = as_predict or any(isinstance(part, np.ndarray) for part in state)
        alone = {"both": both, "actor": actor, "critic": self._critic or both}[of]
        like = alone if len(given) == len(alone) else both
        layout = self._layout_of(given, like, batch_size, as_predict)
        read = tuple(part.to(expected.dtype) for part, expected in zip(layout(given), like, strict=True))
        if of == "actor":
            read = read[: len(actor)]
        elif like is not both:  # the critic's alone: what the actor's is does not matter
            read = (
                *(torch.zeros_like(part, device=device).expand(batch_size, *part.shape[1:]) for part in actor),
                *read,
            )
        return Given(read, layout)

    def _read_pair(self, pair: Any, batch_size: int, device: torch.device, of: Of) -> Given:
        """The states of actor and critic, which are one state where one memory serves both."""
        actor = self.read(pair[0], batch_size, device, "actor", as_predict=True)
        if of == "actor":
            return actor
        n, make = len(self._actor), getattr(type(pair), "_make", type(pair))
        if not self._critic:
            return Given(actor.state, lambda after: make((actor.returned(after), actor.returned(after))))
        critic = self.read(pair[1], batch_size, device, "critic", as_predict=True)
        return Given(
            actor.state + critic.state[n:],
            lambda after: make((actor.returned(after[:n]), critic.returned(after[n:]))),
        )

    def _layout_of(self, given: State, like: State, batch_size: int, as_predict: bool) -> Layout:
        """From the layout of a state to the policy's own."""
        flipped = self._flip(given) if all(part.dim() > 1 for part in given) else given
        fits = _fits(given, like, batch_size)
        if _fits(flipped, like, batch_size) and (as_predict or not fits):
            return self._flip
        if fits:
            return _unchanged
        own = [(batch_size, *part.shape[1:]) for part in like]
        of_predict = [tuple(part.shape) for part in self._flip(tuple(torch.empty(size, device="meta") for size in own))]
        layouts = f"{own} (batch first)" + (f" or {of_predict} (as predict() gives it)" if of_predict != own else "")
        raise ValueError(
            f"state has shapes {[tuple(part.shape) for part in given]}, expected {layouts} for {batch_size} "
            f"observations; {_EXPECTED}, and None or a new one when the number of environments changes"
        )


def takes_states(of: Of) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A policy's method of one step, (observations, state, episode starts, ...) -> (..., state after), made public.

    The state comes in any layout and leaves in the same, under sb3-contrib's name ``lstm_states`` too. Episode starts
    are truth values or numbers.
    """

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def run(
            policy: Any,
            obs: Any,
            state: Any = None,
            episode_starts: Any = None,
            *args: Any,
            lstm_states: Any = None,
            **kwargs: Any,
        ) -> Any:
            batch_size = _batch_size(obs)
            starts = read_episode_starts(episode_starts, (batch_size,), policy.device)
            given = policy.read_state(state if lstm_states is None else lstm_states, batch_size, of)
            result = method(policy, obs, given.state, starts, *args, **kwargs)
            return result if of == "critic" else (*result[:-1], given.returned(result[-1]))

        return run

    return decorate


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
    if tensor.numel() != math.prod(shape) or tensor.dim() > len(shape) + 1:
        raise ValueError(
            f"episode_starts has shape {tuple(tensor.shape)}, expected {shape}: one entry for each observation, true "
            "where it is the first of an episode"
        )
    return tensor.reshape(shape).bool()


_EXPECTED = "hand in what initial_state() or the last call returned"


def _unchanged(state: State) -> State:
    return state


def _is_own(state: Any, like: State, batch_size: int) -> bool:
    """Whether a state is in the policy's own layout and types, as it nearly always is: nothing need be read."""
    return (
        type(state) is tuple
        and len(state) == len(like)
        and all(
            isinstance(part, Tensor) and part.dtype is its.dtype and part.shape == (batch_size, *its.shape[1:])
            for part, its in zip(state, like, strict=True)
        )
    )


def _is_pair(state: Any) -> bool:
    """Whether this is an actor's and a critic's state: sb3-contrib's ``RNNStates`` or its tuple."""
    return isinstance(state, tuple | list) and len(state) == 2 and all(isinstance(part, tuple | list) for part in state)


def _tensors(state: Any, device: torch.device) -> State:
    if not isinstance(state, tuple | list):
        raise ValueError(f"state must be a tuple of tensors or arrays, got {type(state).__name__}; {_EXPECTED}")
    try:
        return tuple(torch.as_tensor(part, device=device) for part in state)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"state must hold tensors or arrays, got {state[0]!r:.20}; {_EXPECTED}") from error


def _fits(state: State, like: State, batch_size: int) -> bool:
    return len(state) == len(like) and all(
        part.shape == (batch_size, *its.shape[1:])
        and not part.is_complex()
        and (its.is_floating_point() or not part.is_floating_point())
        for part, its in zip(state, like, strict=True)
    )


def _batch_size(obs: Any) -> int:
    """B of observations (B, ...)."""
    first = next(leaves(obs))
    if first.dim() == 0:
        raise ValueError("observations must have a leading axis of environments, (B, ...); got a single number")
    return len(first)
