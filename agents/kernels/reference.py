"""RNN, LSTM and GRU over a block of episodes in torch's operations alone: torch's cells, step by step.

Slow, and right wherever torch is: on any device, in any precision, for derivatives of any order, and under the
transforms of ``torch.func``. What is compiled agrees with it, and steps aside for it where it cannot follow.

Axes: T time, B sequences, F features in, H hidden units.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from agents.kernels.contract import Kind, Parameters, State


def cell(kind: Kind, features: Tensor, state: State, parameters: Parameters) -> State:
    """One step of one layer: (B, F), (B, H) each -> (B, H) each, the output first."""
    step: Any = getattr(torch, f"{kind}_cell")  # its stub asks for biases, which may be None
    return step(features, state, *parameters) if kind == "lstm" else (step(features, state[0], *parameters),)


def unroll(kind: Kind, features: Tensor, state: State, episode_starts: Tensor, parameters: Parameters) -> Tensor:
    """As ``agents.kernels.contract`` says; ``episode_starts`` may be anywhere."""
    n_steps, n_sequences, _ = features.shape
    if n_steps == 0:
        return features.new_zeros(0, n_sequences, state[0].shape[-1])
    initial = [part[n_sequences] if len(part) > n_sequences else part.new_zeros(()) for part in state]
    state, outputs = tuple(part[:n_sequences] for part in state), []
    for x, starts in zip(features, episode_starts.to(features.device), strict=True):
        state = tuple(torch.where(starts[:, None], new, part) for new, part in zip(initial, state, strict=True))
        state = cell(kind, x, state, parameters)
        outputs.append(state[0])
    return torch.stack(outputs)


def differentiated(
    function: Callable[..., Any],
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    gradients: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """The gradients of a function of tensors by the inputs that need one, made of torch's operations.

    For the way back of a compiled function where that way is itself differentiated: gradient penalties, and all that
    asks for ``create_graph``. Inputs are taken as they are in the graph, but each on its own: where one is made of
    another, that is not part of this gradient.
    """
    with torch.enable_grad():
        given = [it.view_as(it) if it is not None and need else it for it, need in zip(inputs, needed, strict=True)]
        outputs = function(*given)
        by = [it for it, need in zip(given, needed, strict=True) if need and it is not None]
        found = iter(torch.autograd.grad(outputs, by, gradients, create_graph=True, allow_unused=True))
    return tuple(next(found) if need and it is not None else None for it, need in zip(given, needed, strict=True))
