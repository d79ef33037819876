"""What holds for every task of the package, and which settings each refuses."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
import pytest
from counting import IDS, assert_same
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import envs
from envs.tasks.graphs import GraphSearch
from envs.tasks.recall import RepeatFirst, RepeatPrevious, TMaze
from envs.tasks.search import Battleship, RockSample
from envs.tasks.sequences import AssociativeRecall, CopyEnv, CountRecall, PhaseForecast, Recall
from envs.tasks.sequences import Copy as CopyTask
from envs.vector.families import longest_episode

OPEN = ("RockSample-v0", "Battleship-v0")  # their best returns are not known


@pytest.mark.parametrize("id", IDS)
@pytest.mark.filterwarnings(
    "error::UserWarning",
    "ignore:.*A Box observation space m",  # gymnasium's own infinite bounds of CartPole
    "ignore:.*ymmetric and normalized",  # and its torque of 2 in Pendulum
    "ignore:.*unconventional shape",  # a graph's nodes and edges are rows
)
def test_every_environment_passes_the_checkers(id: str) -> None:
    check_env(gymnasium.make(id, render_mode="rgb_array").unwrapped)
    sb3_check_env(gymnasium.make(id))


@pytest.mark.parametrize("id", IDS)
def test_seeds_decide_the_episodes_and_environments_differ(id: str) -> None:
    def episodes(seed: int) -> list[Any]:
        env = gymnasium.make_vec(id, 3, vectorization_mode="vector_entry_point")
        choices, ones = (
            getattr(env.single_action_space, "n", 2),
            np.ones(env.action_space.shape, env.action_space.dtype),
        )
        return [env.reset(seed=seed)[0]] + [env.step(ones * (step % choices))[0] for step in range(30)]

    def rows(observations: list[Any], row: int) -> Any:
        parts = [[*each.values()] if isinstance(each, dict) else [each] for each in observations]
        return np.concatenate([part[row].ravel() for each in parts for part in each])

    first, second = episodes(5), episodes(6)
    assert_same(first, episodes(5))
    for i in range(2):
        assert (rows(first, i) != rows(first, i + 1)).any()
        # One seed on, the environments are the same, one place up.
        np.testing.assert_array_equal(rows(second, i), rows(first, i + 1))


@pytest.mark.parametrize("id", IDS)
def test_no_episode_is_longer_than_is_said(id: str) -> None:
    longest = longest_episode(id, {})
    if longest is None:
        pytest.skip("nothing says how long")
    env = gymnasium.make(id)
    env.reset(seed=1)
    env.action_space.seed(1)
    lengths = [1]
    for _ in range(3 * longest):
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        lengths[-1] += 1
        if terminated or truncated:
            env.reset()
            lengths.append(1)
    assert max(lengths[:-1]) - 1 <= longest


@pytest.mark.parametrize(
    ("id", "kwargs", "longest"),
    [
        ("TMaze-v0", {"length": 20}, 21),
        ("TMaze-v0", {"length": 20, "active": True, "min_length": 3}, 23),
        ("TMaze-v0", {"length": 20, "max_episode_steps": 5}, 5),
        ("Recall-v0", {"length": 400, "bits": 2}, 402),
        ("RepeatPrevious-v0", {"num_decks": 2}, 103),
        ("CartPoleNoVel-v1", {}, 500),
        ("CartPole-v1", {"max_episode_steps": 50}, 50),
        ("GraphSearch-v0", {}, None),
        ("TMaze-v0", {"length": -1}, None),
        ("TMaze-v0", {"no_such": 1}, None),
        ("CartPole-v1", {"max_episode_steps": "long"}, None),
        ("no-such-id", {}, None),
        ("no_such_module:id-v0", {}, None),
        ("counting:CountingEnv", {}, None),
    ],
)
def test_the_longest_episode_that_there_may_be(id: str, kwargs: dict[str, Any], longest: int | None) -> None:
    assert longest_episode(id, kwargs) == longest


@pytest.mark.parametrize("id", IDS)
def test_a_copied_environment_continues_alike_and_independently(id: str) -> None:
    env = gymnasium.make_vec(id, 2)
    env.reset(seed=2)
    env.action_space.seed(0)
    for _ in range(5):
        env.step(env.action_space.sample())
    twin = deepcopy(env)
    actions = [env.action_space.sample() for _ in range(150)]
    ours = [env.step(action)[:4] for action in actions]
    assert_same(ours, [twin.step(action)[:4] for action in actions])


def test_a_masked_reset_starts_only_the_environments_it_names() -> None:
    env = gymnasium.make_vec("CartPoleNoVel-v1", 3)
    before, _ = env.reset(seed=1)
    mask = {"reset_mask": np.array([False, True, False])}
    after, _ = env.reset(options=mask)
    assert (before != after).any(axis=1).tolist() == [False, True, False]
    again, _ = env.reset(seed=[None, 2, None], options=mask)
    np.testing.assert_array_equal(again[1], before[1])


@pytest.mark.parametrize("id", [id for id in IDS if "NoVel" not in id and id not in OPEN])
@pytest.mark.parametrize("backend", ["vector", "serial"])
def test_the_known_returns_are_attributes_and_differ(id: str, backend: Any) -> None:
    venv, threshold = envs.make(id, 2, backend=backend), gymnasium.spec(id).reward_threshold
    (best, _), (memoryless, _) = venv.get_attr("best_return"), venv.get_attr("memoryless_return")
    assert threshold is not None
    assert memoryless < threshold < best == 1.0


@pytest.mark.parametrize("id", ["PendulumNoVel-v1", *OPEN])
def test_a_best_return_that_is_not_known_is_none(id: str) -> None:
    assert envs.make(id, 1).get_attr("best_return") == [None]


@pytest.mark.parametrize("id", [id for id in IDS if "NoVel" not in id])
def test_text_and_pictures_show_the_state(id: str) -> None:
    text, picture = (gymnasium.make(id, render_mode=mode) for mode in ("ansi", "rgb_array"))
    frames: list[Any] = []
    for env in (text, picture):
        env.reset(seed=1)
        env.action_space.seed(1)
        frames.append(env.render())
        for _ in range(4):
            env.step(0 if id == "TMaze-v0" else env.action_space.sample())
        frames.append(env.render())
    assert isinstance(frames[0], str)
    assert frames[0] != frames[1]
    assert frames[2].dtype == np.uint8
    assert frames[2].shape[0] % 2 == frames[2].shape[1] % 2 == 0
    assert frames[2].shape[2:] == (3,)
    assert (frames[2] != frames[3]).any()


def test_the_text_of_a_sequence_has_a_column_a_step() -> None:
    env = CopyEnv(render_mode="ansi", length=2, symbols=3)
    env.reset(seed=0)
    env.batch._begin(env.batch._every_row, np.array([[0.9, 0.4]]), {})
    for action in (0, 1, 2):
        env.step(action)
    assert env.render().splitlines() == ["part 0  2 1 . .", "part 1  . . 0 0", "right   . . 2", "given   0 1 2"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TMaze(length=0), "length must be at least 1, not 0"),
        (lambda: TMaze(0), "num_envs must be at least 1, not 0"),
        (lambda: TMaze(1, max_episode_steps=0), "max_episode_steps must be at least 1, or None for no limit, not 0"),
        (lambda: TMaze(1, render_mode="human"), "render_mode must be None or one of"),
        (lambda: RepeatPrevious(k=52), r"k must lie in \[1, 51\]"),
        (lambda: RepeatFirst(num_decks=0), "num_decks must be at least 1, not 0"),
        (lambda: CopyTask(length=0), "length must be at least 1, not 0"),
        (lambda: CopyTask(symbols=1), "symbols must be at least 2, not 1"),
        (lambda: CopyTask(delay=-1), "delay must be at least 0, not -1"),
        (lambda: AssociativeRecall(pairs=9), r"keys must be at least pairs \(9\)"),
        (lambda: AssociativeRecall(queries=0), "queries must be at least 1, not 0"),
        (lambda: AssociativeRecall(values=1), "values must be at least 2, not 1"),
        (lambda: CountRecall(copies=0), "copies must be at least 1, not 0"),
        (lambda: CountRecall(values=1), "values must be at least 2, not 1"),
        (lambda: Recall(length=0), "length must be at least 1, not 0"),
        (lambda: Recall(bits=0), "bits must be at least 1, not 0"),
        (lambda: Recall(distractors=1.5), r"distractors must lie in \[0, 1\]"),
        (lambda: PhaseForecast(waves=0), "waves must be at least 1, not 0"),
        (lambda: PhaseForecast(waves=2, length=5), r"length must be at least 3 \* waves \(6\)"),
        (lambda: PhaseForecast(shortest=2), "2 < shortest <= longest"),
        (lambda: PhaseForecast(shortest=5, longest=4), "2 < shortest <= longest"),
        (lambda: RockSample(size=1), "size must be at least 2, not 1"),
        (lambda: RockSample(rocks=0), "rocks must be at least 1, not 0"),
        (lambda: RockSample(size=3, rocks=7), "rocks must be at most 6, the cells of the field, not 7"),
        (lambda: Battleship(ships=()), "ships must be at least 1, not 0"),
        (lambda: Battleship(size=4, ships=(5,)), r"ships of lengths \(5,\) are too many or too long for 4 x 4 cells"),
        (lambda: Battleship(size=3, ships=(3, 2)), "too many or too long"),
        (lambda: GraphSearch(rooms=0), "rooms must be at least 1, not 0"),
        (lambda: GraphSearch(doors=0), "doors must be at least 1, not 0"),
        (lambda: GraphSearch(loops=-1), "loops must be at least 0, not -1"),
        (lambda: GraphSearch(max_degree=1), "max_degree must be at least 2, not 1"),
        (
            lambda: GraphSearch(rooms=2, doors=3, loops=0, max_degree=2),
            "have 2 ports left for 3 doors; give more rooms or",
        ),
    ],
)
def test_impossible_settings_are_refused_by_name(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
