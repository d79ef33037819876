"""Tasks of finding out what lies where, vectorized in NumPy, as POBAX has them.

    RockSample-v0    which rocks are worth fetching, seen by a sensor that errs from afar
    Battleship-v0    where ships lie, seen shot by shot

Both after Tao et al., Benchmarking Partial Observability in Reinforcement Learning with a Suite of Memory-Improvable
Domains (2025), and the code it comes with.

Axes: N environments, R some of them ("rows"), K rocks, P places of a ship, L its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.tasks.batch import BatchEnv, Outcome, Rows, Uniforms, check_at_least, single
from envs.tasks.pictures import BACKGROUND, BLUE, GRAY, GREEN, RED, cell_size, enlarge

DRAWS = 1000  # random numbers of an episode's checks; what checks more often meets them again


class RockSample(BatchEnv):
    """RockSample-v0: fetch the good rocks of a field and leave it in the east.

    ::

        .  .  o  .  x
        o  .  .  .  x     o rocks, each good or bad; x the exit
        .  .  .  o  x

    `size` x `size` cells with `rocks` rocks, which lie where `map_seed` says, never in the last column. A check of a
    rock at a (Euclidean) distance d tells whether it is good, rightly with chance (1 + 2 ** (-d / 20)) / 2.

    Observation, Box (2 size + K,) float32: the row, one-hot; the column, one-hot; for each rock 1 or -1 where this step
    checked it and found it good or bad, else 0. Actions, Discrete(5 + K): 0 north, 1 east, 2 south, 3 west, a move into
    a wall stays in place; 4 sample the rock here; 5 + i check rock i.
    Reward: sampling a good rock 10, which then is a bad one; a bad one -10; reaching the last column 10; all else 0.
    Start: any cell but those of the last column, each rock good with chance 1/2, all drawn for every episode.
    End: terminated in the last column; truncated after 1,000 steps.
    Return: at most 10 + 5 K on average, which costs nothing but time: a rock is checked without error where it lies, so
    going round without a memory comes close. A memory buys time, and POBAX's scores are discounted by 0.99 a step, as
    are those in docs/learning.md.

    From Smith and Simmons, Heuristic Search Value Iteration for POMDPs (2004). POBAX draws its map from a seed, too.
    """

    def __init__(self, num_envs: int = 1, *, size: int = 7, rocks: int = 8, map_seed: int = 0, **base: Any) -> None:
        check_at_least(2, size=size)
        check_at_least(1, rocks=rocks)
        if rocks > size * (size - 1):
            raise ValueError(f"rocks must be at most {size * (size - 1)}, the cells of the field, not {rocks}")
        space = spaces.Box(-1.0, 1.0, (2 * size + rocks,))
        super().__init__(num_envs, space, spaces.Discrete(5 + rocks), uniforms=1 + rocks + DRAWS, **base)
        self.size = size
        cells = np.random.default_rng(map_seed).choice(size * (size - 1), rocks, replace=False)
        self.rocks = np.stack(np.divmod(cells, size - 1), axis=1)  # (K, 2) rows and columns
        self._good = np.zeros((num_envs, rocks), np.bool_)
        self._position = np.zeros((num_envs, 2), np.int64)
        self._draws = np.zeros((num_envs, DRAWS))
        self._checks = np.zeros(num_envs, np.int64)
        self._seen = np.zeros((num_envs, rocks), np.float32)

    def _begin(self, rows: Rows, uniforms: Uniforms, options: dict[str, Any]) -> None:
        start = (uniforms[:, 0] * (self.size * (self.size - 1))).astype(np.int64)
        self._position[rows] = np.stack(np.divmod(start, self.size - 1), axis=1)
        self._good[rows] = uniforms[:, 1:-DRAWS] < 0.5
        self._draws[rows] = uniforms[:, -DRAWS:]
        self._checks[rows] = 0
        self._seen[rows] = 0.0

    def _advance(self, actions: Any) -> Outcome:
        actions = np.asarray(actions)
        self._position += _MOVES[np.minimum(actions, 4)]
        np.clip(self._position, 0, self.size - 1, out=self._position)
        here = (self._position[:, None] == self.rocks).all(axis=2) & (actions == 4)[:, None]
        rewards = np.where(self._good, 10.0, -10.0)[here]  # there is one rock at most
        out = self._position[:, 1] == self.size - 1
        total = 10.0 * out
        total[here.any(axis=1)] += rewards
        self._good &= ~here
        self._check(actions)
        return total.astype(np.float32), out

    def _check(self, actions: NDArray[Any]) -> None:
        self._seen[:] = 0.0
        rows = np.flatnonzero(actions > 4)
        rock = actions[rows] - 5
        distance = np.sqrt(np.square(self._position[rows] - self.rocks[rock]).sum(axis=1))
        right = self._draws[rows, self._checks[rows] % DRAWS] < 0.5 * (1.0 + 2.0 ** (-distance / 20.0))
        self._checks[rows] += 1
        self._seen[rows, rock] = np.where(self._good[rows, rock] == right, 1.0, -1.0)

    def _observe(self) -> NDArray[np.float32]:
        one_hot = np.eye(self.size, dtype=np.float32)[self._position].reshape(self.num_envs, -1)
        return np.concatenate((one_hot, self._seen), axis=1)

    def _text(self, row: int) -> str:
        """Good rocks "+", bad ones "-", the agent "A"; what was checked last in a line of its own."""
        cells = [["."] * (self.size - 1) + ["x"] for _ in range(self.size)]
        for (y, x), good in zip(self.rocks.tolist(), self._good[row].tolist(), strict=True):
            cells[y][x] = "+" if good else "-"
        y, x = self._position[row].tolist()
        cells[y][x] = "A"
        seen = [f"rock {i}: {'good' if self._seen[row, i] > 0 else 'bad'}" for i in np.flatnonzero(self._seen[row])]
        return "\n".join(["".join(line) for line in cells] + seen) + "\n"

    def _picture(self, row: int) -> NDArray[np.uint8]:
        """Good rocks green, bad ones red, the agent blue, the exit gray; a dot on the rock that was checked."""
        size = cell_size(self.size)
        colors = np.full((self.size, self.size, 3), BACKGROUND, np.uint8)
        colors[:, -1] = GRAY
        colors[tuple(self.rocks.T)] = np.where(self._good[row, :, None], GREEN, RED)
        colors[tuple(self._position[row])] = BLUE
        picture = enlarge(colors, size)
        for y, x in (self.rocks[self._seen[row] != 0] * size + size // 4).tolist():
            picture[y : y + size // 2, x : x + size // 2] = BLUE
        return picture


class Battleship(BatchEnv):
    """Battleship-v0: sink ships that are not seen, with as few shots as possible.

    Ships of the lengths `ships` lie on `size` x `size` cells, none on another: one after the other is laid across or
    down with equal chance, and then on any of the places left with equal chance.

    Observation, Dict: "hit", Box (1,) float32, whether the last shot hit; "action_mask", MultiBinary(size ** 2), the
    cells that have not been shot at. Actions, Discrete(size ** 2): shoot at a cell, row by row from the top left; a
    second shot at a cell misses.
    Reward: -1 a shot, and size ** 2 for the one that hits the last cell.
    End: terminated when all cells of the ships are hit; truncated after 1,000 steps.
    Return: size ** 2 + 1 - the number of shots. Best unknown, at most 87 with the defaults (no shot misses); cells shot
    at in any order that heeds no hit give 6.7 on average.
    """

    def __init__(self, num_envs: int = 1, *, size: int = 10, ships: Sequence[int] = (5, 4, 3, 2), **base: Any) -> None:
        ships = tuple(ships)
        check_at_least(1, size=size, ships=min(ships, default=0))
        for i, length in enumerate(ships):
            # Of places for it there are size * (size // length) without a cell in common, each way.
            if sum(ships[:i]) >= size * (size // length):
                raise ValueError(f"ships of lengths {ships} are too many or too long for {size} x {size} cells")
        parts = {"action_mask": spaces.MultiBinary(size * size), "hit": spaces.Box(0.0, 1.0, (1,))}
        super().__init__(num_envs, spaces.Dict(parts), spaces.Discrete(size * size), uniforms=2 * len(ships), **base)
        self.size, self.ships = size, ships
        cells = np.arange(size * size).reshape(size, size)
        windows = [np.lib.stride_tricks.sliding_window_view(cells, length, axis=1) for length in ships]
        across = [window.reshape(-1, length) for window, length in zip(windows, ships, strict=True)]
        # The places of each ship, across and down, (2, P, L) cells.
        self._places = [np.stack((place, place % size * size + place // size)) for place in across]
        self._is_ship, self._is_shot = np.zeros((2, num_envs, size * size), np.bool_)
        self._hit = np.zeros(num_envs, np.bool_)

    def _begin(self, rows: Rows, uniforms: Uniforms, options: dict[str, Any]) -> None:
        taken = np.zeros((len(rows), self.size**2), np.bool_)
        every = np.arange(len(rows))
        for ship, places in enumerate(self._places):
            ways = (uniforms[:, 2 * ship] < 0.5).astype(np.int64)
            free = ~taken[every[:, None, None], places[ways]].any(axis=2)  # (R, P)
            nth = (uniforms[:, 2 * ship + 1] * free.sum(axis=1)).astype(np.int64)
            chosen = (np.cumsum(free, axis=1) > nth[:, None]).argmax(axis=1)
            taken[every[:, None], places[ways, chosen]] = True
        self._is_ship[rows], self._is_shot[rows], self._hit[rows] = taken, False, False

    def _advance(self, actions: Any) -> Outcome:
        at = self._every_row, actions
        self._hit = self._is_ship[at] & ~self._is_shot[at]
        self._is_shot[at] = True
        over = np.count_nonzero(self._is_ship & ~self._is_shot, axis=1) == 0
        return np.where(over, np.float32(self.size**2), np.float32(-1.0)), over

    def _observe(self) -> dict[str, NDArray[Any]]:
        return {"action_mask": (~self._is_shot).astype(np.int8), "hit": self._hit[:, None].astype(np.float32)}

    def _text(self, row: int) -> str:
        """Hits "X", misses "o", ships "s"."""
        kinds = np.array([".", "s", "o", "X"])[self._is_ship[row] + 2 * self._is_shot[row]]
        return "\n".join("".join(line) for line in kinds.reshape(self.size, self.size)) + "\n"

    def _picture(self, row: int) -> NDArray[np.uint8]:
        """Hits green, misses red, ships gray."""
        kinds = np.array([BACKGROUND, GRAY, RED, GREEN], np.uint8)[self._is_ship[row] + 2 * self._is_shot[row]]
        return enlarge(kinds.reshape(self.size, self.size, 3), cell_size(self.size))


_MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1], [0, 0]])

# Single environments, for gymnasium.make.
RockSampleEnv = single(RockSample)
BattleshipEnv = single(Battleship)
