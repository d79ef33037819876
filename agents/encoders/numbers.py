"""Integers with bounds, as numbers of a size that a network can learn from.

Axes: N observations, F numbers.
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

WIDEST = 2**16


class ScaledEncoder(BaseFeaturesExtractor):
    """A Box of integers flattened and brought from its bounds into [0, 1], such as the bytes of a machine's memory."""

    def __init__(self, observation_space: spaces.Space[Any]) -> None:
        if not is_bounded(observation_space):
            raise ValueError(f'encoder "scaled" reads bounded integers, a Box, got {observation_space}; use "flatten"')
        assert isinstance(observation_space, spaces.Box)
        super().__init__(observation_space, int(np.prod(observation_space.shape)))
        low, high = (bound.ravel().astype(np.float64) for bound in (observation_space.low, observation_space.high))
        self.low: Tensor
        self.range: Tensor
        self.register_buffer("low", torch.as_tensor(low, dtype=torch.float32), persistent=False)
        span = torch.as_tensor(np.where(high > low, high - low, 1.0), dtype=torch.float32)
        self.register_buffer("range", span, persistent=False)

    def forward(self, observations: Tensor) -> Tensor:
        """(N, ...) -> (N, F)."""
        return (observations.flatten(1).float() - self.low) / self.range


def is_bounded(space: spaces.Space[Any]) -> bool:
    """Whether a Box holds integers within bounds that a network can tell apart."""
    if not isinstance(space, spaces.Box) or space.dtype.kind not in "iub":
        return False
    return bool((space.high.astype(np.float64) - space.low.astype(np.float64) <= WIDEST).all())
