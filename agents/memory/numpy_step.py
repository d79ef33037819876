"""The acting step of RNN, LSTM and GRU in NumPy: where there are no compiled kernels, the least overhead for a call.

Parameters are rearranged once, so that a step of a layer is one matrix product, W_ih beside W_hh, and a few elementwise
operations. Sigmoids are computed as ``(1 + tanh(x / 2)) / 2``, so that one call of tanh serves all gates.

Axes: B environments, F features in, H hidden units, G gates of a cell, D layers.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.kernels.contract import Array, NumpyState, NumpyStep, Parameters
from agents.kernels.recurrent import gru_joined, joined

Cell = Callable[[Array, NumpyState, NumpyState], None]
"""One layer: features (B, F), state before (B, H) each, room for the state after (B, H) each, the output first."""


def lstm_step(layers: Sequence[Parameters]) -> NumpyStep:
    """The step of stacked LSTM layers, on the parameters as they are now."""
    return _stacked([_lstm_cell(*layer) for layer in layers], carried_parts=2)


def gru_step(layers: Sequence[Parameters]) -> NumpyStep:
    """The step of stacked GRU layers, on the parameters as they are now."""
    return _stacked([_gru_cell(*layer) for layer in layers], carried_parts=1)


def rnn_step(layers: Sequence[Parameters], relu: bool) -> NumpyStep:
    """The step of stacked layers of the plain network, on the parameters as they are now."""
    return _stacked([_rnn_cell(*layer, relu) for layer in layers], carried_parts=1)


def _stacked(cells: Sequence[Cell], carried_parts: int) -> NumpyStep:
    """A step through layers on top of each other, with the state's dropout masks between them if it has them."""

    def step(features: Array, state: NumpyState, episode_starts: NDArray[np.bool_]) -> tuple[Array, NumpyState]:
        before, masks = state[:carried_parts], state[carried_parts:]
        if np.count_nonzero(episode_starts):
            before = tuple(np.where(episode_starts[:, None, None], _ZERO, part) for part in before)
        after = tuple(np.empty_like(part) for part in before)
        output = features
        for layer, cell in enumerate(cells):
            if layer and masks:
                output = output * masks[0][:, layer - 1]
            cell(output, tuple(part[:, layer] for part in before), tuple(part[:, layer] for part in after))
            output = after[0][:, layer]
        return output, (*after, *masks)

    return step


_ZERO, _ONE, _HALF = (np.array(value, dtype=np.float32) for value in (0.0, 1.0, 0.5))


def _lstm_cell(w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None) -> Cell:
    size = w_hh.shape[1]
    weights, bias = joined(w_ih, w_hh, b_ih, b_hh)
    # For i, f and o: x / 2 into the tanh, then times 1/2 plus 1/2. For g: its tanh as it is.
    scale = np.repeat(np.array([0.5, 0.5, 1.0, 0.5], dtype=np.float32), size)
    shift = 1 - scale
    product = _product(weights * torch.from_numpy(scale)[:, None], bias * torch.from_numpy(scale))

    def cell(features: Array, before: NumpyState, after: NumpyState) -> None:
        (hidden, c), (new_hidden, new_c) = before, after
        gates = product(features, hidden)
        np.tanh(gates, out=gates)
        np.multiply(gates, scale, out=gates)
        np.add(gates, shift, out=gates)
        i, f, g, o = (gates[:, gate : gate + size] for gate in range(0, 4 * size, size))
        np.multiply(f, c, out=new_c)
        np.multiply(i, g, out=i)
        np.add(new_c, i, out=new_c)
        np.tanh(new_c, out=g)
        np.multiply(o, g, out=new_hidden)

    return cell


def _gru_cell(w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None) -> Cell:
    size = w_hh.shape[1]
    weights, bias = gru_joined(w_ih, w_hh, b_ih, b_hh)
    weights[: 2 * size] *= 0.5
    bias[: 2 * size] *= 0.5
    product = _product(weights, bias)

    def cell(features: Array, before: NumpyState, after: NumpyState) -> None:
        (hidden,), (new_hidden,) = before, after
        sums = product(features, hidden)
        gates = sums[:, : 2 * size]
        np.tanh(gates, out=gates)
        np.multiply(gates, _HALF, out=gates)
        np.add(gates, _HALF, out=gates)
        r, z, new, new_from_hidden = (sums[:, column : column + size] for column in range(0, 4 * size, size))
        np.multiply(r, new_from_hidden, out=r)
        np.add(new, r, out=new)
        np.tanh(new, out=new)
        np.subtract(hidden, new, out=new_hidden)
        np.multiply(new_hidden, z, out=new_hidden)
        np.add(new_hidden, new, out=new_hidden)

    return cell


def _rnn_cell(w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None, relu: bool) -> Cell:
    product = _product(*joined(w_ih, w_hh, b_ih, b_hh))

    def cell(features: Array, before: NumpyState, after: NumpyState) -> None:
        sums = product(features, before[0])
        if relu:
            np.maximum(sums, _ZERO, out=after[0])
        else:
            np.tanh(sums, out=after[0])

    return cell


def _product(weights: Tensor, bias: Tensor) -> Callable[[Array, Array], Array]:
    """``W [x, h] + b``; what it returns is written over by the next call."""
    by_column = np.ascontiguousarray(weights.numpy().T)
    row = bias.numpy()
    n_inputs, n_outputs = by_column.shape
    room: dict[int, tuple[Array, Array]] = {}

    def product(features: Array, hidden: Array) -> Array:
        batch_size, n_features = features.shape
        if batch_size not in room:
            room[batch_size] = (
                np.empty((batch_size, n_inputs), dtype=np.float32),
                np.empty((batch_size, n_outputs), dtype=np.float32),
            )
        inputs, sums = room[batch_size]
        inputs[:, :n_features] = features
        inputs[:, n_features:] = hidden
        np.matmul(inputs, by_column, out=sums)
        sums += row
        return sums

    return product
