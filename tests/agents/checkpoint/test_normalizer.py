"""The normalizer travels with the agent: what learned from normalized observations sees them wherever it acts."""

import copy
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import CallbackList, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
    unwrap_vec_normalize,
)

from agents import RecurrentPPO
from agents.checkpoint import CheckpointError, normalizer, normalizer_state
from tests.agents.checkpoint.test_checkpoint import Pictures, assert_equal, moments
from tests.agents.probe_envs import clocks, small_ppo
from tests.saved_files import loaded, saved

Model = Any


def normalized_clocks(n_envs: int = 2, **kwargs: Any) -> VecNormalize:
    return VecNormalize(clocks(n_envs=n_envs), **kwargs)


def test_a_bare_environment_is_wrapped_with_statistics_and_settings() -> None:
    model = small_ppo(normalized_clocks(clip_obs=2.0, clip_reward=3.0, gamma=0.5, epsilon=1e-3), "lstm").learn(32)
    wrapper = loaded(model, clocks(n_envs=2)).get_vec_normalize_env()
    assert_equal(moments(wrapper), moments(model.get_vec_normalize_env()))
    assert (wrapper.clip_obs, wrapper.clip_reward, wrapper.gamma, wrapper.epsilon) == (2.0, 3.0, 0.5, 1e-3)
    assert (wrapper.training, wrapper.norm_reward) == (False, False)
    with wrapper.learning():
        assert (wrapper.training, wrapper.norm_reward) == (True, True)
    assert normalizer_state(loaded(model, clocks(n_envs=2))).settings == normalizer_state(model).settings


def test_the_statistics_are_copies_and_stay_with_an_agent_without_environment(trained: Model) -> None:
    before = copy.deepcopy(moments(trained.get_vec_normalize_env()))
    again = loaded(loaded(trained))
    wrapper = loaded(again, clocks(n_envs=2)).get_vec_normalize_env()
    assert_equal(moments(wrapper), before)
    loaded(trained, clocks(n_envs=2)).learn(32)
    assert_equal(moments(trained.get_vec_normalize_env()), before)


def test_a_fresh_normalizer_gets_the_statistics_and_keeps_its_settings(trained: Model) -> None:
    wrapper = normalized_clocks(norm_reward=False, training=False)
    again = loaded(trained, wrapper)
    assert again.get_vec_normalize_env() is wrapper
    assert_equal(moments(wrapper), moments(trained.get_vec_normalize_env()))
    assert (wrapper.norm_reward, wrapper.training) == (False, False)
    with pytest.raises(CheckpointError, match=r"learned with normalized observations of shape \(3,\).*not at all"):
        loaded(trained, normalized_clocks(norm_obs=False))


def test_a_normalizer_that_has_seen_something_is_left_alone(trained: Model) -> None:
    wrapper = normalized_clocks()
    wrapper.reset()
    before = copy.deepcopy(moments(wrapper))
    assert loaded(trained, wrapper).get_vec_normalize_env() is wrapper
    assert_equal(moments(wrapper), before)


def test_a_normalizer_below_another_wrapper_gets_its_statistics_there() -> None:
    model = small_ppo(VecFrameStack(normalized_clocks(), 2), "lstm").learn(32)
    again = loaded(model, VecFrameStack(normalized_clocks(), 2))
    assert_equal(moments(again.get_vec_normalize_env()), moments(model.get_vec_normalize_env()))
    with pytest.raises(CheckpointError, match="wrap it in VecNormalize yourself, where it belongs"):
        loaded(model, VecFrameStack(clocks(n_envs=2), 2))


def test_a_normalizer_of_some_keys_comes_back() -> None:
    env = VecNormalize(DummyVecEnv([Pictures] * 2), norm_obs_keys=["ant"])
    model = RecurrentPPO("MultiInputLstmPolicy", env, n_steps=4, batch_size=4, n_epochs=1, device="cpu").learn(8)
    again = loaded(model, DummyVecEnv([Pictures] * 2), force_reset=False)
    left, right = model.get_vec_normalize_env(), again.get_vec_normalize_env()
    assert isinstance(again.get_env(), VecTransposeImage)
    assert list(right.obs_rms) == ["ant"]
    assert_equal(vars(right.obs_rms["ant"]), vars(left.obs_rms["ant"]))
    assert_equal(right.get_original_obs(), dict(left.get_original_obs()))
    again.learn(8, reset_num_timesteps=False)


def test_evaluation_sees_what_training_saw_and_moves_nothing(trained: Model) -> None:
    training = trained.get_vec_normalize_env()
    before = copy.deepcopy(moments(training))
    for source in (trained, saved(trained), loaded(trained)):
        bare = clocks(n_envs=4)
        venv = normalizer(source, bare)
        seen = venv.reset()
        np.testing.assert_array_equal(seen, training.normalize_obs(bare.first))
        for _ in range(20):
            seen, rewards, _, _ = venv.step(np.zeros(4, dtype=int))
            np.testing.assert_array_equal(seen, training.normalize_obs(bare.observations[-1]))
            np.testing.assert_array_equal(rewards, bare.rewards[-1])
        assert_equal(moments(venv), before)
        assert_equal(moments(training), before)
    with pytest.raises(CheckpointError, match="in a VecNormalize already"):
        normalizer(trained, normalized_clocks())


def test_evaluation_without_a_normalizer_changes_nothing() -> None:
    bare = clocks()
    venv = normalizer(small_ppo(clocks(), "lstm"), bare)
    np.testing.assert_array_equal(venv.reset(), bare.first)
    _, rewards, _, _ = venv.step(np.zeros(3, dtype=int))
    np.testing.assert_array_equal(rewards, bare.rewards[-1])


def test_the_statistics_normalize_as_the_wrapper_does(trained: Model) -> None:
    state = normalizer_state(trained)
    assert state is not None
    observation = np.array([[0.5, 40.0, -3.0]], dtype=np.float32)
    expected = trained.get_vec_normalize_env().normalize_obs(observation)
    assert_equal(state.normalize(observation), expected)


def true_returns(env: Any, index: int, first: int = 0) -> list[float]:
    """Of the episodes that ended in one of the environments, from a step on."""
    totals = [0.0]
    for rewards, dones in zip(env.rewards[first:], env.dones[first:], strict=True):
        totals[-1] += float(rewards[index])
        if dones[index]:
            totals.append(0.0)
    return totals[:-1]


def test_who_looks_at_a_loaded_agents_environment_sees_true_rewards_and_moves_nothing() -> None:
    model = small_ppo(normalized_clocks(), "lstm").learn(64)
    bare = clocks(n_envs=2)
    again = loaded(model, bare)
    before = copy.deepcopy(moments(again.get_vec_normalize_env()))
    again.get_env().reset()
    for _ in range(9):
        _, rewards, _, _ = again.get_env().step(np.zeros(2, dtype=int))
        np.testing.assert_array_equal(rewards, bare.rewards[-1])
    first = len(bare.rewards)
    mean, _ = evaluate_policy(again, again.get_env(), n_eval_episodes=6, warn=False)
    assert mean == pytest.approx(np.mean([true_returns(bare, i, first)[:3] for i in range(2)]), abs=1e-4)
    assert_equal(moments(again.get_vec_normalize_env()), before)
    again.learn(32)
    with pytest.raises(AssertionError):
        assert_equal(moments(again.get_vec_normalize_env()), before)
    at_rest = copy.deepcopy(moments(again.get_vec_normalize_env()))
    evaluate_policy(again, again.get_env(), n_eval_episodes=2, warn=False)
    assert_equal(moments(again.get_vec_normalize_env()), at_rest)


@pytest.mark.parametrize("normalized", [True, False])
def test_a_callback_that_evaluates_on_plain_environments_works_after_loading(normalized: bool) -> None:
    model = small_ppo(normalized_clocks(norm_obs=normalized), "lstm").learn(32)
    again, bare = loaded(model, clocks(n_envs=2)), clocks(n_envs=1)
    evaluation = EvalCallback(bare, eval_freq=4, n_eval_episodes=3, verbose=0)
    again.learn(32, [CallbackList([evaluation])])
    assert evaluation.last_mean_reward == pytest.approx(np.mean(true_returns(bare, 0)[-3:]), abs=1e-4)
    seen, training = (unwrap_vec_normalize(env) for env in (evaluation.eval_env, again.get_env()))
    assert_equal(vars(seen.ret_rms), vars(training.ret_rms))
    assert (seen.training, seen.norm_reward) == (False, False)
