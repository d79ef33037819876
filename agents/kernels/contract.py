"""What a set of kernels for RNN, LSTM and GRU offers: one layer over a whole block. Four modules do.

- ``agents.kernels.recurrent``: compiled, float32 on a CPU, a hidden size of a multiple of 8; the fastest;
- ``agents.memory.through_time``: NumPy and torch, any hidden size and precision on a CPU, no compiler needed;
- ``agents.memory.packed``: torch's own, any device; cuDNN on a GPU;
- ``agents.kernels.reference``: torch's cells in a loop, slow; whatever torch can do with its operations.

Axes: T time, B sequences, F features in, H hidden units, G gates of a cell.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float32]
NumpyState = tuple[Array, ...]
NumpyStep = Callable[[Array, NumpyState, NDArray[np.bool_]], tuple[Array, NumpyState]]
"""Features (B, F), state before the step, (B,) true where an episode starts -> (B, H), state after the step."""

Parameters = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""w_ih (GH, F), w_hh (GH, H), b_ih (GH), b_hh (GH), gates in torch's order."""


class Kernels(Protocol):
    """Features (T, B, F), state before the first step (B, H), (T, B) boolean on the CPU -> outputs (T, B, H).

    An episode starts from zeros; or, of a state (B + 1, H), from the last row.
    """

    def lstm(
        self, features: Tensor, hidden: Tensor, cell: Tensor, episode_starts: Tensor, parameters: Parameters
    ) -> Tensor:
        """A layer of ``torch.nn.LSTM``."""

    def gru(self, features: Tensor, hidden: Tensor, episode_starts: Tensor, parameters: Parameters) -> Tensor:
        """A layer of ``torch.nn.GRU``."""

    def rnn(
        self, features: Tensor, hidden: Tensor, episode_starts: Tensor, parameters: Parameters, relu: bool
    ) -> Tensor:
        """A layer of ``torch.nn.RNN``."""


class Steps(Protocol):
    """The acting step of stacked layers, on their parameters as they are now: ``agents.kernels.recurrent`` and
    ``agents.memory.numpy_step`` do."""

    def lstm_step(self, layers: Sequence[Parameters]) -> NumpyStep:
        """That of ``torch.nn.LSTM``."""

    def gru_step(self, layers: Sequence[Parameters]) -> NumpyStep:
        """That of ``torch.nn.GRU``."""

    def rnn_step(self, layers: Sequence[Parameters], relu: bool) -> NumpyStep:
        """That of ``torch.nn.RNN``."""
