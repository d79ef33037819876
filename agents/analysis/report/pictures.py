"""Observations that are pictures.

Axes: T steps.
"""

import math
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first


def is_image(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and is_image_space(space)


def channels_last(picture: NDArray[Any], space: spaces.Box) -> NDArray[Any]:
    """(T, ...) pictures -> (T, height, width, channels)"""
    return np.moveaxis(picture, 1, -1) if is_image_space_channels_first(space) else picture


def smaller(pictures: NDArray[Any], numbers: int) -> NDArray[Any]:
    """(T, height, width, channels) pictures -> the same with pixels left out until they hold at most ``numbers``."""
    skip = max(1, math.ceil(math.sqrt(pictures.size / numbers)))
    return pictures[:, ::skip, ::skip]
