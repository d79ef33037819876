"""A player acts as the agent does in training, and carries memory and normalizer itself."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from agents import RecurrentA2C, RecurrentPPO
from agents.checkpoint import CheckpointError
from agents.deploy.player import Player
from tests.agents.checkpoint.test_checkpoint import Pictures
from tests.agents.probe_envs import ACTION_SPACES, ALL_CRITIC_MEMORIES, ALL_MEMORIES, Clock, clocks, small_ppo
from tests.pairs import each
from tests.saved_files import saved


def player_of(model: Any, **kwargs: Any) -> Player:
    return Player.load(saved(model), **kwargs)


def observations(n_steps: int, *shape: int) -> Any:
    return np.random.default_rng(2).uniform(0, 4, (n_steps, *shape, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> Any:
    return small_ppo(VecNormalize(clocks("box", n_envs=2)), "lstm", "separate").learn(32)


@pytest.mark.parametrize(("memory", "actions"), each(ALL_MEMORIES, ACTION_SPACES))
def test_a_player_acts_as_predict_with_state_and_normalizer(memory: str, actions: str) -> None:
    model = small_ppo(VecNormalize(clocks(actions, n_envs=2)), memory, "separate", actions=actions).learn(16)
    player, normalizer = player_of(model), model.get_vec_normalize_env()
    state, starts = None, np.ones(4, dtype=bool)
    for t, raw in enumerate(observations(12, 4)):
        expected, state = model.predict(normalizer.normalize_obs(raw), state, starts, deterministic=True)
        actions_taken = player.act(raw)
        np.testing.assert_array_equal(actions_taken, expected)
        assert all(model.action_space.contains(action) for action in actions_taken)
        starts = np.array([t == 3, False, t in (3, 7), False])
        player.reset(starts)


@pytest.mark.parametrize(("memory", "actions"), each(ALL_MEMORIES, ACTION_SPACES))
def test_a_frozen_player_acts_as_it_did(memory: str, actions: str) -> None:
    model = small_ppo(VecNormalize(clocks(actions, n_envs=2)), memory, "separate", actions=actions).learn(16)
    player, frozen, alone = (player_of(model) for _ in range(3))
    frozen.freeze()
    alone.freeze()
    for t, raw in enumerate(observations(12, 4)):
        expected = player.act(raw)
        actions_taken, first = frozen.act(raw), alone.act(raw[0])
        np.testing.assert_allclose(actions_taken, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(first, expected[0], rtol=1e-4, atol=1e-5)
        assert first.shape == expected[0].shape
        assert actions_taken.dtype == first.dtype == expected.dtype
        starts = np.array([t in (3, 5), False, t in (3, 7), False])
        player.reset(starts)
        frozen.reset(starts)
        alone.reset(starts[:1])


def test_a_frozen_player_does_not_see_what_is_done_to_the_policy_until_it_is_frozen_anew(model: Any) -> None:
    player = player_of(model)
    player.freeze()
    (raw,) = observations(1)
    before = player.act(raw)
    with torch.no_grad():
        player.policy.action_net.bias += 1.0
    player.reset()
    np.testing.assert_array_equal(player.act(raw), before)
    player.freeze()
    assert not np.allclose(player.act(raw), before)


@pytest.mark.parametrize(("critic_memory", "cls"), each(ALL_CRITIC_MEMORIES, [RecurrentPPO, RecurrentA2C]))
def test_one_agent_acts_as_a_batch_of_one(critic_memory: str, cls: Any) -> None:
    model = small_ppo(clocks(n_envs=2), "gru", critic_memory, cls=cls).learn(16)
    single, batch = player_of(model), player_of(model)
    for raw in observations(6):
        action = single.act(raw)
        assert action.shape == ()
        assert action == batch.act(raw[None])[0]


@pytest.mark.parametrize("everyone", [None, True])
def test_the_memory_is_carried_and_reset(model: Any, everyone: Any) -> None:
    player = player_of(model)
    first, second = observations(2)
    player.reset(False)
    fresh = player.act(first)
    remembering = player.act(second)
    player.reset(everyone)
    np.testing.assert_array_equal(player.act(first), fresh)
    player.reset(everyone)
    assert not np.allclose(remembering, player.act(second))


def test_playing_moves_neither_statistics_nor_random_states(model: Any) -> None:
    before = random.getstate(), torch.get_rng_state()
    player, again = player_of(model), player_of(model)
    for raw in observations(20):
        player.act(100 * raw)
    player.reset()
    np.testing.assert_array_equal(player.act(observations(1)[0]), again.act(observations(1)[0]))
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_stochastic_player_samples(model: Any) -> None:
    player = player_of(model, deterministic=False)
    torch.manual_seed(1)
    samples = []
    for _ in range(5):
        player.reset()
        samples.append(player.act(observations(1)[0]))
    assert len({tuple(sample) for sample in samples}) == 5


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_images_and_dicts_are_taken_as_the_environment_gives_them(plain: bool, norm: bool) -> None:
    env: Any = DummyVecEnv([lambda: Pictures(plain)] * 2)
    if norm:
        env = VecNormalize(env, norm_obs=not plain, norm_obs_keys=None if plain else ["ant"])
    policy = "CnnLstmPolicy" if plain else "MultiInputLstmPolicy"
    kwargs = dict(lstm_hidden_size=4)
    model = RecurrentPPO(policy, env, n_steps=4, batch_size=4, n_epochs=1, device="cpu", policy_kwargs=kwargs).learn(8)
    player = player_of(model)
    raw, _ = Pictures(plain).reset()
    seen = model.get_vec_normalize_env().normalize_obs(raw) if norm else raw
    expected, _ = model.predict(seen, episode_start=np.ones(1, dtype=bool), deterministic=True)
    np.testing.assert_array_equal(player.act(raw), expected)
    player.freeze()
    np.testing.assert_allclose(player.act(raw), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("space", [spaces.Discrete(4), spaces.MultiDiscrete([3, 4]), spaces.MultiBinary(3)])
def test_observations_that_are_no_box_are_taken(space: Any) -> None:
    def clock() -> Clock:
        env = Clock(0, ACTION_SPACES["discrete"])
        env.observation_space = space
        env._observation = space.sample  # type: ignore[method-assign]
        return env

    model = small_ppo(DummyVecEnv([clock] * 2), "gru").learn(16)
    sample = space.sample()
    expected, _ = model.predict(np.asarray(sample), episode_start=np.ones(1, dtype=bool), deterministic=True)
    player = player_of(model)
    np.testing.assert_array_equal(player.act(sample), expected)
    player.reset()
    np.testing.assert_array_equal(player.act(np.stack([sample, sample])), [expected, expected])
    player.freeze()
    np.testing.assert_array_equal(player.act(sample), expected)
    player.reset()
    np.testing.assert_array_equal(player.act(np.stack([sample, sample])), [expected, expected])


def test_the_deployment_loop_of_the_docstring_runs(model: Any, tmp_path: Path) -> None:
    model.save(tmp_path / "best")
    player = Player.load(tmp_path / "best")
    env = Clock(0, ACTION_SPACES["box"])
    observation, _ = env.reset()
    for _ in range(12):
        observation, _, terminated, truncated, _ = env.step(player.act(observation))
        if terminated or truncated:
            player.reset()
            observation, _ = env.reset()
    with pytest.raises(FileNotFoundError):
        Player.load(tmp_path / "none")


# Errors


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.zeros(4), r"the observation has shape \(4,\), expected \(3,\) for one agent, or with a leading axis"),
        (np.zeros((2, 2, 3)), r"shape \(2, 2, 3\)"),
        (np.zeros((0, 3)), r"shape \(0, 3\)"),
        (np.array([0.0, np.nan, 1.0]), r"not finite at \[\[1\]\]"),
        (np.array([[0.0, 0.0, 1.0], [np.inf, 0, 0]]), r"not finite at \[\[1, 0\]\]"),
        (np.array(["a", "b", "c"]), "dtype <U1, expected numbers"),
        ({"a": np.zeros(3)}, "is a dict, expected an array"),
    ],
)
def test_an_observation_of_another_kind_is_named(model: Any, observation: Any, message: str) -> None:
    kind = FloatingPointError if "finite" in message else ValueError
    with pytest.raises(kind, match=message):
        player_of(model).act(observation)


ZEBRA, ANT = np.zeros((36, 36, 3), np.uint8), np.zeros(2)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ({"zebra": ZEBRA}, r"keys \['ant', 'zebra'\], got \['zebra'\]"),
        (np.zeros(3), r"keys \['ant', 'zebra'\], got ndarray"),
        ({"zebra": ZEBRA[:5, :5], "ant": ANT}, r"the observation's 'zebra' has shape \(5, 5, 3\)"),
        ({"zebra": np.stack([ZEBRA, ZEBRA]), "ant": ANT}, "zebra is of a batch of 2, ant is of one agent"),
    ],
)
def test_a_dict_of_another_kind_is_named(observation: Any, message: str) -> None:
    env = DummyVecEnv([Pictures])
    player = player_of(RecurrentPPO("MultiInputLstmPolicy", env, n_steps=4, batch_size=4, device="cpu"))
    with pytest.raises(ValueError, match=message):
        player.act(observation)


def test_the_number_of_agents_changes_only_after_a_reset(model: Any) -> None:
    player = player_of(model)
    player.act(observations(1, 3)[0])
    for raw, came in ((observations(1, 2)[0], "a batch of 2"), (observations(1)[0], "one agent")):
        with pytest.raises(ValueError, match=rf"memory of a batch of 3, this observation is of {came}; call reset\(\)"):
            player.act(raw)
    with pytest.raises(ValueError, match=r"the mask has shape \(2,\), the player acts for a batch of 3"):
        player.reset([True, False])
    player.reset()
    assert player.act(observations(1)[0]).shape == (2,)


class Own(FlattenExtractor):
    """An extractor of the user's own."""


def own_schedule(progress_remaining: float) -> float:
    return 1e-3


def test_a_class_of_the_users_is_required_and_what_only_training_needs_is_not() -> None:
    kwargs = dict(policy_kwargs=dict(features_extractor_class=Own), learning_rate=own_schedule, clip_range=own_schedule)
    model = small_ppo(clocks(), "gru", **kwargs)
    with pytest.raises(CheckpointError, match=r"features_extractor_class is .*:Own'"):
        player_of(model)
    player = player_of(model, custom_objects={"features_extractor_class": Own})
    assert isinstance(player.policy.features_extractor, Own)


def test_a_wrapper_between_normalizer_and_policy_is_named() -> None:
    model = small_ppo(VecFrameStack(VecNormalize(clocks()), 2), "gru").learn(24)
    with pytest.raises(CheckpointError, match="a wrapper stood between them, such as a frame stack"):
        player_of(model)
    assert Player(model.policy).act(np.zeros(6)) in (0, 1, 2)
