"""Classic control without velocities is gymnasium's, with the velocities hidden."""

from __future__ import annotations

import gymnasium
import pytest

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
