"""Two memories over the same block at the same time: the actor's and the critic's have nothing to do with each other.

Axes: T time, B sequences, F features in, H features out.
"""

from typing import Any

import torch
from torch import Tensor

from agents.kernels import recurrent as compiled
from agents.memory.core import Memory, State
from agents.memory.recurrent import GRU, LSTM, RNN, Recurrent

_KINDS: tuple[type[Memory], ...] = (LSTM, GRU, RNN)


def worth_unrolling_together(memories: tuple[Memory, Memory], features: tuple[Tensor, Tensor]) -> bool:
    """Whether both are compiled recurrent networks of one kind, each with a millisecond's work or more on (T, B, F),
    and torch has threads to spare."""
    one, other = memories
    return (
        torch.get_num_threads() > 1
        and isinstance(one, Recurrent)
        and isinstance(other, Recurrent)
        and type(one) is type(other)
        and type(one) in _KINDS
        and one.kind == other.kind
        and one.num_layers == other.num_layers
        and not torch.is_autocast_enabled("cpu")
        and all(
            compiled.takes(of, memory.hidden_size) and compiled.worth_a_thread(of, memory.hidden_size)
            for memory, of in zip((one, other), features, strict=True)
        )
    )


def unroll_together(
    memories: tuple[Any, Any],
    features: tuple[Tensor, Tensor],
    states: tuple[State, State],
    episode_starts: Tensor,
) -> tuple[Tensor, Tensor]:
    """What each ``unroll`` gives, bit for bit, with their loops over time run at the same time.

    Features (T, B, F) each, states before the first step, (T, B) on the CPU -> (T, B, H) each. For memories that are
    worth it.
    """
    for memory, of, state in zip(memories, features, states, strict=True):
        memory.check(of.shape, state, episode_starts)
    outputs = features
    for layer in range(memories[0].num_layers):
        arguments = [
            _arguments(memory, layer, output, state, episode_starts)
            for memory, output, state in zip(memories, outputs, states, strict=True)
        ]
        one, other = compiled.side_by_side(memories[0].kind, arguments)
        outputs = one, other
    return outputs


def _arguments(memory: Recurrent, layer: int, features: Tensor, state: State, starts: Tensor) -> list[Any]:
    if layer > 0 and memory._drops:
        features = features * state[-1][:, layer - 1]
    return [features, *memory.before_layer(layer, state), starts, *memory._layer_parameters(layer)]
