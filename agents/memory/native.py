"""RNN, LSTM and GRU over a block of episodes on a CPU, by the kernels in ``kernels.c``.

The products over all steps at once (input projections before, weight gradients after) are torch's; the loop over time
between them is compiled. So is the acting step. Nothing is padded, and resets cost nothing. The kernels are built when
the package is installed, where there is a C compiler; without them ``available`` is false and torch's kernels serve.

An episode starts from zeros; or, where the state before a block has B + 1 rows, from the last one.

Axes: T time, B sequences (or environments), F features in, H hidden units, G gates of a cell, D layers.
"""

import ctypes
import operator
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.kernels.aside import once_differentiable, plain
from agents.memory.core import Array, NumpyState, NumpyStep
from agents.memory.kernels import Parameters
from agents.memory.loading import load
from agents.memory.numpy_step import gru_side_by_side, side_by_side
from agents.memory.team import run_together

_VERSION = 3  # of the functions' arguments, as in kernels.c

_STEPS_AHEAD = 16  # a kept state keeps this many steps' states in memory
_FLOAT = 4  # bytes
Addresses = tuple[int, ...]


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """Says what the functions take that are called with plain numbers, so that an address is not cut to 32 bits."""
    size: Any
    address: Any
    flag: Any
    size, address, flag = ctypes.c_long, ctypes.c_void_p, ctypes.c_int
    library.packed_size.argtypes, library.packed_size.restype = [size, size], size
    library.pack.argtypes, library.pack.restype = [address, size, size, size, size, address], None
    of_step: list[Any] = [size, size, size, address, size]
    library.lstm_step.argtypes = [*of_step, address, address, size, *[address] * 5]
    library.gru_step.argtypes = [*of_step, address, size, *[address] * 4]
    library.rnn_step.argtypes = [*of_step, address, size, *[address] * 3, flag, address]
    return library


_library = _declared(library) if (library := load(Path(__file__).parent, "kernels", _VERSION)) else None
available = _library is not None


def takes(features: Tensor, hidden_size: int) -> bool:
    """Whether the kernels can run this: built, float32 on a CPU, 8 units or a multiple, nothing that follows."""
    return available and hidden_size % 8 == 0 and plain(features)


def lstm(features: Tensor, hidden: Tensor, cell: Tensor, episode_starts: Tensor, parameters: Parameters) -> Tensor:
    """(T, B, F), state before the first step (B, H) each, (T, B) boolean -> (T, B, H)."""
    output: Tensor = _Lstm.apply(features, hidden, cell, episode_starts, *parameters)  # type: ignore[no-untyped-call]
    return output


def gru(features: Tensor, hidden: Tensor, episode_starts: Tensor, parameters: Parameters) -> Tensor:
    """(T, B, F), state before the first step (B, H), (T, B) boolean -> (T, B, H)."""
    output: Tensor = _Gru.apply(features, hidden, episode_starts, *parameters)  # type: ignore[no-untyped-call]
    return output


def rnn(features: Tensor, hidden: Tensor, episode_starts: Tensor, parameters: Parameters, relu: bool) -> Tensor:
    """(T, B, F), state before the first step (B, H), (T, B) boolean -> (T, B, H)."""
    output: Tensor = _Rnn.apply(features, hidden, episode_starts, relu, *parameters)  # type: ignore[no-untyped-call]
    return output


def both(kind: str, one: Sequence[Any], other: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Two layers of a kind over two blocks that have nothing to do with each other, each on threads of its own.

    Args:
        kind: "lstm", "gru" or "rnn".
        one, other: what the function of that name takes, the parameters one by one.
    """
    outputs: tuple[Tensor, Tensor] = _Both.apply(kind, len(one), *one, *other)  # type: ignore[no-untyped-call]
    return outputs


# A pass is a generator: it prepares a kernel's run, yields it, and goes on when it has been run. So two can be run at
# the same time, with the matrix products before and after them one after the other on all threads.


class _Run(NamedTuple):
    """A kernel, the block (T, B, H) it runs over, and its arguments, which must outlive it."""

    name: str
    block: Tensor
    arguments: tuple[Tensor | bool, ...]


Pass = Generator[_Run, None, Any]


def _lstm_forward(
    ctx: Any,
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
    learned = _has_row_to_start_from(hidden, features)
    gates = torch.empty_like(inputs)
    yield _Run(
        "lstm_forward",
        outputs,
        (inputs, w_hh, hidden, cell, episode_starts, learned, outputs, gates, cells, tanh_cells, before),
    )
    ctx.save_for_backward(features, cell, episode_starts, w_ih, w_hh, gates, cells, tanh_cells, before)
    ctx.has_bias, ctx.learned = b_ih is not None, learned
    return outputs


def _lstm_backward(ctx: Any, d_outputs: Tensor) -> Pass:
    features, cell, episode_starts, w_ih, w_hh, gates, cells, tanh_cells, before = ctx.saved_tensors
    d_inputs, d_outputs = torch.empty_like(gates), d_outputs.contiguous()
    d_hidden, d_cell = (_room_for_gradient(before, episode_starts, ctx.learned) for _ in range(2))
    yield _Run(
        "lstm_backward",
        d_outputs,
        (d_outputs, w_hh, cell, episode_starts, ctx.learned, gates, cells, tanh_cells, d_inputs, d_hidden, d_cell),
    )
    d_hidden, d_cell = (_added_up(part, before, ctx.learned) for part in (d_hidden, d_cell))
    d_features = _back_through_inputs(d_inputs, w_ih) if ctx.needs_input_grad[0] else None
    d_w_ih, d_bias = _weight_gradients(d_inputs, features, ctx.has_bias)
    return d_features, d_hidden, d_cell, None, d_w_ih, _weight_gradient(d_inputs, before), d_bias, d_bias


def _gru_forward(
    ctx: Any,
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
    learned = _has_row_to_start_from(hidden, features)
    yield _Run(
        "gru_forward", outputs, (inputs, w_hh, bias_n, hidden, episode_starts, learned, outputs, gates, q, before)
    )
    ctx.save_for_backward(features, episode_starts, w_ih, w_hh, gates, q, before)
    ctx.has_bias, ctx.learned = b_ih is not None, learned
    return outputs


def _gru_backward(ctx: Any, d_outputs: Tensor) -> Pass:
    features, episode_starts, w_ih, w_hh, gates, q, before = ctx.saved_tensors
    d_inputs, d_sums, d_outputs = torch.empty_like(gates), torch.empty_like(gates), d_outputs.contiguous()
    d_hidden = _room_for_gradient(before, episode_starts, ctx.learned)
    yield _Run(
        "gru_backward",
        d_outputs,
        (d_outputs, w_hh, episode_starts, ctx.learned, gates, q, before, d_inputs, d_sums, d_hidden),
    )
    d_hidden = _added_up(d_hidden, before, ctx.learned)
    d_features = _back_through_inputs(d_inputs, w_ih) if ctx.needs_input_grad[0] else None
    d_w_ih, d_b_ih = _weight_gradients(d_inputs, features, ctx.has_bias)
    d_w_hh, d_b_hh = _weight_gradients(d_sums, before, ctx.has_bias)
    return d_features, d_hidden, None, d_w_ih, d_w_hh, d_b_ih, d_b_hh


def _rnn_forward(
    ctx: Any,
    features: Tensor,
    hidden: Tensor,
    episode_starts: Tensor,
    relu: bool,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> Pass:
    inputs = _project(features, w_ih, _sum(b_ih, b_hh))
    hidden, w_hh, episode_starts = (part.contiguous() for part in (hidden, w_hh, episode_starts))
    outputs, before = torch.empty_like(inputs), torch.empty_like(inputs)
    learned = _has_row_to_start_from(hidden, features)
    yield _Run("rnn_forward", outputs, (inputs, w_hh, hidden, episode_starts, learned, relu, outputs, before))
    ctx.save_for_backward(features, episode_starts, w_ih, w_hh, outputs, before)
    ctx.relu, ctx.has_bias, ctx.learned = relu, b_ih is not None, learned
    return outputs


def _rnn_backward(ctx: Any, d_outputs: Tensor) -> Pass:
    features, episode_starts, w_ih, w_hh, outputs, before = ctx.saved_tensors
    d_inputs, d_outputs = torch.empty_like(outputs), d_outputs.contiguous()
    d_hidden = _room_for_gradient(before, episode_starts, ctx.learned)
    yield _Run(
        "rnn_backward",
        d_outputs,
        (d_outputs, w_hh, episode_starts, ctx.learned, ctx.relu, outputs, d_inputs, d_hidden),
    )
    d_hidden = _added_up(d_hidden, before, ctx.learned)
    d_features = _back_through_inputs(d_inputs, w_ih) if ctx.needs_input_grad[0] else None
    d_w_ih, d_bias = _weight_gradients(d_inputs, features, ctx.has_bias)
    return d_features, d_hidden, None, None, d_w_ih, _weight_gradient(d_inputs, before), d_bias, d_bias


_FORWARD: dict[str, Callable[..., Pass]] = {"lstm": _lstm_forward, "gru": _gru_forward, "rnn": _rnn_forward}
_BACKWARD: dict[str, Callable[..., Pass]] = {"lstm": _lstm_backward, "gru": _gru_backward, "rnn": _rnn_backward}


class _Lstm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        output: Tensor = _finished([_lstm_forward(ctx, *arguments)])[0]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor) -> Any:
        return _finished([_lstm_backward(ctx, d_outputs)])[0]


class _Gru(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        output: Tensor = _finished([_gru_forward(ctx, *arguments)])[0]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor) -> Any:
        return _finished([_gru_backward(ctx, d_outputs)])[0]


class _Rnn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        output: Tensor = _finished([_rnn_forward(ctx, *arguments)])[0]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor) -> Any:
        return _finished([_rnn_backward(ctx, d_outputs)])[0]


class _Note:
    """What a pass writes down, for one of two that share a node of the graph."""

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors


class _Both(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: str, n_first: int, *arguments: Any) -> tuple[Tensor, Tensor]:
        ctx.kind, ctx.notes = kind, (_Note(), _Note())
        halves = arguments[:n_first], arguments[n_first:]
        outputs = _finished([_FORWARD[kind](note, *half) for note, half in zip(ctx.notes, halves, strict=True)])
        saved: list[tuple[Tensor, ...]] = [note.saved_tensors for note in ctx.notes]
        ctx.save_for_backward(*saved[0], *saved[1])  # and nowhere else: outputs are among them
        ctx.n_first, ctx.n_saved = n_first, len(saved[0])
        for note in ctx.notes:
            del note.saved_tensors
        return outputs[0], outputs[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_outputs: Tensor) -> Any:
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad[2:]
        ctx.notes[0].saved_tensors, ctx.notes[1].saved_tensors = saved[: ctx.n_saved], saved[ctx.n_saved :]
        ctx.notes[0].needs_input_grad, ctx.notes[1].needs_input_grad = needed[: ctx.n_first], needed[ctx.n_first :]
        passes = [_BACKWARD[ctx.kind](note, part) for note, part in zip(ctx.notes, d_outputs, strict=True)]
        one, other = _finished(passes)
        for note in ctx.notes:
            del note.saved_tensors
        return None, None, *one, *other


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
    """Runs kernels at the same time, each on as many threads as are worth it. All tensors contiguous and on the CPU."""
    calls = []
    for name, block, arguments in runs:
        given = [ctypes.c_int(it) if isinstance(it, bool) else ctypes.c_void_p(it.data_ptr()) for it in arguments]
        sizes = [ctypes.c_long(size) for size in block.shape]
        parts = _worthwhile_threads(block, torch.get_num_threads() // len(runs))
        for part in range(parts):
            calls.append(partial(_call_one, name, block, *sizes, ctypes.c_long(part), ctypes.c_long(parts), *given))
    run_together(calls)


def _call_one(name: str, block: Tensor, *arguments: Any) -> None:
    if getattr(_library, name)(*arguments):
        raise MemoryError(f"{name} ran out of memory for a block of {tuple(block.shape)}")


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


def lstm_step(layers: Sequence[Parameters]) -> NumpyStep:
    """The acting step of stacked LSTM layers, on the parameters as they are now."""
    library, size = _loaded(), layers[0][1].shape[1]
    prepared = [_Prepared(*side_by_side(*layer), size) for layer in layers]

    def through(
        layer: int, n_rows: int, x: int, x_stride: int, before: Addresses, starts: int, after: Addresses
    ) -> int:
        it = prepared[layer]
        code: int = library.lstm_step(
            n_rows, it.n_features, size, x, x_stride, before[0], before[1], len(layers) * size, starts,
            it.packed_address, it.bias_address, after[0], after[1],
        )  # fmt: skip
        return code

    return _Stacked(through, [it.n_features for it in prepared], size, carried=2)


def gru_step(layers: Sequence[Parameters]) -> NumpyStep:
    """The acting step of stacked GRU layers, on the parameters as they are now."""
    library, size = _loaded(), layers[0][1].shape[1]
    prepared = [_Prepared(*gru_side_by_side(*layer), size) for layer in layers]

    def through(
        layer: int, n_rows: int, x: int, x_stride: int, before: Addresses, starts: int, after: Addresses
    ) -> int:
        it = prepared[layer]
        code: int = library.gru_step(
            n_rows, it.n_features, size, x, x_stride, before[0], len(layers) * size, starts,
            it.packed_address, it.bias_address, after[0],
        )  # fmt: skip
        return code

    return _Stacked(through, [it.n_features for it in prepared], size, carried=1)


def rnn_step(layers: Sequence[Parameters], relu: bool) -> NumpyStep:
    """The acting step of stacked layers of the plain network, on the parameters as they are now."""
    library, size = _loaded(), layers[0][1].shape[1]
    prepared = [_Prepared(*side_by_side(*layer), size) for layer in layers]

    def through(
        layer: int, n_rows: int, x: int, x_stride: int, before: Addresses, starts: int, after: Addresses
    ) -> int:
        it = prepared[layer]
        code: int = library.rnn_step(
            n_rows, it.n_features, size, x, x_stride, before[0], len(layers) * size, starts,
            it.packed_address, it.bias_address, relu, after[0],
        )  # fmt: skip
        return code

    return _Stacked(through, [it.n_features for it in prepared], size, carried=1)


class _Prepared:
    """A layer's weights (GH, F + H), packed for the step's one product, and its bias (GH)."""

    def __init__(self, weights: Tensor, bias: Tensor, hidden_size: int) -> None:
        rows, columns = weights.shape
        self.n_features = columns - hidden_size
        self.packed = np.empty(_loaded().packed_size(columns, rows), dtype=np.float32)
        self.bias = bias.numpy()
        self.packed_address, self.bias_address = _address(self.packed), _address(self.bias)
        _loaded().pack(weights.data_ptr(), columns, rows, 1, columns, self.packed_address)


class _Stacked:
    """A step through layers on top of each other, with dropout masks between them if the state has a part for them.

    To ask NumPy for an array's address takes longer than many a kernel runs. So what comes in is copied to places
    whose addresses are known, and states are handed out from blocks of several steps, each part of which is used once:
    what was returned stays as it is. A state that comes back as it was handed out is read where it lies.
    """

    def __init__(self, through: Callable[..., int], n_features: list[int], hidden_size: int, carried: int) -> None:
        self._through, self._n_features, self._hidden_size, self._carried = through, n_features, hidden_size, carried
        self._batch_size = -1
        self._last: NumpyState = ()
        self._last_addresses: Addresses = ()

    def __call__(
        self, features: Array, state: NumpyState, episode_starts: NDArray[np.bool_]
    ) -> tuple[Array, NumpyState]:
        if len(episode_starts) != self._batch_size:
            self._make_room(len(episode_starts))
        masks = state[self._carried :]
        before = self._addresses_of(state[: self._carried])
        np.copyto(self._features, features)
        np.copyto(self._starts, episode_starts)
        after, to = self._next_state()
        x, x_stride = self._features_address, self._n_features[0]
        for layer in range(len(self._n_features)):
            at = _FLOAT * layer * self._hidden_size
            if layer and masks:
                np.multiply(after[0][:, layer - 1], masks[0][:, layer - 1], out=self._between)
                x, x_stride = self._between_address, self._hidden_size
            from_here, to_here = tuple(part + at for part in before), tuple(part + at for part in to)
            if self._through(layer, self._batch_size, x, x_stride, from_here, self._starts_address, to_here):
                raise MemoryError(f"a step of {self._batch_size} environments ran out of memory")
            x, x_stride = to_here[0], len(self._n_features) * self._hidden_size
        self._last, self._last_addresses = after, to
        return after[0][:, -1], (*after, *masks)

    def _make_room(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._features = np.empty((batch_size, self._n_features[0]), dtype=np.float32)
        self._between = np.empty((batch_size, self._hidden_size), dtype=np.float32)
        self._starts = np.empty(batch_size, dtype=np.bool_)
        self._features_address, self._between_address = _address(self._features), _address(self._between)
        self._starts_address = _address(self._starts)
        self._last, self._last_addresses = (), ()
        self._handed_out = _STEPS_AHEAD

    def _addresses_of(self, carried: NumpyState) -> Addresses:
        if self._last and all(map(operator.is_, carried, self._last)):
            return self._last_addresses
        self._last = tuple(np.ascontiguousarray(part, np.float32) for part in carried)  # lives until it has been read
        return tuple(map(_address, self._last))

    def _next_state(self) -> tuple[NumpyState, Addresses]:
        """Arrays (B, D, H) that nobody has seen yet, and their addresses."""
        if self._handed_out == _STEPS_AHEAD:
            depth = len(self._n_features)
            shape = (_STEPS_AHEAD, self._carried, self._batch_size, depth, self._hidden_size)
            self._block, self._handed_out = np.empty(shape, dtype=np.float32), 0
            self._block_address = _address(self._block)
        step, part_size = self._block[self._handed_out], self._block.strides[1]
        first = self._block_address + self._handed_out * self._block.strides[0]
        self._handed_out += 1
        return tuple(step), tuple(range(first, first + self._carried * part_size, part_size))


def _loaded() -> ctypes.CDLL:
    if _library is None:
        raise RuntimeError("the compiled kernels are not there; ask `takes` first")
    return _library


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
