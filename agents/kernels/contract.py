"""What a set of kernels for RNN, LSTM and GRU offers: one layer over a whole block.

    unroll(kind, features, state, episode_starts, parameters)

takes features (T, B, F), the state before the first step (B, H) each, (T, B) boolean on the CPU -> outputs (T, B, H).
An episode starts from zeros; or, of a state (B + 1, H), from the last row. Three modules have it:

- ``agents.kernels.recurrent``: compiled, float32 on a CPU; the fastest;
- ``agents.memory.packed``: torch's own, any device and precision; cuDNN on a GPU, oneDNN for an LSTM on a CPU;
- ``agents.kernels.reference``: torch's cells in a loop, slow; whatever torch can do with its operations.

Axes: T time, B sequences, F features in, H hidden units, G gates of a cell.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Kind = Literal["rnn_tanh", "rnn_relu", "lstm", "gru"]

State = tuple[Tensor, ...]
Array = NDArray[np.float32]
NumpyState = tuple[Array, ...]
NumpyStep = Callable[[Array, NumpyState, NDArray[np.bool_]], tuple[Array, NumpyState]]
"""Features (B, F), state before the step, (B,) true where an episode starts -> (B, H), state after the step."""

Parameters = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""w_ih (GH, F), w_hh (GH, H), b_ih (GH), b_hh (GH), gates in torch's order."""
