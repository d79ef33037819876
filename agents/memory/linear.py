"""Linear recurrences: minGRU and LRU, whose states over a whole block come from one scan.

Axes: T time, B sequences (or environments), F features in, H units of the stream, N of the state, D layers.

The state of a layer follows ``h_t = a_t h_{t-1} + b_t`` with a_t and b_t made of the features alone, not of the state.
Two such steps are one such step, so that T of them come from a scan of depth log T. An episode that starts at t has
a_t = 0: a reset is exact, costs nothing, and no gradient passes it. What lies between the layers, from step to step
non-linear, makes the stack as a whole so.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.kernels.aside import once_differentiable, why_torch
from agents.memory.core import Array, Memory, NumpyState, NumpyStep, State, in_own_precision
from agents.memory.layers import check_sizes, normalized, numpy_linear, numpy_normalized, numpy_sigmoid
from agents.memory.recurrent import HORIZON, check_horizon, chrono_bias

NumpyLayer = Callable[[Array, NDArray[Any], NDArray[Any]], Array]
"""One layer of one step: stream (B, H), state before (B, N), room for the state after (B, N) -> stream."""


class LinearRecurrence(Memory):
    """What minGRU and LRU share: an embedding, then D residual layers ``x' = x + read(scan(normalized(x)))``.

    State: one part, what each layer carries, (B, D, N) or (B, D, N, 2).

    Args, in addition to those of each class:
        input_size: F.
        hidden_size: H, also the size of the output.
        num_layers: D, each on the output of the one below.
        learned_initial_state: whether an episode starts from a state that is learned, 0 at first, instead of from 0.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        layers: "Sequence[RecurrentLayer]",
        state_shape: tuple[int, ...],
        learned_initial_state: bool,
    ) -> None:
        super().__init__(input_size, output_size=hidden_size)
        self.hidden_size = hidden_size
        self.num_layers = len(layers)
        self.learned_initial_state = learned_initial_state
        self.embedding = nn.Linear(input_size, hidden_size)
        nn.init.xavier_uniform_(self.embedding.weight)
        nn.init.zeros_(self.embedding.bias)
        self.layers = nn.ModuleList(layers)
        self._state_shape = state_shape
        self.initial: nn.Parameter | None = None
        if learned_initial_state:
            self.initial = nn.Parameter(torch.zeros(self.num_layers, *state_shape))

    def initial_state(self, batch_size: int) -> State:
        if self.initial is not None:
            return (self.initial.detach().repeat(batch_size, *[1] * self.initial.dim()),)
        return (self.embedding.weight.new_zeros(batch_size, self.num_layers, *self._state_shape),)

    @in_own_precision
    def step(self, features: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        starts = episode_starts.view(-1, *[1] * (state[0].dim() - 1))
        initial = state[0].new_zeros(()) if self.initial is None else self.initial
        before = self._opened(torch.where(starts, initial, state[0]))
        stream, after = self.embedding(features), []
        for layer, module in enumerate(self._layers()):
            stream, states = module(stream, partial(_step, before[:, layer]))
            after.append(states)
        return stream, (self._closed(torch.stack(after, dim=1)),)

    @in_own_precision
    def unroll(self, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
        before, starts = self._opened(state[0]), episode_starts.unsqueeze(-1)
        nothing = before.new_zeros(())
        stream: Tensor = self.embedding(features)
        for layer, module in enumerate(self._layers()):
            initial = None if self.initial is None else self._opened(self.initial)[layer]

            def carry(
                decay: Tensor, inputs: Tensor, before: Tensor = before[:, layer], initial: Tensor | None = initial
            ) -> Tensor:
                if initial is not None:
                    inputs = inputs + torch.where(starts, decay * initial, nothing)
                return scan(torch.where(starts, nothing, decay), inputs, before)

            stream, _ = module(stream, carry)
        return stream

    def numpy_step(self) -> NumpyStep | None:
        """For float32 on a CPU."""
        weight = self.embedding.weight
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            return None
        embed = numpy_linear(self.embedding.weight, self.embedding.bias)
        layers = [layer.numpy_layer() for layer in self._layers()]
        initial = self.initial_state(1)[0].numpy()
        opened = self._opened_array

        def step(features: Array, state: NumpyState, episode_starts: NDArray[np.bool_]) -> tuple[Array, NumpyState]:
            before = np.ascontiguousarray(state[0])
            if np.count_nonzero(episode_starts):
                before = np.where(episode_starts.reshape(-1, *[1] * (before.ndim - 1)), initial, before)
            after = np.empty_like(before)
            of_layer, to_layer = opened(before), opened(after)
            stream = embed(features)
            for layer, through in enumerate(layers):
                stream = through(stream, of_layer[:, layer], to_layer[:, layer])
            return stream, (after,)

        return step

    def _layers(self) -> "Iterable[RecurrentLayer]":
        return cast("Iterable[RecurrentLayer]", self.layers)

    def _opened(self, state: Tensor) -> Tensor:
        """The state as the numbers that the recurrence is in: (..., N)."""
        return state

    def _closed(self, state: Tensor) -> Tensor:
        return state

    def _opened_array(self, state: Array) -> NDArray[Any]:
        return state


class MinGRU(LinearRecurrence):
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
        check_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        check_horizon(chrono_horizon)
        layers = [_MinGRULayer(hidden_size, chrono_horizon) for _ in range(num_layers)]
        super().__init__(input_size, hidden_size, layers, (hidden_size,), learned_initial_state)


class ComplexRecurrence(LinearRecurrence):
    """With a state of N complex numbers a layer, which is (B, D, N, 2) outside."""

    def _opened(self, state: Tensor) -> Tensor:
        return torch.view_as_complex(state.contiguous())

    def _closed(self, state: Tensor) -> Tensor:
        return torch.view_as_real(state)

    def _opened_array(self, state: Array) -> NDArray[Any]:
        return state.view(np.complex64)[..., 0]


class LRU(ComplexRecurrence):
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
        check_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers, state_size=state_size)
        if not 0 <= r_min < r_max < 1:
            raise ValueError(f"r_min and r_max must be in 0 <= r_min < r_max < 1; got {r_min!r} and {r_max!r}")
        if not 0 < max_phase <= 2 * math.pi:
            raise ValueError(f"max_phase must be in (0, 2 pi]; got {max_phase!r}")
        layers = [_LRULayer(hidden_size, state_size, r_min, r_max, max_phase) for _ in range(num_layers)]
        super().__init__(input_size, hidden_size, layers, (state_size, 2), learned_initial_state)


class RecurrentLayer(nn.Module):
    """One recurrence and what it gives back to the stream."""

    def forward(self, stream: Tensor, carry: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """(..., H), and what makes states of decay and inputs -> stream (..., H) and states (..., N)."""
        x = normalized(stream)
        states = carry(*self.terms(x))
        return stream + self.read(states, x), states

    @abstractmethod
    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., H) -> decay and inputs of the recurrence, (..., N) each, or what broadcasts to it."""

    @abstractmethod
    def read(self, states: Tensor, x: Tensor) -> Tensor:
        """States (..., N) and what they came from (..., H) -> (..., H)."""

    @abstractmethod
    def numpy_layer(self) -> NumpyLayer:
        """The whole of one layer's step, on the parameters as they are now."""


def _step(before: Tensor, decay: Tensor, inputs: Tensor) -> Tensor:
    return decay * before + inputs


class _MinGRULayer(RecurrentLayer):
    def __init__(self, hidden_size: int, chrono_horizon: float | None) -> None:
        super().__init__()
        self.gates = nn.Linear(hidden_size, 2 * hidden_size)  # z, n
        self.output = nn.Linear(hidden_size, 2 * hidden_size)
        _initialize(self.gates, self.output)
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

        def layer(stream: Array, before: NDArray[Any], after: NDArray[Any]) -> Array:
            gates = gates_of(numpy_normalized(stream))
            size = gates.shape[1] // 2
            candidate = gates[:, size:]
            squashed = numpy_sigmoid(gates)
            z = squashed[:, :size]
            np.subtract(np.where(candidate >= 0, candidate + _HALF, squashed[:, size:]), before, out=after)
            np.multiply(after, z, out=after)
            np.add(after, before, out=after)
            return stream + _numpy_glu(output_of(after))

        return layer


class _LRULayer(RecurrentLayer):
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
        self.output = nn.Linear(hidden_size, 2 * hidden_size)
        _initialize(self.output)

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.input * self.gamma.exp().repeat_interleave(2).unsqueeze(-1)
        inputs = nn.functional.linear(x, weight)
        return self.eigenvalues(), torch.view_as_complex(inputs.view(*x.shape[:-1], -1, 2))

    def read(self, states: Tensor, x: Tensor) -> Tensor:
        y = nn.functional.linear(torch.view_as_real(states).flatten(-2), self.readout) + self.skip * x
        return nn.functional.glu(self.output(nn.functional.gelu(y, approximate="tanh")), dim=-1)

    def eigenvalues(self) -> Tensor:
        """lambda, (N,) complex."""
        return torch.polar(torch.exp(-self.nu.exp()), self.theta.exp())

    def numpy_layer(self) -> NumpyLayer:
        with torch.no_grad():
            decay = self.eigenvalues().numpy()
            inputs_of = numpy_linear(self.input * self.gamma.exp().repeat_interleave(2).unsqueeze(-1))
            readout_of = numpy_linear(self.readout)
            skip: Array = self.skip.detach().numpy()
        output_of = numpy_linear(self.output.weight, self.output.bias)

        def layer(stream: Array, before: NDArray[Any], after: NDArray[Any]) -> Array:
            x = numpy_normalized(stream)
            np.multiply(decay, before, out=after)
            np.add(after, inputs_of(x).view(np.complex64), out=after)
            y = readout_of(np.ascontiguousarray(after).view(np.float32))
            y += skip * x
            return stream + _numpy_glu(output_of(_numpy_gelu(y)))

        return layer


_HALF = np.float32(0.5)


def _initialize(*linears: nn.Linear) -> None:
    for linear in linears:
        for part in linear.weight.data.chunk(2):
            nn.init.xavier_uniform_(part)
        nn.init.zeros_(linear.bias)


def _numpy_glu(x: Array) -> Array:
    size = x.shape[1] // 2
    gated: Array = x[:, :size] * numpy_sigmoid(x[:, size:])
    return gated


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


def scan(decay: Tensor, inputs: Tensor, before: Tensor) -> Tensor:
    """``h_t = decay_t h_{t-1} + inputs_t``: (T, B, N) each, h before the first step (B, N) -> (T, B, N).

    Real or complex. Where a decay is 0 nothing of what came before is left, not even a NaN. On an accelerator this is
    ``scan_in_parallel``; on a CPU a loop over time of two NumPy calls a step is several times faster, at any T.
    """
    if why_torch():
        after = [before]
        for a, b in zip(decay, inputs, strict=True):
            after.append(_after(a, after[-1], b))
        return torch.stack(after[1:])
    states: Tensor = _Scan.apply(decay, inputs, before)  # type: ignore[no-untyped-call]
    return states


def scan_in_parallel(decay: Tensor, inputs: Tensor) -> Tensor:
    """``h_t = decay_t h_{t-1} + inputs_t`` from h = 0: (T, ...) each -> (T, ...), in 2 log2 T levels.

    Steps are joined in pairs, the half as many pairs scanned, and the steps between filled in (Blelloch 1990).
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


class _Scan(torch.autograd.Function):
    """The gradient of a scan is a scan from the end: ``g_t = d_t + conj(a_{t+1}) g_{t+1}``, then a_t gets
    ``g_t conj(h_{t-1})`` and b_t gets g_t."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, inputs: Tensor, before: Tensor) -> Tensor:
        states = _scanned(decay, inputs, before)
        ctx.save_for_backward(decay, before, states)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay, before, states = ctx.saved_tensors
        backwards = torch.cat((torch.zeros_like(before)[None], decay[1:].flip(0))).conj().resolve_conj()
        d_inputs = _scanned(backwards, d_states.flip(0), torch.zeros_like(before)).flip(0)
        d_decay = torch.empty_like(decay)
        torch.mul(d_inputs[0], before.conj(), out=d_decay[0])
        torch.mul(d_inputs[1:], states[:-1].conj(), out=d_decay[1:])
        return d_decay, d_inputs, d_inputs[0] * decay[0].conj()


def _scanned(decay: Tensor, inputs: Tensor, before: Tensor) -> Tensor:
    if inputs.device.type != "cpu":
        first = _after(decay[:1], before[None], inputs[:1])
        return scan_in_parallel(decay, torch.cat((first, inputs[1:])))
    states = torch.empty_like(inputs, memory_format=torch.contiguous_format)
    _scan_in_turn(decay.numpy(), inputs.numpy(), before.numpy(), states.numpy())
    return states


def _scan_in_turn(decay: NDArray[Any], inputs: NDArray[Any], before: NDArray[Any], states: NDArray[Any]) -> None:
    state = before
    with np.errstate(invalid="ignore", over="ignore"):
        for a, b, after in zip(decay, inputs, states, strict=True):
            np.multiply(a, state, after)
            np.add(after, b, after)
            state = after
        if np.isfinite(state).all():
            return
        # A product with 0 keeps what is not finite: step again, and drop what came before where the decay is 0.
        state = before
        for a, b, after in zip(decay, inputs, states, strict=True):
            np.copyto(after, np.where(a == 0, b, a * state + b))
            state = after


def _after(decay: Tensor, state: Tensor, inputs: Tensor) -> Tensor:
    return torch.where(decay == 0, inputs, decay * state + inputs)
