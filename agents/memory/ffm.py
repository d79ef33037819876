"""Fast and forgetful memory (Morad et al. 2023, "Reinforcement Learning with Fast and Forgetful Memory").

Axes: B sequences (or environments), H units of the stream, M traces, C frequencies of each, N = M C of the state.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from agents.checks.arguments import check_counts
from agents.kernels import scan as compiled
from agents.memory.core import Array
from agents.memory.layers import (
    normalized,
    numpy_glu,
    numpy_linear,
    numpy_normalized,
    numpy_sigmoid,
    xavier_linear,
)
from agents.memory.linear import ComplexLayer, polar
from agents.memory.recurrent import HORIZON, check_horizon
from agents.memory.stack import NumpyLayer, Stack


class FastForgetful(Stack):
    """Fast and forgetful memory (Morad et al. 2023): decaying traces of what was seen, at several frequencies.

    ``S' = G S + x~ 1'`` with ``x~ = W_1 x * sigmoid(W_2 x)`` and complex ``G_mc = exp(-exp(alpha_m) + i omega_c)``;
    the stream gets ``g * normalized(W_3 S) + (1 - g) * W_5 x`` with ``g = sigmoid(W_4 x)`` (equations 6 to 13).

    State: (B, D, M C, 2), real and imaginary parts.

    Args:
        trace_size: M.
        context_size: C.
        chrono_horizon: the longest dependency expected, in steps: the first traces decay over 2 to this many steps, and
            the periods are of 2 to as many, evenly in their logarithm.

    Raises:
        ValueError: a size is not a whole number of at least 1, or chrono_horizon is not above 1.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 64,
        num_layers: int = 2,
        *,
        trace_size: int = 32,
        context_size: int = 4,
        chrono_horizon: float = HORIZON,
        learned_initial_state: bool = False,
    ) -> None:
        check_counts(hidden_size=hidden_size, num_layers=num_layers, trace_size=trace_size, context_size=context_size)
        check_horizon(chrono_horizon)
        layers = [_Layer(hidden_size, trace_size, context_size, chrono_horizon) for _ in range(num_layers)]
        super().__init__(input_size, hidden_size, layers, (trace_size * context_size, 2), learned_initial_state)


class _Layer(ComplexLayer):
    def __init__(self, hidden_size: int, trace_size: int, context_size: int, chrono_horizon: float) -> None:
        super().__init__()
        longest = math.log(max(chrono_horizon, 2.0))
        self.alpha = nn.Parameter(-torch.linspace(math.log(2.0), longest, trace_size))
        self.omega = nn.Parameter(2 * math.pi / torch.linspace(longest, math.log(2.0), context_size).exp())
        self.inputs = xavier_linear(hidden_size, 2 * trace_size, parts=2)  # W_1, W_2
        self.gates = xavier_linear(hidden_size, 2 * hidden_size, parts=2)  # W_5, W_4
        self.readout = xavier_linear(2 * trace_size * context_size, hidden_size)

    def states(self, x: Tensor, before: Tensor, initial: Tensor | None, episode_starts: Tensor) -> Tensor:
        if initial is not None or not compiled.takes_traces(self.alpha, x):
            return super().states(x, before, initial, episode_starts)
        by_trace = (len(self.alpha), len(self.omega), 2)
        decays, before = self.decays().view(by_trace), before.reshape(-1, *by_trace)
        return compiled.traces(decays, self.seen(x), before, episode_starts).flatten(2, 3)

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        at_each = (self.seen(x).unsqueeze(-1) * torch.ones_like(self.omega)).flatten(-2)
        return self.decays(), torch.stack((at_each, torch.zeros_like(at_each)), dim=-1)

    def seen(self, x: Tensor) -> Tensor:
        """x~, (..., M)."""
        return nn.functional.glu(self.inputs(x), dim=-1)

    def decays(self) -> Tensor:
        """G, (N, 2)."""
        return polar(torch.exp(-self.alpha.exp()).unsqueeze(-1), self.omega).reshape(-1, 2)

    def read(self, states: Tensor, x: Tensor) -> Tensor:
        passed, gate = self.gates(x).chunk(2, dim=-1)
        read = normalized(self.readout(states.flatten(-2)))
        return torch.lerp(passed, read, torch.sigmoid(gate))

    def numpy_layer(self) -> NumpyLayer:
        inputs_of, gates_of, readout_of = (
            numpy_linear(each.weight, each.bias) for each in (self.inputs, self.gates, self.readout)
        )
        n_contexts = len(self.omega)
        with torch.no_grad():
            decays = self.decays().numpy().view(np.complex64)[..., 0]

        def layer(stream: Array, before: Array, after: Array) -> Array:
            x = numpy_normalized(stream)
            states = decays * before.view(np.complex64)[..., 0]
            states += numpy_glu(inputs_of(x)).repeat(n_contexts, axis=1)
            after.view(np.complex64)[..., 0] = states
            passed, gate = np.split(gates_of(x), 2, axis=1)
            read = numpy_normalized(readout_of(states.view(np.float32)))
            joined: Array = stream + passed + numpy_sigmoid(gate) * (read - passed)
            return joined

        return layer
