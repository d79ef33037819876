"""RNN, LSTM and GRU over a block of episodes on a CPU, by the functions in ``recurrent.c``.

The products over all steps at once (input projections before, weight gradients after) are torch's; the loop over time
between them is compiled. So is the acting step. Nothing is padded, and resets cost nothing.

An episode starts from zeros; or, if the state before a block has B + 1 rows, from the last one.

Axes: T time, B sequences (or environments), F features in, H hidden units, G gates of a cell, D layers.
"""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.kernels import reference
from agents.kernels.aside import plain
from agents.kernels.binding import WIDTH_OF_LANES, Library
from agents.kernels.contract import Array, NumpyState, NumpyStep, Parameters
from agents.kernels.team import run_together

library = Library("recurrent")
available = library.available


def takes(features: Tensor, hidden_size: int) -> bool:
    """Whether the kernels can run this: built, float32 on a CPU, 8 units or a multiple, nothing that follows."""
    return available and hidden_size % WIDTH_OF_LANES == 0 and plain(features)


def lstm(features: Tensor, hidden: Tensor, cell: Tensor, episode_starts: Tensor, parameters: Parameters) -> Tensor:
    """(T, B, F), state before the first step (B, H) each, (T, B) boolean -> (T, B, H)."""
    return side_by_side("lstm", [(features, hidden, cell, episode_starts, *parameters)])[0]


def gru(features: Tensor, hidden: Tensor, episode_starts: Tensor, parameters: Parameters) -> Tensor:
    """(T, B, F), state before the first step (B, H), (T, B) boolean -> (T, B, H)."""
    return side_by_side("gru", [(features, hidden, episode_starts, *parameters)])[0]


def rnn(features: Tensor, hidden: Tensor, episode_starts: Tensor, parameters: Parameters, relu: bool) -> Tensor:
    """(T, B, F), state before the first step (B, H), (T, B) boolean -> (T, B, H)."""
    return side_by_side("rnn_relu" if relu else "rnn_tanh", [(features, hidden, episode_starts, *parameters)])[0]


def side_by_side(kind: str, layers: Sequence[Sequence[Tensor | None]]) -> tuple[Tensor, ...]:
    """Layers of a kind over blocks that have nothing to do with each other, each on threads of its own.

    Args:
        kind: "lstm", "gru", "rnn_tanh" or "rnn_relu".
        layers: for each what the function of that name takes, the parameters one by one.
    """
    outputs: tuple[Tensor, ...] = _Layers.apply(kind, len(layers), *(it for layer in layers for it in layer))  # type: ignore[no-untyped-call]
    return outputs


# A pass is a generator: it prepares a kernel's run, yields it, and goes on when it has been run. So two can be run at
# the same time, with the matrix products before and after them one after the other on all threads.


class _Run(NamedTuple):
    """A kernel, the block (T, B, H) it runs over, its arrays, and its numbers after those of the part."""

    name: str
    block: Tensor
    tensors: tuple[Tensor, ...]
    numbers: tuple[int, ...] = ()


class _Forward(NamedTuple):
    """Outputs (T, B, H), and what the way back needs beside the arguments."""

    outputs: Tensor
    kept: tuple[Tensor, ...]


Pass = Generator[_Run, None, Any]


def _lstm_forward(
    features: Tensor,
    hidden: Tensor,
    cell: Tensor,
    episode_starts: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> Pass:
    inputs = _project(features, w_ih, _sum(b_ih, b_hh))
    hidden, cell, w_hh, episode_starts = (part.contiguous() for part in (hidden, cell, w_hh, episode_starts))
    outputs, cells, tanh_cells, before = (_like(inputs, w_hh.shape[1]) for _ in range(4))
    gates = torch.empty_like(inputs)
    arrays = (inputs, w_hh, hidden, cell, episode_starts, outputs, gates, cells, tanh_cells, before)
    yield _Run("lstm_forward", outputs, arrays)
    return _Forward(outputs, (gates, cells, tanh_cells, before))


def _lstm_backward(arguments: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool], d_outputs: Tensor) -> Pass:
    features, _, cell, episode_starts, w_ih, w_hh, b_ih, _ = arguments
    gates, cells, tanh_cells, before = kept
    cell, w_hh, episode_starts = (part.contiguous() for part in (cell, w_hh, episode_starts))
    learned = _has_row_to_start_from(cell, features)
    d_inputs, d_outputs = torch.empty_like(gates), d_outputs.contiguous()
    d_hidden, d_cell = (_room_for_gradient(before, episode_starts, learned) for _ in range(2))
    arrays = (d_outputs, w_hh, cell, episode_starts, gates, cells, tanh_cells, d_inputs, d_hidden, d_cell)
    yield _Run("lstm_backward", d_outputs, arrays, (learned,))
    d_hidden, d_cell = (_added_up(part, before, learned) for part in (d_hidden, d_cell))
    d_features = _back_through_inputs(d_inputs, w_ih) if needed[0] else None
    d_w_ih, d_bias = _weight_gradients(d_inputs, features, b_ih is not None)
    return d_features, d_hidden, d_cell, None, d_w_ih, _weight_gradient(d_inputs, before), d_bias, d_bias


def _gru_forward(
    features: Tensor,
    hidden: Tensor,
    episode_starts: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> Pass:
    size = w_hh.shape[1]
    bias_n = w_hh.new_zeros(size) if b_hh is None else b_hh[2 * size :].contiguous()
    outside = None if b_hh is None else torch.cat((b_hh[: 2 * size], torch.zeros_like(bias_n)))
    inputs = _project(features, w_ih, _sum(b_ih, outside))
    hidden, w_hh, episode_starts = (part.contiguous() for part in (hidden, w_hh, episode_starts))
    outputs, q, before = (_like(inputs, size) for _ in range(3))
    gates = torch.empty_like(inputs)
    yield _Run("gru_forward", outputs, (inputs, w_hh, bias_n, hidden, episode_starts, outputs, gates, q, before))
    return _Forward(outputs, (gates, q, before))


def _gru_backward(arguments: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool], d_outputs: Tensor) -> Pass:
    features, hidden, episode_starts, w_ih, w_hh, b_ih, _ = arguments
    gates, q, before = kept
    w_hh, episode_starts = w_hh.contiguous(), episode_starts.contiguous()
    learned = _has_row_to_start_from(hidden, features)
    d_inputs, d_sums, d_outputs = torch.empty_like(gates), torch.empty_like(gates), d_outputs.contiguous()
    d_hidden = _room_for_gradient(before, episode_starts, learned)
    arrays = (d_outputs, w_hh, episode_starts, gates, q, before, d_inputs, d_sums, d_hidden)
    yield _Run("gru_backward", d_outputs, arrays, (learned,))
    d_hidden = _added_up(d_hidden, before, learned)
    d_features = _back_through_inputs(d_inputs, w_ih) if needed[0] else None
    d_w_ih, d_b_ih = _weight_gradients(d_inputs, features, b_ih is not None)
    d_w_hh, d_b_hh = _weight_gradients(d_sums, before, b_ih is not None)
    return d_features, d_hidden, None, d_w_ih, d_w_hh, d_b_ih, d_b_hh


def _rnn_forward(
    relu: bool,
    features: Tensor,
    hidden: Tensor,
    episode_starts: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> Pass:
    inputs = _project(features, w_ih, _sum(b_ih, b_hh))
    hidden, w_hh, episode_starts = (part.contiguous() for part in (hidden, w_hh, episode_starts))
    outputs, before = torch.empty_like(inputs), torch.empty_like(inputs)
    yield _Run("rnn_forward", outputs, (inputs, w_hh, hidden, episode_starts, outputs, before), (relu,))
    return _Forward(outputs, (outputs, before))


def _rnn_backward(
    relu: bool, arguments: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool], d_outputs: Tensor
) -> Pass:
    features, hidden, episode_starts, w_ih, w_hh, b_ih, _ = arguments
    outputs, before = kept
    w_hh, episode_starts = w_hh.contiguous(), episode_starts.contiguous()
    learned = _has_row_to_start_from(hidden, features)
    d_inputs, d_outputs = torch.empty_like(outputs), d_outputs.contiguous()
    d_hidden = _room_for_gradient(before, episode_starts, learned)
    arrays = (d_outputs, w_hh, episode_starts, outputs, d_inputs, d_hidden)
    yield _Run("rnn_backward", d_outputs, arrays, (learned, relu))
    d_hidden = _added_up(d_hidden, before, learned)
    d_features = _back_through_inputs(d_inputs, w_ih) if needed[0] else None
    d_w_ih, d_bias = _weight_gradients(d_inputs, features, b_ih is not None)
    return d_features, d_hidden, None, d_w_ih, _weight_gradient(d_inputs, before), d_bias, d_bias


class _Kind(NamedTuple):
    forward: Callable[..., Pass]
    backward: Callable[..., Pass]
    reference: Callable[..., Tensor]


_KINDS = {
    "lstm": _Kind(_lstm_forward, _lstm_backward, lambda x, h, c, starts, *rest: reference.lstm(x, h, c, starts, rest)),
    "gru": _Kind(_gru_forward, _gru_backward, lambda x, h, starts, *rest: reference.gru(x, h, starts, rest)),
    **{
        f"rnn_{name}": _Kind(
            partial(_rnn_forward, relu),
            partial(_rnn_backward, relu),
            partial(lambda relu, x, h, starts, *rest: reference.rnn(x, h, starts, rest, relu), relu),
        )
        for name, relu in (("tanh", False), ("relu", True))
    },
}


class _Layers(torch.autograd.Function):
    """Layers side by side as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, kind: str, n_layers: int, *arguments: Any) -> tuple[Tensor, ...]:
        passes = [_KINDS[kind].forward(*given) for given in _shared_out(arguments, n_layers)]
        results: list[_Forward] = _finished(passes)
        ctx.kind, ctx.n_layers, ctx.n_arguments = kind, n_layers, len(arguments)
        ctx.save_for_backward(*arguments, *(part for result in results for part in result.kept))
        return tuple(result.outputs for result in results)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Any, ...]:
        arguments, kept = ctx.saved_tensors[: ctx.n_arguments], ctx.saved_tensors[ctx.n_arguments :]
        of_layers = (
            _shared_out(arguments, ctx.n_layers),
            _shared_out(kept, ctx.n_layers),
            _shared_out(ctx.needs_input_grad[2:], ctx.n_layers),
            d_outputs,
        )
        kind = _KINDS[ctx.kind]
        if torch.is_grad_enabled():  # this way back is to be differentiated in its turn
            found = [
                reference.differentiated(kind.reference, given, needed, [d_output])
                for given, _, needed, d_output in zip(*of_layers, strict=True)
            ]
        else:
            found = _finished([kind.backward(*of_layer) for of_layer in zip(*of_layers, strict=True)])
        return None, None, *(gradient for of_layer in found for gradient in of_layer)


def _shared_out(values: Sequence[Any], n_layers: int) -> list[Sequence[Any]]:
    each = len(values) // n_layers
    return [values[layer * each : (layer + 1) * each] for layer in range(n_layers)]


def _finished(passes: list[Pass]) -> list[Any]:
    """Prepares all passes, runs their kernels at the same time, and gives their results."""
    _call([next(one) for one in passes])
    results = []
    for one in passes:
        try:
            next(one)
        except StopIteration as end:
            results.append(end.value)
    return results


def _call(runs: list[_Run]) -> None:
    """Runs kernels at the same time, each on as many threads as are worth it."""
    calls = []
    for name, block, tensors, numbers in runs:
        parts = _worthwhile_threads(block, torch.get_num_threads() // len(runs))
        calls += [library[name].prepared(tensors, (part, parts, *numbers)) for part in range(parts)]
    run_together(calls)


def worth_a_thread(features: Tensor, hidden_size: int) -> bool:
    """Whether a block (T, B, F) through this many units is enough work for a thread of its own: a millisecond or so."""
    n_steps, n_sequences, _ = features.shape
    return n_steps * n_sequences * hidden_size * hidden_size >= 4_000_000


def _worthwhile_threads(block: Tensor, threads: int) -> int:
    """As many of the threads as have a millisecond or so of work and at least two sequences each; block (T, B, H)."""
    n_steps, n_sequences, hidden_size = block.shape
    products = n_steps * n_sequences * hidden_size * hidden_size
    return max(1, min(threads, n_sequences // 2, products // 8_000_000))


def _project(features: Tensor, w_ih: Tensor, bias: Tensor | None) -> Tensor:
    """(T, B, F) -> (T, B, GH), all steps in one product."""
    return torch.nn.functional.linear(features, w_ih, bias).contiguous()


def _has_row_to_start_from(state: Tensor, features: Tensor) -> bool:
    """Whether a state before a block (T, B, F) has B + 1 rows and not B."""
    return len(state) > features.shape[1]


def _room_for_gradient(before: Tensor, episode_starts: Tensor, learned: bool) -> Tensor:
    """For the gradient of the state before a block (T, B, H); with a row to start from, one more for each episode."""
    _, n_sequences, size = before.shape
    further = int(episode_starts.count_nonzero()) if learned else 0
    return before.new_zeros(n_sequences + further, size)


def _added_up(gradient: Tensor, before: Tensor, learned: bool) -> Tensor:
    """The gradient with the rows of all that started in the block (T, B, H) as one."""
    n_sequences = before.shape[1]
    if not learned:
        return gradient
    return torch.cat((gradient[:n_sequences], gradient[n_sequences:].sum(0, keepdim=True)))


def _like(inputs: Tensor, size: int) -> Tensor:
    return inputs.new_empty((*inputs.shape[:2], size))


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return first if second is None else second if first is None else first + second


def _back_through_inputs(d_inputs: Tensor, w_ih: Tensor) -> Tensor:
    return d_inputs @ w_ih


def _weight_gradient(d_sums: Tensor, inputs: Tensor) -> Tensor:
    """The gradient of weights (GH, F) from that of their products (T, B, GH) and what they multiplied (T, B, F).

    Few features make a product of few columns, which BLAS computes up to ten times slower than its transpose.
    """
    rows, columns = d_sums.flatten(0, 1), inputs.flatten(0, 1)
    return (columns.t() @ rows).t().contiguous() if columns.shape[1] <= 32 else rows.t() @ columns


def _weight_gradients(d_sums: Tensor, inputs: Tensor, has_bias: bool) -> tuple[Tensor, Tensor | None]:
    return _weight_gradient(d_sums, inputs), d_sums.sum((0, 1)) if has_bias else None


# Acting


def lstm_step(layers: Sequence[Parameters]) -> NumpyStep:
    """The acting step of stacked LSTM layers, on the parameters as they are now."""
    return _Step("lstm_step", [joined(*layer) for layer in layers], layers[0][1].shape[1], carried=2)


def gru_step(layers: Sequence[Parameters]) -> NumpyStep:
    """The acting step of stacked GRU layers, on the parameters as they are now."""
    return _Step("gru_step", [gru_joined(*layer) for layer in layers], layers[0][1].shape[1], carried=1)


def rnn_step(layers: Sequence[Parameters], relu: bool) -> NumpyStep:
    """The acting step of stacked layers of the plain network, on the parameters as they are now."""
    return _Step("rnn_step", [joined(*layer) for layer in layers], layers[0][1].shape[1], carried=1, numbers=(relu,))


def joined(w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights (GH, F + H) and biases (GH) of ``W [x, h] + b``, for cells whose two products only meet in a sum."""
    weights = torch.cat((w_ih.detach(), w_hh.detach()), dim=1)
    if b_ih is None or b_hh is None:
        return weights, w_hh.new_zeros(len(w_hh)).detach()
    return weights, (b_ih + b_hh).detach()


def gru_joined(w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights (4H, F + H) and biases (4H) of a GRU: r, z of both, n of the features, n of the state (r gates it)."""
    size = w_hh.shape[1]
    r_z, n = slice(0, 2 * size), slice(2 * size, 3 * size)
    none = w_hh.new_zeros(3 * size)
    b_ih, b_hh = (none if bias is None else bias for bias in (b_ih, b_hh))
    of_features = torch.cat((w_ih, w_ih.new_zeros(size, w_ih.shape[1])))
    of_state = torch.cat((w_hh[r_z], w_hh.new_zeros(size, size), w_hh[n]))
    bias = torch.cat((b_ih[r_z] + b_hh[r_z], b_ih[n], b_hh[n]))
    return torch.cat((of_features, of_state), dim=1).detach(), bias.detach()


class _Step:
    """A step through layers on top of each other, with dropout masks between them if the state has a part for them.

    All arrays that the kernels see lie at places of their own, made and checked once for a batch size: to ask an array
    for its address takes longer than many a kernel runs. What comes in is copied there, and what goes out is a copy.
    """

    def __init__(
        self,
        name: str,
        layers: Sequence[tuple[Tensor, Tensor]],
        hidden_size: int,
        carried: int,
        numbers: tuple[int, ...] = (),
    ) -> None:
        self._function, self._numbers = library[name], numbers
        self._hidden_size, self._carried = hidden_size, carried
        self._n_features = layers[0][0].shape[1] - hidden_size
        self._layers = []
        for weights, bias in layers:
            n_sums, n_inputs = weights.shape
            packed = torch.empty(library.size("packed_size", (n_inputs, n_sums)))
            library["pack"]((weights.contiguous(), packed))
            self._layers.append((packed, bias))
        self._batch_size = -1

    def __call__(
        self, features: Array, state: NumpyState, episode_starts: NDArray[np.bool_]
    ) -> tuple[Array, NumpyState]:
        if len(episode_starts) != self._batch_size:
            self._make_room(len(episode_starts))
        masks = state[self._carried :]
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
        depth, size = len(self._layers), self._hidden_size
        features, between = torch.empty(batch_size, self._n_features), torch.empty(batch_size, size)
        starts = torch.empty(batch_size, dtype=torch.bool)
        before, after = torch.empty(2, self._carried, depth, batch_size, size)  # each layer's in one piece
        self._runs = [
            self._function.prepared(
                (between if layer else features, *before[:, layer], starts, packed, bias, *after[:, layer]),
                self._numbers,
            )
            for layer, (packed, bias) in enumerate(self._layers)
        ]
        self._features, self._between, self._starts = features.numpy(), between.numpy(), starts.numpy()
        self._before, self._after = (tuple(part.transpose(1, 2).numpy()) for part in (before, after))  # (B, D, H) each
        self._batch_size = batch_size
