"""The rollout buffer: what goes in comes out once, in order, with the state that belongs to it.

Axes: T steps, B environments, L steps of a sequence, S sequences of a minibatch. Step t of environment b is identified
by the number ``100 * t + b`` in every field.
"""

from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from agents.checks.observations import map_observations
from agents.memory import State
from agents.policy.heads import make_action_head
from agents.rollout.buffer import SequenceBatch, SequenceRolloutBuffer, number_of_minibatches
from tests.agents.rollout.test_returns import slow_advantages
from tests.tolerance import close

SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-np.inf, np.inf, (2,)),
    "box of float64": spaces.Box(-np.inf, np.inf, (2, 3), dtype=np.float64),
    "image": spaces.Box(0, 255, (3, 4, 5), dtype=np.uint8),
    "uint16": spaces.Box(0, 65535, (2,), dtype=np.uint16),
    "discrete": spaces.Discrete(10_000),
    "multi discrete": spaces.MultiDiscrete([10_000, 5]),
    "multi binary": spaces.MultiBinary(16),
    "dict": spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Box(0, 255, (1, 2, 2), dtype=np.uint8)),
    "nested dict": spaces.Dict(
        a=spaces.Discrete(9_999), b=spaces.Dict(c=spaces.MultiBinary((2, 2)), d=spaces.Dict(e=spaces.Box(-1, 1, (1,))))
    ),
}


def number(t: int, n_envs: int) -> Any:
    return 100 * t + np.arange(n_envs)


def identifiable(space: spaces.Space[Any], t: int, n_envs: int) -> Any:
    """(B, ...): observations of a space that tell their step and environment, as far as the dtype can hold."""
    if isinstance(space, spaces.Dict):
        return {key: identifiable(part, t, n_envs) for key, part in space.spaces.items()}
    numbers = number(t, n_envs)
    if isinstance(space, spaces.MultiBinary):  # the bits of the number
        bits = (numbers[:, None] >> np.arange(int(np.prod(space.shape)))) & 1
        return bits.reshape(n_envs, *space.shape).astype(np.int8)
    shape = tuple(space.shape or ())
    filled = np.broadcast_to(numbers.reshape(-1, *[1] * len(shape)), (n_envs, *shape))
    return (filled % 251 if space.dtype == np.uint8 else filled).astype(space.dtype)


def make_buffer(
    n_steps: int,
    n_envs: int,
    sequence_length: int | None = None,
    space: spaces.Space[Any] = SPACES["box"],
    **kwargs: Any,
) -> SequenceRolloutBuffer:
    state: State = (torch.zeros(n_envs, 2, 3), torch.zeros(n_envs, 4))
    return SequenceRolloutBuffer(
        n_steps,
        space,
        make_action_head(spaces.Discrete(5)),
        state,
        n_envs=n_envs,
        sequence_length=sequence_length,
        rng=np.random.default_rng(0),
        **kwargs,
    )


def state_before(t: int, n_envs: int) -> tuple[Any, ...]:
    """The state of every environment before step t."""
    numbers = number(t, n_envs).astype(np.float32)
    return (
        np.broadcast_to(numbers[:, None, None], (n_envs, 2, 3)),
        np.broadcast_to(numbers[:, None], (n_envs, 4)) + 0.5,
    )


def add(
    buffer: Any, observations: Any, actions: Any, rewards: Any, starts: Any, values: Any, log_probs: Any, state: Any
) -> None:
    """One step of all environments."""
    buffer.add_observations(observations, starts, state)
    buffer.add_actions(actions, values, log_probs)
    buffer.add_rewards(rewards)


def fill(
    buffer: SequenceRolloutBuffer,
    space: spaces.Space[Any] = SPACES["box"],
    tensors: bool = False,
    close: bool = True,
    n_steps: int | None = None,
    resets: Collection[tuple[int, int]] = (),
) -> SequenceRolloutBuffer:
    """Every field the number of its step, times something of its own; ``resets`` are reset steps (t, b)."""
    n = buffer.n_envs

    def given(array: Any) -> Any:
        return torch.from_numpy(np.array(array)) if tensors else array

    for t in range(buffer.buffer_size if n_steps is None else n_steps):
        numbers = number(t, n)
        add(
            buffer,
            map_observations(given, identifiable(space, t, n)),
            given(numbers),
            given(numbers * 3.0),
            given(numbers % 7 == 0),
            given(numbers * 2.0),
            given(numbers * -1.0),
            tuple(given(part) for part in state_before(t, n)[: len(buffer.states)]),
        )
        for _, b in (reset for reset in resets if reset[0] == t):
            buffer.mark_reset_step([b])
    if close:
        buffer.compute_returns_and_advantage(torch.ones(n), np.zeros(n, dtype=bool))
    return buffer


def numbers_of(batch: SequenceBatch) -> Tensor:
    """(L, S), which step of which environment each step of a minibatch is."""
    return batch.actions


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize(
    ("n_envs", "n_steps", "sequence_length", "batch_size"),
    [
        (3, 7, None, 5),
        (3, 7, 7, 14),
        (3, 7, 1, 5),
        (4, 8, 2, 6),
        (4, 8, 4, None),
        (5, 6, 3, 1),
        (2, 4, 2, 1000),
        (1, 1, 1, 1),
        (1, 6, 2, 4),
        (7, 1, 1, 2),
    ],
)
def test_every_step_comes_exactly_once_in_whole_sequences_with_all_that_belongs_to_it(
    n_envs: int, n_steps: int, sequence_length: int | None, batch_size: int | None, tensors: bool
) -> None:
    buffer = fill(make_buffer(n_steps, n_envs, sequence_length), tensors=tensors)
    length = sequence_length or n_steps
    advantages, returns = buffer.advantages, buffer.returns
    seen: list[int] = []
    for batch in buffer.get(batch_size):
        numbers = numbers_of(batch)
        assert len(numbers) == length
        for sequence, first in zip(numbers.T, numbers[0], strict=True):
            assert first // 100 % length == 0
            assert sequence.tolist() == [int(first) + 100 * k for k in range(length)]
        steps, environments = numbers // 100, numbers % 100
        assert torch.equal(batch.observations, numbers[..., None].expand(-1, -1, 2).float())
        assert torch.equal(batch.old_values, 2.0 * numbers)
        assert torch.equal(batch.old_log_probs, -1.0 * numbers)
        assert torch.equal(batch.episode_starts, numbers % 7 == 0)
        assert torch.equal(batch.advantages, advantages[steps, environments])
        assert torch.equal(batch.returns, returns[steps, environments])
        hidden, other = batch.state
        assert torch.equal(hidden, numbers[0][:, None, None].expand(-1, 2, 3).float())
        assert torch.equal(other, numbers[0][:, None].expand(-1, 4) + 0.5)
        assert batch.valid is None
        assert torch.equal(batch.steps(numbers), numbers.flatten())
        seen += numbers.flatten().tolist()
    assert sorted(seen) == sorted(100 * t + b for t in range(n_steps) for b in range(n_envs))


@pytest.mark.parametrize("sequence_length", [None, 2])
@pytest.mark.parametrize("name", list(SPACES))
def test_observations_of_every_space_come_back_as_they_went_in(name: str, sequence_length: int | None) -> None:
    space = SPACES[name]
    buffer = fill(make_buffer(4, 3, sequence_length, space), space)
    n_seen = 0
    for batch in buffer.get(4):
        for t in range(numbers_of(batch).shape[0]):
            for s, found in enumerate(numbers_of(batch)[t].tolist()):
                one = identifiable(space, found // 100, 3)
                _same(map_observations(lambda part, t=t, s=s: part[t, s], batch.observations), one, found % 100)
                n_seen += 1
    assert n_seen == 12


def _same(got: Any, given: Any, environment: int) -> None:
    if isinstance(given, dict):
        assert got.keys() == given.keys()
        for key in given:
            _same(got[key], given[key], environment)
    else:
        assert np.array_equal(np.asarray(got), given[environment])


def test_observations_keep_their_type_but_that_float64_becomes_what_networks_read() -> None:
    types = {
        name: map_observations(lambda part: part.dtype, make_buffer(2, 1, None, space).observations)
        for name, space in SPACES.items()
    }
    assert types["box"] == torch.float32
    assert types["box of float64"] == torch.float32
    assert types["image"] == torch.uint8
    assert types["discrete"] == torch.int64
    assert types["multi binary"] == torch.int8
    assert types["dict"] == {"a": torch.float32, "b": torch.uint8}


def test_spaces_without_arrays_are_refused() -> None:
    for space in (spaces.Text(3), spaces.Dict(a=spaces.Text(3)), spaces.Tuple((spaces.Discrete(2),))):
        with pytest.raises(NotImplementedError, match="MultiDiscrete, MultiBinary and a Dict of these are"):
            make_buffer(2, 1, None, space)


def test_over_many_epochs_every_pair_of_sequences_meets_in_a_minibatch_equally_often() -> None:
    buffer = fill(make_buffer(4, 3, 2))  # 6 sequences, 3 minibatches of 2: a pair meets in 1 of 5 epochs
    pairs: Counter[tuple[int, ...]] = Counter()
    for _ in range(300):
        pairs.update(tuple(sorted(numbers_of(batch)[0].tolist())) for batch in buffer.get(4))
    assert len(pairs) == 15
    expected = 300 * 3 / 15
    assert sum((count - expected) ** 2 / expected for count in pairs.values()) < 36.1  # 0.1 % of fair draws exceed it


def test_the_same_random_source_shuffles_alike_and_otherwise_in_every_epoch() -> None:
    first, second = (fill(make_buffer(8, 4, 2)) for _ in range(2))
    one, other, later = ([numbers_of(batch).tolist() for batch in buffer.get(4)] for buffer in (first, second, first))
    assert one == other
    assert one != later


@pytest.mark.parametrize("batch_size", [None, 1, 5, 8, 1000])
def test_reading_changes_nothing(batch_size: int | None) -> None:
    buffer = fill(make_buffer(8, 3, 4))
    names = ("observations", "actions", "rewards", "values", "log_probs", "episode_starts", "advantages", "returns")
    before = {name: getattr(buffer, name).clone() for name in names}
    states = [part.clone() for part in buffer.states]
    for _ in range(2):
        for _batch in buffer.get(batch_size):
            pass
    assert all(torch.equal(getattr(buffer, name), before[name]) for name in names)
    assert all(torch.equal(part, state) for part, state in zip(buffer.states, states, strict=True))


@pytest.mark.parametrize(
    ("n_sequences", "length", "batch_size", "sizes"),
    [(6, 4, 8, [2, 2, 2]), (7, 4, 8, [2, 2, 2, 1]), (7, 4, 12, [3, 2, 2]), (5, 4, 3, [1] * 5), (5, 4, 99, [5])],
)
def test_minibatches_have_one_size_as_far_as_the_numbers_allow(
    n_sequences: int, length: int, batch_size: int, sizes: list[int]
) -> None:
    buffer = fill(make_buffer(length, n_sequences))
    assert [batch.actions.shape[1] for batch in buffer.get(batch_size)] == sizes
    assert number_of_minibatches(n_sequences, length, batch_size) == len(sizes)


@pytest.mark.parametrize("batch_size", [None, 5, 8])
@pytest.mark.parametrize(("length", "burn_in"), [(2, 1), (2, 2), (4, 1), (4, 3), (4, 4), (1, 1)])
def test_a_sequence_comes_with_the_steps_before_it_and_the_state_before_them(
    length: int, burn_in: int, batch_size: int | None
) -> None:
    space = SPACES["dict"]
    buffer = fill(make_buffer(8, 3, length, space, burn_in=burn_in), space)
    seen: list[int] = []
    for batch in buffer.get(batch_size):
        first = numbers_of(batch)[0]
        seen += numbers_of(batch).flatten().tolist()
        later = first >= 100
        kept_at = torch.where(later, first - 100 * burn_in, first)
        assert torch.equal(batch.state[0], kept_at[:, None, None].expand(-1, 2, 3).float())
        assert torch.equal(batch.state[1], kept_at[:, None].expand(-1, 4) + 0.5)
        if batch.burn_in is None:
            assert not later.any()
            continue
        observations, starts, sequences = batch.burn_in
        assert torch.equal(sequences, later.nonzero()[:, 0])
        before = first[sequences] - 100 * torch.arange(burn_in, 0, -1)[:, None]  # (K, R)
        assert torch.equal(starts, before % 7 == 0)
        for k, r in np.ndindex(*before.shape):
            one = identifiable(space, int(before[k, r]) // 100, 3)
            _same(map_observations(lambda part, k=k, r=r: part[k, r], observations), one, int(before[k, r]) % 100)
    assert sorted(seen) == sorted(100 * t + b for t in range(8) for b in range(3))


@pytest.mark.parametrize(
    ("sequence_length", "burn_in", "message"),
    [
        (4, -1, r"burn_in \(-1\) must be at least 0"),
        (4, 5, r"burn_in \(5\) must be at most sequence_length \(4\); use 4, or longer sequences"),
        (None, 2, r"burn_in \(2\) takes the steps before a sequence, and here .* the whole rollout of 8 steps"),
        (8, 2, "set a sequence_length below it, or burn_in=0"),
    ],
)
def test_a_burn_in_that_no_sequence_can_have_is_refused(
    sequence_length: int | None, burn_in: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_buffer(8, 3, sequence_length, burn_in=burn_in)


@pytest.mark.parametrize("burn_in", [0, 3])
def test_recomputed_states_go_where_those_kept_were(burn_in: int) -> None:
    buffer = fill(make_buffer(12, 3, 4, burn_in=burn_in))

    def states_along(observations: Any, state: State, episode_starts: Tensor, at: Any) -> State:
        assert observations is buffer.observations
        assert episode_starts is buffer.episode_starts
        assert torch.equal(state[1], torch.from_numpy(state_before(0, 3)[1]).float())
        rows = [state_before(100 * t, 3) for t in at]  # unlike those kept
        return tuple(torch.from_numpy(np.stack(parts)).float() for parts in zip(*rows, strict=True))

    buffer.recompute_states(states_along)
    for batch in buffer.get(8):
        first = numbers_of(batch)[0]
        kept_at = torch.where(first >= 100, first // 100 - burn_in, 0)
        assert torch.equal(batch.state[1][:, 0], 10_000.0 * kept_at + first % 100 + 0.5)


@pytest.mark.parametrize("sequence_length", [1, 2, 4, 8, None])
def test_the_memory_held_for_states_grows_with_the_number_of_sequences_and_not_with_that_of_steps(
    sequence_length: int | None,
) -> None:
    n_sequences = 8 // (sequence_length or 8)
    for burn_in in {0, sequence_length or 0} if n_sequences > 1 else {0}:
        buffer = make_buffer(8, 3, sequence_length, burn_in=burn_in)
        assert [tuple(part.shape) for part in buffer.states] == [(n_sequences, 3, 2, 3), (n_sequences, 3, 4)]


def test_a_memory_without_state_needs_none() -> None:
    buffer = SequenceRolloutBuffer(
        4, SPACES["box"], make_action_head(spaces.Discrete(5)), (), n_envs=2, sequence_length=2
    )
    assert all(batch.state == () for batch in fill(buffer).get(2))


@pytest.mark.parametrize(("sequence_length", "batch_size"), [(None, None), (None, 4), (2, 4), (1, 1)])
def test_steps_that_are_no_transitions_are_left_out_and_all_others_come_once(
    sequence_length: int | None, batch_size: int | None
) -> None:
    resets = {(1, 0), (1, 2), (3, 1)}
    buffer = fill(make_buffer(4, 3, sequence_length), resets=resets)
    seen: list[int] = []
    for batch in buffer.get(batch_size):
        assert batch.valid is not None
        assert batch.valid.any()  # else there would be nothing to learn from, and a mean over nothing
        seen += batch.steps(numbers_of(batch)).tolist()
    assert sorted(seen) == sorted(100 * t + b for t in range(4) for b in range(3) if (t, b) not in resets)
    buffer.reset()
    assert next(fill(buffer).get(None)).valid is None  # in the next rollout all are transitions


def test_closing_a_rollout_computes_its_advantages_and_returns() -> None:
    buffer = fill(make_buffer(8, 3, 4, gamma=0.9, gae_lambda=0.8), close=False)
    last_values, dones = torch.tensor([1.0, 2.0, 3.0]), np.array([False, True, False])
    buffer.compute_returns_and_advantage(last_values, dones)
    expected = slow_advantages(
        buffer.rewards, buffer.values, buffer.episode_starts, last_values, torch.from_numpy(dones), 0.9, 0.8
    )
    assert close(buffer.advantages.double(), expected)
    assert torch.equal(buffer.returns, buffer.advantages + buffer.values)


@pytest.mark.parametrize(
    ("n_envs", "n_steps", "sequence_length", "batch_size"),
    [(3, 8, 4, 8), (3, 8, None, 8), (4, 6, 2, None), (5, 7, 7, 20), (7, 1, 1, 2), (1, 6, 2, 4)],
)
def test_what_is_recomputed_for_a_sequence_comes_with_it_in_the_minibatch_it_was_computed_in(
    n_envs: int, n_steps: int, sequence_length: int | None, batch_size: int | None
) -> None:
    buffer = fill(make_buffer(n_steps, n_envs, sequence_length), close=False)
    evaluated: list[Tensor] = []

    def evaluate(batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        evaluated.append(numbers_of(batch))
        return 5.0 * numbers_of(batch), -7.0 * numbers_of(batch)

    buffer.recompute(evaluate, batch_size)
    buffer.compute_returns_and_advantage(torch.ones(n_envs), np.zeros(n_envs, dtype=bool))
    epoch, later = list(buffer.get(batch_size)), list(buffer.get(batch_size))
    assert all(torch.equal(numbers_of(batch), numbers) for batch, numbers in zip(epoch, evaluated, strict=True))
    for batch in epoch + later:
        assert torch.equal(batch.old_values, 5.0 * numbers_of(batch))
        assert torch.equal(batch.old_log_probs, -7.0 * numbers_of(batch))
    if len(epoch) > 2:
        assert not all(torch.equal(numbers_of(a), numbers_of(b)) for a, b in zip(epoch, later, strict=True))
    assert torch.equal(buffer.returns, buffer.advantages + buffer.values)


def test_recomputing_leaves_the_shuffles_as_they_would_have_been() -> None:
    def epochs(recomputes: bool) -> list[list[int]]:
        buffer, seen = make_buffer(8, 4, 2), []
        for _ in range(2):
            buffer.reset()
            fill(buffer, close=False)
            if recomputes:
                buffer.recompute(lambda batch: (batch.old_values, batch.old_log_probs), 4)
            buffer.compute_returns_and_advantage(torch.ones(4), np.zeros(4, dtype=bool))
            seen += [numbers_of(batch).flatten().tolist() for _ in range(2) for batch in buffer.get(4)]
        return seen

    assert epochs(recomputes=True) == epochs(recomputes=False)


@pytest.mark.parametrize(("sequence_length", "batch_size"), [(None, None), (None, 4), (2, 4)])
def test_what_comes_from_the_host_stays_there_whatever_the_training_device(
    sequence_length: int | None, batch_size: int | None
) -> None:
    """Torch's meta device stands for any that is not the CPU; it holds no numbers."""
    buffer = fill(make_buffer(4, 3, sequence_length, device="meta"), close=False)
    seen: list[Any] = []

    def evaluate(batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        on_device = (batch.observations, batch.actions, batch.old_values, batch.advantages, *batch.state)
        assert {part.device.type for part in on_device} == {"meta"}
        assert batch.episode_starts.device.type == "cpu"
        assert batch.episode_starts.shape == batch.actions.shape
        seen.append(int(batch.episode_starts.sum()))
        return batch.old_values, batch.old_log_probs

    buffer.recompute(evaluate, batch_size)
    assert buffer.rewards.device.type == buffer.valid.device.type == "cpu"
    assert sum(seen) == sum((100 * t + b) % 7 == 0 for t in range(4) for b in range(3))


def test_what_is_added_is_copied() -> None:
    buffer = make_buffer(2, 3)
    observations, actions, rewards = np.ones((3, 2), dtype=np.float32), np.ones(3, dtype=np.int64), np.ones(3)
    starts, values, log_probs = np.ones(3, dtype=bool), np.ones(3), np.ones(3)
    state = tuple(np.ones_like(part) for part in state_before(0, 3))
    add(buffer, observations, actions, rewards, starts, values, log_probs, state)
    for array in (observations, actions, rewards, starts, values, log_probs, *state):
        array[...] = 0
    kept = (buffer.observations, buffer.actions, buffer.rewards, buffer.episode_starts, buffer.values, buffer.log_probs)
    assert all((field[0] == 1).all() for field in (*kept, *buffer.states))


def test_a_full_buffer_takes_no_more() -> None:
    with pytest.raises(RuntimeError, match=r"holds 4 steps and is full; call reset\(\) first"):
        fill(fill(make_buffer(4, 3)))


@pytest.mark.parametrize("n_added", [0, 3])
def test_a_buffer_that_is_not_full_cannot_be_read_or_recomputed(n_added: int) -> None:
    buffer = fill(make_buffer(4, 3), n_steps=n_added, close=False)
    assert buffer.size() == n_added
    with pytest.raises(RuntimeError, match=f"holds {n_added} of 4 steps; collect the rest before reading"):
        next(buffer.get(4))
    with pytest.raises(RuntimeError, match=f"holds {n_added} of 4 steps"):
        buffer.recompute(lambda batch: (batch.old_values, batch.old_log_probs))


def test_a_rollout_that_is_not_closed_cannot_be_read() -> None:
    buffer = fill(make_buffer(4, 3))
    buffer.reset()
    fill(buffer, close=False)
    with pytest.raises(RuntimeError, match="compute_returns_and_advantage"):
        next(buffer.get(4))


def test_a_state_with_other_parts_is_refused() -> None:
    numbers = number(0, 3)
    with pytest.raises(ValueError, match="shorter"):
        add(make_buffer(4, 3), identifiable(SPACES["box"], 0, 3), numbers, numbers, numbers < 0, numbers, numbers, ())


@pytest.mark.parametrize(
    ("n_steps", "sequence_length", "advice"),
    [(100, 32, "use n_steps 96 or 128"), (7, 5, "use n_steps 5 or 10"), (4, 8, "use n_steps 8"), (4, 0, "at least 1")],
)
def test_sequences_must_tile_the_rollout(n_steps: int, sequence_length: int, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        make_buffer(n_steps, 2, sequence_length)
