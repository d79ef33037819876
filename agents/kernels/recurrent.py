"""RNN, LSTM and GRU over a block of episodes on a CPU, by the functions in ``recurrent.c``.

The products over all steps at once (input projections before, weight gradients after) are torch's; the loop over time
between them is compiled. So is the acting step. Nothing is padded in time, and resets cost nothing. Registers hold 8
units: other numbers of them are padded with units whose weights are 0, which stay at 0.

Axes: M memories, T time, B sequences (or environments), F features in, H hidden units, G gates of a cell, P parts of a
state, S its rows (B, or B + 1 with one to start from), D layers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.kernels import reference
from agents.kernels.aside import plain
from agents.kernels.binding import WIDTH_OF_LANES, Library
from agents.kernels.contract import Array, Kind, NumpyState, NumpyStep, Parameters, State

library = Library("recurrent")
available = library.available


class _Cell(NamedTuple):
    number: int
    """Of ``recurrent.c``."""
    gates: int
    parts: int
    kept: int
    """Arrays that the way back needs in addition to the gates."""


_CELLS = {
    "rnn_tanh": _Cell(0, 1, 1, 1),
    "rnn_relu": _Cell(1, 1, 1, 1),
    "lstm": _Cell(2, 4, 2, 3),
    "gru": _Cell(3, 3, 1, 2),
}


def takes(features: Tensor) -> bool:
    """Whether the kernels can run this: built, float32 on a CPU, nothing that follows torch's operations."""
    return available and plain(features)


def unroll(kind: Kind, features: Tensor, state: State, episode_starts: Tensor, parameters: Parameters) -> Tensor:
    """As ``agents.kernels.contract`` says."""
    return unroll_together(kind, [(features, state, parameters)], episode_starts)[0]


def unroll_together(
    kind: Kind, layers: Sequence[tuple[Tensor, State, Parameters]], episode_starts: Tensor
) -> tuple[Tensor, ...]:
    """Layers of as many units over the same episodes, in one call: features, state and parameters of each -> (T, B, H)
    each. What each gives alone, bit for bit, whatever the number of threads."""
    size = layers[0][2][1].shape[1]
    arguments = [it for layer in layers for it in _flat(*layer, _further_units(size))]
    outputs: tuple[Tensor, ...] = _Layers.apply(kind, len(layers), episode_starts, *arguments)  # type: ignore[no-untyped-call]
    return outputs if outputs[0].shape[-1] == size else tuple(output[..., :size] for output in outputs)


def _further_units(size: int) -> int:
    """To add so that registers are full."""
    return -size % WIDTH_OF_LANES


def _flat(features: Tensor, state: State, parameters: Parameters, further: int) -> list[Tensor | None]:
    if further:
        state = tuple(torch.nn.functional.pad(part, (0, further)) for part in state)
        parameters = _with_further_units(parameters, further)
    return [features, *state, *parameters]


def _with_further_units(parameters: Parameters, further: int) -> Parameters:
    w_ih, w_hh, b_ih, b_hh = parameters
    size, pad = w_hh.shape[1], torch.nn.functional.pad
    w_ih = pad(w_ih.reshape(-1, size, w_ih.shape[1]), (0, 0, 0, further)).flatten(0, 1)
    w_hh = pad(w_hh.reshape(-1, size, size), (0, further, 0, further)).flatten(0, 1)
    b_ih, b_hh = (None if b is None else pad(b.reshape(-1, size), (0, further)).flatten() for b in (b_ih, b_hh))
    return w_ih, w_hh, b_ih, b_hh


class _Layers(torch.autograd.Function):
    """Layers over the same block as one node of the graph. Flat: of each its features, state and parameters."""

    @staticmethod
    def forward(ctx: Any, kind: Kind, n_layers: int, episode_starts: Tensor, *flat: Any) -> tuple[Tensor, ...]:
        cell, layers = _CELLS[kind], _split(flat, n_layers)
        n_steps, n_sequences, _ = flat[0].shape
        w_hh = _stacked([layer[-3].unflatten(0, (cell.gates, -1)) for layer in layers])
        state = torch.stack([_stacked([layer[1 + part] for layer in layers]) for part in range(cell.parts)])
        size = w_hh.shape[-1]
        gates = w_hh.new_empty(n_layers, n_steps, n_sequences, cell.gates, size)
        for layer, projected in zip(layers, gates, strict=True):
            _project(kind, layer, projected.view(-1, cell.gates * size))
        bias_n = None
        if kind == "gru":
            biases = [layer[-1] for layer in layers]
            bias_n = _stacked([w_hh.new_zeros(size) if bias is None else bias[2 * size :] for bias in biases])
        shape = (n_layers, n_steps, n_sequences, size)
        outputs = gates.view(shape) if cell.gates == 1 else w_hh.new_empty(shape)
        kept, starts = w_hh.new_empty(cell.kept, *shape), episode_starts.contiguous()
        numbers = (cell.number, *_tasks_and_threads(*shape))
        library["forward"]((gates, w_hh, bias_n, state, starts, outputs, kept), numbers)
        ctx.kind, ctx.n_layers, ctx.numbers = kind, n_layers, numbers
        ctx.save_for_backward(*flat, w_hh, state, starts, gates, kept)
        return tuple(output.detach() for output in outputs)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Any, ...]:
        *flat, w_hh, state, starts, gates, kept = ctx.saved_tensors
        cell, layers = _CELLS[ctx.kind], _split(flat, ctx.n_layers)
        needed = _split(ctx.needs_input_grad[3:], ctx.n_layers)
        if torch.is_grad_enabled():  # this way back is to be differentiated in its turn

            def in_torch(features: Tensor, *rest: Any) -> Tensor:
                return reference.unroll(ctx.kind, features, rest[: cell.parts], starts, rest[cell.parts :])

            again = [
                reference.differentiated(in_torch, *each)
                for each in zip(layers, needed, [[gradient] for gradient in d_outputs], strict=True)
            ]
            return None, None, None, *(gradient for of_layer in again for gradient in of_layer)
        d_inputs, d_state = torch.empty_like(gates), torch.empty_like(state)
        d_sums = torch.empty_like(gates) if ctx.kind == "gru" else None
        arrays = (_stacked(d_outputs), w_hh, state, starts, gates, kept, d_inputs, d_sums, d_state)
        library["backward"](arrays, ctx.numbers)
        found: list[Tensor | None] = []
        for at, (layer, needs) in enumerate(zip(layers, needed, strict=True)):
            rows, before = d_inputs[at].flatten(2).flatten(0, 1), kept[0, at].flatten(0, 1)
            of_sums = rows if d_sums is None else d_sums[at].flatten(2).flatten(0, 1)
            features, w_ih, b_ih = layer[0], layer[-4], layer[-2]
            d_b_ih = None if b_ih is None else rows.sum(0)
            found += [
                (rows @ w_ih).view_as(features) if needs[0] else None,
                *d_state[:, at],
                _weight_gradient(rows, features.flatten(0, 1)),
                _weight_gradient(of_sums, before),
                d_b_ih,
                d_b_ih if b_ih is None or d_sums is None else of_sums.sum(0),
            ]
        return None, None, None, *found


def _split(values: Sequence[Any], n_layers: int) -> list[Sequence[Any]]:
    each = len(values) // n_layers
    return [values[layer * each : (layer + 1) * each] for layer in range(n_layers)]


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)) if len(parts) > 1 else parts[0].unsqueeze(0).contiguous()


def _project(kind: Kind, layer: Sequence[Any], out: Tensor) -> None:
    """W_ih x + b_ih + b_hh for all steps in one product; without b_hn of a GRU, which r multiplies."""
    features, (w_ih, w_hh, b_ih, b_hh) = layer[0].flatten(0, 1), layer[-4:]
    if b_ih is None:
        torch.mm(features, w_ih.t(), out=out)
        return
    bias = b_ih + b_hh
    if kind == "gru":
        bias[2 * w_hh.shape[1] :] = b_ih[2 * w_hh.shape[1] :]
    torch.addmm(bias, features, w_ih.t(), out=out)


def _weight_gradient(d_sums: Tensor, inputs: Tensor) -> Tensor:
    """The gradient of weights (GH, F) from that of their products (N, GH) and what they multiplied (N, F).

    Few features make a product of few columns, which BLAS computes up to ten times slower than its transpose.
    """
    return (inputs.t() @ d_sums).t().contiguous() if inputs.shape[1] <= 32 else d_sums.t() @ inputs


def _tasks_and_threads(n_layers: int, n_steps: int, n_sequences: int, size: int) -> tuple[int, int]:
    """Tasks that the segments of each layer are shared out to, and threads: each has a millisecond of work or so, and
    each task at least two sequences."""
    products, threads = n_steps * n_sequences * size * size, torch.get_num_threads()
    tasks = max(1, min(threads // n_layers, n_sequences // 2, products // 8_000_000))
    return tasks, min(threads, tasks * n_layers) if products >= _WORTH_A_THREAD else 1


_WORTH_A_THREAD = 4_000_000  # products: a millisecond or so


def worth_joining(features: Tensor, size: int) -> bool:
    """Whether layers over (T, B, F) gain from one call: small ones its overhead, large ones a thread each.

    Large ones on one thread lose, for their arrays are then so large that the system clears them every time.
    """
    n_steps, n_sequences, _ = features.shape
    return torch.get_num_threads() > 1 or n_steps * n_sequences * size * size < _WORTH_A_THREAD


# Acting


def step(kind: Kind, layers: Sequence[Parameters]) -> NumpyStep:
    """The acting step of stacked layers, on their parameters as they are now."""
    return _Step(kind, layers)


def joined(kind: Kind, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights (GH, F + H) and biases (GH) of ``W [x, h] + b``.

    Of a GRU (4H, F + H) and (4H): n of the features, r and z of both, n of the state, which r multiplies.
    """
    none = w_hh.new_zeros(len(w_hh))
    b_ih, b_hh = (none if bias is None else bias for bias in (b_ih, b_hh))
    if kind == "gru":
        size = w_hh.shape[1]
        w_ih, b_ih = (torch.cat((it[2 * size :], it[: 2 * size], torch.zeros_like(it[:size]))) for it in (w_ih, b_ih))
        w_hh, b_hh = (torch.cat((torch.zeros_like(it[:size]), it)) for it in (w_hh, b_hh))
    return torch.cat((w_ih, w_hh), dim=1).detach(), (b_ih + b_hh).detach()


class _Step:
    """A step through layers on top of each other, with dropout masks between them if the state has a part for them.

    All arrays that the kernels see lie at places of their own, made and checked once for a batch size: to ask an array
    for its address takes longer than many a kernel runs. What comes in is copied there, and what goes out is a copy.
    """

    def __init__(self, kind: Kind, layers: Sequence[Parameters]) -> None:
        self._cell, self._size = _CELLS[kind], layers[0][1].shape[1]
        self._further, self._n_features = _further_units(self._size), layers[0][0].shape[1]
        self._layers: list[tuple[Tensor, Tensor]] = []
        for parameters in layers:
            if self._further:
                parameters = _with_further_units(parameters, self._further)
                if self._layers:  # what comes from below is padded too
                    parameters = (torch.nn.functional.pad(parameters[0], (0, self._further)), *parameters[1:])
            weights, bias = joined(kind, *parameters)
            packed = torch.empty(library.size("packed_size", weights.shape[::-1]))
            library["pack"]((weights.contiguous(), packed))
            self._layers.append((packed, bias))
        self._batch_size = -1

    def __call__(
        self, features: Array, state: NumpyState, episode_starts: NDArray[np.bool_]
    ) -> tuple[Array, NumpyState]:
        if len(episode_starts) != self._batch_size:
            self._make_room(len(episode_starts))
        masks = state[self._cell.parts :]
        np.copyto(self._features, features)
        np.copyto(self._starts, episode_starts)
        for room, part in zip(self._before, state, strict=False):
            np.copyto(room, part)
        for layer, run in enumerate(self._runs):
            if layer:
                below = self._after[0][:, layer - 1]
                np.copyto(self._between, below * masks[0][:, layer - 1] if masks else below)
            run()
        after = tuple([part.copy() for part in self._after])
        return after[0][:, -1], after + masks

    def _make_room(self, batch_size: int) -> None:
        depth, parts, width = len(self._layers), self._cell.parts, self._size + self._further
        features, between = torch.empty(batch_size, self._n_features), torch.zeros(batch_size, width)
        starts = torch.empty(batch_size, dtype=torch.bool)
        before, after = torch.zeros(2, depth, parts, batch_size, width)
        self._runs = [
            library["step"].prepared(
                (between if layer else features, before[layer], starts, packed, bias, after[layer]),
                (self._cell.number,),
            )
            for layer, (packed, bias) in enumerate(self._layers)
        ]
        self._features, self._starts = features.numpy(), starts.numpy()
        self._between = between[:, : self._size].numpy()
        self._before, self._after = (  # (B, D, H) each
            tuple(part[..., : self._size].transpose(0, 1).numpy() for part in room.unbind(1))
            for room in (before, after)
        )
        self._batch_size = batch_size
