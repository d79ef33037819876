"""Observations made ready for encoders by Stable-Baselines3's preprocessing, which knows choices along one axis."""

from collections.abc import Container, Iterator
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


def as_arrays(observation: Any, space: spaces.Space[Any], optional: Container[str] = ()) -> Any:
    """One observation or a batch, a nested dict or tuple too, as the plain dict that a space is of.

    Args:
        optional: keys that may be left out.

    Raises:
        ValueError: parts are missing.
    """
    if not isinstance(space, spaces.Dict):
        return observation
    parts = observation if isinstance(observation, dict | tuple) else {"": observation}
    if isinstance(parts, tuple) or any(isinstance(part, dict | tuple) for part in parts.values()):
        parts = dict(_leaves(parts, ()))
    missing = [key for key in space.spaces if key not in parts and key not in optional]
    if missing:
        raise ValueError(
            f"the observation lacks {', '.join(map(repr, missing))}: expected a dict of {', '.join(space.spaces)}, got "
            f"{', '.join(map(str, parts)) if isinstance(observation, dict) else type(observation).__name__}. Texts, "
            "sequences and graphs come as arrays from model.get_env(), and from envs.as_arrays(env)"
        )
    return parts


def _leaves(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict | tuple):
        for key, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(part, (*path, str(key)))
    else:
        yield "/".join(path), tree


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
