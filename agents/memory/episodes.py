"""Cuts a (T, B) block at its episode starts into pieces, and lays their steps out without padding.

Axes: T time, B sequences, N = T * B steps, P pieces, L steps of the longest piece.

A piece is what one sequence holds of one episode: no reset lies inside it. Pieces are sorted by length, longest first,
and their steps are *packed*: the first step of every piece, then the second step of those that have one, and so on.
So the pieces alive at the k-th step are always the first ones, each step is a block of consecutive rows, and none of
them is padding: torch's ``PackedSequence`` layout, here taken straight from the resets.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Pieces:
    """Where the steps of a (T, B) block go, as ``cut`` found it."""

    batch_sizes: Indices
    """(L,) pieces alive at each step, never growing: the rows of each block of the packed layout."""
    sequence: Indices
    """(P,) the sequence each piece is from, longest piece first."""
    carried: NDArray[np.bool_]
    """(P,) true where a piece goes on from the state before the block, false where it starts from the initial one."""
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
    def before(self) -> Indices:
        """(N,) where each packed row's predecessor is among the P rows before the pieces followed by the packed rows."""
        alive_before = np.concatenate((self.batch_sizes[:1], self.batch_sizes[:-1]))
        return np.arange(self.batch_sizes[0], self.offsets[-1] + self.batch_sizes[0]) - np.repeat(
            alive_before, self.batch_sizes
        )

    @cached_property
    def sizes(self) -> list[int]:
        """``batch_sizes`` as Python numbers."""
        sizes: list[int] = self.batch_sizes.tolist()
        return sizes

    @cached_property
    def offsets_list(self) -> list[int]:
        """``offsets`` as Python numbers."""
        offsets: list[int] = self.offsets.tolist()
        return offsets

    @cached_property
    def piece(self) -> Indices:
        """(N,) the piece of each packed row."""
        return np.arange(self.offsets[-1]) - np.repeat(self.offsets[:-1], self.batch_sizes)

    @cached_property
    def offsets(self) -> Indices:
        """(L + 1,) first packed row of each step's block, and N."""
        return np.concatenate(([0], np.cumsum(self.batch_sizes)))


def cut(episode_starts: NDArray[np.bool_]) -> Pieces:
    """The pieces of a block from its (T, B) episode starts."""
    n_steps, n_sequences = episode_starts.shape
    if not episode_starts[1:].any():
        return Pieces(
            batch_sizes=np.full(n_steps, n_sequences),
            sequence=np.arange(n_sequences),
            carried=~episode_starts[0],
            packed=None,
        )
    starts = episode_starts.T.copy()  # (B, T): the steps of a piece are consecutive
    carried_sequence = ~starts[:, 0]
    starts[:, 0] = True
    first = np.flatnonzero(starts)
    lengths = np.diff(first, append=starts.size)
    order = np.argsort(-lengths, kind="stable")
    first, lengths = first[order], lengths[order]
    sequence, time = np.divmod(first, n_steps)

    batch_sizes = len(first) - np.cumsum(np.bincount(lengths))[:-1]
    step = np.repeat(np.arange(len(batch_sizes)), batch_sizes)
    offsets = np.cumsum(batch_sizes) - batch_sizes
    piece = np.arange(starts.size) - offsets[step]
    return Pieces(
        batch_sizes=batch_sizes,
        sequence=sequence,
        carried=carried_sequence[sequence] & (time == 0),
        packed=(time[piece] + step) * n_sequences + sequence[piece],
    )


def take_rows(rows: Tensor, index: Indices | None, inverse: Indices | None) -> Tensor:
    """Permutes the rows of a matrix; None for the identity. The inverse spares the gradient a scattered sum."""
    if index is None or inverse is None:
        return rows
    result: Tensor = _TakeRows.apply(rows, torch.from_numpy(index), torch.from_numpy(inverse))  # type: ignore
    return result


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, index, inverse):  # type: ignore
        ctx.inverse = inverse
        return rows.index_select(0, index.to(rows.device))

    @staticmethod
    def backward(ctx, gradient):  # type: ignore
        return gradient.index_select(0, ctx.inverse.to(gradient.device)), None, None
