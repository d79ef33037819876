"""Splits a (T, B) block at its episode starts into segments, and lays their steps out without padding.

Axes: T time, B sequences, N = T * B steps, P segments, L steps of the longest segment.

A segment is what one sequence holds of one episode: no reset lies inside it. Segments are sorted by length, longest
first, and their steps are *packed*: the first step of every segment, then the second step of those that have one, and
so on. So the segments alive at the k-th step are always the first ones, each step is a block of consecutive rows, and
none of them is padding: torch's ``PackedSequence`` layout, here taken straight from the resets.
"""

import functools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.kernels.devices import to_device

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Segments:
    """Where the steps of a (T, B) block go, as ``split`` found it."""

    batch_sizes: Indices
    """(L,) segments alive at each step, never growing: the rows of each block of the packed layout."""
    sequence: Indices
    """(P,) the sequence each segment is from, longest segment first."""
    carried: NDArray[np.bool_]
    """(P,) true where a segment goes on from the state before the block, false where it starts from the initial one."""
    packed: Indices | None
    """(N,) step ``t * B + b`` of each packed row; None where nothing moves (no resets but at the first step)."""

    @cached_property
    def unpacked(self) -> Indices | None:
        """(N,) packed row of each step ``t * B + b``: the inverse of ``packed``."""
        if self.packed is None:
            return None
        inverse = np.empty_like(self.packed)
        inverse[self.packed] = np.arange(len(self.packed))
        return inverse

    @cached_property
    def padded(self) -> Indices:
        """(N,) place ``k * P + p`` of each packed row, where all segments were as long as the longest."""
        ends, n_segments = np.cumsum(self.batch_sizes), len(self.sequence)
        first_of_step = np.arange(len(ends)) * n_segments - (ends - self.batch_sizes)
        places: Indices = np.arange(ends[-1]) + np.repeat(first_of_step, self.batch_sizes)
        return places

    @cached_property
    def starting_row(self) -> Indices:
        """(P,) the row that each segment starts from, of the states of B sequences and, last, the initial one."""
        return np.where(self.carried, self.sequence, self.sequence.max() + 1)

    def on(self, device: torch.device, name: str) -> Tensor:
        """One of the arrays as a tensor on a device, where it is copied once, without waiting."""
        if (device, name) not in self._copies:
            self._copies[device, name] = to_device(getattr(self, name), device)
        return self._copies[device, name]

    @cached_property
    def _copies(self) -> dict[tuple[torch.device, str], Tensor]:
        return {}


def split(episode_starts: Tensor) -> Segments:
    """The segments of a block from its (T, B) episode starts, boolean, on the CPU.

    The last few are kept: layers, and the memories of actor and critic, go through the same block.
    """
    n_steps, n_sequences = episode_starts.shape
    return _split(episode_starts.numpy().tobytes(), n_steps, n_sequences)


def at_segments(state: Tensor, segments: Segments) -> Tensor:
    """The state before a block (B, ...) -> the state before each of its segments (P, ...).

    A segment that starts an episode starts from zeros; or, of a state (B + 1, ...), from the last row.
    """
    if len(state) > segments.sequence.max() + 1:
        return state.index_select(0, segments.on(state.device, "starting_row"))
    sequence, carried = segments.on(state.device, "sequence"), segments.on(state.device, "carried")
    return state.index_select(0, sequence).masked_fill(~carried.view(-1, *[1] * (state.dim() - 1)), 0.0)


def take_rows(rows: Tensor, segments: Segments, back: bool = False) -> Tensor:
    """Rows in the order of the block (N, ...) -> packed, or ``back``. The gradient takes the way back."""
    if segments.packed is None or segments.unpacked is None:
        return rows
    there, again = segments.on(rows.device, "packed"), segments.on(rows.device, "unpacked")
    order = (again, there) if back else (there, again)
    result: Tensor = _TakeRows.apply(rows, *order)  # type: ignore[no-untyped-call]
    return result


@functools.lru_cache(maxsize=8)
def _split(starts_bytes: bytes, n_steps: int, n_sequences: int) -> Segments:
    episode_starts = np.frombuffer(starts_bytes, dtype=np.bool_).reshape(n_steps, n_sequences)
    if not episode_starts[1:].any():
        return Segments(
            batch_sizes=np.full(n_steps, n_sequences),
            sequence=np.arange(n_sequences),
            carried=~episode_starts[0],
            packed=None,
        )
    starts = episode_starts.T.copy()  # (B, T): the steps of a segment are consecutive
    carried_sequence = ~starts[:, 0]
    starts[:, 0] = True
    first = np.flatnonzero(starts)
    lengths = np.diff(first, append=starts.size)
    order = np.argsort(-lengths, kind="stable")
    first, lengths = first[order], lengths[order]
    sequence, time = np.divmod(first, n_steps)

    batch_sizes = len(first) - np.cumsum(np.bincount(lengths))[:-1]
    step = np.repeat(np.arange(len(batch_sizes)), batch_sizes)
    segment = np.arange(starts.size) - (np.cumsum(batch_sizes) - batch_sizes)[step]
    return Segments(
        batch_sizes=batch_sizes,
        sequence=sequence,
        carried=carried_sequence[sequence] & (time == 0),
        packed=(time[segment] + step) * n_sequences + sequence[segment],
    )


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.order = back, there
        return rows.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _TakeRows.apply(gradient, *ctx.order), None, None  # type: ignore[no-untyped-call]
