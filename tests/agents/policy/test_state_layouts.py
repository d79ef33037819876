"""Every public entrance of a policy reads a state in the layouts people have it in, or refuses it; none broadcasts it.

Axes: L steps, B environments or sequences.
"""

from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from torch import Tensor

from agents.policy.actor_critic import RecurrentActorCriticPolicy
from agents.policy.contrib import LstmPolicy
from tests.agents.policy.test_policy import BOX, make_policy, some_state
from tests.agents.probe_envs import ACTION_SPACES, ALL_CRITIC_MEMORIES, ALL_MEMORIES

L, B, LAYERS, UNITS = 5, 3, 2, 4
WITH_STATE = [memory for memory in ALL_MEMORIES if memory != "none"]
ENTRANCES = ("forward", "get_distribution", "predict_values", "evaluate_actions", "reset_state", "predict")
CRITICS: dict[str, dict[str, Any]] = {
    "separate": {},
    "shared": dict(shared_lstm=True, enable_critic_lstm=False),
    "none": dict(enable_critic_lstm=False),
}


def enter(
    policy: RecurrentActorCriticPolicy, entrance: str, state: Any, starts: Any = None, batch_size: int = B
) -> Any:
    """Calls a method with a state; observations are the same each time, and actions are the most probable ones."""
    torch.manual_seed(2)
    observations = torch.randn(L, batch_size, 3)
    starts = torch.zeros(batch_size, dtype=torch.bool) if starts is None else starts
    with torch.no_grad():
        if entrance == "forward":
            return policy(observations[0], state, starts, deterministic=True)
        if entrance == "predict":
            return policy.predict(observations[0].numpy(), state, starts, deterministic=True)
        if entrance == "reset_state":
            return policy.reset_state(state, starts)
        if entrance in ("evaluate_actions",):
            sequences = torch.zeros(L, batch_size, dtype=torch.bool)
            actions = [torch.zeros(L, batch_size, dtype=torch.int64)] * (entrance == "evaluate_actions")
            return getattr(policy, entrance)(observations, *actions, state, sequences)
        return getattr(policy, entrance)(observations[0], state, starts)


def numbers(result: Any) -> list[Tensor]:
    """The tensors and arrays in what a method returned, in order; of a distribution, its probabilities."""
    if isinstance(result, tuple | list):
        return [part for each in result for part in numbers(each)]
    if hasattr(result, "distribution"):
        return [result.distribution.probs]
    return [] if result is None else [torch.as_tensor(result)]


def assert_same(one: Any, other: Any) -> None:
    for a, b in zip(numbers(one), numbers(other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def lstm_policy(critic: str, layers: int = LAYERS) -> LstmPolicy:
    torch.manual_seed(0)
    return LstmPolicy(
        BOX, ACTION_SPACES["discrete"], lambda _: 1e-3, lstm_hidden_size=UNITS, n_lstm_layers=layers, **CRITICS[critic]
    )


def as_there(state: Any) -> tuple[Tensor, ...]:
    """Batch first -> (layers, B, units)."""
    return tuple(part.transpose(0, 1) for part in state)


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("critic_memory", ALL_CRITIC_MEMORIES)
@pytest.mark.parametrize("memory", WITH_STATE)
def test_a_state_of_other_environments_or_other_parts_is_refused(
    memory: str, critic_memory: str, entrance: str
) -> None:
    policy = make_policy(memory, critic_memory)
    own = some_state(policy)
    if entrance == "predict":
        own = own[: len(policy.memory_actor.initial_state(1))]
    wrong = {
        "of one environment": tuple(part[:1] for part in own),
        "of one more": tuple(torch.cat((part, part[:1])) for part in own),
        "with a part too many": own * 3,
        "with an axis too many": tuple(part[None] for part in own),
        "of other numbers": tuple(part.to(torch.complex64) for part in own),
        "without its tuple": own[0],
        "missing": (),
        "of strings": tuple("state" for _ in own),
    }
    for name, state in wrong.items():
        print(f"a state {name}")
        with pytest.raises(ValueError, match=r"state (has shapes|must)"):
            enter(policy, entrance, state, batch_size=len(own[0]))


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("memory", WITH_STATE)
def test_a_state_in_another_precision_or_as_arrays_gives_the_same_numbers(memory: str, entrance: str) -> None:
    policy = make_policy(memory)
    state = some_state(policy, B)
    expected = enter(policy, entrance, state)
    assert_same(enter(policy, entrance, tuple(part.double() for part in state)), expected)
    assert_same(enter(policy, entrance, [part.numpy() for part in state]), expected)
    if entrance not in ("evaluate_actions", "reset_state"):
        assert_same(enter(policy, entrance, state, starts=np.zeros(B, dtype=np.float32)), expected)
        assert_same(enter(policy, entrance, state, starts=torch.zeros(B)), expected)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("critic", CRITICS)
def test_the_layouts_of_sb3_contrib_give_the_same_numbers_and_come_back_as_they_came(critic: str, layers: int) -> None:
    policy = lstm_policy(critic, layers)
    own = some_state(policy, B)
    actor, critics = own[:2], own[2:] or own[:2]
    *expected, after = enter(policy, "forward", own)
    flat = as_there(own)
    *got, back = enter(policy, "forward", flat)
    assert_same(got, expected)
    assert_same(back, as_there(after))
    for pair in (RNNStates(as_there(actor), as_there(critics)), (as_there(actor), as_there(critics))):
        *got, back = enter(policy, "forward", pair)
        assert_same(got, expected)
        assert type(back) is type(pair)
        assert_same(back, (as_there(after[:2]), as_there(after[2:] or after[:2])))
        assert_same(enter(policy, "evaluate_actions", pair), enter(policy, "evaluate_actions", own))
    distribution, after = enter(policy, "get_distribution", own)
    for state in (as_there(actor), flat, RNNStates(as_there(actor), as_there(critics))):
        got, back = enter(policy, "get_distribution", state)
        assert_same(got, distribution)
        assert_same(back, as_there(after))
    values = enter(policy, "predict_values", own)
    for state in (as_there(critics), critics, flat, RNNStates(as_there(actor), as_there(critics))):
        assert_same(enter(policy, "predict_values", state), values)
    chosen = enter(policy, "predict", as_there(actor))
    for state in (actor, tuple(part.numpy() for part in as_there(actor)), RNNStates(as_there(actor), ())):
        assert_same(enter(policy, "predict", state), chosen)


def test_where_layers_and_environments_are_as_many_arrays_and_pairs_are_as_predict_gives_them() -> None:
    policy = lstm_policy("shared", layers=B)
    own = some_state(policy, B)
    expected = enter(policy, "forward", own)[1]
    for state in (RNNStates(as_there(own), as_there(own)), tuple(part.numpy() for part in as_there(own))):
        assert_same(enter(policy, "forward", state)[1], expected)
    by_predict = tuple(part.numpy() for part in as_there(own))
    assert_same(enter(policy, "predict", as_there(own)), enter(policy, "predict", by_predict))


def test_states_are_taken_by_the_name_they_have_in_sb3_contrib() -> None:
    policy = lstm_policy("separate")
    own, observations, starts = some_state(policy, B), torch.randn(B, 3), torch.zeros(B)
    there = RNNStates(as_there(own[:2]), as_there(own[2:]))
    with torch.no_grad():
        assert_same(
            policy.predict_values(observations, lstm_states=there.vf, episode_starts=starts),
            policy.predict_values(observations, own, starts),
        )
        assert_same(
            policy.get_distribution(observations, lstm_states=there.pi, episode_starts=starts)[0],
            policy.get_distribution(observations, own, starts)[0],
        )
        assert_same(
            policy(observations, lstm_states=there, episode_starts=starts, deterministic=True)[:3],
            policy(observations, own, starts, True)[:3],
        )


@pytest.mark.parametrize("entrance", ["forward", "get_distribution", "predict_values", "predict"])
def test_episode_starts_of_another_size_are_refused(entrance: str) -> None:
    policy = make_policy("gru")
    for starts in (torch.zeros(1), torch.zeros(B + 1), torch.zeros(1, 1, B)):
        with pytest.raises(ValueError, match=r"episode_starts? has"):
            enter(policy, entrance, some_state(policy, B), starts)
        if entrance == "predict":
            break


def test_a_call_without_state_and_episode_starts_says_what_to_start_with() -> None:
    with pytest.raises(ValueError, match=r"state and episode_starts are missing: .*initial_state"):
        lstm_policy("separate").predict_values(torch.randn(B, 3))


def test_sequences_are_time_first_or_refused() -> None:
    policy = lstm_policy("separate")
    observations, actions = torch.randn(L * B, 3), torch.zeros(L * B)
    with pytest.raises(ValueError, match=r"sequences, time first: episode_starts \(L, B\)"):
        policy.evaluate_actions(observations, actions, some_state(policy, B), torch.zeros(L * B))
