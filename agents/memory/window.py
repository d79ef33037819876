"""A window of past steps carried as state, and which of its slots each step of a block may attend to.

Axes: T time, B sequences (or environments), M slots, K = M + T positions of a block and the window
before it, C steps of a chunk, H units; ``...`` stands for layers.

State: the window (B, ..., M, H), its slots in the order of time, the newest last, and the count (B, 1) of the slots,
the last ones, that are of the episode; what lies in the others is never looked at. A step attends to the slots of its
own episode and to itself, M + 1 positions at most. An episode's length is nowhere bounded.

Within a block the same holds for all steps at once: position k of the window followed by the block is seen by step t
where t <= k <= t + M and both are of one episode. Steps are taken in chunks of about M, so that a block costs memory in
proportion to T * M.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.memory.core import Array

_SMALLEST_CHUNK = 32  # steps; below, a chunk costs more in calls than it saves in work


class Chunk(NamedTuple):
    """C steps of a block, and the M + C positions that one or the other of them sees."""

    steps: slice
    positions: slice
    hidden: Tensor
    """(B, C, M + C) true where a step does not see a position."""


def visible(count: Tensor, n_slots: int) -> Tensor:
    """(B, 1) slots that count -> (B, M) which they are."""
    return torch.arange(n_slots, device=count.device) >= n_slots - count.round()


def push(window: Tensor, count: Tensor, newest: Tensor) -> tuple[Tensor, Tensor]:
    """The window (B, ..., M, H) without its oldest slot and with a newest (B, ..., H), and the count (B, 1) after."""
    pushed = torch.cat((window[..., 1:, :], newest.unsqueeze(-2)), dim=-2)
    return pushed, (count.round().clamp(min=0) + 1).clamp(max=window.shape[-2])


def chunks(count: Tensor, episode_starts: Tensor, n_slots: int) -> list[Chunk]:
    """The chunks of a block from the count before it (B, 1) and its episode starts (T, B)."""
    n_steps = len(episode_starts)
    episode = episode_starts.cumsum(0).t()  # (B, T): 0 goes on from the window
    of_slots = torch.where(visible(count, n_slots), 0, -1)
    episode_at = torch.cat((of_slots, episode), dim=1)  # (B, K)
    size = -(-n_steps // max(1, -(-n_steps // max(n_slots, _SMALLEST_CHUNK))))
    found = []
    for first in range(0, n_steps, size):
        last = min(first + size, n_steps)
        others = episode[:, first:last, None] != episode_at[:, None, first : n_slots + last]
        band = _outside_band(last - first, n_slots, count.device)
        found.append(Chunk(slice(first, last), slice(first, n_slots + last), others | band))
    return found


def by_position(by_slot: Tensor) -> Tensor:
    """(..., C, M + 1) what each step has for its slots, the oldest first -> (..., C, M + C) for the chunk's positions.

    Row by row one further to the right; 0 where a step has no slot.
    """
    n_steps, n_slots = by_slot.shape[-2], by_slot.shape[-1] - 1
    padded = torch.nn.functional.pad(by_slot, (0, n_steps))
    rows = padded.flatten(-2)[..., : n_steps * (n_slots + n_steps)]
    return rows.reshape(*by_slot.shape[:-2], n_steps, n_slots + n_steps)


def by_slot(by_position: Tensor, n_slots: int) -> Tensor:
    """(..., C, M + C) -> (..., C, M + 1): what ``by_position`` spread out."""
    n_steps = by_position.shape[-2]
    padded = torch.nn.functional.pad(by_position.flatten(-2), (0, n_steps))
    return padded.view(*by_position.shape[:-2], n_steps, n_slots + n_steps + 1)[..., : n_slots + 1]


def finite(x: Tensor) -> Tensor:
    """Zeros for what is not finite: a weight of 0 would not silence it. Who attends to it still knows by the score."""
    return torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)


def _outside_band(n_steps: int, n_slots: int, device: torch.device) -> Tensor:
    """(C, M + C) true where a position is after the step, or more than M before it."""
    step, position = torch.arange(n_steps, device=device), torch.arange(n_slots + n_steps, device=device)
    distance = position - step.unsqueeze(-1)
    return (distance < 0) | (distance > n_slots)


class SlidingWindow:
    """The window of an acting loop in NumPy, without moving it at every step.

    States handed out must stay as they are. So slots are written one after the other into a long array, each once, and
    a window is a view of M of them; only when the array is full, or a window comes that was not handed out last, is
    the window copied.

    Args:
        initial, initial_count: those of an episode's start, (1, ..., M, H) and (1, 1).
    """

    def __init__(self, initial: Tensor, initial_count: Tensor) -> None:
        self._initial, self._initial_count = initial.numpy(), initial_count.numpy()
        self._n_slots = n_slots = initial.shape[-2]
        slots, counts = np.arange(n_slots + 1), np.arange(n_slots + 1)[:, None]
        self._masks = np.where(slots >= n_slots - counts, 0.0, -np.inf).astype(np.float32)  # row by count
        self._room: Array = np.empty((0, 0, 0), dtype=np.float32)
        self._next, self._end = 0, 2 * n_slots + 8
        self._after: tuple[Array, ...] = ()

    def open(self, window: Array, count: Array, episode_starts: NDArray[np.bool_]) -> tuple[Array, Array | None]:
        """The window (B, ..., M, H) and its count (B, 1) -> slots (B, ..., M + 1, H), the last to be written into, and
        what to add to their scores, (B, M + 1): 0, or minus infinity; None where each is seen."""
        n_slots = self._n_slots
        restarted = episode_starts if np.count_nonzero(episode_starts) else None
        if restarted is not None:
            count = np.where(restarted[:, None], self._initial_count, count)
        if not self._after or window is not self._after[0] or restarted is not None or self._next == self._end:
            self._room = np.empty((*window.shape[:-2], self._end, window.shape[-1]), dtype=np.float32)
            self._room[..., :n_slots, :] = window
            if restarted is not None:
                self._room[restarted, ..., :n_slots, :] = self._initial
            self._next = n_slots
        slots: Array = self._room[..., self._next - n_slots : self._next + 1, :]
        self._next += 1
        count = np.clip(np.rint(count), np.float32(0), np.float32(n_slots))  # as visible() and push() read it
        self._after = slots[..., 1:, :], np.minimum(count + np.float32(1), np.float32(n_slots))
        return slots, None if count.min() == n_slots else self._masks[count[:, 0].astype(np.intp)]

    def state_after(self) -> tuple[Array, ...]:
        """The window and its count after the step that ``open`` was called for."""
        return self._after


def numpy_softmax(scores: Array) -> Array:
    """Over the last axis, in place."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= np.add.reduce(scores, axis=-1, keepdims=True)
    return scores
