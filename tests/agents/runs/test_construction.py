"""Settings in plain values become the agent they describe, and only what can be normalized is."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from agents import RecurrentPPO
from agents.memory import GRU
from agents.policy.nodes import NodeActionPolicy
from agents.runs.construction import (
    ACTIVATIONS,
    ALGORITHMS,
    POLICIES,
    encoder_class,
    make_agent,
    normalize,
    own_classes,
)
from agents.runs.defaults import ENT_COEF, LEARNING_RATE
from configs import Settings
from configs.settings import SETTINGS, AlgorithmSettings, EnvironmentSettings, PolicySettings
from envs import make
from envs.vector.vectorize import SerialVecEnv
from tests.own_environments import SPACES, Shown


def made(algorithm: AlgorithmSettings, policy: PolicySettings) -> Any:
    return make_agent(Settings(algorithm=algorithm, policy=policy, device="cpu"), make("CartPoleNoVel-v1", 2))


def sizes(layers: Any) -> list[int]:
    return [layer.out_features for layer in layers if isinstance(layer, nn.Linear)]


def test_every_setting_reaches_the_agent() -> None:
    shape: dict[str, Any] = dict(n_steps=32, batch_size=16, n_epochs=3, sequence_length=8, burn_in=5)
    rates = dict(learning_rate=1e-2, gamma=0.7, gae_lambda=0.6, clip_range=0.3, clip_range_vf=0.4, target_kl=0.05)
    weights = dict(ent_coef=0.1, vf_coef=0.2, max_grad_norm=0.9)
    others: dict[str, Any] = dict(autocast="bfloat16", refresh_states=True, normalize_advantage=False)
    others["noise_correlation"] = 0.25
    algorithm = AlgorithmSettings(learning_rate_schedule="constant", **shape, **rates, **weights, **others)
    agent = made(algorithm, PolicySettings())
    assert isinstance(agent, RecurrentPPO)
    for name, value in asdict(algorithm).items():
        if name != "name" and not name.endswith("_schedule"):
            attribute = getattr(agent, name)
            assert (attribute(1.0) if callable(attribute) else attribute) == value, name


def test_linear_schedules_fall_to_zero_at_the_end() -> None:
    agent = made(AlgorithmSettings(clip_range_schedule="linear", ent_coef_schedule="linear"), PolicySettings())
    assert agent.lr_schedule(1.0) == LEARNING_RATE
    assert agent.lr_schedule(0.5) == pytest.approx(LEARNING_RATE / 2)
    assert agent.clip_range(0.25) == pytest.approx(AlgorithmSettings().clip_range / 4)
    assert agent.clip_range(0.0) == 0.0
    agent._current_progress_remaining = 0.25
    assert agent.entropy_coefficient() == pytest.approx(ENT_COEF / 4)


def test_the_noise_of_continuous_actions_falls_to_zero_at_the_end() -> None:
    agents = [
        make_agent(Settings(algorithm=algorithm, device="cpu"), make("PendulumNoVel-v1", 2))
        for algorithm in (AlgorithmSettings(), AlgorithmSettings(noise_correlation=0.25))
    ]
    assert [agents[0].noise_correlation(rest) for rest in (1.0, 0.5, 0.0)] == [0.9, 0.45, 0.0]  # type: ignore[operator]
    assert agents[1].noise_correlation == 0.25


def test_the_network_is_the_one_described() -> None:
    policy = PolicySettings(
        memory="gru",
        memory_kwargs={"hidden_size": 7},
        critic_memory="separate",
        net_arch=(5,),
        critic_net_arch=(6, 6),
        activation="relu",
        kwargs={"ortho_init": False},
    )
    network = made(AlgorithmSettings(), policy).policy
    assert isinstance(network.memory_actor, GRU)
    assert isinstance(network.memory_critic, GRU)
    assert network.memory_actor.output_size == 7
    assert [sizes(net) for net in (network.mlp_extractor.policy_net, network.mlp_extractor.value_net)] == [[5], [6, 6]]
    assert network.activation_fn is nn.ReLU
    assert not network.ortho_init
    assert sizes(made(AlgorithmSettings(), replace(policy, critic_net_arch=None)).policy.mlp_extractor.value_net) == [5]


def test_actions_about_nodes_begin_at_the_node_named() -> None:
    policy = PolicySettings(actions="nodes", first_node=1, kwargs={"action_mask": "action_mask"})
    agent: Any = make_agent(Settings(policy=policy, device="cpu"), make("GraphSearch-v0", 2))
    assert isinstance(agent.policy, NodeActionPolicy)
    assert agent.policy.first_node == 1


def test_names_here_are_those_of_the_settings() -> None:
    names = {"policy.activation": ACTIVATIONS, "algorithm.name": ALGORITHMS, "policy.actions": POLICIES}
    for key, known in names.items():
        assert set(known) == set(SETTINGS[key].type.__args__)


def test_classes_of_ones_own_are_named_for_loading() -> None:
    policy = replace(PolicySettings(), memory="agents.memory:GRU", encoder="agents.encoders.vision:ImpalaCNN")
    own = own_classes(policy)
    assert own == {"memory": "agents.memory:GRU", "features_extractor_class": encoder_class("impala")}
    assert own_classes(PolicySettings()) == {}


@pytest.mark.parametrize("name", ["resnet", "no.such.module:Net", "json:Nothing"])
def test_an_encoder_that_is_not_there_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        encoder_class(name)


NUMBERS = spaces.Box(-np.inf, np.inf, (3,), np.float32)
PICTURE = spaces.Box(0, 255, (8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("space", "keys"),
    [
        (NUMBERS, [""]),
        (PICTURE, []),
        (spaces.Discrete(4), []),
        (spaces.MultiBinary(3), []),
        (spaces.Box(0, 5, (2,), np.int64), []),
        (spaces.Dict(numbers=NUMBERS, picture=PICTURE, choice=spaces.Discrete(3)), ["numbers"]),
        (spaces.Dict(picture=PICTURE), []),
    ],
    ids=["numbers", "picture", "choice", "bits", "counts", "mixed", "pictures"],
)
@pytest.mark.parametrize("rewards", [True, False])
def test_only_measurements_are_normalized(space: spaces.Space[Any], keys: list[str], rewards: bool) -> None:
    SPACES["test"] = space
    env = SerialVecEnv([lambda: Shown("test", "choice")])
    wrapped = normalize(env, EnvironmentSettings(normalize_rewards=rewards))
    if not keys and not rewards:
        assert wrapped is env
        return
    assert isinstance(wrapped, VecNormalize)
    assert (wrapped.norm_obs, wrapped.norm_reward) == (bool(keys), rewards)
    assert not keys or wrapped.norm_obs_keys == (keys if keys != [""] else None)
    wrapped.reset()
    observation: Any = wrapped.step(np.zeros(1, dtype=np.int64))[0]
    if isinstance(space, spaces.Dict):
        assert observation["picture"].dtype == np.uint8
    wrapped.close()
