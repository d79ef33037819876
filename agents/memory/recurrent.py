"""RNN, LSTM and GRU with torch's equations and parameter names, and resets inside the sequence.

Axes: T time, B sequences (or environments), F features in, H hidden units, G gates of a cell, D layers.

``unroll`` splits the block at its episode starts and runs every segment at once, so a reset costs nothing and no
padding is ever computed. Parameters are named as in ``torch.nn.LSTM`` (``weight_ih_l0``, ...), so its state dicts load.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.checks.arguments import check_counts
from agents.kernels import recurrent as compiled
from agents.kernels import reference
from agents.kernels.aside import MISSING, Part, why_torch
from agents.kernels.contract import Array, Kind, NumpyState, NumpyStep, Parameters
from agents.kernels.devices import to_device
from agents.memory import numpy_step, packed
from agents.memory.core import Memory, State, in_own_precision

Initialization = Literal["orthogonal", "torch"]

HORIZON = 256
"""Steps over which memories remember at initialization, by default."""


class Recurrent(Memory):
    """What RNN, LSTM and GRU share: layers, initialization, consistent dropout, the way through a block of episodes.

    State: the parts carried by the cell, (B, D, H) each; with dropout one more part, the masks (B, D - 1, H).

    Dropout between layers is *consistent* (Hausknecht & Wagener 2022, "Consistent Dropout for Policy Gradient
    Reinforcement Learning"): a mask is drawn per environment by ``renew`` as a rollout starts and travels in the state,
    so that learning sees the very network that acted. ``initial_state`` holds masks of ones: no dropout.

    Under ``torch.autocast`` a cell still computes in float32: what it carries sums up over hundreds of steps, for which
    the 8 bits of bfloat16 are too few, and neither cuDNN's recurrent kernels as torch has them nor every CPU's take it.

    Args:
        input_size: F.
        hidden_size: H, also the size of the output.
        num_layers: D, each on the output of the one below.
        bias: whether there are biases.
        dropout: probability in [0, 1) that an output between two layers is dropped.
        initialization: "orthogonal" (each gate's recurrent weights orthogonal, input weights Xavier, biases 0) or
            "torch" (all uniform within 1 / sqrt(hidden_size), as torch's layer of the same name draws them).
        chrono_horizon: of LSTM and GRU, the longest dependency expected, in steps: the biases of the gate that keeps
            are drawn so that units forget over 2 to this many steps (see ``chrono_bias``), and those of an LSTM's input
            gate are their negatives; None leaves them as the initialization drew them. No effect without ``bias``.
        learned_initial_state: whether an episode starts from a state that is learned, 0 at first, instead of from 0.
    """

    kind: Kind
    gates: ClassVar[int]
    carried_parts: ClassVar[int] = 1
    starts_on_host = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        dropout: float,
        initialization: Initialization,
        learned_initial_state: bool,
    ) -> None:
        check_counts(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        _check_dropout(dropout, num_layers)
        super().__init__(input_size, output_size=hidden_size)
        self.hidden_size, self.num_layers, self.bias, self.dropout = hidden_size, num_layers, bias, dropout
        rows = self.gates * hidden_size
        for layer in range(num_layers):
            columns = input_size if layer == 0 else hidden_size
            self.register_parameter(f"weight_ih_l{layer}", nn.Parameter(torch.empty(rows, columns)))
            self.register_parameter(f"weight_hh_l{layer}", nn.Parameter(torch.empty(rows, hidden_size)))
            for name in ("bias_ih", "bias_hh"):
                self.register_parameter(f"{name}_l{layer}", nn.Parameter(torch.empty(rows)) if bias else None)
        self._initialize(initialization)
        initial = torch.zeros(self.carried_parts, num_layers, hidden_size)
        self.initial = nn.Parameter(initial) if learned_initial_state else None

    def forward(self, features: Tensor, state: Any = None, episode_starts: Tensor | None = None) -> Any:
        """As every memory; and without ``episode_starts``, as torch's layer of the same name.

        That is (T, B, F) and the state before, (D, B, H) each -> outputs (T, B, H) and the state after: (h, c) of an
        LSTM, h of a GRU or RNN; None for the initial one. Nothing is reset and nothing dropped there.
        """
        if episode_starts is None:
            return self._as_layer(features, state)
        return super().forward(features, state, episode_starts)

    def _as_layer(self, features: Tensor, state: Any) -> tuple[Tensor, Any]:
        carried = self.initial_state(features.shape[1] if features.dim() == 3 else 1)
        given = state if state is None or isinstance(state, tuple) else (state,)
        expected = [tuple(part.transpose(0, 1).shape) for part in carried[: self.carried_parts]]
        if features.dim() != 3 or (given is not None and [tuple(part.shape) for part in given] != expected):
            got = None if given is None else [tuple(part.shape) for part in given]
            raise ValueError(
                f"without episode_starts {type(self).__name__} is called as torch.nn.{type(self).__name__}, with "
                f"features (T, B, F) and a state {expected} or None; got features {tuple(features.shape)} and state "
                f"{got}. To act or learn, call memory(features, state, episode_starts) with a state (B, D, H)"
            )
        if given is not None:
            carried = (*(part.transpose(0, 1) for part in given), *carried[self.carried_parts :])
        no_start = torch.zeros(features.shape[:2], dtype=torch.bool, device=features.device)
        outputs, carried = self._step_by_step(features, carried, no_start)
        after = tuple(part.transpose(0, 1) for part in carried[: self.carried_parts])
        return outputs, after if self.carried_parts > 1 else after[0]

    def initial_state(self, batch_size: int) -> State:
        like = self._recurrent_weight
        shape = (batch_size, self.num_layers, self.hidden_size)
        if self.initial is None:
            parts = tuple(like.new_zeros(shape) for _ in range(self.carried_parts))
        else:
            parts = tuple(part.detach().repeat(batch_size, 1, 1) for part in self.initial)
        if not self._drops:
            return parts
        return (*parts, like.new_ones(batch_size, self.num_layers - 1, self.hidden_size))

    def reset(self, state: State, episode_starts: Tensor) -> State:
        """The initial state where an episode starts; dropout masks live through resets."""
        carried = super().reset(state, episode_starts)[: self.carried_parts]
        return (*carried, *state[self.carried_parts :])

    def renew(self, state: State) -> State:
        """With dropout, draws new masks for every environment; what is carried stays."""
        if not self._drops:
            return state
        kept = torch.full_like(state[-1], 1 - self.dropout)
        return (*state[:-1], torch.bernoulli(kept) / (1 - self.dropout))

    @in_own_precision
    def step(self, features: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        carried, masks = state[: self.carried_parts], state[self.carried_parts :]
        reset = episode_starts.view(-1, 1, 1)
        if self.initial is None:
            carried = tuple(part.masked_fill(reset, 0.0) for part in carried)
        else:
            carried = tuple(torch.where(reset, fresh, part) for fresh, part in zip(self.initial, carried, strict=True))
        output, after = features, []
        for layer in range(self.num_layers):
            if layer > 0 and masks:
                output = output * masks[0][:, layer - 1]
            before = tuple(part[:, layer] for part in carried)
            after.append(self._cell(output, before, self.layer_parameters(layer)))
            output = after[-1][0]
        if self.num_layers == 1:
            return output, tuple(part.unsqueeze(1) for part in after[0])
        return output, (*(torch.stack(layers, dim=1) for layers in zip(*after, strict=True)), *masks)

    @in_own_precision
    def unroll(self, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
        if self._steps_otherwise():
            return self._step_by_step(features, state, to_device(episode_starts, features.device))[0]
        kernels: Any = self._kernels(features)
        starts, output = episode_starts if kernels is reference else episode_starts.cpu(), features
        for layer in range(self.num_layers):
            of_layer, before, parameters = self.layer_arguments(layer, output, state)
            output = kernels.unroll(self.kind, of_layer, before, starts, parameters)
        return output

    def _step_by_step(self, features: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        outputs = []
        for x, starts in zip(features, episode_starts, strict=True):
            output, state = self.step(x, state, starts)
            outputs.append(output)
        return torch.stack(outputs), state

    def layer_arguments(self, layer: int, output: Tensor, state: State) -> tuple[Tensor, State, Parameters]:
        """What a layer of a block takes: its features (T, B, F), with dropout that of the layer below; what it starts
        from, (B, H) each, a learned initial state as one more row, the last; its parameters."""
        if layer > 0 and self._drops:
            output = output * state[-1][:, layer - 1]
        before = tuple(part[:, layer] for part in state[: self.carried_parts])
        if self.initial is not None:
            starting = self.initial[:, layer].unsqueeze(1)
            before = tuple(torch.cat(parts) for parts in zip(before, starting, strict=True))
        return output, before, self.layer_parameters(layer)

    def _steps_otherwise(self) -> bool:
        """Whether a subclass has changed the step, and left ``unroll`` to follow it."""
        cls = type(self)
        return cls.unroll is Recurrent.unroll and (cls.step is not Recurrent.step or cls._cell is not Recurrent._cell)

    def computed_by(self) -> Part:
        if reason := why_torch():
            return Part("torch", reason)
        if self._steps_otherwise():
            return Part("torch", f"{type(self).__name__} has a step of its own")
        weight = self._recurrent_weight
        if compiled.takes(weight):
            return Part("compiled")
        return Part("torch", f"it is {weight.dtype} on {weight.device}" if compiled.available else MISSING)

    def numpy_step(self) -> NumpyStep | None:
        """What a step returns is never written over and may be kept. One thread at a time."""
        return self._numpy_step([self.layer_parameters(layer) for layer in range(self.num_layers)])

    def numpy_index_step(self) -> NumpyStep | None:
        """Takes columns of the input weights in place of products with one-hot rows, where these are the longer ones.

        The products that a step begins with are then those columns, and what multiplies them is the identity.
        """
        w_ih, w_hh, b_ih, b_hh = self.layer_parameters(0)
        has_own = type(self).numpy_step is not Recurrent.numpy_step
        if self.input_size <= len(w_ih) or has_own or not self.fits_numpy():
            return super().numpy_index_step()
        layers = [self.layer_parameters(layer) for layer in range(1, self.num_layers)]
        step = self._numpy_step([(torch.eye(len(w_ih)), w_hh, b_ih, b_hh), *layers])
        columns = np.ascontiguousarray(w_ih.detach().numpy().T)

        def checked_step(
            places: NDArray[Any], state: NumpyState, episode_starts: NDArray[np.bool_]
        ) -> tuple[Array, NumpyState]:
            self.check((len(places), self.input_size), state, episode_starts)
            return step(columns[places], state, episode_starts)

        return checked_step

    def _numpy_step(self, layers: list[Parameters]) -> NumpyStep:
        make = compiled.step if compiled.takes(layers[0][1]) else numpy_step.step
        step = make(self.kind, layers)
        if self.initial is None:
            return step
        initial = self.initial.detach().numpy().copy()

        def from_initial_state(
            features: Array, state: NumpyState, episode_starts: NDArray[np.bool_]
        ) -> tuple[Array, NumpyState]:
            if episode_starts.any():
                reset = episode_starts[:, None, None]
                carried = (np.where(reset, fresh, part) for fresh, part in zip(initial, state, strict=False))
                state = (*carried, *state[len(initial) :])
                episode_starts = np.zeros_like(episode_starts)
            return step(features, state, episode_starts)

        return from_initial_state

    def _cell(self, features: Tensor, state: State, parameters: Parameters) -> State:
        """One step of one layer: (B, F), (B, H) each -> (B, H) each, the output first."""
        return reference.cell(self.kind, features, state, parameters)

    def _kernels(self, features: Tensor) -> Any:
        """The fastest of the modules that ``agents.kernels.contract`` names which takes these."""
        if why_torch():
            return reference
        return compiled if compiled.takes(features) else packed

    @property
    def _recurrent_weight(self) -> Tensor:
        return self.layer_parameters(0)[1]

    @property
    def _drops(self) -> bool:
        return self.dropout > 0 and self.num_layers > 1

    def layer_parameters(self, layer: int) -> Parameters:
        """By attribute, since a parametrization or a pruning puts there what it makes of the parameter."""
        w_ih, w_hh, b_ih, b_hh = (
            getattr(self, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        return w_ih, w_hh, b_ih, b_hh

    def _initialize(self, initialization: Initialization) -> None:
        if initialization == "torch":
            bound = 1 / math.sqrt(self.hidden_size)
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -bound, bound)
        elif initialization == "orthogonal":
            for name, parameter in self.named_parameters():
                if name.startswith("bias"):
                    nn.init.zeros_(parameter)
                else:
                    fill = nn.init.orthogonal_ if name.startswith("weight_hh") else nn.init.xavier_uniform_
                    for gate in parameter.data.chunk(self.gates):
                        fill(gate)
        else:
            raise ValueError(f"initialization must be 'orthogonal' or 'torch'; got {initialization!r}")

    def _set_bias(self, layer: int, gate: int, total: Tensor | float) -> None:
        """Sets what a gate's two biases add up to; without biases there is nothing to set."""
        _, _, b_ih, b_hh = self.layer_parameters(layer)
        rows = slice(gate * self.hidden_size, (gate + 1) * self.hidden_size)
        if b_ih is not None and b_hh is not None:
            b_ih.data[rows] = total
            b_hh.data[rows] = 0.0


class RNN(Recurrent):
    """The plain recurrent network (Elman 1990): ``h' = tanh(W_ih x + b_ih + W_hh h + b_hh)``, or with relu."""

    gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 64,
        num_layers: int = 1,
        *,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        bias: bool = True,
        dropout: float = 0.0,
        initialization: Initialization = "orthogonal",
        learned_initial_state: bool = False,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity must be 'tanh' or 'relu'; got {nonlinearity!r}")
        self.nonlinearity = nonlinearity
        self.kind = "rnn_tanh" if nonlinearity == "tanh" else "rnn_relu"
        super().__init__(input_size, hidden_size, num_layers, bias, dropout, initialization, learned_initial_state)


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000), as ``torch.nn.LSTM``; state (h, c).

    ``i, f, o = sigmoid(...)``, ``g = tanh(...)``, each of ``W_ih x + b_ih + W_hh h + b_hh``;
    ``c' = f c + i g``, ``h' = o tanh(c')``.

    Args:
        forget_bias: instead of ``chrono_horizon``, what the forget gate's two biases add up to, of all units alike
            (Jozefowicz et al. 2015: 1).
    """

    kind: Kind = "lstm"
    gates = 4
    carried_parts = 2

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 64,
        num_layers: int = 1,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        initialization: Initialization = "orthogonal",
        forget_bias: float | None = None,
        chrono_horizon: float | None = HORIZON,
        learned_initial_state: bool = False,
    ) -> None:
        check_horizon(chrono_horizon)
        if forget_bias is not None and not math.isfinite(forget_bias):
            raise ValueError(f"forget_bias must be a finite number or None; got {forget_bias!r}")
        super().__init__(input_size, hidden_size, num_layers, bias, dropout, initialization, learned_initial_state)
        for layer in range(num_layers):
            if forget_bias is not None:
                self._set_bias(layer, gate=1, total=forget_bias)
            elif chrono_horizon is not None:
                kept = chrono_bias(hidden_size, chrono_horizon)
                self._set_bias(layer, gate=0, total=-kept)
                self._set_bias(layer, gate=1, total=kept)


class GRU(Recurrent):
    """The gated recurrent unit (Cho et al. 2014), as ``torch.nn.GRU``; state (h,).

    ``r, z = sigmoid(W_ih x + b_ih + W_hh h + b_hh)``, ``n = tanh(W_in x + b_in + r (W_hn h + b_hn))``,
    ``h' = (1 - z) n + z h``.
    The gate that keeps is z.
    """

    kind: Kind = "gru"
    gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 64,
        num_layers: int = 1,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        initialization: Initialization = "orthogonal",
        chrono_horizon: float | None = HORIZON,
        learned_initial_state: bool = False,
    ) -> None:
        check_horizon(chrono_horizon)
        super().__init__(input_size, hidden_size, num_layers, bias, dropout, initialization, learned_initial_state)
        if chrono_horizon is not None:
            for layer in range(num_layers):
                self._set_bias(layer, gate=1, total=chrono_bias(hidden_size, chrono_horizon))


def unroll_together(
    memories: Sequence[Memory], features: Sequence[Tensor], states: Sequence[State], episode_starts: Tensor
) -> tuple[Tensor, ...] | None:
    """What each ``unroll`` gives, bit for bit, with layers of compiled memories of a kind and size in one call; None
    where they are none. Features (T, B, F) each, states before the first step, (T, B) -> (T, B, H) each."""
    first = memories[0]
    if (
        torch.is_autocast_enabled("cpu")
        or not isinstance(first, Recurrent)
        or not compiled.worth_joining(features[0], first.hidden_size)
    ):
        return None
    for memory, of in zip(memories, features, strict=True):
        if type(memory) not in (RNN, LSTM, GRU) or not compiled.takes(of) or _shape(memory) != _shape(first):
            return None
    for memory, of, state in zip(memories, features, states, strict=True):
        memory.check(of.shape, state, episode_starts)
    outputs, starts, alike = tuple(features), episode_starts.cpu(), [m for m in memories if isinstance(m, Recurrent)]
    for layer in range(first.num_layers):
        given = [
            m.layer_arguments(layer, output, state) for m, output, state in zip(alike, outputs, states, strict=True)
        ]
        outputs = compiled.unroll_together(first.kind, given, starts)
    return outputs


def _shape(memory: Any) -> tuple[Kind, int, int]:
    return memory.kind, memory.num_layers, memory.hidden_size


def chrono_bias(units: int, horizon: float) -> Tensor:
    """(units,) biases of a gate that keeps: units forget over 2 to ``horizon`` steps, evenly in their logarithm.

    A gate of bias b keeps sigmoid(b) a step, all but one part in T for b = log(T - 1). Tallec & Ollivier 2018 ("Can
    recurrent neural networks warp time?") draw T itself evenly; then half of the units need more than half the horizon,
    and few are quick enough for what has just happened, such as a velocity.
    """
    return torch.empty(units).uniform_(0.0, math.log(horizon - 1.0))


def _check_dropout(dropout: float, num_layers: int) -> None:
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1); got {dropout!r}")
    if dropout > 0 and num_layers == 1:
        warnings.warn(f"dropout ({dropout}) acts between layers, and num_layers is 1: nothing is dropped", stacklevel=4)


def check_horizon(chrono_horizon: float | None) -> None:
    if chrono_horizon is not None and not 2 <= chrono_horizon < math.inf:
        raise ValueError(f"chrono_horizon must be a number of steps of at least 2; got {chrono_horizon!r}")
