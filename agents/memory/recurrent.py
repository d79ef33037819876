"""RNN, LSTM and GRU with torch's equations and parameter names, and resets inside the sequence.

Axes: T time, B sequences (or environments), F features in, H hidden units, G gates of a cell, D layers; packed axes as
in ``agents.memory.episodes``: N = T * B steps, P pieces.

``unroll`` cuts the block at its episode starts and runs every piece at once, so a reset costs nothing and no padding is
ever computed. Parameters are named as in ``torch.nn.LSTM`` (``weight_ih_l0``, ...), so its state dicts load.
"""

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.memory import native, through_time
from agents.memory.core import Array, Memory, NumpyState, NumpyStep, State
from agents.memory.episodes import Pieces, cut, take_rows

Initialisation = Literal["orthogonal", "torch"]
NumpyCell = Callable[[Array, NumpyState], NumpyState]


class Recurrent(Memory):
    """What RNN, LSTM and GRU share: layers, initialisation, consistent dropout, the way through a block of episodes.

    State: the parts carried by the cell, (B, D, H) each; with dropout one more part, the masks (B, D - 1, H).

    Dropout between layers is *consistent* (Hausknecht & Wagener 2022, "Consistent Dropout for Policy Gradient
    Reinforcement Learning"): a mask is drawn per environment by ``renew`` as a rollout starts and travels in the state,
    so that learning sees the very network that acted. ``initial_state`` holds masks of ones: no dropout.
    """

    gates: ClassVar[int]
    carried_parts: ClassVar[int] = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        dropout: float,
        initialisation: Initialisation,
    ) -> None:
        _check_sizes(input_size, hidden_size, num_layers, dropout)
        super().__init__(input_size, output_size=hidden_size)
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.dropout = dropout
        rows = self.gates * hidden_size
        for layer in range(num_layers):
            columns = input_size if layer == 0 else hidden_size
            self.register_parameter(f"weight_ih_l{layer}", nn.Parameter(torch.empty(rows, columns)))
            self.register_parameter(f"weight_hh_l{layer}", nn.Parameter(torch.empty(rows, hidden_size)))
            for name in ("bias_ih", "bias_hh"):
                self.register_parameter(f"{name}_l{layer}", nn.Parameter(torch.empty(rows)) if bias else None)
        self._initialise(initialisation)

    def initial_state(self, batch_size: int) -> State:
        like = self.get_parameter("weight_hh_l0")
        shape = (batch_size, self.num_layers, self.hidden_size)
        parts = tuple(like.new_zeros(shape) for _ in range(self.carried_parts))
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

    def step(self, features: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        carried, masks = state[: self.carried_parts], state[self.carried_parts :]
        reset = episode_starts.view(-1, 1, 1)
        carried = tuple(part.masked_fill(reset, 0.0) for part in carried)
        output, after = features, []
        for layer in range(self.num_layers):
            if layer > 0 and masks:
                output = output * masks[0][:, layer - 1]
            before = tuple(part[:, layer] for part in carried)
            after.append(self._cell(output, before, *self._layer_parameters(layer)))
            output = after[-1][0]
        return output, (*(torch.stack(layers, dim=1) for layers in zip(*after, strict=True)), *masks)

    def unroll(self, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
        if native.takes(features, self.hidden_size):
            return self._unroll_compiled(features, state, episode_starts)
        return self._unroll_pieces(features, state, episode_starts)

    def _unroll_compiled(self, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
        """By the kernels of ``native``: resets are part of their loop."""
        output = features
        for layer in range(self.num_layers):
            if layer > 0 and self._drops:
                output = output * state[-1][:, layer - 1]
            before = tuple(part[:, layer] for part in state[: self.carried_parts])
            output = self._through_compiled(output, before, episode_starts, self._layer_parameters(layer))
        return output

    def _unroll_pieces(self, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
        """By torch's kernels, over the episodes cut apart and packed."""
        pieces = cut(episode_starts.cpu().numpy())
        packed = take_rows(features.flatten(0, 1), pieces.packed, pieces.unpacked)
        sequence = torch.as_tensor(pieces.sequence, device=packed.device)
        reset = torch.as_tensor(~pieces.carried, device=packed.device).view(-1, 1, 1)
        before = tuple(part[sequence].masked_fill(reset, 0.0) for part in state[: self.carried_parts])
        for layer in range(self.num_layers):
            if layer > 0 and self._drops:
                packed = packed * state[-1][sequence, layer - 1][torch.as_tensor(pieces.piece, device=packed.device)]
            packed = self._through_layer(packed, tuple(part[:, layer] for part in before), pieces, layer)
        return take_rows(packed, pieces.unpacked, pieces.packed).view(*episode_starts.shape, -1)

    def numpy_step(self) -> NumpyStep:
        layers = [self._layer_parameters(layer) for layer in range(self.num_layers)]
        if native.takes(layers[0][1], self.hidden_size):
            return self._compiled_step(layers)
        cells = [self._numpy_cell(*map(_as_numpy, self._layer_parameters(layer))) for layer in range(self.num_layers)]
        n_carried = self.carried_parts

        def step(features: Array, state: NumpyState, episode_starts: NDArray[np.bool_]) -> tuple[Array, NumpyState]:
            carried, masks = state[:n_carried], state[n_carried:]
            if np.count_nonzero(episode_starts):
                carried = tuple(np.where(episode_starts[:, None, None], np.float32(0), part) for part in carried)
            output, after = features, []
            for layer, cell in enumerate(cells):
                if layer > 0 and masks:
                    output = output * masks[0][:, layer - 1]
                after.append(cell(output, tuple(part[:, layer] for part in carried)))
                output = after[-1][0]
            return output, (*(np.stack(layers, axis=1) for layers in zip(*after, strict=True)), *masks)

        return step

    @abstractmethod
    def _cell(self, features: Tensor, state: State, *parameters: Tensor | None) -> State:
        """One step of one layer: (B, F), (B, H) each -> (B, H) each, the output first."""

    @abstractmethod
    def _numpy_cell(self, w_ih: Array, w_hh: Array, b_ih: Array | None, b_hh: Array | None) -> NumpyCell:
        """``_cell`` on arrays."""

    @abstractmethod
    def _compiled_step(self, layers: list[native.Parameters]) -> NumpyStep:
        """The step of all layers by the compiled kernels."""

    @abstractmethod
    def _through_compiled(
        self, features: Tensor, state: State, episode_starts: Tensor, parameters: native.Parameters
    ) -> Tensor:
        """One layer over a block by the compiled kernels: (T, B, F), (B, H) each, (T, B) -> (T, B, H)."""

    @abstractmethod
    def _through_packed(self, packed: Tensor, batch_sizes: Tensor, state: State, parameters: list[Tensor]) -> Tensor:
        """One layer over packed pieces by torch's own kernel: (N, F), (1, P, H) each -> (N, H)."""

    def _through_layer(self, packed: Tensor, state: State, pieces: Pieces, layer: int) -> Tensor:
        if packed.device.type == "cpu":
            return self._through_time(packed, state, self._layer_parameters(layer), pieces)
        parameters = [parameter for parameter in self._layer_parameters(layer) if parameter is not None]
        batch_sizes = torch.as_tensor(pieces.batch_sizes)
        return self._through_packed(packed, batch_sizes, tuple(part.unsqueeze(0) for part in state), parameters)

    @property
    def _drops(self) -> bool:
        return self.dropout > 0 and self.num_layers > 1

    def _layer_parameters(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        w_ih, w_hh, b_ih, b_hh = (
            self._parameters[f"{name}_l{layer}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        assert w_ih is not None
        assert w_hh is not None
        return w_ih, w_hh, b_ih, b_hh

    def _initialise(self, initialisation: Initialisation) -> None:
        if initialisation == "torch":
            bound = 1 / math.sqrt(self.hidden_size)
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -bound, bound)
        elif initialisation == "orthogonal":
            for name, parameter in self.named_parameters():
                if name.startswith("bias"):
                    nn.init.zeros_(parameter)
                else:
                    fill = nn.init.orthogonal_ if name.startswith("weight_hh") else nn.init.xavier_uniform_
                    for gate in parameter.data.chunk(self.gates):
                        fill(gate)
        else:
            raise ValueError(f"initialisation must be 'orthogonal' or 'torch'; got {initialisation!r}")

    def _set_bias(self, layer: int, gate: int, total: Tensor | float) -> None:
        """Sets what a gate's two biases add up to; without biases there is nothing to set."""
        _, _, b_ih, b_hh = self._layer_parameters(layer)
        rows = slice(gate * self.hidden_size, (gate + 1) * self.hidden_size)
        if b_ih is not None and b_hh is not None:
            b_ih.data[rows] = total
            b_hh.data[rows] = 0.0


class RNN(Recurrent):
    """The plain recurrent network (Elman 1990): ``h' = tanh(W_ih x + b_ih + W_hh h + b_hh)``, or with relu.

    :param initialisation: "orthogonal" (recurrent weights orthogonal, input weights Xavier, biases 0) or "torch"
        (all uniform within 1 / sqrt(hidden_size), as ``torch.nn.RNN`` draws them)
    """

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
        initialisation: Initialisation = "orthogonal",
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity must be 'tanh' or 'relu'; got {nonlinearity!r}")
        self.nonlinearity = nonlinearity
        super().__init__(input_size, hidden_size, num_layers, bias, dropout, initialisation)

    def _cell(self, features: Tensor, state: State, *parameters: Tensor | None) -> State:
        cell = torch.rnn_tanh_cell if self.nonlinearity == "tanh" else torch.rnn_relu_cell
        return (cell(features, state[0], *parameters),)

    def _numpy_cell(self, w_ih: Array, w_hh: Array, b_ih: Array | None, b_hh: Array | None) -> NumpyCell:
        nonlinearity = np.tanh if self.nonlinearity == "tanh" else (lambda x: np.maximum(x, 0))
        bias = 0 if b_ih is None else b_ih + b_hh

        def cell(features: Array, state: NumpyState) -> NumpyState:
            return (nonlinearity(features @ w_ih.T + state[0] @ w_hh.T + bias),)

        return cell

    def _compiled_step(self, layers: list[native.Parameters]) -> NumpyStep:
        return native.rnn_step(layers, self.nonlinearity == "relu")

    def _through_compiled(
        self, features: Tensor, state: State, episode_starts: Tensor, parameters: native.Parameters
    ) -> Tensor:
        return native.rnn(features, state[0], episode_starts, parameters, self.nonlinearity == "relu")

    def _through_time(self, packed, state, parameters, pieces):
        return through_time.rnn(packed, *state, parameters, pieces, self.nonlinearity)

    def _through_packed(self, packed: Tensor, batch_sizes: Tensor, state: State, parameters: list[Tensor]) -> Tensor:
        through = torch.rnn_tanh if self.nonlinearity == "tanh" else torch.rnn_relu
        return through(packed, batch_sizes, state[0], parameters, self.bias, 1, 0.0, self.training, False)[0]


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000), as ``torch.nn.LSTM``; state (h, c).

    ``i, f, o = sigmoid(...)``, ``g = tanh(...)``, each of ``W_ih x + b_ih + W_hh h + b_hh``;
    ``c' = f c + i g``, ``h' = o tanh(c')``.

    :param initialisation: "orthogonal" (each gate's recurrent weights orthogonal, input weights Xavier, biases 0) or
        "torch" (all uniform within 1 / sqrt(hidden_size), as ``torch.nn.LSTM`` draws them)
    :param forget_bias: what the forget gate's two biases add up to (Jozefowicz et al. 2015; 3 or more for memories of
        a hundred steps and longer); None leaves them as the initialisation drew them. Without effect if not ``bias``
    :param chrono_horizon: instead of ``forget_bias``, the longest dependency expected, in steps: forget biases are
        drawn as ``log(uniform(1, horizon - 1))`` and input biases are their negatives (Tallec & Ollivier 2018, "Can
        recurrent neural networks warp time?")
    """

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
        initialisation: Initialisation = "orthogonal",
        forget_bias: float | None = 1.0,
        chrono_horizon: float | None = None,
    ) -> None:
        _check_horizon(chrono_horizon, bias)
        super().__init__(input_size, hidden_size, num_layers, bias, dropout, initialisation)
        if chrono_horizon is not None:
            for layer in range(num_layers):
                remembered = _chrono_bias(hidden_size, chrono_horizon)
                self._set_bias(layer, gate=0, total=-remembered)
                self._set_bias(layer, gate=1, total=remembered)
        elif forget_bias is not None:
            for layer in range(num_layers):
                self._set_bias(layer, gate=1, total=forget_bias)

    def _cell(self, features: Tensor, state: State, *parameters: Tensor | None) -> State:
        return torch.lstm_cell(features, state, *parameters)

    def _numpy_cell(self, w_ih: Array, w_hh: Array, b_ih: Array | None, b_hh: Array | None) -> NumpyCell:
        bias = 0 if b_ih is None else b_ih + b_hh

        def cell(features: Array, state: NumpyState) -> NumpyState:
            i, f, g, o = np.split(features @ w_ih.T + state[0] @ w_hh.T + bias, 4, axis=1)
            c = _sigmoid(f) * state[1] + _sigmoid(i) * np.tanh(g)
            return _sigmoid(o) * np.tanh(c), c

        return cell

    def _compiled_step(self, layers: list[native.Parameters]) -> NumpyStep:
        return native.lstm_step(layers)

    def _through_compiled(
        self, features: Tensor, state: State, episode_starts: Tensor, parameters: native.Parameters
    ) -> Tensor:
        return native.lstm(features, *state, episode_starts, parameters)

    def _through_time(self, packed, state, parameters, pieces):
        return through_time.lstm(packed, *state, parameters, pieces)

    def _through_packed(self, packed: Tensor, batch_sizes: Tensor, state: State, parameters: list[Tensor]) -> Tensor:
        return torch.lstm(packed, batch_sizes, state, parameters, self.bias, 1, 0.0, self.training, False)[0]


class GRU(Recurrent):
    """The gated recurrent unit (Cho et al. 2014), as ``torch.nn.GRU``; state (h,).

    ``r, z = sigmoid(W_ih x + b_ih + W_hh h + b_hh)``, ``n = tanh(W_in x + b_in + r (W_hn h + b_hn))``,
    ``h' = (1 - z) n + z h``.

    :param initialisation: "orthogonal" (each gate's recurrent weights orthogonal, input weights Xavier, biases 0) or
        "torch" (all uniform within 1 / sqrt(hidden_size), as ``torch.nn.GRU`` draws them)
    :param chrono_horizon: the longest dependency expected, in steps: the biases of z, which here is the gate that
        keeps, are drawn as ``log(uniform(1, horizon - 1))`` (Tallec & Ollivier 2018); None leaves them
    """

    gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 64,
        num_layers: int = 1,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        initialisation: Initialisation = "orthogonal",
        chrono_horizon: float | None = None,
    ) -> None:
        _check_horizon(chrono_horizon, bias)
        super().__init__(input_size, hidden_size, num_layers, bias, dropout, initialisation)
        if chrono_horizon is not None:
            for layer in range(num_layers):
                self._set_bias(layer, gate=1, total=_chrono_bias(hidden_size, chrono_horizon))

    def _cell(self, features: Tensor, state: State, *parameters: Tensor | None) -> State:
        return (torch.gru_cell(features, state[0], *parameters),)

    def _numpy_cell(self, w_ih: Array, w_hh: Array, b_ih: Array | None, b_hh: Array | None) -> NumpyCell:
        b_in, b_hidden = (0, 0) if b_ih is None else (b_ih, b_hh)

        def cell(features: Array, state: NumpyState) -> NumpyState:
            (h,) = state
            x_r, x_z, x_n = np.split(features @ w_ih.T + b_in, 3, axis=1)
            h_r, h_z, h_n = np.split(h @ w_hh.T + b_hidden, 3, axis=1)
            z = _sigmoid(x_z + h_z)
            n = np.tanh(x_n + _sigmoid(x_r + h_r) * h_n)
            return (n + z * (h - n),)

        return cell

    def _compiled_step(self, layers: list[native.Parameters]) -> NumpyStep:
        return native.gru_step(layers)

    def _through_compiled(
        self, features: Tensor, state: State, episode_starts: Tensor, parameters: native.Parameters
    ) -> Tensor:
        return native.gru(features, state[0], episode_starts, parameters)

    def _through_time(self, packed, state, parameters, pieces):
        return through_time.gru(packed, *state, parameters, pieces)

    def _through_packed(self, packed: Tensor, batch_sizes: Tensor, state: State, parameters: list[Tensor]) -> Tensor:
        return torch.gru(packed, batch_sizes, state[0], parameters, self.bias, 1, 0.0, self.training, False)[0]


def _chrono_bias(hidden_size: int, horizon: float) -> Tensor:
    return torch.empty(hidden_size).uniform_(1.0, horizon - 1.0).log()


def _sigmoid(x: Array) -> Array:
    return np.float32(0.5) * np.tanh(np.float32(0.5) * x) + np.float32(0.5)


def _as_numpy(parameter: Tensor | None) -> Array | None:
    return None if parameter is None else parameter.detach().cpu().numpy()


def _check_sizes(input_size: int, hidden_size: int, num_layers: int, dropout: float) -> None:
    for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1; got {size!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1); got {dropout!r}")
    if dropout > 0 and num_layers == 1:
        warnings.warn(f"dropout ({dropout}) acts between layers, and num_layers is 1: nothing is dropped", stacklevel=4)


def _check_horizon(chrono_horizon: float | None, bias: bool) -> None:
    if chrono_horizon is None:
        return
    if not bias:
        raise ValueError("chrono_horizon sets biases and bias is False; use bias=True or chrono_horizon=None")
    if not 2 <= chrono_horizon < math.inf:
        raise ValueError(f"chrono_horizon must be a number of steps of at least 2; got {chrono_horizon!r}")
