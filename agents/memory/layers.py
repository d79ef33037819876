"""Blocks that memories share: gates, positions, a normalization.

Axes: N positions, H units; ``...`` stands for any axes before.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float32]

NORM_EPSILON = 1e-5


def xavier_linear(n_inputs: int, n_outputs: int, *, parts: int = 1, bias: bool = True) -> nn.Linear:
    """A linear layer of ``parts`` maps with as many outputs each: Xavier's uniform weights for each, biases 0."""
    linear = nn.Linear(n_inputs, n_outputs, bias=bias)
    for part in linear.weight.data.chunk(parts):
        nn.init.xavier_uniform_(part)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def normalized(x: Tensor) -> Tensor:
    """(..., H) with mean 0 and variance 1 over the units, and no scale of its own: the linear map after it has one."""
    return nn.functional.layer_norm(x, (int(x.shape[-1]),), eps=NORM_EPSILON)  # a number to exporters too


def numpy_normalized(x: Array) -> Array:
    """``normalized`` of (B, H) in NumPy."""
    n_units = x.shape[-1]
    mean: Array = np.add.reduce(x, axis=-1, keepdims=True)
    mean /= np.float32(n_units)
    centered = x - mean
    variance = np.add.reduce(centered * centered, axis=-1, keepdims=True)
    variance /= np.float32(n_units)
    variance += np.float32(NORM_EPSILON)
    np.sqrt(variance, out=variance)
    centered /= variance
    return centered


def numpy_sigmoid(x: Array) -> Array:
    """(..., ) -> (...), a new array; saturates, and never overflows."""
    y: Array = x * np.float32(0.5)
    np.tanh(y, out=y)
    y *= np.float32(0.5)
    y += np.float32(0.5)
    return y


def numpy_glu(x: Array) -> Array:
    """(B, 2 H) -> (B, H), one half gated by the other, as ``torch.nn.functional.glu``."""
    size = x.shape[1] // 2
    gated: Array = x[:, :size] * numpy_sigmoid(x[:, size:])
    return gated


def numpy_linear(weight: Tensor, bias: Tensor | None = None) -> Callable[[Array], Array]:
    """``W x + b`` of (B, H) in NumPy, on weights (K, H) and biases (K,) as they are now."""
    by_column = np.ascontiguousarray(weight.detach().numpy().T)
    if bias is None:
        return lambda x: x @ by_column
    row = bias.detach().numpy().copy()

    def linear(x: Array) -> Array:
        y: Array = x @ by_column
        y += row
        return y

    return linear


def sinusoidal_positions(distances: Tensor, size: int) -> Tensor:
    """Sines, then cosines, of distances (N,) at wavelengths from 2 pi to 20,000 pi -> (N, H) (Vaswani et al. 2017)."""
    n_waves = (size + 1) // 2
    frequencies = torch.exp(torch.arange(n_waves) * (-math.log(10_000.0) / n_waves))
    angles = distances.unsqueeze(-1) * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1)[..., :size]


class GRUGate(nn.Module):
    """Joins a stream x and what a block makes of it, y, as a GRU joins its state and its input (Parisotto et al. 2020).

    ``r = sigmoid(W_r y + U_r x)``, ``z = sigmoid(W_z y + U_z x - b)``, ``n = tanh(W_n y + U_n (r x))``,
    ``g = (1 - z) x + z n``. A bias b > 0 starts the gate near the identity: x passes, and the block comes in as it
    learns to be of use.
    """

    def __init__(self, size: int, bias: float = 2.0) -> None:
        super().__init__()
        self.of_block = xavier_linear(size, 3 * size, parts=3)
        self.of_stream = xavier_linear(size, 2 * size, parts=2, bias=False)
        self.of_reset = xavier_linear(size, size, bias=False)
        self.of_block.bias.data[size : 2 * size] = -bias

    def forward(self, stream: Tensor, block: Tensor) -> Tensor:
        """x and y, (..., H) each -> (..., H)."""
        r_y, z_y, n_y = self.of_block(block).chunk(3, dim=-1)
        r_x, z_x = self.of_stream(stream).chunk(2, dim=-1)
        new = torch.tanh(n_y + self.of_reset(torch.sigmoid(r_y + r_x) * stream))
        return torch.lerp(stream, new, torch.sigmoid(z_y + z_x))
