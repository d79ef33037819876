"""RNN, LSTM and GRU over the segments of a block on a CPU without a compiler: the whole way through time as one node of
the graph.

A loop over time in autograd spends its time on bookkeeping, not on arithmetic. Here everything that does not depend on
the previous step is done for all N steps at once (projecting the inputs, the derivative of every gate, the gradients of
the weights), so that what is left in the loop is one matrix product and a few elementwise ones: products by torch,
elementwise work by NumPy on the same memory, since it has the least overhead for a call. It takes torch's packed call
1.6 to 4.8 times as long. The LSTM without resets inside the block has a fused kernel of torch's.

Axes: N steps in packed order, P segments, n segments alive at one step, F features in, H hidden units; packed order as
in ``agents.memory.episodes``.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.kernels.aside import once_differentiable
from agents.kernels.contract import Kind, Parameters, State
from agents.memory import packed
from agents.memory.episodes import Segments, at_segments, split, take_rows
from agents.memory.numpy_step import cell_of, halved


def unroll(kind: Kind, features: Tensor, state: State, episode_starts: Tensor, parameters: Parameters) -> Tensor:
    """As ``agents.kernels.contract`` says."""
    segments = split(episode_starts)
    if kind == "lstm" and segments.packed is None and features.dtype == torch.float32:
        return packed.unroll(kind, features, state, episode_starts, parameters)
    before = [at_segments(part, segments) for part in state]
    rows = take_rows(features.flatten(0, 1), segments)
    outputs = _ThroughTime.apply(kind, segments, rows, *parameters, *before)  # type: ignore[no-untyped-call]
    return take_rows(outputs, segments, back=True).view(*episode_starts.shape, -1)


class _ThroughTime(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kind: Kind,
        segments: Segments,
        rows: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
        *before: Tensor,
    ) -> Tensor:
        (n_rows, n_features), size, sizes = rows.shape, w_hh.shape[1], segments.sizes
        weights, bias = halved(kind, (w_ih, w_hh, b_ih, b_hh))
        sums = torch.addmm(bias, rows, weights[:, :n_features].t())
        first = size if kind == "gru" else 0  # what n has of the features stays apart
        of_hidden = weights[first:, n_features:].t().contiguous()
        states = [torch.cat((part, part.new_empty(n_rows, size))) for part in before]
        hiddens = states[0].split_with_sizes([sizes[0], *sizes])
        arrays = list(zip(*(_steps(part.numpy(), [sizes[0], *sizes]) for part in states), strict=True))
        cell = cell_of(kind, size)
        for recurrent, array, hidden, of_step, after in zip(
            sums[:, first:].split_with_sizes(sizes),
            _steps(sums.numpy(), sizes),
            hiddens[:-1],
            arrays[:-1],
            arrays[1:],
            strict=True,
        ):
            alive = len(array)
            recurrent.addmm_(hidden[:alive], of_hidden)
            cell(array, tuple([part[:alive] for part in of_step]), after)
        ctx.save_for_backward(rows, w_ih, w_hh, sums, *states)
        ctx.kind, ctx.segments = kind, segments
        return states[0][sizes[0] :]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor) -> tuple[Tensor | None, ...]:
        rows, w_ih, w_hh, sums, *states = ctx.saved_tensors
        kind, sizes, size = ctx.kind, ctx.segments.sizes, w_hh.shape[1]
        before = [_before(part, ctx.segments) for part in states]
        factors = _factors(kind, sums.view(len(rows), -1, size), before, [part[sizes[0] :] for part in states])
        products, d_hidden = torch.empty_like(factors), d_outputs.clone(memory_format=torch.contiguous_format)
        first = {"lstm": 2, "gru": 2}.get(kind, 0)  # slot of what goes through W_hh
        d_sums = products[:, first:].flatten(1)
        back = _back_lstm if kind == "lstm" else _back
        back(factors.numpy(), products.numpy(), d_hidden, d_sums, w_hh, sizes)

        d_state = [d_sums[: sizes[0]] @ w_hh]
        d_inputs = d_sums
        if kind == "lstm":
            d_state.append(products[: sizes[0], 1])
        elif kind == "gru":
            d_state[0] += products[: sizes[0], 0]
            r_z_n = products[:, [2, 3, 1]]
            d_inputs = r_z_n.flatten(1)
        with_bias = ctx.needs_input_grad[5]
        return (
            None,
            None,
            d_inputs @ w_ih if ctx.needs_input_grad[2] else None,
            d_inputs.t() @ rows,
            d_sums.t() @ before[0],
            d_inputs.sum(0) if with_bias else None,
            d_sums.sum(0) if with_bias else None,
            *d_state,
        )


def _factors(kind: Kind, gates: Tensor, before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """What the gradient of a step's output is multiplied with, for all steps: (N, slots, H).

    Slots of an LSTM: of dh to dc, of dc to dc before; of dc to i, f, g and of dh to o. Of a GRU: of dh to dh before,
    to n of the features, r, z, n of the state. Of an RNN: to its sum.
    """
    if kind == "lstm":
        i, f, g, o = gates.unbind(1)
        squashed = after[1].tanh()
        through_cell = o * (1 - squashed * squashed)
        to_f, to_o = before[1] * f * (1 - f), squashed * o * (1 - o)
        return torch.stack((through_cell, f, g * i * (1 - i), to_f, i * (1 - g * g), to_o), dim=1)
    if kind == "gru":
        n, r, z, of_hidden = gates.unbind(1)
        to_n = (1 - z) * (1 - n * n)
        return torch.stack((z, to_n, to_n * of_hidden * r * (1 - r), (before[0] - n) * z * (1 - z), to_n * r), dim=1)
    slope = (after[0] > 0).to(gates) if kind == "rnn_relu" else 1 - after[0] * after[0]
    return slope.unsqueeze(1)


def _back(
    factors: NDArray[Any],
    products: NDArray[Any],
    d_hidden: Tensor,
    d_sums: Tensor,
    w_hh: Tensor,
    sizes: list[int],
) -> None:
    """From the last step to the first: writes products of ``d_hidden``, to which it adds what comes from later steps,
    and factors. ``d_sums`` are those of them that go through W_hh."""
    d_sums_after, handed_after = d_sums[:0], products[:0, 0]
    hands_on = factors.shape[1] > 1
    for (dh, of_sums), (array, k, p) in zip(
        _reversed_steps(sizes, d_hidden, d_sums),
        _reversed_steps(sizes, d_hidden.numpy(), factors, products),
        strict=True,
    ):
        if alive := len(d_sums_after):
            dh[:alive].addmm_(d_sums_after, w_hh)
            if hands_on:
                array[:alive] += handed_after
        np.multiply(array[:, None], k, out=p)
        d_sums_after, handed_after = of_sums, p[:, 0]


def _back_lstm(
    factors: NDArray[Any],
    products: NDArray[Any],
    d_hidden: Tensor,
    d_sums: Tensor,
    w_hh: Tensor,
    sizes: list[int],
) -> None:
    """The same of an LSTM, whose gradient goes through the cell."""
    d_sums_after, handed_after = d_sums[:0], products[:0, 1]
    for (dh, of_sums), (array, k, p) in zip(
        _reversed_steps(sizes, d_hidden, d_sums),
        _reversed_steps(sizes, d_hidden.numpy(), factors, products),
        strict=True,
    ):
        alive = len(d_sums_after)
        if alive:
            dh[:alive].addmm_(d_sums_after, w_hh)
        np.multiply(array[:, None], k[:, ::5], out=p[:, ::5])
        d_cell = p[:, :1]
        d_cell[:alive, 0] += handed_after
        np.multiply(d_cell, k[:, 1:5], out=p[:, 1:5])
        d_sums_after, handed_after = of_sums, p[:, 1]


def _before(rows: Tensor, segments: Segments) -> Tensor:
    """(P + N, H), the state before each segment and after each step -> (N, H), what each step started from."""
    if segments.packed is None:
        return rows[: len(rows) - segments.sizes[0]]
    return rows.index_select(0, torch.from_numpy(segments.before))


def _steps(array: Any, sizes: Sequence[int]) -> list[Any]:
    """A view of each step's rows, of a tensor or an array."""
    ends = itertools.accumulate(sizes)
    return [array[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _reversed_steps(sizes: list[int], *arrays: Any) -> Iterator[tuple[Any, ...]]:
    return zip(*(reversed(_steps(array, sizes)) for array in arrays), strict=True)
