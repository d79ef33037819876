"""Linear recurrences over a block on a CPU, by the functions in ``scan.c``.

A step is three operations on a few numbers, of which torch, and NumPy too, do little but look at the arguments.

Axes: T time, B sequences, N numbers of a state; M traces at C decays each.
"""

from typing import Any

import torch
from torch import Tensor

from agents.kernels.aside import once_differentiable, plain
from agents.kernels.binding import Library

library = Library("scan")
available = library.available


def takes(decay: Tensor, inputs: Tensor) -> bool:
    """Whether the kernels can run this: built, on a CPU, nothing that follows torch's operations; of float32 with a
    decay for every step, or of complex64 with one for all steps."""
    if not inputs.is_complex():
        return available and plain(decay, inputs) and decay.shape == inputs.shape
    if inputs.dtype is not torch.complex64 or decay.dtype is not torch.complex64 or decay.dim() != 1:
        return False
    return available and plain(torch.view_as_real(decay), torch.view_as_real(inputs))


def scanned(decay: Tensor, inputs: Tensor, before: Tensor, starts: Tensor) -> Tensor:
    """As ``agents.memory.linear.scan`` says."""
    if not inputs.is_complex():
        states: Tensor = _Scan.apply("scan_real", decay, inputs, before, starts)  # type: ignore[no-untyped-call]
        return states
    parts = (torch.view_as_real(part) for part in (decay, inputs, before))
    return torch.view_as_complex(_Scan.apply("scan_complex", *parts, starts))  # type: ignore[no-untyped-call]


def takes_traces(decay: Tensor, inputs: Tensor) -> bool:
    """As ``takes``, for ``traces``."""
    return available and plain(decay, inputs)


def traces(decay: Tensor, inputs: Tensor, before: Tensor, starts: Tensor) -> Tensor:
    """Real inputs (T, B, M) scanned at complex decays (M, C, 2) from (B, M, C, 2), starts (T, B) -> (T, B, M, C, 2),
    real and imaginary parts: an input is not copied for each of its decays, nor its gradient taken from as many."""
    states: Tensor = _Scan.apply("scan_traces", decay, inputs, before, starts)  # type: ignore[no-untyped-call]
    return states


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, *given: Tensor) -> Tensor:
        decay, inputs, before, starts = (part.contiguous() for part in given)
        states = inputs.new_empty(*starts.shape, *before.shape[1:])
        library[name]((decay, inputs, before, starts, states))
        ctx.name, ctx.inputs_shape = name, inputs.shape
        ctx.save_for_backward(decay, before, starts, states)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_states: Tensor) -> tuple[Tensor | None, ...]:
        decay, before, starts, states = ctx.saved_tensors
        d_decay, d_inputs, d_before = map(states.new_empty, (decay.shape, ctx.inputs_shape, before.shape))
        arrays = (decay, before, starts, states, d_states.contiguous(), d_decay, d_inputs, d_before)
        library[f"{ctx.name}_backward"](arrays)
        return None, d_decay, d_inputs, d_before, None
