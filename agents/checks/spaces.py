"""Observation spaces that are refused before anything runs, with what to do instead."""

from typing import Any

import numpy as np
from gymnasium import spaces


def check_observation_space(space: spaces.Space[Any]) -> None:
    """Raises NotImplementedError, with the part and the cure, unless buffer and encoders take every part of the space,
    and it holds something."""
    _check_part(space)
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            _check_part(part, f"the part {key!r} of ", inside=True)
    if spaces.utils.flatdim(space) == 0:
        raise NotImplementedError(f"observations of {space} hold no number; give them a constant one in a wrapper")


_CURE = "make the environment with envs.make, or wrap it: envs.as_arrays(env)"


def _check_part(space: spaces.Space[Any], where: str = "", inside: bool = False) -> None:
    """``inside``: of a Dict, which may hold no other."""
    if isinstance(space, spaces.Dict) and not inside:
        return
    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise NotImplementedError(
            f"{where}observation space {space} is not supported: Box, Discrete, MultiDiscrete, MultiBinary and a Dict "
            f"of these are; {_CURE}"
        )
    if space.shape == () and isinstance(space, spaces.Box):
        raise NotImplementedError(f"{where}observations of {space} have no axis; {_CURE}")
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start):
        raise NotImplementedError(f"{where}observations of {space} do not start at 0; {_CURE}")
