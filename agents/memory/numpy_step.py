"""The acting step of RNN, LSTM and GRU in NumPy: used if there are no compiled kernels.

Parameters are rearranged once, so that a step of a layer is one matrix product, W_ih next to W_hh, and a few
elementwise operations.

Axes: B environments, F features in, H hidden units, G gates of a cell, D layers.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from agents.kernels.contract import Array, Kind, NumpyState, NumpyStep, Parameters
from agents.kernels.recurrent import joined
from agents.memory.layers import numpy_linear, numpy_sigmoid


def step(kind: Kind, layers: Sequence[Parameters]) -> NumpyStep:
    """The acting step of stacked layers, on their parameters as they are now, with the state's dropout masks between
    them if it has them."""
    cell, n_parts = _CELLS[kind], 2 if kind == "lstm" else 1
    products = [numpy_linear(*joined(kind, *layer)) for layer in layers]

    def run(features: Array, state: NumpyState, episode_starts: NDArray[np.bool_]) -> tuple[Array, NumpyState]:
        before, masks = state[:n_parts], state[n_parts:]
        if np.count_nonzero(episode_starts):
            before = tuple(np.where(episode_starts[:, None, None], np.float32(0), part) for part in before)
        after = tuple(np.empty_like(part) for part in before)
        output = features
        for layer, product in enumerate(products):
            if layer and masks:
                output = output * masks[0][:, layer - 1]
            of_layer = tuple(part[:, layer] for part in before)
            sums = product(np.concatenate((output, of_layer[0]), axis=1))
            for part, new in zip(after, cell(sums, of_layer), strict=True):
                part[:, layer] = new
            output = after[0][:, layer]
        return output, (*after, *masks)

    return run


def _lstm(sums: Array, before: NumpyState) -> NumpyState:
    size = len(sums[0]) // 4
    squashed = numpy_sigmoid(sums)
    new_cell = squashed[:, size : 2 * size] * before[1]
    new_cell += squashed[:, :size] * np.tanh(sums[:, 2 * size : 3 * size])
    return squashed[:, 3 * size :] * np.tanh(new_cell), new_cell


def _gru(sums: Array, before: NumpyState) -> NumpyState:
    size = len(sums[0]) // 4
    r, z = np.split(numpy_sigmoid(sums[:, size : 3 * size]), 2, axis=1)
    n = np.tanh(sums[:, :size] + r * sums[:, 3 * size :])
    return (n + z * (before[0] - n),)


_CELLS: dict[Kind, Callable[[Array, NumpyState], NumpyState]] = {
    "rnn_tanh": lambda sums, before: (np.tanh(sums),),
    "rnn_relu": lambda sums, before: (np.maximum(sums, 0),),
    "lstm": _lstm,
    "gru": _gru,
}
"""Sums (B, GH) in the order of ``joined``, state before (B, H) each -> state after."""
