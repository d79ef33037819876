"""Rocks and ships are found out as the docstrings of their tasks say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from envs.tasks.search import Battleship, RockSample

NORTH, EAST, SOUTH, WEST, SAMPLE, CHECK = range(6)


def test_a_rock_is_paid_once_and_the_exit_ends_the_episode() -> None:
    env = RockSample(2, size=5, rocks=3)
    env.reset(seed=0)
    rock = env.rocks[1]
    env._position[:] = rock
    env._good[:] = [[True, True, True], [True, False, True]]
    paid = [env.step(np.full(2, SAMPLE))[1].tolist() for _ in range(2)]
    assert paid == [[10.0, -10.0], [-10.0, -10.0]]
    assert env._good.tolist() == [[True, False, True]] * 2
    ways = int(env.size - 1 - rock[1])
    for step in range(ways):
        _, rewards, ended, _, _ = env.step(np.full(2, EAST))
        assert ended.tolist() == [step == ways - 1] * 2
        assert rewards.tolist() == [10.0 * (step == ways - 1)] * 2


def test_moves_stop_at_walls_and_sampling_where_no_rock_lies_pays_nothing() -> None:
    env = RockSample(1, size=4, rocks=1)
    env.reset(seed=0)
    env._position[:] = free = (env.rocks[0] + [1, 0]) % 4
    assert env.step(np.array([SAMPLE]))[1].tolist() == [0.0]
    for action, axis, end in ((NORTH, 0, 0), (SOUTH, 0, 3), (WEST, 1, 0)):
        for _ in range(5):
            seen, rewards, ended, _, _ = env.step(np.array([action]))
            assert not ended[0]
            assert rewards[0] == 0
        assert env._position[0, axis] == end
    assert free.shape == (2,)
    assert seen[0, :8].tolist() == [0, 0, 0, 1, 1, 0, 0, 0]  # the last row, the first column
    assert seen[0, 8] == 0


@pytest.mark.parametrize("distance", [0, 4, 10])
def test_a_check_is_right_as_often_as_the_distance_says(distance: int) -> None:
    env = RockSample(4000, size=12, rocks=1)
    env.reset(seed=0)
    y, x = env.rocks[0]
    env._position[:] = (y + distance if y + distance < 12 else y - distance, x)
    seen, *_ = env.step(np.full(4000, CHECK))
    right = (seen[:, -1] > 0) == env._good[:, 0]
    chance = 0.5 * (1 + 2 ** (-distance / 20))
    assert right.mean() == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / 4000))
    assert set(np.abs(seen[:, -1]).tolist()) == {1.0}
    assert not env.step(np.full(4000, SAMPLE))[0][:, -1].any()  # shown in its own step alone


def test_the_map_is_the_seeds_and_holds_no_rock_in_the_last_column() -> None:
    maps = [RockSample(1, size=11, rocks=11, map_seed=seed).rocks for seed in (0, 0, 1)]
    assert (maps[0] == maps[1]).all()
    assert (maps[0] != maps[2]).any()
    assert len({tuple(rock) for rock in maps[0].tolist()}) == 11
    assert (maps[0][:, 1] < 10).all()


def shoot(env: Battleship, order: Any) -> Any:
    """Returns of one episode each, (N,), of cells shot at in an order (N, cells)."""
    env.reset(seed=0)
    total, playing = np.zeros(env.num_envs), np.ones(env.num_envs, np.bool_)
    for actions in order.T:
        _, rewards, ended, _, _ = env.step(actions)
        total += rewards * playing
        playing &= ~ended
    assert not playing.any()
    return total


def test_shots_in_any_order_give_what_the_docstring_says_and_shots_that_never_miss_87() -> None:
    env = Battleship(2000)
    # The last of 14 cells at random places among 100 comes as shot number 14 / 15 * 101 on average.
    rng = np.random.default_rng(0)
    returns = shoot(env, rng.permuted(np.tile(np.arange(100), (2000, 1)), axis=1))
    assert returns.mean() == pytest.approx(101 - 14 / 15 * 101, abs=4 * returns.std() / np.sqrt(2000))
    env.reset(seed=0)
    best = np.argsort(~env._is_ship, axis=1, kind="stable")
    assert (shoot(env, best[:, :14]) == 87).all()


def test_ships_lie_straight_on_cells_of_their_own_each_way_equally_often() -> None:
    env = Battleship(3000, size=6, ships=(4,))
    env.reset(seed=0)
    boards = env._is_ship.reshape(-1, 6, 6)
    assert (env._is_ship.sum(axis=1) == 4).all()
    across = boards.sum(axis=2).max(axis=1) == 4
    assert (boards.sum(axis=1).max(axis=1) == 4).tolist() == (~across).tolist()
    assert across.mean() == pytest.approx(0.5, abs=0.04)
    assert len(np.unique(env._is_ship, axis=0)) == 2 * 6 * 3
    many = Battleship(500)
    many.reset(seed=0)
    assert (many._is_ship.sum(axis=1) == 14).all()


def test_a_hit_is_seen_once_and_the_mask_shows_what_was_not_shot_at() -> None:
    env = Battleship(1)
    seen, _ = env.reset(seed=3)
    assert seen["action_mask"].all()
    cell = np.flatnonzero(env._is_ship[0])[:1]
    seen, rewards, *_ = env.step(cell)
    assert (seen["hit"].tolist(), rewards.tolist()) == ([[1.0]], [-1.0])
    assert np.flatnonzero(seen["action_mask"][0] == 0).tolist() == cell.tolist()
    seen, rewards, *_ = env.step(cell)
    assert (seen["hit"].tolist(), rewards.tolist()) == ([[0.0]], [-1.0])
