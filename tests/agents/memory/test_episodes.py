"""How a block is split at its episode starts."""

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.memory.episodes import at_segments, split, take_rows


def test_a_block_by_hand() -> None:
    # Two sequences of four steps; the first starts an episode at step 3, the second at steps 0 and 1.
    starts = torch.tensor([[False, True], [False, True], [False, False], [True, False]])
    segments = split(starts)
    # Segments, longest first: sequence 0 from step 0 (3 steps), 1 from 1 (3), 0 from 3 (1), 1 from 0 (1).
    assert segments.sequence.tolist() == [0, 1, 0, 1]
    assert segments.carried.tolist() == [True, False, False, False]
    assert segments.batch_sizes.tolist() == [4, 2, 2]
    assert segments.packed is not None
    assert [divmod(step, 2) for step in segments.packed.tolist()] == [
        *((0, 0), (1, 1), (3, 0), (0, 1)),  # (t, b) of the first step of every segment
        *((1, 0), (2, 1)),
        *((2, 0), (3, 1)),
    ]
    assert segments.padded.tolist() == [0, 1, 2, 3, 4, 5, 8, 9]  # of three steps of four segments


@pytest.mark.parametrize("first", [True, False])
def test_a_block_without_resets_inside_stays_as_it_is(first: bool) -> None:
    starts = torch.zeros(5, 3, dtype=torch.bool)
    starts[0] = first
    segments = split(starts)
    assert segments.packed is None
    assert segments.batch_sizes.tolist() == [3] * 5
    assert segments.carried.tolist() == [not first] * 3
    rows = torch.arange(15.0).view(15, 1)
    assert take_rows(rows, segments) is rows


@pytest.mark.parametrize("rate", [0.02, 0.2, 0.7, 1.0])
def test_packed_rows_follow_each_segment_step_by_step(rate: float) -> None:
    torch.manual_seed(0)
    n_steps, n_sequences = 40, 7
    starts = torch.rand(n_steps, n_sequences) < rate
    segments = split(starts)
    assert segments.packed is not None
    assert sorted(segments.packed.tolist()) == list(range(n_steps * n_sequences))
    sizes = segments.batch_sizes.tolist()
    assert sizes == sorted(sizes, reverse=True)
    time, sequence = np.divmod(segments.packed, n_sequences)
    for size, start in zip(sizes, np.cumsum(sizes) - sizes, strict=True):
        assert (sequence[start : start + size] == segments.sequence[:size]).all()
    step, segment = np.divmod(segments.padded, len(segments.sequence))
    assert len(set(segments.padded.tolist())) == len(segments.padded)
    assert (sequence == segments.sequence[segment]).all()
    for row in np.flatnonzero(step == 0):
        assert segments.carried[segment[row]] == (time[row] == 0 and not starts[0, sequence[row]])
        assert time[row] == 0 or starts[time[row], sequence[row]]
    first = time[: len(segments.sequence)]
    assert (time == first[segment] + step).all()
    assert not starts[time[step > 0], sequence[step > 0]].any()


def test_rows_come_back_where_they_were_and_so_do_gradients() -> None:
    torch.manual_seed(0)
    segments = split(torch.rand(9, 4) < 0.3)
    rows = torch.randn(36, 2, dtype=torch.float64, requires_grad=True)
    assert torch.equal(take_rows(take_rows(rows, segments), segments, back=True), rows)

    def there(x: Tensor) -> Tensor:
        return take_rows(x, segments)

    assert torch.autograd.gradcheck(there, rows)


def test_a_segment_takes_the_state_only_where_it_goes_on() -> None:
    starts = torch.tensor([[False, True], [True, False]])
    state = torch.tensor([[10.0], [torch.nan]])
    segments = split(starts)
    assert dict(zip(segments.carried.tolist(), at_segments(state, segments).tolist(), strict=True)) == {
        True: [10.0],
        False: [0.0],
    }


def test_every_step_of_a_segment_counts_once_whatever_the_block() -> None:
    for n_steps, n_sequences in ((1, 1), (1, 5), (5, 1), (200, 3)):
        for starts in (torch.zeros(n_steps, n_sequences), torch.ones(n_steps, n_sequences)):
            segments = split(starts.bool())
            assert segments.batch_sizes.sum() == n_steps * n_sequences
            assert len(segments.sequence) == segments.batch_sizes[0]
