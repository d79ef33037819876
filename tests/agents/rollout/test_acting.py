"""Acting in NumPy and acting through torch are the same policy.

Axes: T steps, B environments.
"""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import nn

from agents.algorithms import on_policy
from agents.encoders.auxiliary import AuxiliaryTerms
from agents.memory import GRU, MEMORIES, Memory
from agents.policy.actor_critic import LstmPolicy, RecurrentActorCriticPolicy
from agents.policy.heads import CategoricalHead
from agents.rollout.actor import TorchActor
from agents.rollout.capture import GraphActor
from agents.rollout.numpy_actor import NumpyActor, make_actor
from tests.agents.policy.test_actions import chi_square
from tests.agents.probe_envs import (
    ACTION_SPACES,
    ALL_CRITIC_MEMORIES,
    ALL_MEMORIES,
    MaskedClock,
    clocks,
    policy_arguments,
    small_ppo,
    states_equal,
    vectorized,
)
from tests.pairs import each, pairwise
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
    return [(np.stack([_draw(space, rng) for _ in range(B)]), starts[t]) for t in range(n_steps)]


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
            tensor, start = torch.as_tensor(observations), torch.as_tensor(starts)
            expected_values, expected_log_probs, _ = policy.evaluate_actions(
                tensor[None], torch.as_tensor(actions)[None], policy_state, start[None]
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


class OfItsOwnValue(RecurrentActorCriticPolicy):
    def _value(self, hidden: Any) -> Any:
        return 2 * super()._value(hidden)


class OfItsOwnDistribution(RecurrentActorCriticPolicy):
    def _distribution_parameters(self, hidden: Any, obs: Any) -> Any:
        return tuple(2 * part for part in super()._distribution_parameters(hidden, obs))


class Greedy(CategoricalHead):
    def sample(self, parameters: Any) -> Any:
        return self.mode(parameters)


class OfItsOwnHead(RecurrentActorCriticPolicy):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.head = Greedy(self.action_space)


class OfItsOwnFeatures(RecurrentActorCriticPolicy):
    def _features(self, obs: Any, extractor: Any) -> Any:
        return super()._features(obs, extractor) - 1


class Forgetful(GRU):
    """A memory that changes the step it inherits, and its unrolling with it."""

    def step(self, features: Any, state: Any, episode_starts: Any) -> Any:
        return super().step(features, state, torch.ones_like(episode_starts))

    def unroll(self, features: Any, state: Any, episode_starts: Any) -> Any:
        return super().unroll(features, state, torch.ones_like(episode_starts))


class Shifted(FlattenExtractor):
    def forward(self, observations: Any) -> Any:
        return super().forward(observations) + 1


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(cls=OfItsOwnNetwork),
        dict(cls=OfAnExtendedNetwork),
        dict(cls=OfItsOwnValue),
        dict(cls=OfItsOwnDistribution),
        dict(cls=OfItsOwnFeatures),
        dict(features_extractor_class=Shifted),
        dict(memory=Forgetful, memory_kwargs=dict(hidden_size=4)),
    ],
)
def test_a_policy_with_code_of_its_own_acts_by_that_code(kwargs: dict[str, Any]) -> None:
    policy = make_policy(**kwargs)
    assert_equals_the_policy(policy, make_actor(policy, np.random.default_rng(0)))


def test_a_policy_with_a_forward_of_its_own_acts_through_it() -> None:
    class Constant(RecurrentActorCriticPolicy):
        def forward(self, obs: Any, state: Any, episode_starts: Any, deterministic: bool = False) -> Any:
            actions, values, log_probs, state = super().forward(obs, state, episode_starts, deterministic)
            return torch.ones_like(actions), values, log_probs, state

    policy = make_policy(cls=Constant)
    actor = make_actor(policy, np.random.default_rng(0))
    for observations, starts in a_rollout(OBSERVATIONS):
        actions, *_ = actor.act(observations, actor.begin(policy.initial_state(B)), starts)
        assert (actions == 1).all()


def test_a_policy_with_a_head_of_its_own_acts_by_that_head() -> None:
    policy = make_policy(cls=OfItsOwnHead)
    actor = make_actor(policy, np.random.default_rng(0))
    state = actor.begin(policy.initial_state(B))
    for observations, starts in a_rollout(OBSERVATIONS):
        hidden, _ = policy._step(torch.as_tensor(observations), state, torch.as_tensor(starts))
        logits, *_ = policy._distribution_parameters(hidden.actor, None)
        actions, finish = actor.act(observations, state, starts)
        assert actions.tolist() == logits.argmax(-1).tolist()
        *_, state = finish()


@pytest.mark.parametrize("layer", ["value_net", "mlp_extractor.value_net.0"])
def test_a_method_put_in_place_of_a_layers_is_not_passed_by(layer: str) -> None:
    policy = make_policy()
    module = policy.get_submodule(layer)
    observations = torch.as_tensor(a_rollout(OBSERVATIONS)[0][0])
    state, starts = policy.initial_state(B), torch.zeros(B, dtype=torch.bool)
    before = policy.predict_values(observations, state, starts)
    forward = module.forward
    module.forward = lambda x: forward(x) + 1  # type: ignore[method-assign]
    assert not torch.allclose(policy.predict_values(observations, state, starts), before)
    assert_equals_the_policy(policy, make_actor(policy, np.random.default_rng(0)))


def test_a_hook_on_a_layer_is_not_passed_by() -> None:
    policy = make_policy()
    policy.value_net.register_forward_hook(lambda module, inputs, output: output + 1)
    assert_equals_the_policy(policy, make_actor(policy, np.random.default_rng(0)))


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


def test_an_actor_draws_from_the_source_of_chance_it_was_given_and_from_no_other() -> None:
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


# One graph a step. Without a GPU a function stands in for its graph: what is captured is then called, not replayed.

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")),
]


def both_act(policy: RecurrentActorCriticPolicy, actor: Any, n_steps: int = 9) -> None:
    """The actor's actions, values, log-probabilities and states are those of ``TorchActor``, bit for bit."""
    reference = TorchActor(policy)
    torch.manual_seed(5)
    start = policy.renew(policy.initial_state(B))
    kept = [part.clone() for part in start]

    def run(actor: Any) -> list[Any]:
        torch.manual_seed(6)
        state, rows = actor.begin(start), []
        for observations, starts in a_rollout(policy.observation_space, n_steps):
            actions, finish = actor.act(observations, state, starts)
            values, log_probs, state = finish()
            outputs = [torch.as_tensor(part).cpu().clone() for part in (actions, values, log_probs)]
            rows.append((actor.on_host(actions), *outputs, *(part.cpu() for part in actor.end(state))))
        return rows

    for ours, theirs in zip(run(actor), run(reference), strict=True):
        assert isinstance(ours[0], np.ndarray)
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == other.dtype
            assert np.array_equal(one, other)
    assert all(torch.equal(one, other) for one, other in zip(start, kept, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("memory", "critic_memory", "action_space"),
    pairwise(ALL_MEMORIES, ["shared", "separate"], [name for name in PLAIN if "gsde" not in name]),
)
def test_a_captured_step_is_the_policys(memory: str, critic_memory: str, action_space: str, device: str) -> None:
    policy = make_policy(ACTION_SPACES[action_space], memory, critic_memory).to(device)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both_act(policy, GraphActor(policy))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "kwargs",
    [
        dict(memory="lstm", memory_kwargs=dict(hidden_size=4, num_layers=3, dropout=0.5)),
        dict(cls=LstmPolicy, lstm_hidden_size=5, n_lstm_layers=2),
        dict(observation_space=spaces.Discrete(6)),
        dict(observation_space=spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8)),
        dict(observation_space=spaces.Box(-1, 1, (3,), dtype=np.float64)),
        dict(memory="none"),
    ],
)
def test_whatever_is_captured_is_the_policys(kwargs: dict[str, Any], device: str) -> None:
    policy = make_policy(**kwargs).to(device)
    both_act(policy, GraphActor(policy))


def counting(captures: list[int]) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def capture(function: Callable[[], None]) -> Callable[[], None]:
        captures.append(1)
        return function

    return capture


def test_a_step_is_captured_once_and_sees_what_the_optimizer_changes() -> None:
    policy, captures = make_policy(critic_memory="separate"), list[int]()
    actor = GraphActor(policy, counting(captures))
    both_act(policy, actor)
    before = [part.clone() for part in policy.parameters()]
    for parameter in policy.parameters():
        parameter.grad = torch.randn_like(parameter)
    policy.optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    both_act(policy, actor)
    policy.load_state_dict(make_policy(critic_memory="separate").state_dict())
    both_act(policy, actor)
    assert len(captures) == 1


def test_a_parameter_that_moved_in_memory_is_captured_anew() -> None:
    policy, captures = make_policy(), list[int]()
    actor = GraphActor(policy, counting(captures))
    both_act(policy, actor)
    policy.value_net.weight.data = 2 * policy.value_net.weight.data
    both_act(policy, actor)
    assert len(captures) == 2


def test_another_number_of_environments_is_captured_anew() -> None:
    policy, captures = make_policy(), list[int]()
    actor = GraphActor(policy, counting(captures))
    for n_envs, expected in ((2, 1), (2, 1), (3, 2)):
        observations, starts = np.ones((n_envs, 2, 3), np.float32), np.ones(n_envs, dtype=bool)
        actions, *_ = actor.act(observations, actor.begin(policy.initial_state(n_envs)), starts)
        assert actor.on_host(actions).shape == (n_envs,)
        assert len(captures) == expected


def failing(function: Callable[[], None]) -> Callable[[], None]:
    torch.rand(7)  # an attempt may draw
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


def test_a_capture_that_fails_falls_back_with_one_warning_that_says_why() -> None:
    policy = make_policy()
    actor = GraphActor(policy, failing)
    with pytest.warns(UserWarning, match="RuntimeError: operation not permitted when stream is capturing$") as caught:
        both_act(policy, actor)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both_act(policy, actor)


def hooked() -> RecurrentActorCriticPolicy:
    policy = make_policy()
    policy.value_net.register_forward_hook(lambda module, inputs, output: output + 1)
    return policy


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (hooked, "policy.value_net has a forward hook"),
        (lambda: make_policy(cls=OfItsOwnValue), "OfItsOwnValue has _value of its own"),
        (lambda: make_policy(ACTION_SPACES["gsde"], use_sde=True), "state-dependent exploration"),
    ],
)
def test_a_policy_that_a_capture_would_pass_by_acts_eagerly(make: Any, reason: str) -> None:
    policy, captures = make(), list[int]()
    actor = GraphActor(policy, counting(captures))
    with pytest.warns(UserWarning, match=reason) as caught:
        both_act(policy, actor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both_act(policy, actor)
    assert len(caught) == 1
    assert not captures


def test_a_hook_that_comes_after_the_capture_is_not_passed_by() -> None:
    policy = make_policy()
    actor = GraphActor(policy)
    both_act(policy, actor)
    policy.value_net.register_forward_hook(lambda module, inputs, output: output + 1)
    with pytest.warns(UserWarning, match="hook"):
        both_act(policy, actor)


class DelayLine(Memory):
    """Puts out what came in two steps ago: its state is handed on from part to part as it is."""

    def __init__(self, input_size: int) -> None:
        super().__init__(input_size, output_size=input_size)

    def initial_state(self, batch_size: int) -> Any:
        return (torch.zeros(batch_size, self.input_size), torch.zeros(batch_size, self.input_size))

    def step(self, features: Any, state: Any, episode_starts: Any) -> Any:
        return state[1] + 0.1 * features, (features, state[0])

    def unroll(self, features: Any, state: Any, episode_starts: Any) -> Any:
        raise NotImplementedError


def test_a_memory_that_hands_its_state_on_as_it_came_is_captured_too() -> None:
    policy = make_policy(memory=DelayLine, memory_kwargs={})  # type: ignore[arg-type]
    both_act(policy, GraphActor(policy))


def test_actions_handed_out_and_states_at_the_end_stay_as_they_were() -> None:
    policy = make_policy(critic_memory="separate")
    actor = GraphActor(policy)
    state = actor.begin(policy.initial_state(B))
    kept: list[Any] = []
    copies: list[Any] = []
    for observations, starts in a_rollout(OBSERVATIONS):
        actions, finish = actor.act(observations, state, starts)
        *_, state = finish()
        kept += [torch.as_tensor(actor.on_host(actions)), *actor.end(state)]
        copies += [part.clone() for part in kept[len(copies) :]]
    assert all(torch.equal(one, other) for one, other in zip(kept, copies, strict=True))


@pytest.mark.filterwarnings("ignore:acting is not captured")
@pytest.mark.parametrize(("memory", "actions"), each(ALL_MEMORIES, ["discrete", "box", "masked", "gsde"]))
def test_an_agent_learns_the_same_whether_its_steps_are_captured_or_not(
    memory: str, actions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole rollouts, with resets, time limits and callbacks: what is written over is never read again."""
    captures: list[int] = []

    def learned(make: Callable[..., Any]) -> list[Any]:
        monkeypatch.setattr(on_policy, "make_actor", make)
        if actions == "masked":
            env: Any = vectorized(lambda i: MaskedClock(i, ACTION_SPACES["discrete"]), 3)
            model = small_ppo(env, memory, "separate", policy_kwargs=dict(action_mask="mask"))
        else:
            model = small_ppo(clocks(actions), memory, "separate", actions=actions)
        model.learn(48, callback=lambda *_: True)
        model.learn(24, reset_num_timesteps=False)
        return [*model.policy.parameters(), model.rollout_buffer.values, *model._last_state]

    def graph(policy: Any, rng: Any, last: Any, capture: bool) -> Any:
        return last or GraphActor(policy, counting(captures))

    eager = learned(lambda policy, *_: TorchActor(policy))
    for one, other in zip(learned(graph), eager, strict=True):
        assert torch.equal(one, other)
    assert len(captures) == (actions != "gsde")


def test_the_actor_is_chosen_by_device_arithmetic_and_what_was_captured_before() -> None:
    policy, rng = make_policy(), np.random.default_rng(0)
    assert isinstance(make_actor(policy, rng), NumpyActor)
    policy.autocast = torch.bfloat16
    assert isinstance(make_actor(policy, rng), TorchActor)
    both_act(policy, GraphActor(policy))


def test_a_copy_of_a_captured_actor_acts_for_the_copy_of_its_policy() -> None:
    policy = make_policy()
    actor = GraphActor(policy)
    both_act(policy, actor)
    copied = copy.deepcopy({"policy": policy, "actor": actor})
    assert copied["actor"].acts_for(copied["policy"])
    assert not copied["actor"].acts_for(policy)
    with torch.no_grad():
        copied["policy"].value_net.weight += 1
    both_act(copied["policy"], copied["actor"])
    both_act(policy, actor)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_a_gpu_an_update_and_a_captured_step_never_make_the_host_wait() -> None:
    """But for the actions, for which the host waits by an event that this does not count."""
    model = small_ppo(clocks(), "lstm", "separate", device="cuda")
    model.learn(24)
    mode = torch.cuda.get_sync_debug_mode()
    actor, policy = model._captured_actor, model.policy
    observations, starts = np.ones((3, *policy.observation_space.shape), np.float32), np.zeros(3, dtype=bool)
    state = actor.begin(model._last_state)
    actor.act(observations, state, starts)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(3):
            actions, finish = actor.act(observations, state, starts)
            actor.on_host(actions)
            *_, state = finish()
        model._train_epoch([], AuxiliaryTerms(model.policy))
    finally:
        torch.cuda.set_sync_debug_mode(mode)
