"""The cells of RNN, LSTM and GRU in NumPy, and the acting step that they make: used if there are no compiled kernels.

Parameters are rearranged once, so that a step of a layer is one matrix product, W_ih next to W_hh, and a few
elementwise operations. Sigmoids are computed as ``(1 + tanh(x / 2)) / 2``, so that one call of tanh serves all gates.

Axes: B environments, F features in, H hidden units, G gates of a cell, D layers.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.kernels.contract import Array, Kind, NumpyState, NumpyStep, Parameters
from agents.kernels.recurrent import joined

Cell = Callable[[Array, NumpyState, NumpyState], object]
"""Sums (B, GH) that become the activated gates, state before (B, H) each, room for the state after (B, H) each."""


def step(kind: Kind, layers: Sequence[Parameters]) -> NumpyStep:
    """The acting step of stacked layers, on their parameters as they are now, with the state's dropout masks between
    them if it has them."""
    size, n_parts = layers[0][1].shape[1], 2 if kind == "lstm" else 1
    cell, products = cell_of(kind, size), [_product(*halved(kind, layer)) for layer in layers]

    def run(features: Array, state: NumpyState, episode_starts: NDArray[np.bool_]) -> tuple[Array, NumpyState]:
        before, masks = state[:n_parts], state[n_parts:]
        if np.count_nonzero(episode_starts):
            before = tuple(np.where(episode_starts[:, None, None], _ZERO, part) for part in before)
        after = tuple(np.empty_like(part) for part in before)
        output = features
        for layer, product in enumerate(products):
            if layer and masks:
                output = output * masks[0][:, layer - 1]
            of_layer = tuple(part[:, layer] for part in before)
            cell(product(output, of_layer[0]), of_layer, tuple(part[:, layer] for part in after))
            output = after[0][:, layer]
        return output, (*after, *masks)

    return run


_ZERO, _HALF = np.array(0.0, dtype=np.float32), np.array(0.5, dtype=np.float32)


def halved(kind: Kind, parameters: Parameters) -> tuple[Tensor, Tensor]:
    """The weights and biases that ``joined`` makes of a layer's, with half of what goes into a sigmoid."""
    weights, bias = joined(kind, *parameters)
    scale = torch.from_numpy(_scale_of(kind, parameters[1].shape[1])).to(bias)
    return weights * scale[:, None], bias * scale


def _scale_of(kind: Kind, size: int) -> Array:
    of_gates = {"lstm": [0.5, 0.5, 1.0, 0.5], "gru": [1.0, 0.5, 0.5, 1.0]}.get(kind, [1.0])
    return np.repeat(np.array(of_gates, dtype=np.float32), size)


def cell_of(kind: Kind, size: int) -> Cell:
    """The elementwise part of a step, on sums of halved products. Gates are left in the order of ``joined``."""
    if kind == "rnn_relu":
        return lambda sums, before, after: np.maximum(sums, _ZERO, out=after[0])
    if kind == "rnn_tanh":
        return lambda sums, before, after: np.tanh(sums, out=after[0])
    scale = _scale_of(kind, size)
    shift = 1 - scale

    def lstm(sums: Array, before: NumpyState, after: NumpyState) -> None:
        new_hidden, new_cell = after
        np.tanh(sums, out=sums)
        np.multiply(sums, scale, out=sums)
        np.add(sums, shift, out=sums)
        i, f, g, o = (sums[:, column : column + size] for column in range(0, 4 * size, size))
        np.multiply(f, before[1], out=new_cell)
        np.add(new_cell, i * g, out=new_cell)
        np.multiply(o, np.tanh(new_cell), out=new_hidden)

    def gru(sums: Array, before: NumpyState, after: NumpyState) -> None:
        (hidden,), (new_hidden,) = before, after
        gates = sums[:, size : 3 * size]
        np.tanh(gates, out=gates)
        np.multiply(gates, _HALF, out=gates)
        np.add(gates, _HALF, out=gates)
        n, r, z, of_hidden = (sums[:, column : column + size] for column in range(0, 4 * size, size))
        np.add(n, r * of_hidden, out=n)
        np.tanh(n, out=n)
        np.subtract(hidden, n, out=new_hidden)
        np.multiply(new_hidden, z, out=new_hidden)
        np.add(new_hidden, n, out=new_hidden)

    return lstm if kind == "lstm" else gru


def _product(weights: Tensor, bias: Tensor) -> Callable[[Array, Array], Array]:
    """``W [x, h] + b``; what it returns is written over by the next call."""
    by_column = np.ascontiguousarray(weights.numpy().T)
    row = bias.numpy()
    n_inputs, n_outputs = by_column.shape
    room: dict[int, tuple[Array, Array]] = {}

    def product(features: Array, hidden: Array) -> Array:
        batch_size, n_features = features.shape
        if batch_size not in room:
            inputs, sums = (np.empty((batch_size, width), dtype=np.float32) for width in (n_inputs, n_outputs))
            room[batch_size] = inputs, sums
        inputs, sums = room[batch_size]
        inputs[:, :n_features] = features
        inputs[:, n_features:] = hidden
        np.matmul(inputs, by_column, out=sums)
        sums += row
        return sums

    return product
