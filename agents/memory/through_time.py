"""RNN, LSTM and GRU through packed pieces on a CPU: the whole way through time and back as one autograd node.

Axes: N steps in packed order, P pieces, L steps of the longest piece, n pieces alive at one step, F features in,
H hidden units; packed order as in ``agents.memory.episodes``.

PyTorch has a fused CPU kernel for LSTMs without resets only. A loop over time in autograd spends its time on
bookkeeping, not on arithmetic. Here everything that does not depend on the previous step is done for all N steps at
once (projecting the inputs, the derivative of every gate, the gradients of the weights), so that what is left in the
loop is one matrix product and a few elementwise products: products by torch, elementwise work by NumPy on the same
memory, since it has the least overhead for a call. The LSTM without resets inside the block takes torch's fused call.
"""

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.kernels.aside import once_differentiable
from agents.kernels.contract import Parameters
from agents.memory.episodes import Pieces, at_pieces, cut, take_rows

_sigmoid_derivative = torch.ops.aten.sigmoid_backward.grad_input
_tanh_derivative = torch.ops.aten.tanh_backward.grad_input


def lstm(features: Tensor, hidden: Tensor, cell: Tensor, episode_starts: Tensor, parameters: Parameters) -> Tensor:
    """(T, B, F), state before the first step (B, H) each, (T, B) -> (T, B, H)."""
    pieces = cut(episode_starts)
    before = at_pieces(hidden, pieces), at_pieces(cell, pieces)
    if pieces.packed is None and features.dtype == torch.float32:
        return _fused_lstm(features, before, parameters)
    rows = take_rows(features.flatten(0, 1), pieces)
    outputs = _LSTM.apply(rows, *before, *parameters, pieces)  # type: ignore[no-untyped-call]
    return take_rows(outputs, pieces, back=True).view(*episode_starts.shape, -1)


def gru(features: Tensor, hidden: Tensor, episode_starts: Tensor, parameters: Parameters) -> Tensor:
    """(T, B, F), state before the first step (B, H), (T, B) -> (T, B, H)."""
    pieces = cut(episode_starts)
    rows, before = take_rows(features.flatten(0, 1), pieces), at_pieces(hidden, pieces)
    outputs = _GRU.apply(rows, before, *parameters, pieces)  # type: ignore[no-untyped-call]
    return take_rows(outputs, pieces, back=True).view(*episode_starts.shape, -1)


def rnn(features: Tensor, hidden: Tensor, episode_starts: Tensor, parameters: Parameters, relu: bool) -> Tensor:
    """(T, B, F), state before the first step (B, H), (T, B) -> (T, B, H)."""
    pieces = cut(episode_starts)
    rows, before = take_rows(features.flatten(0, 1), pieces), at_pieces(hidden, pieces)
    outputs = _RNN.apply(rows, before, *parameters, pieces, relu)  # type: ignore[no-untyped-call]
    return take_rows(outputs, pieces, back=True).view(*episode_starts.shape, -1)


def _fused_lstm(features: Tensor, state: tuple[Tensor, Tensor], parameters: Parameters) -> Tensor:
    """Without resets inside the block torch has one fused call, for float32 LSTMs only."""
    weights = [parameter for parameter in parameters if parameter is not None]
    settings = (len(weights) == 4, 1, 0.0, torch.is_grad_enabled(), False, False)  # biases, layers, dropout, training
    output: Tensor = torch.lstm(features, [part.unsqueeze(0) for part in state], weights, *settings)[0]
    return output


class _LSTM(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        packed: Tensor,
        hidden: Tensor,
        cell: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
        pieces: Pieces,
    ) -> Tensor:
        n_units = w_hh.shape[1]
        sizes = pieces.sizes
        # tanh(x) = 2 sigmoid(2 x) - 1, so that one call serves all four gates (i, f, g, o).
        scale = w_hh.new_ones(4, n_units)
        scale[2] = 2
        scale = scale.view(-1)
        bias = None if b_ih is None or b_hh is None else (b_ih + b_hh) * scale
        projected = _project(packed, (w_ih.t() * scale), bias)
        w_re = w_hh.t() * scale
        gates = packed.new_empty(4, len(packed), n_units)
        hiddens, cells = _with_rows_before(hidden, len(packed)), _with_rows_before(cell, len(packed))
        squashed = packed.new_empty(len(packed), n_units)

        scratch, two, one = np.empty_like(hidden.numpy()), _scalar(2, hidden), _scalar(1, hidden)
        multiply, add, subtract, tanh, sigmoid = np.multiply, np.add, np.subtract, np.tanh, torch.sigmoid
        h_rows = hiddens.split_with_sizes([len(hidden), *sizes])
        c_rows = _steps(cells.numpy(), pieces, before=len(hidden))
        h_before, c_before = h_rows[0], c_rows[0]
        alive = len(hidden)
        for x, by_gate, activated, i, f, g, o, h, h_array, c, t in zip(
            projected.split_with_sizes(sizes),
            projected.view(-1, 4, n_units).transpose(0, 1).split_with_sizes(sizes, dim=1),
            gates.split_with_sizes(sizes, dim=1),
            *(_steps(gate, pieces) for gate in gates.numpy()),
            h_rows[1:],
            _steps(hiddens.numpy(), pieces, before=len(hidden))[1:],
            c_rows[1:],
            _steps(squashed.numpy(), pieces),
            strict=True,
        ):
            if len(c) < alive:
                alive = len(c)
                h_before, c_before, scratch = h_before[:alive], c_before[:alive], scratch[:alive]
            x.addmm_(h_before, w_re)
            sigmoid(by_gate, out=activated)
            multiply(g, two, g)
            subtract(g, one, g)
            multiply(f, c_before, c)
            multiply(i, g, scratch)
            add(c, scratch, c)
            tanh(c, t)
            multiply(o, t, h_array)
            h_before, c_before = h, c
        ctx.save_for_backward(packed, w_ih, w_hh, gates, hiddens, cells, squashed)
        ctx.pieces = pieces
        return hiddens[len(hidden) :]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        packed, w_ih, w_hh, gates, hiddens, cells, squashed = ctx.saved_tensors
        pieces: Pieces = ctx.pieces
        sizes = pieces.sizes
        n_steps, n_units = squashed.shape
        i, f, g, o = gates
        # Slots: what dh gives to dc, what dc hands on; then what dc gives to i, f, g, and dh to o.
        factors = squashed.new_empty(n_steps, 6, n_units)
        _tanh_derivative(o, squashed, grad_input=factors[:, 0])
        factors[:, 1] = f
        _sigmoid_derivative(g, i, grad_input=factors[:, 2])
        _sigmoid_derivative(_before(cells, pieces), f, grad_input=factors[:, 3])
        _tanh_derivative(i, g, grad_input=factors[:, 4])
        _sigmoid_derivative(squashed, o, grad_input=factors[:, 5])
        products = torch.empty_like(factors)  # the same slots: dc, dc handed on, d(i, f, g, o) before activation
        d_gates = products.view(n_steps, -1)[:, 2 * n_units :]
        d_hidden = d_output.clone(memory_format=torch.contiguous_format)

        multiply, add = np.multiply, np.add
        k, p = factors.numpy(), products.numpy()
        d_gates_after = d_gates[:0]
        handed_on = p[:0, 1]
        alive_after = 0
        for dh, dh_array, of_dh, from_dh, dc, dc_wide, of_dc, from_dc, next_handed_on, next_d_gates in zip(
            reversed(d_hidden.split_with_sizes(sizes)),
            *(
                reversed(_steps(array, pieces))
                for array in (
                    d_hidden.numpy()[:, None],
                    k[:, 0::5],
                    p[:, 0::5],
                    p[:, 0],
                    p[:, :1],
                    k[:, 1:5],
                    p[:, 1:5],
                    p[:, 1],
                )
            ),
            reversed(d_gates.split_with_sizes(sizes)),
            strict=True,
        ):
            if alive_after < len(dc):
                if alive_after:
                    dh[:alive_after].addmm_(d_gates_after, w_hh)
                multiply(dh_array, of_dh, from_dh)
                dc_alive = dc[:alive_after]
                add(dc_alive, handed_on, dc_alive)
                alive_after = len(dc)
            else:
                dh.addmm_(d_gates_after, w_hh)
                multiply(dh_array, of_dh, from_dh)
                add(dc, handed_on, dc)
            multiply(dc_wide, of_dc, from_dc)
            d_gates_after, handed_on = next_d_gates, next_handed_on
        needs_packed, needs_hidden, needs_cell, *_ = ctx.needs_input_grad
        d_bias = d_gates.sum(0) if ctx.needs_input_grad[5] else None
        return (
            d_gates @ w_ih if needs_packed else None,
            d_gates_after @ w_hh if needs_hidden else None,
            torch.from_numpy(handed_on) if needs_cell else None,
            d_gates.t() @ packed,
            d_gates.t() @ _before(hiddens, pieces),
            d_bias,
            d_bias,
            None,
        )


class _GRU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        packed: Tensor,
        hidden: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
        pieces: Pieces,
    ) -> Tensor:
        n_units = w_hh.shape[1]
        sizes = pieces.sizes
        # Columns: W_hn h, then r, z, then W_in x, so that both products write into consecutive columns.
        projected = packed.new_empty(len(packed), 4 * n_units)
        x_bias = (
            None if b_ih is None or b_hh is None else b_ih + torch.cat((b_hh[: 2 * n_units], b_hh.new_zeros(n_units)))
        )
        _project(packed, w_ih.t(), x_bias, out=projected[:, n_units:])
        projected[:, :n_units] = 0 if b_hh is None else b_hh[2 * n_units :]
        w_re = _n_first(w_hh, n_units).t().contiguous()
        gates = packed.new_empty(2, len(packed), n_units)
        new = packed.new_empty(len(packed), n_units)
        hiddens = _with_rows_before(hidden, len(packed))

        multiply, add, subtract, tanh, sigmoid = np.multiply, np.add, np.subtract, np.tanh, torch.sigmoid
        columns = projected.numpy()
        h_rows = hiddens.split_with_sizes([len(hidden), *sizes])
        h_arrays = _steps(hiddens.numpy(), pieces, before=len(hidden))
        h_before, h_array_before = h_rows[0], h_arrays[0]
        alive = len(hidden)
        for x, r_z, activated, r, z, h_n, x_n, n, h, h_array in zip(
            projected[:, : 3 * n_units].split_with_sizes(sizes),
            projected.view(-1, 4, n_units)[:, 1:3].transpose(0, 1).split_with_sizes(sizes, dim=1),
            gates.split_with_sizes(sizes, dim=1),
            *(_steps(gate, pieces) for gate in gates.numpy()),
            _steps(columns[:, :n_units], pieces),
            _steps(columns[:, 3 * n_units :], pieces),
            _steps(new.numpy(), pieces),
            h_rows[1:],
            h_arrays[1:],
            strict=True,
        ):
            if len(n) < alive:
                alive = len(n)
                h_before, h_array_before = h_before[:alive], h_array_before[:alive]
            x.addmm_(h_before, w_re)
            sigmoid(r_z, out=activated)
            multiply(r, h_n, n)
            add(n, x_n, n)
            tanh(n, n)
            subtract(h_array_before, n, h_array)
            multiply(h_array, z, h_array)
            add(h_array, n, h_array)
            h_before, h_array_before = h, h_array
        ctx.save_for_backward(packed, w_ih, w_hh, gates, new, hiddens, projected)
        ctx.pieces = pieces
        return hiddens[len(hidden) :]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        packed, w_ih, w_hh, (r, z), new, hiddens, projected = ctx.saved_tensors
        pieces: Pieces = ctx.pieces
        sizes = pieces.sizes
        n_steps, n_units = new.shape
        before = _before(hiddens, pieces)
        # Slots: what dh hands on beside the gates; what it gives to W_hn h, to r, z, and to W_in x.
        factors = new.new_empty(n_steps, 5, n_units)
        handed, to_hn, to_r, to_z, to_xn = factors.unbind(1)
        handed.copy_(z)
        _tanh_derivative(1 - z, new, grad_input=to_xn)
        torch.mul(to_xn, r, out=to_hn)
        _sigmoid_derivative(to_xn * projected[:, :n_units], r, grad_input=to_r)
        _sigmoid_derivative(before - new, z, grad_input=to_z)
        products = torch.empty_like(factors)
        d_hidden = d_output.clone(memory_format=torch.contiguous_format)
        d_recurrent = products.view(n_steps, -1)[:, n_units : 4 * n_units]
        d_inputs = products.view(n_steps, -1)[:, 2 * n_units :]
        w_re = _n_first(w_hh, n_units)

        multiply, add = np.multiply, np.add
        k, p, d = factors.numpy(), products.numpy(), d_hidden.numpy()
        handed_on, d_gates_after = p[:0, 0], d_recurrent[:0]
        for dh, dh_array, dh_wide, of_dh, from_dh, next_handed_on, next_d_gates in zip(
            reversed(d_hidden.split_with_sizes(sizes)),
            *(reversed(_steps(array, pieces)) for array in (d, d[:, None], k, p, p[:, 0])),
            reversed(d_recurrent.split_with_sizes(sizes)),
            strict=True,
        ):
            alive_after = len(handed_on)
            if alive_after < len(dh_array):
                dh, dh_array = dh[:alive_after], dh_array[:alive_after]
            if alive_after:
                add(dh_array, handed_on, dh_array)
                dh.addmm_(d_gates_after, w_re)
            multiply(dh_wide, of_dh, from_dh)
            handed_on, d_gates_after = next_handed_on, next_d_gates
        needs_packed, needs_hidden, *_ = ctx.needs_input_grad
        with_bias = ctx.needs_input_grad[4]
        return (
            d_inputs @ w_ih if needs_packed else None,
            torch.from_numpy(handed_on) + d_gates_after @ w_re if needs_hidden else None,
            d_inputs.t() @ packed,
            _n_last(d_recurrent.t() @ before, n_units),
            d_inputs.sum(0) if with_bias else None,
            _n_last(d_recurrent.sum(0), n_units) if with_bias else None,
            None,
        )


class _RNN(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        packed: Tensor,
        hidden: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
        pieces: Pieces,
        relu: bool,
    ) -> Tensor:
        sizes = pieces.sizes
        bias = None if b_ih is None or b_hh is None else b_ih + b_hh
        hiddens = packed.new_empty(len(hidden) + len(packed), hidden.shape[1])
        hiddens[: len(hidden)] = hidden
        _project(packed, w_ih.t(), bias, out=hiddens[len(hidden) :])
        w_re = w_hh.t().contiguous()
        h_rows = hiddens.split_with_sizes([len(hidden), *sizes])
        h_arrays = _steps(hiddens.numpy(), pieces, before=len(hidden))
        zero = _scalar(0, hidden)
        h_before = h_rows[0]
        for h, h_array in zip(h_rows[1:], h_arrays[1:], strict=True):
            if len(h_before) > len(h_array):
                h_before = h_before[: len(h_array)]
            h.addmm_(h_before, w_re)
            if relu:
                np.maximum(h_array, zero, out=h_array)
            else:
                np.tanh(h_array, h_array)
            h_before = h
        ctx.save_for_backward(packed, w_ih, w_hh, hiddens)
        ctx.pieces, ctx.relu = pieces, relu
        return hiddens[len(hidden) :]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        packed, w_ih, w_hh, hiddens = ctx.saved_tensors
        pieces: Pieces = ctx.pieces
        sizes = pieces.sizes
        output = hiddens[sizes[0] :]
        derivative = torch.empty_like(output)
        if ctx.relu:
            torch.gt(output, 0, out=derivative)
        else:
            _tanh_derivative(output.new_ones(()).expand_as(output), output, grad_input=derivative)
        d_hidden = d_output.clone(memory_format=torch.contiguous_format)
        d_after = d_hidden[:0]
        for dh, dh_array, factor in zip(
            reversed(d_hidden.split_with_sizes(sizes)),
            reversed(_steps(d_hidden.numpy(), pieces)),
            reversed(_steps(derivative.numpy(), pieces)),
            strict=True,
        ):
            if len(d_after):
                (dh if len(d_after) == len(dh_array) else dh[: len(d_after)]).addmm_(d_after, w_hh)
            np.multiply(dh_array, factor, dh_array)
            d_after = dh
        needs_packed, needs_hidden, *_ = ctx.needs_input_grad
        d_bias = d_hidden.sum(0) if ctx.needs_input_grad[4] else None
        return (
            d_hidden @ w_ih if needs_packed else None,
            d_after @ w_hh if needs_hidden else None,
            d_hidden.t() @ packed,
            d_hidden.t() @ _before(hiddens, pieces),
            d_bias,
            d_bias,
            None,
            None,
        )


def _project(packed: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    if bias is None:
        return torch.mm(packed, weight, out=out)
    return torch.addmm(bias, packed, weight, out=out)


def _with_rows_before(state: Tensor, n_rows: int) -> Tensor:
    """Room for ``n_rows`` rows, and before them the state."""
    rows = state.new_empty(len(state) + n_rows, state.shape[1])
    rows[: len(state)] = state
    return rows


def _before(rows: Tensor, pieces: Pieces) -> Tensor:
    """(P + N, H), the state before each piece and after each step -> (N, H), what each step started from."""
    if pieces.packed is None:
        return rows[: len(rows) - pieces.sizes[0]]
    return rows.index_select(0, torch.from_numpy(pieces.before))


def _steps(array: NDArray[Any], pieces: Pieces, before: int = 0) -> list[NDArray[Any]]:
    """A view of each step's rows; of the ``before`` first rows too if there are any."""
    bounds = pieces.bounds
    if not before:
        return [array[start:end] for start, end in itertools.pairwise(bounds)]
    return [
        array[:before],
        *(array[start + before : end + before] for start, end in itertools.pairwise(bounds)),
    ]


def _n_first(of_gates: Tensor, n_units: int) -> Tensor:
    """Rows of r, z, n -> n, r, z."""
    return torch.cat((of_gates[2 * n_units :], of_gates[: 2 * n_units]))


def _n_last(of_gates: Tensor, n_units: int) -> Tensor:
    """Rows of n, r, z -> r, z, n."""
    return torch.cat((of_gates[n_units:], of_gates[:n_units]))


def _scalar(value: float, like: Tensor) -> NDArray[Any]:
    """A constant of the same precision; as an array NumPy need not convert it at every call."""
    return torch.tensor(value, dtype=like.dtype).numpy()
