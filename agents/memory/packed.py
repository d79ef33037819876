"""RNN, LSTM and GRU over a block of episodes by torch's own kernels: cuDNN on a GPU, any type of number anywhere.

The pieces of the block go in as torch's ``PackedSequence`` would lay them out, so nothing is padded.

Axes: T time, B sequences, F features in, H hidden units; N = T * B steps, P pieces.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from agents.kernels.contract import Parameters
from agents.memory.core import State
from agents.memory.episodes import Pieces, at_pieces, cut, take_rows

Layer = Callable[..., tuple[Tensor, ...]]


def lstm(features: Tensor, hidden: Tensor, cell: Tensor, episode_starts: Tensor, parameters: Parameters) -> Tensor:
    """(T, B, F), state before the first step (B, H) each, (T, B) on the CPU -> (T, B, H)."""
    return _through(torch.lstm, features, (hidden, cell), episode_starts, parameters)


def gru(features: Tensor, hidden: Tensor, episode_starts: Tensor, parameters: Parameters) -> Tensor:
    """(T, B, F), state before the first step (B, H), (T, B) on the CPU -> (T, B, H)."""
    return _through(torch.gru, features, (hidden,), episode_starts, parameters)


def rnn(features: Tensor, hidden: Tensor, episode_starts: Tensor, parameters: Parameters, relu: bool) -> Tensor:
    """(T, B, F), state before the first step (B, H), (T, B) on the CPU -> (T, B, H)."""
    return _through(torch.rnn_relu if relu else torch.rnn_tanh, features, (hidden,), episode_starts, parameters)


def _through(layer: Any, features: Tensor, state: State, episode_starts: Tensor, parameters: Parameters) -> Tensor:
    pieces = cut(episode_starts)
    weights = [parameter for parameter in parameters if parameter is not None]
    before = tuple(at_pieces(part, pieces).unsqueeze(0) for part in state)
    rows = take_rows(features.flatten(0, 1), pieces)
    outputs = _call(layer, rows, pieces, before if len(before) > 1 else before[0], weights)
    return take_rows(outputs, pieces, back=True).view(*episode_starts.shape, -1)


def _call(layer: Any, rows: Tensor, pieces: Pieces, before: Any, weights: list[Tensor]) -> Tensor:
    with_bias, one_layer, dropout, training, bidirectional = len(weights) == 4, 1, 0.0, True, False
    outputs: Tensor = layer(
        rows,
        torch.from_numpy(pieces.batch_sizes),
        before,
        weights,
        with_bias,
        one_layer,
        dropout,
        training,
        bidirectional,
    )[0]
    return outputs
