"""The best and the memoryless returns of the recall tasks are what their docstrings say, found by playing them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from envs.tasks.recall import RepeatFirst, RepeatPrevious, TMaze
from tests.tolerance import assert_close, near

RIGHT, UP, LEFT, DOWN = range(4)


def returns(
    env: TMaze | RepeatPrevious | RepeatFirst, policy: Callable[[list[NDArray]], NDArray], seed: int = 0
) -> NDArray:
    """Play one episode in every environment; `policy` maps all observations so far, [(N, ...)], to actions (N,)."""
    observation, _ = env.reset(seed=seed)
    seen, total = [observation], np.zeros(env.num_envs)
    playing = np.ones(env.num_envs, dtype=bool)
    while playing.any():
        observation, rewards, terminated, _, _ = env.step(policy(seen))
        total += rewards * playing
        playing &= ~terminated
        seen.append(observation)
    return total


def policies_without_memory(symbols: int) -> NDArray[np.int64]:
    """Every deterministic map from `symbols` observations to 4 actions, (4 ** symbols, symbols)."""
    return np.array(list(itertools.product(range(4), repeat=symbols)))


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("length", [1, 2, 20])
def test_remembering_the_sign_earns_the_best_return_of_the_t_maze(length: int, active: bool) -> None:
    def look_walk_and_turn(seen: list[NDArray]) -> NDArray:
        if active and len(seen) == 1:
            return np.full(50, LEFT)
        turn = np.where(seen[int(active)][:, 0] > 0, UP, DOWN)
        return np.where(seen[-1][:, 1] == 1, turn, RIGHT)

    assert_close(returns(TMaze(50, length=length, active=active), look_walk_and_turn), TMaze.best_return)


@pytest.mark.parametrize("active", [False, True])
def test_no_policy_without_memory_earns_more_than_half_in_the_t_maze(active: bool) -> None:
    policies, episodes = policies_without_memory(4), 60
    env = TMaze(len(policies) * episodes, length=5, active=active)
    chosen = np.repeat(policies, episodes, axis=0)

    def act(seen: list[NDArray]) -> NDArray:
        sign, junction = seen[-1].T
        symbol = np.select([junction == 1, sign > 0, sign < 0], [0, 1, 2], 3)
        return chosen[np.arange(len(chosen)), symbol]

    totals = returns(env, act).reshape(len(policies), episodes)
    # The same signs for every policy: half the episodes up, so that luck cannot lift one above the rest.
    env.reset(seed=0)
    sides = np.stack([np.where(env._sign.reshape(totals.shape) == side, totals, np.nan) for side in (1, -1)])
    values = np.nanmean(sides, axis=2).mean(axis=0)
    assert values.max() == near(env.memoryless_return)


def test_the_t_maze_charges_for_every_step_behind_the_walker() -> None:
    env = TMaze(1, length=4)
    env.reset(seed=0)
    rewards = []
    for action in (RIGHT, LEFT, UP, RIGHT, RIGHT):
        _, reward, terminated, _, infos = env.step(np.array([action]))
        rewards.append(float(reward[0]))
    assert rewards == pytest.approx([0, -0.25, -0.25, -0.25, 0])
    assert terminated[0]
    assert not infos["final_info"]["is_success"][0]


@pytest.mark.parametrize("active", [False, True])
def test_corridors_of_drawn_lengths_are_each_a_t_maze_of_that_length(active: bool) -> None:
    env = TMaze(400, length=4, active=active, min_length=2, render_mode="ansi")
    env.reset(seed=0)
    first, single = int(active), {length: TMaze(1, length=length, active=active) for length in (2, 3, 4)}
    drawn = (env._junction - first).tolist()
    counts = {length: drawn.count(length) for length in single}
    assert sum(counts.values()) == 400
    assert min(counts.values()) > 90  # 133 are expected of each; 90 is 4.6 standard deviations below
    assert [len(str(text).splitlines()[1]) for text in env.render() or ()] == [length + first + 1 for length in drawn]
    actions = np.random.default_rng(0).integers(0, 4, size=(30, 1))
    for length, other in single.items():
        env = TMaze(1, length=4, active=active, min_length=2)
        seed = next(seed for seed in range(100) if env.reset(seed=seed) and env._junction[0] == length + first)
        env.reset(seed=seed)
        other.reset(seed=seed)
        other._sign[:] = env._sign
        for action in actions:
            (_, *step), (_, *expected) = env.step(action)[:4], other.step(action)[:4]
            assert step == expected
            if step[1][0]:
                break
        else:
            pytest.fail("an episode ends after its steps")


@pytest.mark.parametrize("min_length", [0, 6])
def test_a_shortest_length_beyond_the_longest_is_refused(min_length: int) -> None:
    with pytest.raises(ValueError, match=rf"min_length must lie in \[1, 5\].* not be {min_length}"):
        TMaze(1, length=5, min_length=min_length)


@pytest.mark.parametrize(("k", "num_decks"), [(1, 1), (2, 1), (4, 1), (51, 1), (64, 3)])
def test_naming_the_card_k_minus_one_back_earns_the_best_return(k: int, num_decks: int) -> None:
    env = RepeatPrevious(20, k=k, num_decks=num_decks)
    totals = returns(env, lambda seen: seen[-k] if len(seen) >= k else np.zeros(20, dtype=int))
    assert_close(totals, env.best_return)


def test_naming_the_first_card_earns_the_best_return() -> None:
    env = RepeatFirst(20)
    assert_close(returns(env, lambda seen: seen[0]), env.best_return)


@pytest.mark.parametrize(
    ("env", "figure"),
    [
        (RepeatPrevious(256 * 25), -25 / 51),
        (RepeatPrevious(256 * 25, k=2), -25 / 51),
        (RepeatPrevious(256 * 25, k=1), 1.0),
        (RepeatFirst(256 * 25), 2 / 51 * (1 + 50 * 12 / 51) - 1),
    ],
)
def test_the_best_of_all_policies_without_memory_earns_the_memoryless_return(
    env: RepeatPrevious | RepeatFirst, figure: float
) -> None:
    assert env.memoryless_return == pytest.approx(figure)
    policies = policies_without_memory(4)
    chosen = np.repeat(policies, 25, axis=0)
    totals = returns(env, lambda seen: chosen[np.arange(len(chosen)), seen[-1]])
    means = totals.reshape(256, 25).mean(axis=1)
    error = totals.reshape(256, 25).std(axis=1).max() / 5
    # The largest of 256 means of noisy returns lies some standard errors above the truth, never below it.
    assert env.memoryless_return - 0.5 * error <= means.max() <= env.memoryless_return + 5 * error


def test_the_policies_without_memory_are_told_apart_over_many_episodes() -> None:
    env = RepeatFirst(5_000)
    same = returns(env, lambda seen: seen[-1]).mean()
    other = returns(env, lambda seen: (seen[-1] + 1) % 4).mean()
    assert same == pytest.approx(env.memoryless_return, abs=0.008)
    assert other < env.memoryless_return + 0.008


def test_a_deck_holds_as_many_cards_of_each_suit_in_an_order_of_its_own() -> None:
    env = RepeatPrevious(30, num_decks=2)
    env.reset(seed=5)
    for suit in range(4):
        assert ((env._shown[..., 0] == suit).sum(axis=1) == 26).all()
    assert len({tuple(deck) for deck in env._shown[..., 0].tolist()}) == 30
    assert 0.15 < (env._shown[:, 0] == env._shown[:, 1]).mean() + 0.1 < 0.6
