"""RNN, LSTM and GRU over a block of episodes on a CPU, by the kernels in ``kernels.c``.

The products over all steps at once (input projections before, weight gradients after) are torch's; the loop over time
between them is compiled. So is the acting step. Nothing is padded, and resets cost nothing. The kernels are built when
the package is installed, where there is a C compiler; without them ``available`` is false and torch's kernels serve.

Axes: T time, B sequences (or environments), F features in, H hidden units, G gates of a cell, D layers.
"""

import ctypes
import importlib.machinery
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from agents.memory.core import Array, NumpyState, NumpyStep
from agents.memory.kernels import Parameters
from agents.memory.numpy_step import gru_side_by_side, side_by_side

_VERSION = 2  # of the functions' arguments, as in kernels.c


def _load() -> ctypes.CDLL | None:
    """The library built for this processor, if there is one."""
    folder = Path(__file__).parent
    names = ["_kernels_avx2", "_kernels"] if torch.backends.cpu.get_cpu_capability() != "DEFAULT" else ["_kernels"]
    for name in names:
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            if (path := folder / (name + suffix)).exists():
                library = ctypes.CDLL(str(path))
                if _version_of(library) == _VERSION:
                    return _declared(library)
                warnings.warn(f"{path.name} was built from other sources and is not used: install again", stacklevel=2)
    return None


def _version_of(library: ctypes.CDLL) -> int:
    return int(library.kernels_version()) if hasattr(library, "kernels_version") else 1


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


_library = _load()
available = _library is not None


def takes(features: Tensor, hidden_size: int) -> bool:
    """Whether the kernels can run this: built, float32 on a CPU, and a hidden size of a multiple of 8."""
    return available and features.device.type == "cpu" and features.dtype == torch.float32 and hidden_size % 8 == 0


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


class _Lstm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        hidden: Tensor,
        cell: Tensor,
        episode_starts: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
    ) -> Tensor:
        inputs = _project(features, w_ih, _sum(b_ih, b_hh))
        hidden, cell, w_hh, episode_starts = (part.contiguous() for part in (hidden, cell, w_hh, episode_starts))
        outputs, cells, tanh_cells, before = (_like(inputs, w_hh.shape[1]) for _ in range(4))
        gates = torch.empty_like(inputs)
        _call(
            "lstm_forward",
            outputs,
            inputs,
            w_hh,
            hidden,
            cell,
            episode_starts,
            outputs,
            gates,
            cells,
            tanh_cells,
            before,
        )
        ctx.save_for_backward(features, cell, episode_starts, w_ih, w_hh, gates, cells, tanh_cells, before)
        ctx.has_bias = b_ih is not None
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor) -> tuple[Tensor | None, ...]:
        features, cell, episode_starts, w_ih, w_hh, gates, cells, tanh_cells, before = ctx.saved_tensors
        d_inputs, d_hidden, d_cell = torch.empty_like(gates), torch.zeros_like(cell), torch.zeros_like(cell)
        d_outputs = d_outputs.contiguous()
        _call(
            "lstm_backward", d_outputs,
            d_outputs, w_hh, cell, episode_starts, gates, cells, tanh_cells, d_inputs, d_hidden, d_cell,
        )  # fmt: skip
        d_features = _back_through_inputs(d_inputs, w_ih) if ctx.needs_input_grad[0] else None
        d_w_ih, d_bias = _weight_gradients(d_inputs, features, ctx.has_bias)
        return d_features, d_hidden, d_cell, None, d_w_ih, _weight_gradient(d_inputs, before), d_bias, d_bias


class _Gru(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        hidden: Tensor,
        episode_starts: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
    ) -> Tensor:
        size = w_hh.shape[1]
        bias_n = w_hh.new_zeros(size) if b_hh is None else b_hh[2 * size :].contiguous()
        outside = None if b_hh is None else torch.cat((b_hh[: 2 * size], torch.zeros_like(bias_n)))
        inputs = _project(features, w_ih, _sum(b_ih, outside))
        hidden, w_hh, episode_starts = (part.contiguous() for part in (hidden, w_hh, episode_starts))
        outputs, q, before = (_like(inputs, size) for _ in range(3))
        gates = torch.empty_like(inputs)
        _call("gru_forward", outputs, inputs, w_hh, bias_n, hidden, episode_starts, outputs, gates, q, before)
        ctx.save_for_backward(features, episode_starts, w_ih, w_hh, gates, q, before)
        ctx.has_bias = b_ih is not None
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor) -> tuple[Tensor | None, ...]:
        features, episode_starts, w_ih, w_hh, gates, q, before = ctx.saved_tensors
        d_inputs, d_sums, d_hidden = torch.empty_like(gates), torch.empty_like(gates), torch.zeros_like(before[0])
        d_outputs = d_outputs.contiguous()
        _call("gru_backward", d_outputs, d_outputs, w_hh, episode_starts, gates, q, before, d_inputs, d_sums, d_hidden)
        d_features = _back_through_inputs(d_inputs, w_ih) if ctx.needs_input_grad[0] else None
        d_w_ih, d_b_ih = _weight_gradients(d_inputs, features, ctx.has_bias)
        d_w_hh, d_b_hh = _weight_gradients(d_sums, before, ctx.has_bias)
        return d_features, d_hidden, None, d_w_ih, d_w_hh, d_b_ih, d_b_hh


class _Rnn(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        hidden: Tensor,
        episode_starts: Tensor,
        relu: bool,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
    ) -> Tensor:
        inputs = _project(features, w_ih, _sum(b_ih, b_hh))
        hidden, w_hh, episode_starts = (part.contiguous() for part in (hidden, w_hh, episode_starts))
        outputs, before = torch.empty_like(inputs), torch.empty_like(inputs)
        _call("rnn_forward", outputs, inputs, w_hh, hidden, episode_starts, relu, outputs, before)
        ctx.save_for_backward(features, episode_starts, w_ih, w_hh, outputs, before)
        ctx.relu, ctx.has_bias = relu, b_ih is not None
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor) -> tuple[Tensor | None, ...]:
        features, episode_starts, w_ih, w_hh, outputs, before = ctx.saved_tensors
        d_inputs, d_hidden = torch.empty_like(outputs), torch.zeros_like(outputs[0])
        d_outputs = d_outputs.contiguous()
        _call("rnn_backward", d_outputs, d_outputs, w_hh, episode_starts, ctx.relu, outputs, d_inputs, d_hidden)
        d_features = _back_through_inputs(d_inputs, w_ih) if ctx.needs_input_grad[0] else None
        d_w_ih, d_bias = _weight_gradients(d_inputs, features, ctx.has_bias)
        return d_features, d_hidden, None, None, d_w_ih, _weight_gradient(d_inputs, before), d_bias, d_bias


def _call(name: str, block: Tensor, *arguments: Tensor | bool) -> None:
    """Runs a kernel on a block (T, B, H). The tensors must outlive the call, be contiguous, and on the CPU."""
    kernel = getattr(_library, name)
    sizes = [ctypes.c_long(size) for size in block.shape]
    given = [ctypes.c_int(part) if isinstance(part, bool) else ctypes.c_void_p(part.data_ptr()) for part in arguments]
    parts = _worthwhile_threads(*block.shape)
    failed: list[int] = []

    def run(part: int) -> None:
        if kernel(*sizes, ctypes.c_long(part), ctypes.c_long(parts), *given):
            failed.append(part)

    others = [threading.Thread(target=run, args=(part,)) for part in range(1, parts)]
    for thread in others:
        thread.start()
    run(0)
    for thread in others:
        thread.join()
    if failed:
        raise MemoryError(f"{name} ran out of memory for a block of {tuple(block.shape)}")


def _worthwhile_threads(n_steps: int, n_sequences: int, hidden_size: int) -> int:
    """As many of torch's threads as have a millisecond or so of work and at least two sequences each."""
    products = n_steps * n_sequences * hidden_size * hidden_size
    return max(1, min(torch.get_num_threads(), n_sequences // 2, products // 8_000_000))


def _project(features: Tensor, w_ih: Tensor, bias: Tensor | None) -> Tensor:
    """(T, B, F) -> (T, B, GH), all steps in one product."""
    return torch.nn.functional.linear(features, w_ih, bias).contiguous()


def _like(inputs: Tensor, size: int) -> Tensor:
    return inputs.new_empty((*inputs.shape[:2], size))


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return first if second is None else second if first is None else first + second


def _back_through_inputs(d_inputs: Tensor, w_ih: Tensor) -> Tensor:
    return d_inputs @ w_ih


def _weight_gradient(d_sums: Tensor, inputs: Tensor) -> Tensor:
    """The gradient of weights (GH, F) from that of their products (T, B, GH) and what they multiplied (T, B, F)."""
    return d_sums.flatten(0, 1).t() @ inputs.flatten(0, 1)


def _weight_gradients(d_sums: Tensor, inputs: Tensor, has_bias: bool) -> tuple[Tensor, Tensor | None]:
    return _weight_gradient(d_sums, inputs), d_sums.sum((0, 1)) if has_bias else None


def lstm_step(layers: Sequence[Parameters]) -> NumpyStep:
    """The acting step of stacked LSTM layers, on the parameters as they are now."""
    library = _loaded()
    prepared = [(*_packed(*side_by_side(*layer)), layer[0].shape[1]) for layer in layers]
    size = layers[0][1].shape[1]
    stride = len(layers) * size

    def through(layer: int, x: Array, state: NumpyState, after: NumpyState, starts: int) -> int:
        packed, bias, n_features = prepared[layer]
        at = 4 * layer * size
        hidden, cell, new_hidden, new_cell = (_address(part) + at for part in (*state, *after))
        return int(
            library.lstm_step(
                len(x), n_features, size, _address(x), x.strides[0] // 4, hidden, cell, stride, starts,
                _address(packed), _address(bias), new_hidden, new_cell,
            )
        )  # fmt: skip

    return _stacked(through, len(layers), 2)


def gru_step(layers: Sequence[Parameters]) -> NumpyStep:
    """The acting step of stacked GRU layers, on the parameters as they are now."""
    library = _loaded()
    prepared = [(*_packed(*gru_side_by_side(*layer)), layer[0].shape[1]) for layer in layers]
    size = layers[0][1].shape[1]
    stride = len(layers) * size

    def through(layer: int, x: Array, state: NumpyState, after: NumpyState, starts: int) -> int:
        packed, bias, n_features = prepared[layer]
        at = 4 * layer * size
        return int(
            library.gru_step(
                len(x), n_features, size, _address(x), x.strides[0] // 4, _address(state[0]) + at, stride, starts,
                _address(packed), _address(bias), _address(after[0]) + at,
            )
        )  # fmt: skip

    return _stacked(through, len(layers), 1)


def rnn_step(layers: Sequence[Parameters], relu: bool) -> NumpyStep:
    """The acting step of stacked layers of the plain network, on the parameters as they are now."""
    library = _loaded()
    prepared = [(*_packed(*side_by_side(*layer)), layer[0].shape[1]) for layer in layers]
    size = layers[0][1].shape[1]
    stride = len(layers) * size

    def through(layer: int, x: Array, state: NumpyState, after: NumpyState, starts: int) -> int:
        packed, bias, n_features = prepared[layer]
        at = 4 * layer * size
        return int(
            library.rnn_step(
                len(x), n_features, size, _address(x), x.strides[0] // 4, _address(state[0]) + at, stride, starts,
                _address(packed), _address(bias), relu, _address(after[0]) + at,
            )
        )  # fmt: skip

    return _stacked(through, len(layers), 1)


def _stacked(through: Callable[[int, Array, NumpyState, NumpyState, int], int], depth: int, carried: int) -> NumpyStep:
    """A step through layers on top of each other, with dropout masks between them if the state has a part for them."""

    def step(features: Array, state: NumpyState, episode_starts: NDArray[np.bool_]) -> tuple[Array, NumpyState]:
        before, masks = tuple(np.ascontiguousarray(part, np.float32) for part in state[:carried]), state[carried:]
        after = tuple(np.empty_like(part) for part in before)
        starts = np.ascontiguousarray(episode_starts, np.bool_)
        output = np.ascontiguousarray(features, np.float32)
        for layer in range(depth):
            if layer and masks:
                output = output * masks[0][:, layer - 1]
            if through(layer, output, before, after, _address(starts)):
                raise MemoryError(f"a step of {len(features)} environments ran out of memory")
            output = after[0][:, layer]
        return output, (*after, *masks)

    return step


def _packed(weights: Tensor, bias: Tensor) -> tuple[Array, Array]:
    """Weights (N, K), packed for the step's one product, and the bias (N)."""
    rows, columns = weights.shape
    packed = np.empty(_loaded().packed_size(columns, rows), dtype=np.float32)
    _loaded().pack(weights.data_ptr(), columns, rows, 1, columns, _address(packed))
    return packed, bias.numpy()


def _loaded() -> ctypes.CDLL:
    if _library is None:
        raise RuntimeError("the compiled kernels are not there; ask `takes` first")
    return _library


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
