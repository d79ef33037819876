"""Linear recurrences: minGRU and LRU, whose states over a whole block come from one scan.

Axes: T time, B sequences (or environments), F features in, H units of the stream, N of the state, D layers.

The state of a layer follows ``h_t = a_t h_{t-1} + b_t`` with a_t and b_t made of the features alone, not of the state.
Two such steps are one such step, so that T of them come from a scan of depth log T. An episode that starts at t has
a_t = 0: a reset is exact, costs nothing, and no gradient passes it. What lies between the layers, from step to step
non-linear, makes the stack as a whole so.
"""

import math
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.checks.arguments import check_counts
from agents.kernels import scan as compiled
from agents.kernels.aside import once_differentiable, why_torch
from agents.memory.core import Array
from agents.memory.layers import (
    normalized,
    numpy_glu,
    numpy_linear,
    numpy_normalized,
    numpy_sigmoid,
    xavier_linear,
)
from agents.memory.recurrent import HORIZON, check_horizon, chrono_bias
from agents.memory.stack import Layer, NumpyLayer, Stack


class MinGRU(Stack):
    """The minimal GRU (Feng et al. 2024, "Were RNNs All We Needed?"): gates that see the input only, so that it scans.

    ``z = sigmoid(W_z x + b_z)``, ``n = g(W_n x + b_n)``, ``h' = (1 - z) h + z n``, with g(x) = x + 1/2 above 0 and
    sigmoid(x) below, the form that the paper scans in log space. The scan here is over the numbers themselves: the
    products are of factors in [0, 1], so nothing can overflow, nothing cancels, and a reset is a plain 0. What a layer
    adds to the stream is a gated linear map of h.

    State: (B, D, H).

    Args:
        chrono_horizon: the longest dependency expected, in steps: the first biases of z are drawn so that units forget
            over 2 to this many steps, evenly in their logarithm; None: all biases 0, about two steps.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 64,
        num_layers: int = 2,
        *,
        chrono_horizon: float | None = HORIZON,
        learned_initial_state: bool = False,
    ) -> None:
        check_counts(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        check_horizon(chrono_horizon)
        layers = [_MinGRULayer(hidden_size, chrono_horizon) for _ in range(num_layers)]
        super().__init__(input_size, hidden_size, layers, (hidden_size,), learned_initial_state)


class LRU(Stack):
    """The linear recurrent unit (Orvieto et al. 2023, "Resurrecting Recurrent Neural Networks for Long Sequences").

    ``h' = lambda h + exp(gamma) B x``, complex and diagonal, with ``lambda = exp(-exp(nu) + i exp(theta))``, so that
    |lambda| < 1 whatever is learned; ``y = Re(C h) + d x``, and the stream gets ``GLU(W gelu(y))``. At first gamma is
    log sqrt(1 - |lambda|^2), which keeps the size of h that of x.

    State: (B, D, N, 2), real and imaginary parts.

    Args:
        state_size: N, complex numbers a layer carries; None: hidden_size.
        r_min, r_max: the ring that the first lambda are drawn from; |lambda| of r forgets over about 1 / (1 - r) steps,
            and that number is drawn evenly in its logarithm.
        max_phase: the largest first angle of lambda, in radians, in (0, 2 pi].
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 64,
        num_layers: int = 2,
        *,
        state_size: int | None = None,
        r_min: float = 0.5,
        r_max: float = 1 - 1 / HORIZON,
        max_phase: float = 2 * math.pi,
        learned_initial_state: bool = False,
    ) -> None:
        state_size = hidden_size if state_size is None else state_size
        check_counts(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers, state_size=state_size)
        if not 0 <= r_min < r_max < 1:
            raise ValueError(f"r_min and r_max must be in 0 <= r_min < r_max < 1; got {r_min!r} and {r_max!r}")
        if not 0 < max_phase <= 2 * math.pi:
            raise ValueError(f"max_phase must be in (0, 2 pi]; got {max_phase!r}")
        layers = [_LRULayer(hidden_size, state_size, r_min, r_max, max_phase) for _ in range(num_layers)]
        super().__init__(input_size, hidden_size, layers, (state_size, 2), learned_initial_state)


class LinearLayer(Layer):
    """``x' = x + read(h)``, where ``h' = a h + b`` with a and b made of the normalized x."""

    def step(self, stream: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        x = normalized(stream)
        decay, inputs = self.terms(x)
        after = self.product(decay, before) + inputs
        return stream + self.read(after, x), after

    def unroll(self, stream: Tensor, before: Tensor, initial: Tensor | None, episode_starts: Tensor) -> Tensor:
        x = normalized(stream)
        return stream + self.read(self.states(x, before, initial, episode_starts), x)

    def states(self, x: Tensor, before: Tensor, initial: Tensor | None, episode_starts: Tensor) -> Tensor:
        """After every step, (T, B, ...): what is made of the normalized x (T, B, H), scanned."""
        decay, inputs, before = map(self.opened, (*self.terms(x), before))
        if initial is not None:
            at_starts = decay * self.opened(initial)
            inputs = inputs + torch.where(episode_starts.unsqueeze(-1), at_starts, before.new_zeros(()))
        return self.closed(scan(decay, inputs, before, episode_starts))

    def product(self, decay: Tensor, before: Tensor) -> Tensor:
        return decay * before

    def opened(self, numbers: Tensor) -> Tensor:
        """As what is scanned, (..., N)."""
        return numbers

    def closed(self, numbers: Tensor) -> Tensor:
        return numbers

    @abstractmethod
    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., H) -> decay and inputs of the recurrence, as the state is, or what broadcasts to it."""

    @abstractmethod
    def read(self, states: Tensor, x: Tensor) -> Tensor:
        """States and what they came from (..., H) -> (..., H)."""


class ComplexLayer(LinearLayer):
    """With a state of complex numbers, (..., N, 2): a step is in their real and imaginary parts, which is all that
    exporters know."""

    def product(self, decay: Tensor, before: Tensor) -> Tensor:
        a, b, x, y = decay[..., 0], decay[..., 1], before[..., 0], before[..., 1]
        return torch.stack((a * x - b * y, a * y + b * x), dim=-1)

    def opened(self, numbers: Tensor) -> Tensor:
        return torch.view_as_complex(numbers.contiguous())

    def closed(self, numbers: Tensor) -> Tensor:
        return torch.view_as_real(numbers)


class _MinGRULayer(LinearLayer):
    def __init__(self, hidden_size: int, chrono_horizon: float | None) -> None:
        super().__init__()
        self.gates = xavier_linear(hidden_size, 2 * hidden_size, parts=2)  # z, n
        self.output = xavier_linear(hidden_size, 2 * hidden_size, parts=2)
        if chrono_horizon is not None:
            self.gates.bias.data[:hidden_size] = -chrono_bias(hidden_size, chrono_horizon)

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gate, candidate = self.gates(x).chunk(2, dim=-1)
        z = torch.sigmoid(gate)
        return 1 - z, z * torch.where(candidate >= 0, candidate + 0.5, torch.sigmoid(candidate))

    def read(self, states: Tensor, x: Tensor) -> Tensor:
        return nn.functional.glu(self.output(states), dim=-1)

    def numpy_layer(self) -> NumpyLayer:
        gates_of, output_of = (numpy_linear(linear.weight, linear.bias) for linear in (self.gates, self.output))

        def layer(stream: Array, before: Array, after: Array) -> Array:
            gates = gates_of(numpy_normalized(stream))
            size = gates.shape[1] // 2
            candidate = gates[:, size:]
            squashed = numpy_sigmoid(gates)
            z = squashed[:, :size]
            np.subtract(np.where(candidate >= 0, candidate + _HALF, squashed[:, size:]), before, out=after)
            np.multiply(after, z, out=after)
            np.add(after, before, out=after)
            return stream + numpy_glu(output_of(after))

        return layer


class _LRULayer(ComplexLayer):
    def __init__(self, hidden_size: int, state_size: int, r_min: float, r_max: float, max_phase: float) -> None:
        super().__init__()
        radius = 1 - torch.empty(state_size).uniform_(math.log(1 - r_max), math.log(1 - r_min)).exp()
        square = radius.square()
        phase = torch.empty(state_size).uniform_(0.0, max_phase).clamp_(min=1e-4)
        self.nu = nn.Parameter((-0.5 * square.clamp(min=1e-8).log()).log())
        self.theta = nn.Parameter(phase.log())
        self.gamma = nn.Parameter(0.5 * torch.log1p(-square))
        # Rows in turn the real and the imaginary part of one number, as complex numbers lie in memory.
        self.input = nn.Parameter(torch.randn(2 * state_size, hidden_size) / math.sqrt(2 * hidden_size))
        self.readout = nn.Parameter(torch.randn(hidden_size, 2 * state_size) / math.sqrt(state_size))
        self.skip = nn.Parameter(torch.randn(hidden_size))
        self.output = xavier_linear(hidden_size, 2 * hidden_size, parts=2)

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.input * self.gamma.exp().repeat_interleave(2).unsqueeze(-1)
        inputs = nn.functional.linear(x, weight)
        return self.eigenvalues(), inputs.reshape(*inputs.shape[:-1], -1, 2)

    def read(self, states: Tensor, x: Tensor) -> Tensor:
        y = nn.functional.linear(states.flatten(-2), self.readout) + self.skip * x
        return nn.functional.glu(self.output(nn.functional.gelu(y, approximate="tanh")), dim=-1)

    def eigenvalues(self) -> Tensor:
        """lambda, (N, 2)."""
        return polar(torch.exp(-self.nu.exp()), self.theta.exp())

    def numpy_layer(self) -> NumpyLayer:
        with torch.no_grad():
            decay = self.eigenvalues().numpy().view(np.complex64)[..., 0]
            inputs_of = numpy_linear(self.input * self.gamma.exp().repeat_interleave(2).unsqueeze(-1))
            readout_of = numpy_linear(self.readout)
            skip: Array = self.skip.detach().numpy()
        output_of = numpy_linear(self.output.weight, self.output.bias)

        def layer(stream: Array, before: Array, after: Array) -> Array:
            x = numpy_normalized(stream)
            states = decay * before.view(np.complex64)[..., 0]
            states += inputs_of(x).view(np.complex64)
            after.view(np.complex64)[..., 0] = states
            y = readout_of(states.view(np.float32))
            y += skip * x
            return stream + numpy_glu(output_of(_numpy_gelu(y)))

        return layer


_HALF = np.float32(0.5)


def polar(radius: Tensor, angle: Tensor) -> Tensor:
    """Complex numbers (..., 2) from radii and angles (...)."""
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)


def _numpy_gelu(x: Array) -> Array:
    """Half of ``x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))``, as torch approximates it."""
    inner: Array = x * x
    inner *= np.float32(0.044715 * math.sqrt(2 / math.pi))
    inner += np.float32(math.sqrt(2 / math.pi))
    inner *= x
    np.tanh(inner, out=inner)
    inner += np.float32(1)
    inner *= x
    inner *= _HALF
    return inner


def scan(decay: Tensor, inputs: Tensor, before: Tensor, starts: Tensor) -> Tensor:
    """``h_t = decay_t h_{t-1} + inputs_t``, from h = 0 where an episode starts.

    Decay (T, B, N), or (N) for the same at every step; inputs (T, B, N); h before the first step (B, N); starts (T, B)
    -> (T, B, N). Real or complex. Where an episode starts nothing of what came before is left, not even a NaN. On a CPU
    it is compiled, elsewhere ``scan_in_parallel``, and step by step for what follows torch's operations.
    """
    if compiled.takes(decay, inputs):
        return compiled.scanned(decay, inputs, before, starts)
    decay = torch.where(starts.unsqueeze(-1), inputs.new_zeros(()), decay)
    if not why_torch():
        states: Tensor = ScanInParallel.apply(decay, inputs, before)  # type: ignore[no-untyped-call]
        return states
    after = [before]
    for a, b in zip(decay, inputs, strict=True):
        after.append(_after(a, after[-1], b))
    return torch.stack(after[1:])


def scan_in_parallel(decay: Tensor, inputs: Tensor) -> Tensor:
    """``h_t = decay_t h_{t-1} + inputs_t`` from h = 0: (T, ...) each -> (T, ...), in 2 log2 T levels.

    Steps are joined in pairs, the half as many pairs scanned, and the steps between filled in (Blelloch 1990). Where a
    decay is 0 nothing of what came before is left, not even a NaN.
    """
    if len(inputs) == 1:
        return inputs
    pairs = len(inputs) // 2 * 2
    first, second = decay[0:pairs:2], decay[1::2]
    pair_decay = torch.where(second == 0, second, second * first)
    states = torch.empty_like(inputs)
    states[1::2] = scan_in_parallel(pair_decay, _after(second, inputs[0:pairs:2], inputs[1::2]))
    states[0] = inputs[0]
    states[2::2] = _after(decay[2::2], states[1:-1:2], inputs[2::2])
    return states


class ScanInParallel(torch.autograd.Function):
    """The gradient of a scan is a scan from the end: ``g_t = d_t + conj(a_{t+1}) g_{t+1}``, then a_t gets
    ``g_t conj(h_{t-1})`` and b_t gets g_t. Decay and inputs (T, B, N), h before the first step (B, N) -> (T, B, N)."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, inputs: Tensor, before: Tensor) -> Tensor:
        first = _after(decay[:1], before[None], inputs[:1])
        states = scan_in_parallel(decay, torch.cat((first, inputs[1:])))
        ctx.save_for_backward(decay, before, states)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay, before, states = ctx.saved_tensors
        backwards = torch.cat((torch.zeros_like(before)[None], decay[1:].flip(0))).conj().resolve_conj()
        d_inputs = scan_in_parallel(backwards, d_states.flip(0)).flip(0)
        d_decay = torch.empty_like(decay)
        torch.mul(d_inputs[0], before.conj(), out=d_decay[0])
        torch.mul(d_inputs[1:], states[:-1].conj(), out=d_decay[1:])
        return d_decay, d_inputs, d_inputs[0] * decay[0].conj()


def _after(decay: Tensor, state: Tensor, inputs: Tensor) -> Tensor:
    return torch.where(decay == 0, inputs, decay * state + inputs)
