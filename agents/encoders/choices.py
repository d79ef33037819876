"""Observations made ready for encoders by Stable-Baselines3's preprocessing, which knows choices along one axis."""

from collections.abc import Container
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
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


def preprocessed(observations: Any, space: spaces.Space[Any], scales_images: bool, untouched: Container[str]) -> Any:
    """Stable-Baselines3's preprocessing (one-hot categories, images in [0, 1], floats) of tensors (N, ...).

    Args:
        untouched: keys of a Dict, or "" for a plain observation, that an encoder takes as they are.
    """
    if not untouched:
        return preprocess_obs(observations, space, normalize_images=scales_images)
    if not isinstance(space, spaces.Dict):
        return observations
    return {
        key: part if key in untouched else preprocess_obs(part, space[key], normalize_images=scales_images)
        for key, part in observations.items()
    }


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
