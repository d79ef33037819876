"""MultiDiscrete observations of several axes, as the one axis of choices that Stable-Baselines3 encodes.

Axes: N observations, K choices.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor


def with_flat_choices(space: spaces.Space[Any]) -> Any:
    """The space with every MultiDiscrete of several axes, in a Dict too, as one of K choices; else the very space."""
    if isinstance(space, spaces.Dict):
        parts = {key: with_flat_choices(part) for key, part in space.spaces.items()}
        return space if all(parts[key] is part for key, part in space.spaces.items()) else spaces.Dict(parts)
    return spaces.MultiDiscrete(space.nvec.ravel(), dtype=space.dtype) if _has_axes(space) else space  # type: ignore[attr-defined, arg-type]


def flatten_choices(observations: Any, space: spaces.Space[Any]) -> Any:
    """Observations (N, ...) of the space as those of ``with_flat_choices(space)``."""
    if isinstance(space, spaces.Dict):
        return {key: flatten_choices(part, space[key]) for key, part in observations.items()}
    flat: Tensor = observations.flatten(1) if _has_axes(space) else observations
    return flat


def flat_choices(observation: Any, space: spaces.Space[Any]) -> Any:
    """One observation of the space, or several (N, ...), in arrays, as those of ``with_flat_choices(space)``."""
    if isinstance(space, spaces.Dict):
        return {key: flat_choices(part, space[key]) for key, part in observation.items()}
    if not _has_axes(space):
        return observation
    array: NDArray[Any] = np.asarray(observation)
    return array.reshape(*array.shape[: array.ndim - len(space.shape or ())], -1)


def _has_axes(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim > 1
