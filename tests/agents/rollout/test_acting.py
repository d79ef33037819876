"""Acting in NumPy and acting through torch are the same policy.

Axes: T steps, B environments.
"""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor, NatureCNN
from torch import nn

from agents.checks.observations import map_observations
from agents.encoders.combined import CombinedEncoder
from agents.memory import GRU, MEMORIES
from agents.policy.actor_critic import RecurrentActorCriticPolicy
from agents.policy.contrib import LstmPolicy
from agents.policy.heads import CategoricalHead
from agents.rollout.actor import TorchActor
from agents.rollout.noise import lasting_noise
from agents.rollout.numpy_actor import NumpyActor, make_actor, make_predict
from tests.agents.policy.test_actions import chi_square
from tests.agents.probe_envs import (
    ACTION_SPACES,
    ALL_CRITIC_MEMORIES,
    ALL_MEMORIES,
    policy_arguments,
    states_equal,
)
from tests.pairs import pairwise
from tests.tolerance import close, near

B = 5
PLAIN = [name for name in ACTION_SPACES if "gsde" not in name]
OBSERVATIONS = spaces.Box(-np.inf, np.inf, (2, 3))


def make_policy(
    action_space: spaces.Space[Any] = ACTION_SPACES["discrete"],
    memory: str = "lstm",
    critic_memory: str = "shared",
    observation_space: spaces.Space[Any] = OBSERVATIONS,
    cls: type[RecurrentActorCriticPolicy] = RecurrentActorCriticPolicy,
    **kwargs: Any,
) -> RecurrentActorCriticPolicy:
    """A policy no parameter of which is zero, so that a forgotten one shows."""
    torch.manual_seed(0)
    arguments = kwargs if issubclass(cls, LstmPolicy) else policy_arguments(memory, critic_memory, **kwargs)
    policy = cls(observation_space, action_space, lambda _: 1e-3, **arguments)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    policy.set_training_mode(False)
    return policy


def acts_in_numpy(policy: RecurrentActorCriticPolicy) -> bool:
    return policy.acting_plan().part.how == "NumPy"


def numpy_actor(policy: RecurrentActorCriticPolicy, rng: np.random.Generator) -> NumpyActor:
    return NumpyActor(policy, rng, policy.acting_plan().steps)


def a_rollout(space: spaces.Space[Any], n_steps: int = 9) -> list[tuple[Any, Any]]:
    """Observations and episode starts, with resets at random places."""
    rng = np.random.default_rng(0)
    space.seed(0)
    starts = rng.random((n_steps, B)) < 0.3
    starts[0] = True
    return [(_stacked([_draw(space, rng) for _ in range(B)]), starts[t]) for t in range(n_steps)]


def _stacked(drawn: list[Any]) -> Any:
    if isinstance(drawn[0], dict):
        return {key: _stacked([each[key] for each in drawn]) for key in drawn[0]}
    return np.stack(drawn)


def _draw(space: spaces.Space[Any], rng: np.random.Generator) -> Any:
    return rng.standard_normal(space.shape).astype(space.dtype) if space is OBSERVATIONS else space.sample()


def assert_equals_the_policy(policy: RecurrentActorCriticPolicy, actor: Any, n_steps: int = 9) -> None:
    """Values, log-probabilities of the actions taken, and states equal those of the policy's torch code."""
    policy_state = policy.renew(policy.initial_state(B))
    state = actor.begin(policy_state)
    for observations, starts in a_rollout(policy.observation_space, n_steps):
        actions, finish = actor.act(observations, state, starts)
        values, log_probs, state = finish()
        with torch.no_grad():
            tensor, start = map_observations(torch.as_tensor, observations), torch.as_tensor(starts)
            expected_values, expected_log_probs, _ = policy.evaluate_actions(
                map_observations(lambda part: part[None], tensor),
                torch.as_tensor(actions)[None],
                policy_state,
                start[None],
            )
            _, stepped_values, _, policy_state = policy(tensor, policy_state, start)
        assert values.shape == log_probs.shape == (B,)
        assert actions.shape == (B, *policy.head.shape)
        assert values.dtype == log_probs.dtype == np.float32
        for ours in (expected_values[0], stepped_values):
            assert close(values, ours)
        assert close(log_probs, expected_log_probs[0])
        assert states_equal(actor.end(state), policy_state)


@pytest.mark.parametrize(
    ("memory", "critic_memory", "action_space"), pairwise(ALL_MEMORIES, ALL_CRITIC_MEMORIES, PLAIN)
)
def test_an_actor_has_the_values_log_probabilities_and_states_of_its_policy(
    memory: str, critic_memory: str, action_space: str
) -> None:
    policy = make_policy(ACTION_SPACES[action_space], memory, critic_memory)
    actor = make_actor(policy, np.random.default_rng(0))
    assert isinstance(actor, NumpyActor) == acts_in_numpy(policy)
    assert_equals_the_policy(policy, actor)
    assert_equals_the_policy(policy, TorchActor(policy), n_steps=3)


@pytest.mark.parametrize("action_space", PLAIN)
@pytest.mark.parametrize("memory", [name for name in MEMORIES if MEMORIES[name](3).numpy_step() is not None])
def test_a_memory_with_a_step_in_numpy_acts_in_numpy(memory: str, action_space: str) -> None:
    for critic_memory in ALL_CRITIC_MEMORIES:
        assert acts_in_numpy(make_policy(ACTION_SPACES[action_space], memory, critic_memory))


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(activation_fn=nn.ReLU),
        dict(activation_fn=nn.ELU),
        dict(net_arch=[]),
        dict(net_arch=dict(pi=[4, 3], vf=[5])),
        dict(net_arch=dict(pi=[], vf=[5])),
        dict(critic_memory="separate", share_features_extractor=False),
        dict(memory="lstm", memory_kwargs=dict(hidden_size=4, num_layers=3, dropout=0.5)),
        dict(memory="gru", memory_kwargs=dict(hidden_size=4, num_layers=2, bias=False)),
        dict(cls=LstmPolicy, lstm_hidden_size=5, n_lstm_layers=2),
        dict(cls=LstmPolicy, lstm_hidden_size=5, enable_critic_lstm=False),
        dict(observation_space=spaces.Discrete(6)),
        dict(observation_space=spaces.Box(0, 255, (7,), dtype=np.uint8)),
        dict(observation_space=spaces.Box(-1, 1, (3,), dtype=np.float64)),
        dict(observation_space=spaces.Box(-9, 9, (3,), dtype=np.int32)),
        dict(observation_space=spaces.MultiDiscrete([3, 2])),
        dict(observation_space=spaces.MultiBinary((2, 2))),
        dict(observation_space=spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8)),
    ],
)
def test_whatever_a_policy_is_made_of_its_actor_agrees_with_it(kwargs: dict[str, Any]) -> None:
    policy = make_policy(**kwargs)
    assert_equals_the_policy(policy, make_actor(policy, np.random.default_rng(0)))


ALLOWED = spaces.MultiBinary(3)
IMAGE = spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8)
PARTS = spaces.Dict(card=spaces.Discrete(4), velocity=spaces.Box(-1, 1, (2,)), allowed=ALLOWED)
MASKED = dict(memory="gru", action_mask="allowed", features_extractor_class=CombinedEncoder)


class Shifted(FlattenExtractor):
    def forward(self, observations: Any) -> Any:
        return super().forward(observations) + 1


class Transposed(FlattenExtractor):
    """Features that lie across each other in memory, in twice the precision until they leave."""

    def forward(self, observations: Any) -> Any:
        return super().forward(observations).double().t().contiguous().t().float()


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(observation_space=PARTS, features_extractor_class=CombinedEncoder),
        dict(observation_space=PARTS, features_extractor_class=CombinedEncoder, critic_memory="separate"),
        dict(observation_space=PARTS, features_extractor_class=CombinedEncoder, memory="none"),
        dict(observation_space=PARTS, action_space=ACTION_SPACES["box"], features_extractor_class=CombinedEncoder),
        dict(observation_space=PARTS, **MASKED),
        dict(observation_space=spaces.Dict(seen=IMAGE, allowed=ALLOWED), **MASKED),
        dict(observation_space=IMAGE, features_extractor_class=NatureCNN),
        dict(features_extractor_class=Shifted),
        dict(features_extractor_class=Transposed),
    ],
)
def test_an_encoder_that_actor_and_critic_share_is_called_and_the_rest_acts_in_numpy(kwargs: dict[str, Any]) -> None:
    policy = make_policy(**kwargs)
    actor = make_actor(policy, np.random.default_rng(0))
    assert isinstance(actor, NumpyActor)
    assert_equals_the_policy(policy, actor)


def test_encoders_of_their_own_for_actor_and_critic_are_left_to_torch() -> None:
    policy = make_policy(features_extractor_class=Shifted, critic_memory="separate", share_features_extractor=False)
    actor = make_actor(policy, np.random.default_rng(0))
    assert isinstance(actor, TorchActor)
    assert_equals_the_policy(policy, actor)
    assert "actor and critic have encoders of their own" in str(policy.plan().acting)


@pytest.mark.parametrize("seen", [spaces.Discrete(4), IMAGE])
@pytest.mark.parametrize(
    "action_space", [spaces.Discrete(6), spaces.MultiDiscrete([2, 4]), spaces.MultiBinary(6)], ids=str
)
@pytest.mark.parametrize(("in_numpy", "correlation"), [(True, 0.0), (True, 0.9), (False, 0.9)])
def test_an_action_that_is_masked_is_never_taken(
    seen: spaces.Space[Any], action_space: spaces.Space[Any], in_numpy: bool, correlation: float
) -> None:
    space = spaces.Dict(seen=seen, allowed=spaces.MultiBinary(6))
    policy = make_policy(action_space, observation_space=space, **MASKED)
    rng = np.random.default_rng(0)
    noise = lasting_noise(policy.head, correlation, rng, None) if correlation else None
    actor: Any = make_actor(policy, rng, noise=noise) if in_numpy else TorchActor(policy, noise=noise)
    assert isinstance(actor, NumpyActor) is in_numpy
    state, taken = actor.begin(policy.initial_state(B)), np.zeros(6)
    for observations, starts in a_rollout(space, n_steps=40):
        allowed = observations["allowed"]
        allowed[:, [0, 2]] = 1  # of each choice one at least
        actions, finish = actor.act(observations, state, starts)
        _, log_probs, state = finish()
        if isinstance(action_space, spaces.MultiBinary):
            chosen = actions
        else:
            chosen = np.zeros((B, 6))
            places = actions.reshape(B, -1) + ([0, 2] if isinstance(action_space, spaces.MultiDiscrete) else [0])
            np.put_along_axis(chosen, places, 1, axis=1)
        assert not (chosen * (1 - allowed)).any()
        assert np.isfinite(log_probs).all()
        taken += chosen.sum(axis=0)
    assert (taken > 0).all()


class Halved(nn.Module):
    """A custom network in Stable-Baselines3's place for one: no ``policy_net``, no ``value_net``."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.latent_dim_pi = self.latent_dim_vf = 4
        self.linear = nn.Linear(size, 4)

    def forward_actor(self, features: Any) -> Any:
        return self.linear(features) / 2

    def forward_critic(self, features: Any) -> Any:
        return self.linear(features)


class OfItsOwnNetwork(RecurrentActorCriticPolicy):
    def _build_mlp_extractor(self) -> None:
        super()._build_mlp_extractor()
        self.mlp_extractor = Halved(self.memory_actor.output_size)  # type: ignore[assignment]


class Scaled(MlpExtractor):
    def forward_actor(self, features: Any) -> Any:
        return 3 * super().forward_actor(features)


class OfAnExtendedNetwork(RecurrentActorCriticPolicy):
    def _build_mlp_extractor(self) -> None:
        super()._build_mlp_extractor()
        self.mlp_extractor = Scaled(self.memory_actor.output_size, [4], nn.Tanh)


def doubling(name: str) -> type[RecurrentActorCriticPolicy]:
    """A policy one of whose methods gives twice what it gave."""

    def doubled(self: Any, *args: Any) -> Any:
        result = getattr(RecurrentActorCriticPolicy, name)(self, *args)
        return tuple(2 * part for part in result) if isinstance(result, tuple) else 2 * result

    return type("Doubling", (RecurrentActorCriticPolicy,), {name: doubled})


class Forgetful(GRU):
    """A memory that changes the step it inherits, and its unrolling with it."""

    def step(self, features: Any, state: Any, episode_starts: Any) -> Any:
        return super().step(features, state, torch.ones_like(episode_starts))

    def unroll(self, features: Any, state: Any, episode_starts: Any) -> Any:
        return super().unroll(features, state, torch.ones_like(episode_starts))


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(cls=OfItsOwnNetwork),
        dict(cls=OfAnExtendedNetwork),
        *(dict(cls=doubling(name)) for name in ("values", "distribution_parameters", "encode", "_features")),
        dict(features_extractor_class=Shifted),
        dict(memory=Forgetful, memory_kwargs=dict(hidden_size=4)),
    ],
)
def test_a_policy_with_code_of_its_own_acts_by_that_code(kwargs: dict[str, Any]) -> None:
    policy = make_policy(**kwargs)
    assert_equals_the_policy(policy, make_actor(policy, np.random.default_rng(0)))


def test_a_policy_with_a_forward_or_a_head_of_its_own_acts_by_it() -> None:
    class Ones(CategoricalHead):
        def sample(self, parameters: Any) -> Any:
            return torch.ones_like(super().sample(parameters))

    class OfItsOwnHead(RecurrentActorCriticPolicy):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.head = Ones(self.action_space)  # type: ignore[arg-type]

    class OfItsOwnForward(RecurrentActorCriticPolicy):
        def forward(self, obs: Any, state: Any, episode_starts: Any, deterministic: bool = False) -> Any:
            actions, values, log_probs, state = super().forward(obs, state, episode_starts, deterministic)
            return torch.ones_like(actions), values, log_probs, state

    for cls in (OfItsOwnHead, OfItsOwnForward):
        policy = make_policy(cls=cls)
        actor = make_actor(policy, np.random.default_rng(0))
        for observations, starts in a_rollout(OBSERVATIONS):
            actions, *_ = actor.act(observations, actor.begin(policy.initial_state(B)), starts)
            assert (actions == 1).all()


@pytest.mark.parametrize("layer", ["value_net", "mlp_extractor.value_net.0"])
def test_a_hook_on_a_layer_or_a_replaced_method_is_not_passed_by(layer: str) -> None:
    policy = make_policy()
    module = policy.get_submodule(layer)
    observations = torch.as_tensor(a_rollout(OBSERVATIONS)[0][0])
    state, starts = policy.initial_state(B), torch.zeros(B, dtype=torch.bool)
    before = policy.predict_values(observations, state, starts)
    forward = module.forward
    module.forward = lambda x: forward(x) + 1  # type: ignore[method-assign]
    assert not torch.allclose(policy.predict_values(observations, state, starts), before)
    assert_equals_the_policy(policy, make_actor(policy, np.random.default_rng(0)))
    hooked = make_policy()
    hooked.get_submodule(layer).register_forward_hook(lambda module, inputs, output: output + 1)
    assert_equals_the_policy(hooked, make_actor(hooked, np.random.default_rng(0)))


def test_acting_changes_neither_the_state_that_came_in_nor_the_parameters() -> None:
    policy = make_policy(critic_memory="separate")
    state = tuple(torch.randn_like(part) for part in policy.initial_state(B))
    kept = [part.clone() for part in (*state, *policy.parameters())]
    for actor in (numpy_actor(policy, np.random.default_rng(0)), TorchActor(policy)):
        carried = actor.begin(state)
        for observations, starts in a_rollout(OBSERVATIONS):
            _, finish = actor.act(observations, carried, starts)
            *_, carried = finish()
        assert all(torch.equal(a, b) for a, b in zip((*state, *policy.parameters()), kept, strict=True))


def test_an_actor_draws_from_the_random_source_it_was_given_and_from_no_other() -> None:
    policy = make_policy()
    observations, starts = a_rollout(OBSERVATIONS)[0]

    def actions(seed: int) -> Any:
        actor = numpy_actor(policy, np.random.default_rng(seed))
        state = actor.begin(policy.initial_state(B))
        return [actor.act(observations, state, starts)[0].tolist() for _ in range(8)]

    before = torch.get_rng_state()
    assert actions(1) == actions(1)
    assert actions(1) != actions(2)
    assert torch.equal(torch.get_rng_state(), before)


def sampled(action_space: spaces.Space[Any], n: int = 20_000) -> tuple[Any, Any]:
    """Actions of one and the same observation, many times, and their log-probabilities."""
    policy = make_policy(action_space)
    actor = numpy_actor(policy, np.random.default_rng(0))
    observations = np.ones((n, 2, 3), dtype=np.float32)
    actions, finish = actor.act(observations, actor.begin(policy.initial_state(n)), np.ones(n, dtype=bool))
    _, log_probs, _ = finish()
    return actions, log_probs


@pytest.mark.parametrize(("name", "limit"), [("discrete", 13.8), ("multi discrete", 20.5), ("multi binary", 24.3)])
def test_actions_drawn_in_numpy_come_as_often_as_they_say(name: str, limit: float) -> None:
    actions, log_probs = sampled(ACTION_SPACES[name])
    kinds, first, counts = np.unique(actions, axis=0, return_index=True, return_counts=True)
    probabilities = np.exp(log_probs[first])
    assert len(kinds) == {"discrete": 3, "multi discrete": 6, "multi binary": 8}[name]
    assert probabilities.sum() == near(1.0)
    assert chi_square(counts, probabilities) < limit  # 0.1 % of fair samples exceed it


def test_gaussian_actions_drawn_in_numpy_have_the_mean_and_deviation_of_the_policy() -> None:
    actions, _ = sampled(ACTION_SPACES["box"])
    policy = make_policy(ACTION_SPACES["box"])
    with torch.no_grad():
        state = policy.initial_state(1)
        distribution, _ = policy.get_distribution(torch.ones(1, 2, 3), state, torch.ones(1, dtype=torch.bool))
    assert np.allclose(actions.mean(0), distribution.mode()[0], atol=0.04)
    assert np.allclose(actions.std(0), policy.log_std.detach().exp(), rtol=0.03)
    assert abs(np.corrcoef(actions.T)[0, 1]) < 0.03


@pytest.mark.parametrize("n_matrices", [B, 1])
@pytest.mark.parametrize("kwargs", [{}, dict(full_std=False), dict(use_expln=True), dict(net_arch=[])])
def test_state_dependent_noise_in_numpy_is_that_of_the_policy(kwargs: dict[str, Any], n_matrices: int) -> None:
    """The noise is a function of the state and of matrices drawn now and then, so the very actions must agree."""
    policy = make_policy(ACTION_SPACES["gsde"], "gru", "separate", use_sde=True, **kwargs)
    actor = make_actor(policy, np.random.default_rng(0))
    assert isinstance(actor, NumpyActor)
    expected_state = policy.initial_state(B)
    state = actor.begin(expected_state)
    for step, (observations, starts) in enumerate(a_rollout(OBSERVATIONS)):
        if step % 4 == 0:
            policy.reset_noise(n_matrices)
        actions, finish = actor.act(observations, state, starts)
        values, log_probs, state = finish()
        with torch.no_grad():
            expected = policy(torch.as_tensor(observations), expected_state, torch.as_tensor(starts))
        expected_state = expected[3]
        for ours, theirs in zip((actions, values, log_probs), expected[:3], strict=True):
            assert close(ours, theirs)


def test_squashed_actions_are_left_to_torch() -> None:
    policy = make_policy(ACTION_SPACES["squashed gsde"], use_sde=True, squash_output=True)
    assert isinstance(make_actor(policy, np.random.default_rng(0)), TorchActor)


def assert_predicts_as(policy: RecurrentActorCriticPolicy, predict: Any) -> None:
    """Deterministic actions of a rollout with resets are those of the policy; sampled ones have their shape."""
    state = expected_state = None
    for observations, starts in a_rollout(policy.observation_space):
        expected, expected_state = policy.predict(observations, expected_state, starts, deterministic=True)
        sampled, _ = predict(observations, state, starts, False)
        actions, state = predict(observations, state, starts, True)
        assert actions.dtype == expected.dtype == sampled.dtype
        assert actions.shape == expected.shape == sampled.shape
        np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("memory", "critic_memory", "action_space"), pairwise(ALL_MEMORIES, ALL_CRITIC_MEMORIES, PLAIN)
)
def test_predicting_in_numpy_is_predict(memory: str, critic_memory: str, action_space: str) -> None:
    policy = make_policy(ACTION_SPACES[action_space], memory, critic_memory)
    predict = make_predict(policy)
    assert (predict == policy.predict) == (not acts_in_numpy(policy))
    assert_predicts_as(policy, predict)


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(cls=LstmPolicy, lstm_hidden_size=5, n_lstm_layers=2),
        dict(memory="gru", memory_kwargs=dict(hidden_size=4, num_layers=2)),
        dict(observation_space=spaces.Discrete(6)),
        dict(observation_space=PARTS, **MASKED),
        dict(observation_space=spaces.Dict(seen=IMAGE, allowed=ALLOWED), **MASKED),
        dict(observation_space=spaces.MultiDiscrete([[3, 2], [2, 4]]), features_extractor_class=FlattenExtractor),
        dict(observation_space=IMAGE, features_extractor_class=NatureCNN),
        dict(features_extractor_class=Shifted),
    ],
)
def test_predicting_in_numpy_is_predict_whatever_is_seen(kwargs: dict[str, Any]) -> None:
    policy = make_policy(**kwargs)
    predict = make_predict(policy)
    assert predict != policy.predict
    assert_predicts_as(policy, predict)


def test_a_policy_that_predicts_by_itself_is_asked() -> None:
    def first(self: Any, *args: Any, **kwargs: Any) -> Any:
        actions, state = super(cls, self).predict(*args, **kwargs)
        return np.zeros_like(actions), state

    cls: Any = type("First", (RecurrentActorCriticPolicy,), {"predict": first})
    for policy in (make_policy(cls=cls), make_policy(ACTION_SPACES["gsde"], use_sde=True)):
        assert make_predict(policy) == policy.predict
    hooked = make_policy()
    hooked.action_net.register_forward_hook(lambda *_: None)
    assert make_predict(hooked) == hooked.predict


def test_what_is_not_finite_is_reported_when_predicting_in_numpy() -> None:
    policy = make_policy()
    with torch.no_grad():
        policy.action_net.weight[0, 0] = np.nan
    observations, starts = a_rollout(OBSERVATIONS)[0]
    with pytest.raises(FloatingPointError, match="the policy's output is not finite"):
        make_predict(policy)(observations, None, starts, True)
