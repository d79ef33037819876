"""The policy with memory: acting and learning are one function, and state goes in and comes out.

Axes: T steps of a sequence, B environments or sequences.
"""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from agents.memory import State
from agents.policy.actor_critic import GruPolicy, RecurrentActorCriticPolicy, RnnPolicy
from agents.policy.contrib import LstmPolicy, MultiInputLstmPolicy
from tests.agents.probe_envs import (
    ACTION_SPACES,
    ALL_ACTIONS,
    ALL_CRITIC_MEMORIES,
    ALL_MEMORIES,
    copy_of,
    policy_arguments,
    states_equal,
)
from tests.pairs import pairwise
from tests.tolerance import close

pytestmark = pytest.mark.filterwarnings("ignore:predict.. was called again without a state")

T, B = 7, 4
BOX = spaces.Box(-np.inf, np.inf, (3,))
WITH_STATE = [memory for memory in ALL_MEMORIES if memory != "none"]


def make_policy(
    memory: str = "lstm",
    critic_memory: str = "shared",
    actions: str = "discrete",
    observation_space: spaces.Space[Any] = BOX,
    **kwargs: Any,
) -> RecurrentActorCriticPolicy:
    torch.manual_seed(0)
    if "gsde" in actions:
        kwargs = {"use_sde": True, "squash_output": actions == "squashed gsde", **kwargs}
    policy = RecurrentActorCriticPolicy(
        observation_space, ACTION_SPACES[actions], lambda _: 1e-3, **policy_arguments(memory, critic_memory, **kwargs)
    )
    if policy.use_sde:
        policy.reset_noise(B)
    policy.set_training_mode(False)
    return policy


def some_sequences(seed: int = 0) -> tuple[Tensor, Tensor]:
    """(T, B, 3) observations and (T, B) episode starts: at random places, some at the first step and some not."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.rand(T, B, generator=generator) < 0.25
    starts[0] = torch.tensor([True, False, True, False])
    return torch.randn(T, B, 3, generator=generator), starts


def some_state(policy: RecurrentActorCriticPolicy, batch_size: int = B) -> State:
    """Random numbers; of a memory with a window, with three slots taken: its part (B, 1) counts them."""
    torch.manual_seed(1)
    return tuple(
        torch.full_like(part, 3) if part.shape[1:] == (1,) else torch.randn_like(part)
        for part in policy.initial_state(batch_size)
    )


def act(policy: RecurrentActorCriticPolicy, observations: Any, starts: Tensor, state: State) -> tuple[Tensor, ...]:
    """Step by step: actions (T, B, ...), values and log-probabilities (T, B)."""
    steps = []
    with torch.no_grad():
        for t in range(len(starts)):
            here = (
                {key: part[t] for key, part in observations.items()}
                if isinstance(observations, dict)
                else observations[t]
            )
            *step, state = policy(here, state, starts[t])
            steps.append(step)
    return tuple(torch.stack(parts) for parts in zip(*steps, strict=True))


@pytest.mark.parametrize(
    ("memory", "critic_memory", "actions"), pairwise(ALL_MEMORIES, ALL_CRITIC_MEMORIES, ALL_ACTIONS)
)
def test_learning_recomputes_what_acting_computed(memory: str, critic_memory: str, actions: str) -> None:
    policy = make_policy(memory, critic_memory, actions)
    (observations, starts), state = some_sequences(), some_state(policy)
    chosen, values, log_probs = act(policy, observations, starts, state)
    policy.set_training_mode(True)
    again_values, again_log_probs, entropy = policy.evaluate_actions(observations, chosen, state, starts)
    assert close(again_values, values)
    assert close(again_log_probs, log_probs)
    assert (entropy is None) == (actions == "squashed gsde")
    assert entropy is None or entropy.shape == (T, B)


@pytest.mark.parametrize("critic_memory", ALL_CRITIC_MEMORIES)
@pytest.mark.parametrize("memory", ALL_MEMORIES)
def test_the_state_of_the_critic_follows_that_of_the_actor_and_both_are_reset(memory: str, critic_memory: str) -> None:
    policy = make_policy(memory, critic_memory)
    n_parts = len(policy.memory_actor.initial_state(1))
    initial = policy.initial_state(B)
    assert len(initial) == n_parts * (2 if critic_memory == "separate" else 1)
    state, starts = some_state(policy), torch.tensor([True, False, True, False])
    reset = policy.reset_state(state, starts)
    for fresh, before, after in zip(initial, state, reset, strict=True):
        assert torch.equal(after[starts], fresh[starts])
        assert torch.equal(after[~starts], before[~starts])
    # A step from the reset state, and a step that resets by itself, are the same.
    observation = torch.randn(B, 3)
    with torch.no_grad():
        *_, by_flag = policy(observation, state, starts)
        *_, by_hand = policy(observation, reset, torch.zeros(B, dtype=torch.bool))
    assert states_equal(by_flag, by_hand)


@pytest.mark.parametrize("critic_memory", ALL_CRITIC_MEMORIES)
@pytest.mark.parametrize("memory", ALL_MEMORIES)
def test_a_value_is_that_of_acting_and_leaves_the_state_as_it_was(memory: str, critic_memory: str) -> None:
    policy = make_policy(memory, critic_memory)
    (observations, starts), state = some_sequences(), some_state(policy)
    kept = [part.clone() for part in state]
    with torch.no_grad():
        _, values, _, _ = policy(observations[0], state, starts[0])
        for _ in range(2):
            assert close(policy.predict_values(observations[0], state, starts[0]), values)
    assert all(torch.equal(part, before) for part, before in zip(state, kept, strict=True))


@pytest.mark.parametrize("actions", ALL_ACTIONS)
def test_a_deterministic_action_is_the_mode_of_the_distribution(actions: str) -> None:
    policy = make_policy("gru", "separate", actions)
    (observations, starts), state = some_sequences(), some_state(policy)
    with torch.no_grad():
        distribution, actor_state = policy.get_distribution(observations[0], state, starts[0])
        chosen, _, log_probs, next_state = policy(observations[0], state, starts[0], deterministic=True)
    assert close(distribution.mode().reshape(chosen.shape).to(chosen.dtype), chosen)
    assert states_equal(actor_state, next_state[: len(actor_state)])
    if actions != "squashed gsde":
        assert close(distribution.log_prob(chosen), log_probs)


class Linear(BaseFeaturesExtractor):
    """An extractor with parameters, so that a gradient shows."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, 5)
        self.linear = nn.Linear(3, 5)

    def forward(self, observations: Tensor) -> Tensor:
        return torch.tanh(self.linear(observations))


def has_gradient(module: nn.Module) -> bool:
    return any(parameter.grad is not None and bool((parameter.grad != 0).any()) for parameter in module.parameters())


@pytest.mark.parametrize(
    ("critic_memory", "shapes_actor_memory", "shapes_extractor"),
    [("shared", True, True), ("detached", False, False), ("separate", False, True), ("none", False, True)],
)
@pytest.mark.parametrize("memory", WITH_STATE)
def test_the_value_loss_shapes_the_actors_memory_only_where_it_is_shared_and_the_policy_loss_always(
    memory: str, critic_memory: str, shapes_actor_memory: bool, shapes_extractor: bool
) -> None:
    policy = make_policy(memory, critic_memory, features_extractor_class=Linear)
    (observations, starts), state = some_sequences(), some_state(policy)
    values, _, _ = policy.evaluate_actions(observations, torch.ones(T, B, dtype=torch.int64), state, starts)
    values.square().sum().backward()
    assert has_gradient(policy.memory_actor) is shapes_actor_memory
    assert has_gradient(policy.features_extractor) is shapes_extractor
    assert has_gradient(policy.value_net)
    assert not has_gradient(policy.action_net)
    if critic_memory in ("separate", "none"):
        assert policy.memory_critic is not None
        assert has_gradient(policy.memory_critic)
    policy.zero_grad()
    _, log_probs, _ = policy.evaluate_actions(observations, torch.ones(T, B, dtype=torch.int64), state, starts)
    log_probs.sum().backward()
    assert has_gradient(policy.memory_actor)
    assert has_gradient(policy.features_extractor)
    assert not has_gradient(policy.value_net)
    assert policy.memory_critic is None or not has_gradient(policy.memory_critic)


@pytest.mark.parametrize("memory", WITH_STATE)
def test_a_critic_without_memory_sees_the_present_alone_and_one_with_memory_the_past(memory: str) -> None:
    for critic_memory in ALL_CRITIC_MEMORIES:
        policy = make_policy(memory, critic_memory)
        observation, starts = torch.randn(B, 3), torch.zeros(B, dtype=torch.bool)
        with torch.no_grad():
            one = policy.predict_values(observation, policy.initial_state(B), starts)
            other = policy.predict_values(observation, some_state(policy), starts)
        assert torch.equal(one, other) is (critic_memory == "none")


# Masks


@pytest.mark.parametrize("actions", ["discrete", "discrete from one", "multi discrete"])
@pytest.mark.parametrize("memory", ALL_MEMORIES)
def test_a_forbidden_action_has_probability_zero_wherever_a_policy_is_asked(memory: str, actions: str) -> None:
    sizes = [2, 3] if actions == "multi discrete" else [3]
    space = spaces.Dict(seen=BOX, mask=spaces.MultiBinary(sum(sizes)))
    policy = make_policy(memory, "separate", actions, space, action_mask="mask")
    with torch.no_grad():
        policy.action_net.weight.zero_()
        # Without the mask the forbidden actions would be all but certain.
        policy.action_net.bias.copy_(torch.tensor([0.0, 50, 0, 0, 50] if len(sizes) == 2 else [0.0, 50, 0]))
    mask = torch.tensor([1, 0, 1, 1, 0] if len(sizes) == 2 else [1, 0, 1]).expand(T, 500, -1).to(torch.int8)
    observations = {"seen": torch.randn(T, 500, 3), "mask": mask}
    starts, state = torch.rand(T, 500) < 0.2, some_state(policy, 500)

    chosen, _, log_probs = act(policy, observations, starts, state)
    choices = chosen.unsqueeze(-1) if len(sizes) == 1 else chosen
    for axis, allowed in enumerate([{0, 2}] if len(sizes) == 1 else [{0}, {0, 1}]):
        assert set(choices[..., axis].unique().tolist()) == allowed
    expected = 0.5  # two actions are left, alike
    assert close(log_probs.exp(), torch.full_like(log_probs, expected))

    _, again, entropy = policy.evaluate_actions(observations, chosen, state, starts)
    assert close(again, log_probs)
    assert entropy is not None
    assert close(entropy, torch.full_like(entropy, np.log(2.0)))
    forbidden = torch.ones_like(chosen) if len(sizes) == 1 else torch.tensor([0, 2]).expand_as(chosen)
    _, of_forbidden, _ = policy.evaluate_actions(observations, forbidden, state, starts)
    assert (of_forbidden.exp() == 0).all()

    first = {key: part[0] for key, part in observations.items()}
    with torch.no_grad():
        distribution, _ = policy.get_distribution(first, state, starts[0])
    assert close(distribution.log_prob(chosen[0]), log_probs[0])

    start = 1 if actions == "discrete from one" else 0
    as_arrays = {key: part.numpy() for key, part in first.items()}
    for deterministic in (False, True):
        predicted, _ = policy.predict(as_arrays, deterministic=deterministic)
        assert 1 not in predicted - start if len(sizes) == 1 else (predicted[:, 0] == 0).all()
        assert len(sizes) == 1 or 2 not in predicted[:, 1]


@pytest.mark.parametrize("memory", ALL_MEMORIES)
def test_every_step_of_every_sequence_has_a_mask_of_its_own(memory: str) -> None:
    space = spaces.Dict(seen=BOX, mask=spaces.MultiBinary(3))
    policy = make_policy(memory, "shared", "discrete", space, action_mask="mask")
    n = 50
    mask = torch.rand(T, n, 3) < 0.5
    mask[..., 0] |= ~mask.any(-1)
    observations = {"seen": torch.randn(T, n, 3), "mask": mask.to(torch.int8)}
    starts, state = torch.rand(T, n) < 0.2, some_state(policy, n)
    chosen, _, log_probs = act(policy, observations, starts, state)
    assert mask.gather(-1, chosen[..., None]).all()
    _, again, entropy = policy.evaluate_actions(observations, chosen, state, starts)
    assert close(again, log_probs)
    assert entropy is not None
    assert torch.equal(entropy < 1e-6, mask.sum(-1) == 1)  # no choice, no entropy


def test_the_gradient_of_a_masked_policy_is_finite_and_zero_for_forbidden_logits() -> None:
    space = spaces.Dict(seen=BOX, mask=spaces.MultiBinary(3))
    policy = make_policy("gru", "shared", "discrete", space, action_mask="mask")
    observations = {"seen": torch.randn(T, B, 3), "mask": torch.tensor([1, 0, 1]).expand(T, B, 3).to(torch.int8)}
    chosen = torch.zeros(T, B, dtype=torch.int64)
    starts = torch.zeros(T, B, dtype=torch.bool)
    _, log_probs, entropy = policy.evaluate_actions(observations, chosen, policy.initial_state(B), starts)
    assert entropy is not None
    (log_probs + entropy).sum().backward()
    gradient = policy.action_net.bias.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient[1] == 0
    assert gradient[0] != 0


# predict


@pytest.mark.parametrize("memory", ALL_MEMORIES)
def test_predict_threads_the_state_that_acting_carries(memory: str) -> None:
    policy = make_policy(memory, "separate")
    observations, starts = some_sequences()
    starts[0] = True
    carried, state = policy.initial_state(B), None
    for t in range(T):
        with torch.no_grad():
            expected, _, _, carried = policy(observations[t], carried, starts[t], deterministic=True)
        actions, state = policy.predict(observations[t].numpy(), state, starts[t].numpy(), deterministic=True)
        assert np.array_equal(actions, expected)
        assert all(isinstance(part, np.ndarray) for part in state)
        assert states_equal(tuple(torch.as_tensor(part) for part in state), carried[: len(state)])


@pytest.mark.parametrize("memory", WITH_STATE)
def test_predict_without_a_state_starts_from_the_initial_one(memory: str) -> None:
    policy = make_policy(memory)
    observation = torch.randn(B, 3).numpy()
    initial = tuple(part.numpy() for part in policy.memory_actor.initial_state(B))
    actions, state = policy.predict(observation, deterministic=True)
    same_actions, same_state = policy.predict(observation, initial, deterministic=True)
    assert np.array_equal(actions, same_actions)
    assert all(np.array_equal(a, b) for a, b in zip(state, same_state, strict=True))
    # Where an episode starts, a state handed in counts as little.
    _, by_flag = policy.predict(observation, tuple(part + 3 for part in state), np.ones(B, dtype=bool))
    assert all(close(a, b) for a, b in zip(state, by_flag, strict=True))


@pytest.mark.parametrize("actions", ALL_ACTIONS)
def test_predicted_actions_lie_in_the_action_space_for_one_observation_and_for_a_batch(actions: str) -> None:
    policy = make_policy("rnn", actions=actions)
    for deterministic in (False, True):
        batch, _ = policy.predict(50 * np.ones((B, 3), dtype=np.float32), deterministic=deterministic)
        for action in batch:
            assert ACTION_SPACES[actions].contains(action)
    observation = np.ones(3, dtype=np.float32)
    one, state = policy.predict(observation, deterministic=True)
    batch, same_state = policy.predict(observation[None], deterministic=True)
    assert ACTION_SPACES[actions].contains(one)
    assert np.array_equal(one, batch[0])
    assert all(np.array_equal(a, b) for a, b in zip(state, same_state, strict=True))


def test_predict_changes_neither_what_came_in_nor_what_it_returned_before() -> None:
    policy = make_policy("lstm")
    observation, starts = np.ones((B, 3), dtype=np.float32), np.array([True, False, True, False])
    _, state = policy.predict(observation)
    kept = [part.copy() for part in state]
    policy.predict(observation, state, starts)
    assert all(np.array_equal(a, b) for a, b in zip(state, kept, strict=True))
    assert (observation == 1).all()
    assert starts.tolist() == [True, False, True, False]


def test_a_state_or_episode_starts_of_another_size_are_refused() -> None:
    policy = make_policy("gru")
    observation = np.ones((B, 3), dtype=np.float32)
    _, state = policy.predict(observation)
    with pytest.raises(ValueError, match=r"state has shapes .*\(4, 2, 8\).* expected .*\(2, 2, 8\)"):
        policy.predict(observation[:2], state)
    with pytest.raises(ValueError, match="expected"):
        policy.predict(observation, ())
    with pytest.raises(ValueError, match="episode_start has 3 entries for a batch of 4 observations"):
        policy.predict(observation, state, np.zeros(3, dtype=bool))


def warnings_of(*calls: Any, memory: str = "lstm") -> list[str]:
    """The warnings that calls of predict give, each call as (state is given, episode_start)."""
    policy = make_policy(memory)
    observation = np.ones((B, 3), dtype=np.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state: Any = None
        for given, starts in calls:
            _, state = policy.predict(observation, state if given else None, starts)
    return [str(warning.message) for warning in caught]


def test_predicting_step_after_step_without_a_state_warns_once_that_the_memory_is_lost() -> None:
    (message,) = warnings_of(*[(False, None)] * 5)
    assert "acts without its memory" in message
    assert "model.predict(obs, state=state, episode_start=dones)" in message
    (message,) = warnings_of(*[(False, np.zeros(B, dtype=bool))] * 5)
    assert "acts without its memory" in message


def test_predicting_as_one_should_warns_of_nothing() -> None:
    first, later = np.ones(B, dtype=bool), np.zeros(B, dtype=bool)
    assert warnings_of((False, None), (True, None), (True, None)) == []
    assert warnings_of((False, first), (True, later), (True, later), (False, first), (True, later)) == []
    assert warnings_of((False, None), (True, later), (False, None), (True, later)) == []
    assert warnings_of(*[(False, None)] * 5, memory="none") == []


# Critics that know more


@pytest.mark.parametrize("critic_memory", ["separate", "none"])
@pytest.mark.parametrize("memory", ALL_MEMORIES)
def test_privileged_observations_reach_the_critic_alone(memory: str, critic_memory: str) -> None:
    space = spaces.Dict(seen=BOX, hidden=spaces.Box(-9, 9, (2,)))
    policy = make_policy(memory, critic_memory, observation_space=space, privileged=["hidden"])
    starts, state = torch.rand(T, B) < 0.2, some_state(policy)
    observations = {"seen": torch.randn(T, B, 3), "hidden": torch.randn(T, B, 2, requires_grad=True)}
    chosen = torch.ones(T, B, dtype=torch.int64)
    values, log_probs, entropy = policy.evaluate_actions(observations, chosen, state, starts)
    assert entropy is not None
    (by_value,) = torch.autograd.grad(values.sum(), observations["hidden"], retain_graph=True)
    assert (by_value != 0).any()
    (by_policy,) = torch.autograd.grad((log_probs + entropy).sum(), observations["hidden"], allow_unused=True)
    assert by_policy is None or (by_policy == 0).all()

    seen = observations["seen"][0].numpy()
    whole = {"seen": seen, "hidden": np.ones((B, 2), dtype=np.float32)}
    with_it, state_with = policy.predict(whole, deterministic=True)
    without, state_without = policy.predict({"seen": seen}, deterministic=True)
    assert np.array_equal(with_it, without)
    assert all(np.array_equal(a, b) for a, b in zip(state_with, state_without, strict=True))


# Construction


@pytest.mark.parametrize("actions", ALL_ACTIONS)
@pytest.mark.parametrize("critic_memory", ALL_CRITIC_MEMORIES)
def test_a_policy_is_rebuilt_from_its_own_description(critic_memory: str, actions: str) -> None:
    policy = make_policy("gru", critic_memory, actions)
    again = copy_of(policy)
    observation = np.ones((B, 3), dtype=np.float32)
    assert np.array_equal(
        policy.predict(observation, deterministic=True)[0], again.predict(observation, deterministic=True)[0]
    )
    assert policy.state_dict().keys() == again.state_dict().keys()


@pytest.mark.parametrize(
    ("cls", "space", "kwargs"),
    [
        (RnnPolicy, BOX, dict(memory_kwargs=dict(hidden_size=5))),
        (GruPolicy, BOX, dict(memory_kwargs=dict(hidden_size=5), critic_memory="separate")),
        (LstmPolicy, BOX, dict(lstm_hidden_size=5, n_lstm_layers=2, lstm_kwargs=dict(dropout=0.1))),
        (LstmPolicy, BOX, dict(lstm_hidden_size=5, shared_lstm=True, enable_critic_lstm=False)),
        (MultiInputLstmPolicy, spaces.Dict(a=BOX), dict(lstm_hidden_size=5, enable_critic_lstm=False)),
    ],
)
def test_policies_by_name_are_rebuilt_from_their_own_description(cls: Any, space: Any, kwargs: dict[str, Any]) -> None:
    policy = cls(space, ACTION_SPACES["box"], lambda _: 1e-3, **kwargs)
    again = copy_of(policy)
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, dict(again.named_parameters())[name])


def test_all_parameters_of_a_policy_are_learned() -> None:
    for memory in ALL_MEMORIES:
        for critic_memory in ALL_CRITIC_MEMORIES:
            policy = make_policy(memory, critic_memory)
            learned = {id(parameter) for group in policy.optimizer.param_groups for parameter in group["params"]}
            assert learned == {id(parameter) for parameter in policy.parameters()}


@pytest.mark.parametrize(
    ("cls", "kwargs", "amsgrad", "eps"),
    [
        (RecurrentActorCriticPolicy, {}, True, 1e-8),
        (GruPolicy, {}, True, 1e-8),
        (LstmPolicy, {}, False, 1e-5),
        (RecurrentActorCriticPolicy, dict(optimizer_kwargs=dict(eps=1e-5)), False, 1e-5),
        (LstmPolicy, dict(optimizer_kwargs=dict(amsgrad=True)), True, 1e-8),
    ],
)
def test_adam_is_amsgrad_but_for_contribs_policies_or_where_arguments_say_otherwise(
    cls: Any, kwargs: dict[str, Any], amsgrad: bool, eps: float
) -> None:
    (group,) = cls(BOX, ACTION_SPACES["discrete"], lambda _: 1e-3, **kwargs).optimizer.param_groups
    assert (group["amsgrad"], group["eps"]) == (amsgrad, eps)
    other = cls(BOX, ACTION_SPACES["discrete"], lambda _: 1e-3, optimizer_class=torch.optim.RMSprop)
    assert isinstance(other.optimizer, torch.optim.RMSprop)


def test_an_override_by_a_methods_former_name_is_refused_with_the_new_one() -> None:
    with pytest.raises(TypeError, match="Own overrides judge, which is called evaluate_heads now"):
        type("Own", (RecurrentActorCriticPolicy,), {"judge": lambda self: None})
