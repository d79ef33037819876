"""Each wrapper against cases worked out by hand, over one environment and over a vector, to the end of episodes."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from counting import Composed, Counting
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import VecFrameStack

import envs
from envs.vector.adapter import VectorEnvAdapter
from envs.vector.vectorize import WrappedVecEnv
from envs.wrappers.transforms import WRAPPERS, Encoder, is_transform, named, wrap

# The others need observations of another kind: tests/envs/test_graphs.py.
TRANSFORMS = {name: wrapper for name, wrapper in WRAPPERS.items() if is_transform(wrapper)}
SETTINGS: dict[str, dict[str, Any]] = {"mask": {"indices": [1]}}


def play(wrapper: str, settings: dict[str, Any], steps: int = 5, number: int = 3) -> list[tuple[Any, Any]]:
    """What one of two environments shows, and its terminal observation or None, from the reset on.

    Counting's episodes here last 2, 3, 4, ... steps: resets after steps 2 and 5. The actions are 5, 6, 7, 5, ...
    """
    venv = envs.make(lambda: Counting(number), 2, wrappers=[(wrapper, settings)])
    told = [(venv.reset(), None)]
    for step in range(steps):
        observations, _, dones, infos = venv.step(np.full(2, 5 + step % 3))
        told.append((observations, infos[1]["terminal_observation"] if dones[1] else None))
    return [({k: v[1] for k, v in seen.items()} if isinstance(seen, dict) else seen[1], last) for seen, last in told]


def check(told: list[tuple[Any, Any]], expected: list[tuple[Any, Any]]) -> None:
    for step, ((seen, last), (expected_seen, expected_last)) in enumerate(zip(told, expected, strict=True)):
        np.testing.assert_array_equal(seen, expected_seen, err_msg=f"step {step}")
        assert (last is None) == (expected_last is None)
        if last is not None:
            np.testing.assert_array_equal(last, expected_last, err_msg=f"last observation of step {step}")


def test_a_mask_zeroes_or_removes_entries_last_observations_included() -> None:
    zeroed = play("mask", {"indices": [0, -1]}, steps=3)
    check(zeroed, [([0, 1, 0], None), ([0, 1, 0], None), ([0, 2, 0], [0, 1, 0]), ([0, 2, 0], None)])
    removed = play("mask", {"indices": [0], "remove": True}, steps=3)
    check(removed, [([1, 0], None), ([1, 1], None), ([2, 0], [1, 2]), ([2, 1], None)])


def test_a_delay_shows_the_past_of_the_same_episode() -> None:
    check(
        play("delay", {"steps": 2}, steps=6),
        [
            ([3, 1, 0], None),
            ([3, 1, 0], None),
            ([3, 2, 0], [3, 1, 0]),  # two steps before the end, and a new episode that starts with its own first
            ([3, 2, 0], None),
            ([3, 2, 0], None),
            ([3, 3, 0], [3, 2, 1]),
            ([3, 3, 0], None),
        ],
    )


def test_a_delay_of_zero_changes_nothing() -> None:
    check(play("delay", {"steps": 0}, steps=2), [([3, 1, 0], None), ([3, 1, 1], None), ([3, 2, 0], [3, 1, 2])])


def test_the_previous_action_and_reward_are_null_at_the_start_and_real_at_the_end() -> None:
    check(
        play("previous_action_reward", {}, steps=4),
        [
            ([3, 1, 0, 0, 0, 0, 0], None),
            ([3, 1, 1, 1, 0, 0, 311], None),
            ([3, 2, 0, 0, 0, 0, 0], [3, 1, 2, 0, 1, 0, 312]),
            ([3, 2, 1, 0, 0, 1, 321], None),
            ([3, 2, 2, 1, 0, 0, 322], None),
        ],
    )


def test_the_previous_action_and_reward_stand_beside_what_is_no_vector() -> None:
    venv = envs.make("RepeatFirst-v0", 2, wrappers=["previous_action_reward"], seed=0)
    first = venv.reset()
    assert first["observation"].shape == (2,)
    np.testing.assert_array_equal(first["previous_action"], np.zeros((2, 4)))
    seen, rewards, _, _ = venv.step(np.array([3, 1]))
    np.testing.assert_array_equal(seen["previous_action"], [[0, 0, 0, 1], [0, 1, 0, 0]])
    np.testing.assert_array_equal(seen["previous_reward"], rewards[:, None])


def test_the_start_of_an_episode_is_seen_and_categories_join_the_vector() -> None:
    check(
        play("previous_action_reward", {"start": True}, steps=3),
        [
            ([3, 1, 0, 0, 0, 0, 0, 1], None),
            ([3, 1, 1, 1, 0, 0, 311, 0], None),
            ([3, 2, 0, 0, 0, 0, 0, 1], [3, 1, 2, 0, 1, 0, 312, 0]),
            ([3, 2, 1, 0, 0, 1, 321, 0], None),
        ],
    )
    venv = envs.make("RepeatFirst-v0", 2, wrappers=[("previous_action_reward", {"start": True})], seed=0)
    plain = envs.make("RepeatFirst-v0", 2, seed=0)
    np.testing.assert_array_equal(venv.reset(), np.c_[np.eye(4)[plain.reset()], np.zeros((2, 5)), np.ones(2)])
    seen, rewards, _, _ = venv.step(np.array([3, 1]))
    shown, *_ = plain.step(np.array([3, 1]))
    np.testing.assert_array_equal(seen, np.c_[np.eye(4)[shown], np.eye(4)[[3, 1]], rewards, np.zeros(2)])


def test_a_history_begins_empty_and_ends_with_its_episode() -> None:
    check(
        play("history", {"length": 3}, steps=3),
        [
            ([[0, 0, 0], [0, 0, 0], [3, 1, 0]], None),
            ([[0, 0, 0], [3, 1, 0], [3, 1, 1]], None),
            ([[0, 0, 0], [0, 0, 0], [3, 2, 0]], [[3, 1, 0], [3, 1, 1], [3, 1, 2]]),
            ([[0, 0, 0], [3, 2, 0], [3, 2, 1]], None),
        ],
    )


def test_a_history_says_which_of_its_observations_are_real() -> None:
    told = play("history", {"length": 3, "mask": True}, steps=3)
    assert [seen["mask"].tolist() for seen, _ in told] == [[0, 0, 1], [0, 1, 1], [0, 0, 1], [0, 1, 1]]
    assert told[2][1]["mask"].tolist() == [1, 1, 1]
    np.testing.assert_array_equal(told[2][1]["history"][0], [3, 1, 0])


def test_flicker_shows_all_or_nothing_as_often_as_it_is_told() -> None:
    venv = envs.make(lambda: Counting(3), 50, wrappers=[("flicker", {"probability": 0.25})], seed=0)
    seen = [venv.reset()] + [venv.step(np.full(50, 5))[0] for _ in range(200)]
    blank = (np.stack(seen) == 0).all(axis=2)
    assert (np.stack(seen)[~blank][:, 0] == 3).all()
    assert blank.mean() == pytest.approx(0.25, abs=0.02)
    assert blank[0].any()
    # Environments flicker each on its own.
    assert np.unique(blank.T, axis=0).shape[0] == 50
    for probability, shown in ((0.0, 3), (1.0, 0)):
        assert play("flicker", {"probability": probability}, steps=1)[1][0][0] == shown


def test_flicker_makes_categories_one_hot_so_that_nothing_is_not_category_zero() -> None:
    venv = envs.make("RepeatFirst-v0", 4, wrappers=[("flicker", {"probability": 0.5})], seed=0)
    seen = np.concatenate([venv.reset()] + [venv.step(np.zeros(4, dtype=int))[0] for _ in range(50)])
    assert set(seen.sum(axis=1)) == {0.0, 1.0}
    assert venv.observation_space == spaces.Box(0, 1, (4,))


def test_noise_has_the_standard_deviation_it_is_given_and_no_mean() -> None:
    venv = envs.make(lambda: Counting(3), 20, wrappers=[("noise", {"std": 0.5})], seed=0)
    clean = envs.make(lambda: Counting(3), 20)
    errors = [venv.reset() - clean.reset()]
    for _ in range(300):
        noisy, _, dones, infos = venv.step(np.full(20, 5))
        exact, _, _, exact_infos = clean.step(np.full(20, 5))
        errors.append(noisy - exact)
        if dones[0]:
            gap = infos[0]["terminal_observation"] - exact_infos[0]["terminal_observation"]
            assert (gap != 0).all()
            assert (gap != errors[-1][0]).all()
    assert np.std(errors) == pytest.approx(0.5, rel=0.03)
    assert np.mean(errors) == pytest.approx(0.0, abs=0.02)


def test_sensors_fail_each_on_its_own_for_so_many_steps_and_hold_or_show_zero() -> None:
    for hold in (False, True):
        settings = {"probability": 0.1, "duration": 3, "hold": hold}
        venv = envs.make(lambda: Counting(3, 400), 20, wrappers=[("dropout", settings)], seed=0)
        seen = np.stack([venv.reset()] + [venv.step(np.full(20, 5))[0] for _ in range(300)])
        # Counting shows its number 3, its episode 1, and the step.
        fails = seen[:, :, 2] != np.arange(301)[:, None]
        # Fails with 0.1 a step while it works: of 1 / 0.1 - 1 working steps and 3 failing ones on average.
        assert fails[1:].mean() == pytest.approx(3 / (9 + 3), abs=0.03)
        assert np.unique(fails.T, axis=0).shape[0] == 20
        if not hold:
            assert (seen[1:, :, 2][fails[1:]] == 0).all()
            assert set(np.unique(seen[:, :, 0])) == {0, 3}
        starts = np.flatnonzero(fails[1:-3, 0] & ~fails[:-4, 0])
        assert all(fails[t + 1 : t + 4, 0].all() for t in starts)
        if hold:
            assert (np.diff(seen[:, :, 2], axis=0) >= 0).all()  # the last that was seen, and never zero again
    assert play("dropout", {"probability": 0.0}, steps=1)[1][0].tolist() == [3, 1, 1]


def test_a_delay_that_varies_is_drawn_for_each_episode() -> None:
    venv = envs.make(lambda: Counting(3, 8), 200, wrappers=[("delay", {"steps": 3, "vary": True})], seed=0)
    venv.reset()
    for _ in range(5):
        seen = venv.step(np.full(200, 5))[0]
    late = 5 - seen[:, 2]
    assert set(late) == {0, 1, 2, 3}
    assert np.bincount(late.astype(int)).min() > 30


def test_two_noises_around_one_environment_differ() -> None:
    once = envs.make(Counting, 1, wrappers=["noise"], seed=4).reset()
    twice = envs.make(Counting, 1, wrappers=["noise", "noise"], seed=4).reset()
    first, both = once - [[0, 1, 0]], twice - [[0, 1, 0]]
    assert (np.abs(both - 2 * first) > 1e-6).all()


@pytest.mark.parametrize(
    ("id", "name"),
    [
        (id, name)
        for id in ("CartPoleNoVel-v1", "TMaze-v0", "RepeatPrevious-v0")
        for name in TRANSFORMS
        if id != "RepeatPrevious-v0" or name not in ("mask", "noise", "dropout")  # which need a Box
    ],
)
def test_one_environment_and_a_vector_of_them_see_the_same_through_a_wrapper(id: str, name: str) -> None:
    wrappers = [(name, SETTINGS.get(name, {}))]
    venv = envs.make(id, 3, seed=20, wrappers=wrappers)
    singles = [wrap(gymnasium.make(id), wrappers) for _ in range(3)]
    observations = venv.reset()
    for i, single in enumerate(singles):
        assert single.observation_space == venv.observation_space
        same(row(observations, i), single.reset(seed=20 + i)[0])
    venv.action_space.seed(3)
    for _ in range(120):
        actions = np.array([venv.action_space.sample() for _ in range(3)])
        observations, _, dones, infos = venv.step(actions)
        for i, single in enumerate(singles):
            observation, _, terminated, truncated, _ = single.step(actions[i])
            if terminated or truncated:
                assert dones[i]
                same(infos[i]["terminal_observation"], observation)
                observation, _ = single.reset()
            same(row(observations, i), observation)
            assert venv.observation_space.contains(observation)


def row(observations: Any, i: int) -> Any:
    return {k: v[i] for k, v in observations.items()} if isinstance(observations, dict) else observations[i]


def same(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        for key in one.keys() | other.keys():
            np.testing.assert_array_equal(one[key], other[key])
    else:
        np.testing.assert_array_equal(one, other)


def test_a_vector_that_resets_in_the_next_step_is_wrapped_as_one_that_does_so_in_the_same() -> None:
    def shown(mode: AutoresetMode) -> list[Any]:
        venv: Any = VectorEnvAdapter(
            SyncVectorEnv([partial(Counting, i, 2 + i) for i in range(2)], autoreset_mode=mode)
        )
        for name, settings in (("previous_action_reward", {}), ("history", {"length": 3})):
            venv = WrappedVecEnv(venv, TRANSFORMS[name], settings)
        seen = [[observation] for observation in venv.reset()]
        for _ in range(12):
            observations, _, dones, infos = venv.step(np.full(2, 6))
            for i in range(2):
                if dones[i]:
                    seen[i].append(infos[i]["terminal_observation"])
                if mode is AutoresetMode.SAME_STEP or not dones[i]:
                    seen[i].append(observations[i])
        return [np.stack(observations[:9]) for observations in seen]

    for one, other in zip(shown(AutoresetMode.NEXT_STEP), shown(AutoresetMode.SAME_STEP), strict=True):
        np.testing.assert_array_equal(one, other)


def test_chosen_keys_of_a_dict_are_changed_and_the_others_left() -> None:
    wrappers = [
        "flatten",
        ("mask", {"indices": [0], "keys": ["where/count"]}),
        ("history", {"length": 2, "mask": True}),
    ]
    venv = envs.make(partial(Composed, 4), 2, wrappers=wrappers)
    seen = venv.reset()
    assert seen["where/count"].shape == (2, 2, 3)
    np.testing.assert_array_equal(seen["where/count"][0], [[0, 0, 0], [0, 1, 0]])
    assert seen["pair/0"].shape == (2, 2, 50)
    assert seen["mask"].tolist() == [[0, 1], [0, 1]]


def test_a_wrapper_leaves_alone_what_it_is_given() -> None:
    # SB3's frame stack hands out the buffer it keeps.
    def stacked() -> Any:
        return VecFrameStack(envs.make(partial(Counting, 3), 2), 2)

    plain, wrapped = stacked(), WrappedVecEnv(stacked(), TRANSFORMS["flicker"], {"probability": 1.0})
    assert (wrapped.reset() == 0).all()
    plain.reset()
    for _ in range(6):
        expected = plain.step(np.full(2, 5))[0]
        assert (wrapped.step(np.full(2, 5))[0] == 0).all()
        np.testing.assert_array_equal(wrapped.venv.stacked_obs.stacked_obs, expected)


@pytest.mark.parametrize(
    ("space", "value", "code"),
    [
        (spaces.Discrete(3, start=5), 6, [0, 1, 0]),
        (spaces.MultiDiscrete([2, 3]), [1, 0], [0, 1, 1, 0, 0]),
        (spaces.MultiBinary(3), [1, 0, 1], [1, 0, 1]),
        (spaces.MultiBinary([2, 2]), [[1, 0], [0, 1]], [1, 0, 0, 1]),
        (spaces.Box(-1, 1, (2,)), [0.5, -0.5], [0.5, -0.5]),
    ],
)
def test_categories_are_one_hot_and_numbers_stay(space: spaces.Space, value: Any, code: list[float]) -> None:
    encoder = Encoder(space)
    encoded = encoder(np.array([value, value]))
    np.testing.assert_array_equal(encoded, [code, code])
    assert encoder.space.shape == (len(code),)


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped", "ignore:.*A Box observation space m")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_wrapped_environment_passes_the_checkers(name: str) -> None:
    env = wrap(gymnasium.make("TMaze-v0"), [(name, SETTINGS.get(name, {}))])
    check_env(env, skip_render_check=True)
    sb3_check_env(env, warn=False)


def test_wrappers_are_named_in_any_of_three_ways() -> None:
    delay, noise = WRAPPERS["delay"], WRAPPERS["noise"]
    assert named(["delay", ("noise", {"std": 1}), {"delay": {"steps": 2}, "noise": None}]) == [
        (delay, {}),
        (noise, {"std": 1}),
        (delay, {"steps": 2}),
        (noise, {}),
    ]
    assert named("delay") == named([delay]) == named({"delay": {}}) == [(delay, {})]
    assert named(["gymnasium.wrappers:ClipReward"]) == [(gymnasium.wrappers.ClipReward, {})]
    with pytest.raises(ValueError, match="expected a wrapper as a name"):
        named([("delay", 2)])
