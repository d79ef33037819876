"""Refreshed and burnt-in states: those of the weights as they are, found on the way that the rollout took.

Axes: T steps of a rollout, B environments, C kept states an environment, K steps of burn-in.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents import RecurrentA2C, RecurrentPPO
from agents.checks.observations import map_observations
from agents.memory import State
from agents.rollout.buffer import SequenceBatch
from tests.agents.probe_envs import (
    ACTION_SPACES,
    ALL_CRITIC_MEMORIES,
    ALL_MEMORIES,
    Clock,
    MaskedClock,
    NextStepReset,
    Watched,
    clocks,
    equal_weights,
    small_ppo,
    states_equal,
    vectorized,
)
from tests.pairs import each

BOTH: dict[str, Any] = dict(refresh_states=True, burn_in=3)


class Followed(Watched):
    """Compares the states of every epoch with those that single steps of the policy pass through."""

    n_epochs_seen = 0
    furthest_moved = 0.0

    def _train_epoch(self, history: Any, auxiliary: Any) -> bool:
        buffer = self.rollout_buffer
        batches = [buffer._batch(chosen) for chosen in buffer._of_an_epoch(self.batch_size, ahead=True)]
        if not history:
            self._as_collected = tuple(part.clone() for part in buffer.states)
        if self.refresh_states or not history:
            assert states_equal(buffer.states, self._by_steps())
        for batch in batches:
            assert states_equal(self.state_before(batch), self._burnt_in_by_steps(batch))
        moved = [(one - other).abs().max() for one, other in zip(buffer.states, self._as_collected, strict=True)]
        self.furthest_moved = max([self.furthest_moved, *map(float, moved)])
        self.n_epochs_seen += 1
        return super()._train_epoch(history, auxiliary)

    def _by_steps(self) -> State:
        """(C, B, ...) from the rollout's first state on, the initial one where an episode starts."""
        buffer, kept = self.rollout_buffer, {}
        state = tuple(part[0] for part in buffer.states)
        for t in range(buffer.buffer_size):
            kept[t] = self.policy.reset_state(state, buffer.episode_starts[t])
            state = self._step(buffer.observations, t, state, buffer.episode_starts)
        return tuple(torch.stack(parts) for parts in zip(*(kept[t] for t in buffer.kept_at), strict=True))

    def _burnt_in_by_steps(self, batch: SequenceBatch) -> State:
        """(S, ...) from the kept state on, one sequence after the other."""
        state = tuple(part.clone() for part in batch.state)
        if batch.burn_in is None:
            return state
        for r, s in enumerate(batch.burn_in.sequences.tolist()):
            alone = tuple(part[s : s + 1] for part in state)
            observations = map_observations(lambda part, r=r: part[:, r : r + 1], batch.burn_in.observations)
            starts = batch.burn_in.episode_starts[:, r : r + 1]
            for k in range(self.burn_in):
                alone = self._step(observations, k, alone, starts)
            for part, after in zip(state, alone, strict=True):
                part[s] = after[0]
        return state

    @torch.no_grad()
    def _step(self, observations: Any, t: int, state: State, starts: Tensor) -> State:
        here = map_observations(lambda part: part[t], observations)
        after: State = self.policy(here, state, starts[t], deterministic=True)[3]
        return after


def followed(env: Any, *args: Any, n_rollouts: int = 2, **kwargs: Any) -> Any:
    model = small_ppo(env, *args, cls=Followed, **{"n_steps": 12, "n_epochs": 3, **BOTH, **kwargs})
    model.learn(n_rollouts * model.n_steps * model.n_envs)
    assert model.n_epochs_seen == n_rollouts * model.n_epochs
    assert model.furthest <= 1e-5
    return model


@pytest.mark.parametrize(("memory", "critic_memory"), each(ALL_MEMORIES, ALL_CRITIC_MEMORIES))
def test_states_are_as_collected_at_first_and_later_those_of_the_weights_as_they_are(
    memory: str, critic_memory: str
) -> None:
    model = followed(clocks(), memory, critic_memory)
    has_state = bool(model.policy.initial_state(1))
    assert (model.furthest_moved > 1e-3) == has_state  # else old states would pass for new ones


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(burn_in=0),
        dict(refresh_states=False),
        dict(refresh_states=False, burn_in=4),
        dict(burn_in=4, batch_size=None),
        dict(sequence_length=1, burn_in=1, batch_size=5),
        dict(sequence_length=6, batch_size=2),
    ],
)
def test_each_setting_alone_and_at_its_bounds(kwargs: dict[str, Any]) -> None:
    model = followed(clocks(), "gru", "separate", **kwargs)
    assert (model.furthest_moved > 1e-3) == model.refresh_states


@pytest.mark.parametrize("memory", ["lstm", "attention"])
def test_a_learned_initial_state_is_the_present_one(memory: str) -> None:
    followed(clocks(), memory, policy_kwargs=dict(memory_kwargs=dict(hidden_size=8, learned_initial_state=True)))


def test_dropout_masks_are_those_of_the_rollout() -> None:
    followed(clocks(), "lstm", policy_kwargs=dict(memory_kwargs=dict(hidden_size=8, num_layers=2, dropout=0.5)))


def test_dict_observations_with_masked_actions_come_with_their_burn_in() -> None:
    env = vectorized(lambda i: MaskedClock(i, ACTION_SPACES["discrete"]), 3)
    followed(env, "gru", policy_kwargs=dict(action_mask="mask"))


def test_steps_that_only_reset_an_environment_are_gone_through_as_they_were_in_the_rollout() -> None:
    followed(NextStepReset([Clock(i, ACTION_SPACES["discrete"]) for i in range(3)]), "lstm")


def test_under_autocast_the_first_ratio_is_one_with_burn_in() -> None:
    model = small_ppo(clocks(), "gru", "separate", cls=Watched, autocast="bfloat16", n_epochs=1, burn_in=3)
    assert model.first_ratios(2) <= 1e-5


def test_what_the_encoder_sees_at_once_changes_no_state() -> None:
    model = small_ppo(clocks(), "lstm", "separate", n_steps=8)
    model.learn(24)
    buffer = model.rollout_buffer
    before = tuple(part[0] for part in buffer.states)
    whole = model.policy.states_along(buffer.observations, before, buffer.episode_starts, [0, 3, 8])
    for at_once in (1, 7, 10_000):
        parts = model.policy.states_along(buffer.observations, before, buffer.episode_starts, [0, 3, 8], at_once)
        assert states_equal(parts, whole)


def test_old_values_and_log_probabilities_stay_those_of_the_policy_that_acted() -> None:
    class Kept(RecurrentPPO):
        def train(self) -> None:
            buffer = self.rollout_buffer
            before = buffer.values.clone(), buffer.log_probs.clone(), buffer.advantages.clone()
            super().train()
            after = buffer.values, buffer.log_probs, buffer.advantages
            assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))

    small_ppo(clocks(), "gru", cls=Kept, n_epochs=3, **BOTH).learn(48)


@pytest.mark.parametrize("kwargs", [dict(refresh_states=True), dict(burn_in=2), BOTH])
def test_the_same_seed_gives_the_same_weights_and_each_setting_others(kwargs: dict[str, Any]) -> None:
    one, other, without = (
        small_ppo(clocks(), "gru", "separate", **settings).learn(72) for settings in (kwargs, kwargs, {})
    )
    assert equal_weights(one, other)
    assert not equal_weights(one, without)


@pytest.mark.parametrize("kwargs", [dict(sequence_length=None), dict(sequence_length=8)])
def test_where_a_sequence_is_the_whole_rollout_there_is_nothing_to_refresh_or_burn_in(kwargs: dict[str, Any]) -> None:
    kwargs = dict(n_steps=8, batch_size=24, **kwargs)
    with pytest.raises(ValueError, match=r"refresh_states=True .* whole rollout of 8 steps: set a sequence_length"):
        small_ppo(clocks(), refresh_states=True, **kwargs)
    with pytest.raises(ValueError, match=r"burn_in \(2\) .* whole rollout of 8 steps: set a sequence_length"):
        small_ppo(clocks(), burn_in=2, **kwargs)


def test_a_burn_in_longer_than_a_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match=r"burn_in \(5\) must be at most sequence_length \(4\)"):
        small_ppo(clocks(), burn_in=5)


def test_a_burn_in_in_numpys_integers_is_taken() -> None:
    assert type(small_ppo(clocks(), burn_in=np.int64(2)).burn_in) is int


def test_a2c_goes_through_a_rollout_once_and_has_neither() -> None:
    for kwargs in (dict(refresh_states=True), dict(burn_in=1)):
        with pytest.raises(TypeError, match=next(iter(kwargs))):
            small_ppo(clocks(), cls=RecurrentA2C, **kwargs)
    model = small_ppo(clocks(), cls=RecurrentA2C)
    model.learn(24)
    assert model.rollout_buffer.burn_in == 0
