"""MultiDiscrete observations of several axes, as the one axis of choices that Stable-Baselines3 encodes."""

from typing import Any

import numpy as np
from gymnasium import spaces
from torch import Tensor


def with_flat_choices(space: spaces.Space[Any]) -> Any:
    """The space with every MultiDiscrete of several axes, in a Dict too, as one of one axis; else the very space."""
    if isinstance(space, spaces.Dict):
        parts = {key: with_flat_choices(part) for key, part in space.spaces.items()}
        return space if all(parts[key] is part for key, part in space.spaces.items()) else spaces.Dict(parts)
    return spaces.MultiDiscrete(space.nvec.ravel(), dtype=space.dtype) if _has_axes(space) else space  # type: ignore[attr-defined, arg-type]


def flatten_choices(observations: Any, space: spaces.Space[Any]) -> Any:
    """Observations, tensors (N, ...), as those of ``with_flat_choices(space)``; what is flat already stays."""
    if isinstance(space, spaces.Dict):
        return {key: flatten_choices(part, space[key]) for key, part in observations.items()}
    return observations.flatten(1) if _has_axes(space) else observations


def flat_choices(observation: Any, space: spaces.Space[Any]) -> Any:
    """One observation of the space or a batch, arrays or tensors, as those of ``with_flat_choices(space)``."""
    if isinstance(space, spaces.Dict):
        return {key: flat_choices(part, space[key]) for key, part in observation.items()}
    if not _has_axes(space):
        return observation
    values = observation if isinstance(observation, Tensor) else np.asarray(observation)
    return values.reshape(*values.shape[: values.ndim - len(space.shape or ())], -1)


def _has_axes(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim > 1
