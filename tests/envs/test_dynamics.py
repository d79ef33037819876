"""Wrappers that change the environment itself, against cases worked out by hand."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from counting import Composed, Counting, assert_same
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

import envs
from envs.wrappers.transforms import wrap

SETTINGS: dict[str, dict[str, Any]] = {
    "action_delay": {"steps": 2},
    "randomize": {"parameters": {"g": [0.5, 2.0], "max_torque": [1.0, 1.5]}, "observe": True},
    "trials": {"episodes": 3},
}
with_each = pytest.mark.parametrize("name", SETTINGS)


def test_actions_take_effect_late_and_none_of_an_episode_reaches_the_next() -> None:
    env: Any = wrap(Counting(length=4), [("action_delay", {"steps": 2})])
    env.reset()
    for action in (6, 7, 6, 7):
        env.step(action)
    assert env.unwrapped.actions == [5, 5, 6, 7]
    env.reset()
    env.step(7)
    assert env.unwrapped.actions[4:] == [5]


def test_randomized_parameters_are_factors_of_the_first_values_drawn_for_each_episode() -> None:
    env: Any = wrap(gymnasium.make("Pendulum-v1"), [("randomize", SETTINGS["randomize"])])
    drawn = []
    for seed in (3, None, None, 3):
        observation, info = env.reset(seed=seed)
        factors = info["parameters"]
        assert env.unwrapped.g == pytest.approx(10.0 * factors["g"])
        assert env.unwrapped.max_torque == pytest.approx(2.0 * factors["max_torque"])
        np.testing.assert_array_equal(observation["parameters"], np.float32([factors["g"], factors["max_torque"]]))
        assert env.observation_space.contains(observation)
        drawn.append(factors)
    assert drawn[0] == drawn[3]
    assert drawn[0] != drawn[1] != drawn[2]


def test_factors_are_even_in_their_logarithm() -> None:
    env = wrap(gymnasium.make("Pendulum-v1"), [("randomize", {"parameters": {"g": [0.25, 4.0]}})])
    factors = [env.reset(seed=seed)[1]["parameters"]["g"] for seed in range(400)]
    assert np.mean(np.log(factors)) == pytest.approx(0.0, abs=0.15)
    assert 0.25 <= min(factors) < 0.27
    assert 3.7 < max(factors) <= 4.0


def test_an_array_is_scaled_as_a_whole() -> None:
    inner = Counting()
    inner.masses = np.array([1.0, 3.0])  # type: ignore[attr-defined]
    env: Any = wrap(inner, [("randomize", {"parameters": {"masses": [2.0, 2.0]}})])
    for _ in range(2):
        env.reset()
        np.testing.assert_array_equal(env.unwrapped.masses, [2.0, 6.0])


def test_a_trial_joins_episodes_and_shows_where_each_starts() -> None:
    env = wrap(Counting(), [("trials", {"episodes": 2})])
    seen = [env.reset()[0]]
    ends, last = [], {}
    for _ in range(5):
        observation, _, terminated, truncated, last = env.step(5)
        seen.append(observation)
        ends.append((terminated, truncated))
    # Episode 1 has two steps and is terminated, episode 2 has three and is truncated.
    expected = [[0, 1, 0, 1], [0, 1, 1, 0], [0, 2, 0, 1], [0, 2, 1, 0], [0, 2, 2, 0], [0, 2, 3, 0]]
    np.testing.assert_array_equal(seen, expected)
    assert ends == [(False, False)] * 4 + [(False, True)]
    assert last["episode_returns"] == [11 + 12, 21 + 22 + 23]


def test_a_trial_of_what_is_no_vector_is_a_dict_and_keeps_one_task_inside_randomize() -> None:
    env = wrap(Composed(4), [("trials", {"episodes": 2})])
    assert {"new_episode"} < set(env.observation_space.spaces)  # type: ignore[attr-defined]
    pendulum: Any = wrap(
        gymnasium.make("Pendulum-v1", max_episode_steps=3),
        [("trials", {"episodes": 2}), ("randomize", {"parameters": {"g": [0.5, 2.0]}})],
    )
    pendulum.reset(seed=0)
    during = []
    for _ in range(6):
        pendulum.step(np.zeros(1, np.float32))
        during.append(pendulum.unwrapped.g)
    assert len(set(during)) == 1
    pendulum.reset()
    assert pendulum.unwrapped.g != during[0]


@with_each
@pytest.mark.filterwarnings("ignore:.*A Box observation space m", "ignore:.*different from the unwrapped")
def test_the_environment_passes_gymnasiums_checker_and_its_episodes_are_replayed(name: str) -> None:
    wrappers = [(name, SETTINGS[name])]
    check_env(wrap(gymnasium.make("Pendulum-v1").unwrapped, wrappers), skip_render_check=True)
    venv: Any = envs.make("Pendulum-v1", 2, wrappers=wrappers, seed=1, backend="serial", resumable=True)
    again: Any = envs.make("Pendulum-v1", 2, wrappers=wrappers, seed=2, backend="serial", resumable=True)
    venv.reset()
    again.reset()
    actions = np.random.default_rng(0).uniform(-2, 2, (20, 2, 1)).astype(np.float32)
    for each in actions[:12]:
        venv.step(each)
    assert again.restore(venv.snapshot())
    for each in actions[12:]:
        assert_same(venv.step(each)[:3], again.step(each)[:3])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("action_delay", {"steps": -1}, "steps must be 0 or more, not -1"),
        ("action_delay", {"first": 9.0}, r"first \(9.0\) is not in Box"),
        ("randomize", {"parameters": {"gg": [0.5, 2]}}, "has no parameter 'gg'"),
        ("randomize", {"parameters": {"screen": [0.5, 2]}}, "expected a number or an array"),
        ("randomize", {"parameters": {"g": [2, 0.5]}}, "needs factors .low, high. with 0 < low <= high"),
        ("trials", {"episodes": 0}, "episodes must be at least 1, not 0"),
    ],
)
def test_settings_that_do_not_fit_are_named(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrap(gymnasium.make("Pendulum-v1"), [(name, settings)])


def test_an_action_space_without_a_null_action_needs_a_first() -> None:
    env = Counting()
    env.action_space = spaces.Text(3)
    with pytest.raises(ValueError, match="give `first`"):
        wrap(env, ["action_delay"])
