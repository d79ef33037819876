"""RNN, LSTM and GRU over a block of episodes in torch's operations alone: torch's cells, step by step.

Slow, and right wherever torch is: on any device, in any precision, for derivatives of any order, and under the
transforms of ``torch.func``. What is compiled is held to it, and steps aside for it where it cannot follow.

Axes: T time, B sequences, F features in, H hidden units.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from agents.kernels.contract import Parameters


def lstm(features: Tensor, hidden: Tensor, cell: Tensor, episode_starts: Tensor, parameters: Parameters) -> Tensor:
    """(T, B, F), state before the first step (B, H) each, (T, B) boolean -> (T, B, H)."""
    step: Any = torch.lstm_cell  # its stub asks for biases, which may be None
    return _through(step, features, (hidden, cell), episode_starts, parameters)


def gru(features: Tensor, hidden: Tensor, episode_starts: Tensor, parameters: Parameters) -> Tensor:
    """(T, B, F), state before the first step (B, H), (T, B) boolean -> (T, B, H)."""
    step: Any = torch.gru_cell
    return _through(
        lambda x, state, *rest: (step(x, state[0], *rest),), features, (hidden,), episode_starts, parameters
    )


def rnn(features: Tensor, hidden: Tensor, episode_starts: Tensor, parameters: Parameters, relu: bool) -> Tensor:
    """(T, B, F), state before the first step (B, H), (T, B) boolean -> (T, B, H)."""
    step: Any = torch.rnn_relu_cell if relu else torch.rnn_tanh_cell
    return _through(
        lambda x, state, *rest: (step(x, state[0], *rest),), features, (hidden,), episode_starts, parameters
    )


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


def _through(
    step: Callable[..., tuple[Tensor, ...]],
    features: Tensor,
    state: tuple[Tensor, ...],
    episode_starts: Tensor,
    parameters: Parameters,
) -> Tensor:
    """An episode starts from zeros; or, of a state of B + 1 rows, from the last one."""
    n_steps, n_sequences, _ = features.shape
    if n_steps == 0:
        return features.new_zeros(0, n_sequences, state[0].shape[-1])
    fresh = [part[n_sequences] if len(part) > n_sequences else part.new_zeros(()) for part in state]
    state, outputs = tuple(part[:n_sequences] for part in state), []
    for x, starts in zip(features, episode_starts.to(features.device), strict=True):
        state = tuple(torch.where(starts[:, None], new, part) for new, part in zip(fresh, state, strict=True))
        state = step(x, state, *parameters)
        outputs.append(state[0])
    return torch.stack(outputs)
