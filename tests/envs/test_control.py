"""Classic control without velocities is gymnasium's, with the velocities hidden."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

import envs
from tests.tolerance import assert_close, near

TASKS = {
    "CartPoleNoVel-v1": ("CartPole-v1", [1, 3]),
    "PendulumNoVel-v1": ("Pendulum-v1", [2]),
    "MountainCarContinuousNoVel-v0": ("MountainCarContinuous-v0", [1]),
    "AcrobotNoVel-v1": ("Acrobot-v1", [4, 5]),
}


@pytest.mark.parametrize("id", TASKS)
def test_the_episodes_are_gymnasiums_with_the_velocities_zeroed(id: str) -> None:
    original, velocities = TASKS[id]
    shown, whole = gymnasium.make(id), gymnasium.make(original)
    assert shown.observation_space == whole.observation_space
    shown.action_space.seed(0)
    observation, _ = shown.reset(seed=3)
    expected, _ = whole.reset(seed=3)
    for _ in range(1500):
        expected[velocities] = 0.0
        assert_close(observation, expected, terms=200)
        action = shown.action_space.sample()
        if id == "MountainCarContinuousNoVel-v0":
            # Gymnasium starts in double precision and goes on in single, so that rounding drifts apart over an episode.
            whole.unwrapped.state = shown.unwrapped.batch._state[:, 0].copy()
        observation, reward, terminated, truncated, _ = shown.step(action)
        expected, expected_reward, expected_terminated, expected_truncated, _ = whole.step(action)
        assert (terminated, truncated) == (expected_terminated, expected_truncated)
        assert reward == near(expected_reward, terms=200, scale=1.0)  # an episode's steps add up in the state
        if terminated or truncated:
            (observation, _), (expected, _) = shown.reset(), whole.reset()


@pytest.mark.parametrize("id", TASKS)
def test_environment_i_of_a_vector_lives_what_a_single_one_with_its_seed_lives(id: str) -> None:
    venv = envs.make(id, 3, seed=7, env_kwargs={"max_episode_steps": 150})
    singles = [gymnasium.make(id, max_episode_steps=150) for _ in range(3)]
    observations = venv.reset()
    for i, single in enumerate(singles):
        np.testing.assert_array_equal(observations[i], single.reset(seed=7 + i)[0])
    venv.action_space.seed(0)
    ended = 0
    for _ in range(600):
        actions = np.stack([venv.action_space.sample() for _ in range(3)])
        observations, rewards, dones, infos = venv.step(actions)
        for i, single in enumerate(singles):
            observation, reward, terminated, truncated, _ = single.step(actions[i])
            assert (rewards[i], dones[i]) == (np.float32(reward), terminated or truncated)
            if dones[i]:
                ended += 1
                np.testing.assert_array_equal(infos[i]["terminal_observation"], observation)
                assert infos[i]["TimeLimit.truncated"] == (truncated and not terminated)
                observation, _ = single.reset()
            np.testing.assert_array_equal(observations[i], observation)
    assert ended >= 3
