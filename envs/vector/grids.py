"""What an agent sees of a MiniGrid world, without copies of it.

minigrid 3 draws an observation from up to five copies of a part of the world, cell by cell: two thirds of the time of a
step. `see_directly` puts a function in that method's place that reads the cells where they are and gives the same
observation, bit for bit.
"""

from __future__ import annotations

import sys
from functools import cache, partial
from typing import Any

import numpy as np

Cells = tuple[tuple[int, int], ...]


def see_directly(env: Any) -> None:
    """Makes the observations of a MiniGrid environment so, unless it has methods of its own for them."""
    minigrid, world = sys.modules.get("minigrid.minigrid_env"), getattr(env, "unwrapped", None)
    if minigrid is None or not isinstance(world, minigrid.MiniGridEnv):
        return
    base = minigrid.MiniGridEnv
    if all(getattr(type(world), name) is vars(base)[name] for name in _REPLACED) and not vars(world).keys() & _REPLACED:
        world.gen_obs = partial(_observation, world)


_REPLACED = {"gen_obs", "gen_obs_grid"}


def _observation(world: Any) -> dict[str, Any]:
    """What the environment's own `gen_obs` returns."""
    grid, size = world.grid, world.agent_view_size
    if type(grid) is not sys.modules["minigrid.core.grid"].Grid:
        return type(world).gen_obs(world)  # type: ignore[no-any-return]
    left, top, _, _ = world.get_view_exts()
    width, height, cells = grid.width, grid.height, grid.grid
    outside = _wall()
    seen = [
        cells[y * width + x] if 0 <= x < width and 0 <= y < height else outside
        for x, y in [(left + i, top + j) for i, j in _turned(size, world.agent_dir)]
    ]
    middle = size // 2
    shown = [True] * size**2 if world.see_through_walls else _visible(seen, size)
    seen[middle * size + size - 1] = world.carrying or None
    image = bytearray(3 * size**2)
    for place, cell in enumerate(seen):
        if shown[place]:
            image[3 * place : 3 * place + 3] = bytes(_EMPTY if cell is None else cell.encode())
    array = np.frombuffer(image, np.uint8).reshape(size, size, 3)
    return {"image": array, "direction": world.agent_dir, "mission": world.mission}


_EMPTY = (1, 0, 0)


@cache
def _wall() -> Any:
    """What lies outside the world."""
    from minigrid.core.world_object import Wall

    return Wall()


@cache
def _turned(size: int, direction: int) -> Cells:
    """Places (column, row) of the view in the world, in the order of the observation: by column, then by row."""
    places = [[(column, row) for row in range(size)] for column in range(size)]
    for _ in range(direction + 1):  # a turn to the left each
        places = [[places[size - 1 - row][column] for row in range(size)] for column in range(size)]
    return tuple(place for column in places for place in column)


def _visible(seen: list[Any], size: int) -> list[bool]:
    """Which cells light reaches from the agent, at the middle of the last row; minigrid's order of spreading."""
    clear = [cell is None or cell.see_behind() for cell in seen]
    shown = [False] * size**2
    shown[size // 2 * size + size - 1] = True
    for row in range(size - 1, -1, -1):
        for columns, step in ((range(size - 1), size), (range(size - 1, 0, -1), -size)):
            for column in columns:
                place = column * size + row
                if shown[place] and clear[place]:
                    shown[place + step] = True
                    if row:
                        shown[place + step - 1] = shown[place - 1] = True
    return shown
