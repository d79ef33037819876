"""Convolutional networks over images.

Axes: N observations, C channels, H rows, W columns.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from torch import Tensor, nn

from agents.checks.arguments import check_count, check_counts, check_switch
from agents.encoders.kinds import layout_of

CHANNELS = (16, 32, 32)
SMALLEST = 8
SMALLEST_OF_NATURE_CNN = 36


class ImpalaCNN(BaseFeaturesExtractor):
    """The residual network of Espeholt et al. 2018, "IMPALA", figure 3 (right): three stages, fifteen convolutions.

    Args:
        observation_space: Box (C, H, W), channels first, as Stable-Baselines3 arranges images; at least 8 x 8. uint8 in
            [0, 255], which Stable-Baselines3 scales to [0, 1], unless ``normalized_image``.
        features_dim: size of the output.
        width: multiplies the channels of every stage, 16, 32, 32 (Cobbe et al. 2020: wider learns faster).
        normalized_image: take Box spaces of any type and range as images; give the policy
            ``normalize_images=False`` with it.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        features_dim: int = 256,
        width: int = 1,
        normalized_image: bool = False,
    ) -> None:
        check_counts(features_dim=features_dim, width=width)
        check_switch("normalized_image", normalized_image)
        n_channels, height, columns = _image_shape(observation_space, normalized_image)
        super().__init__(observation_space, features_dim)
        sizes = [n_channels, *(width * channels for channels in CHANNELS)]
        stages = [Stage(before, after) for before, after in pairwise(sizes)]
        for _ in stages:
            height, columns = (height + 1) // 2, (columns + 1) // 2
        self.cnn = nn.Sequential(*stages, nn.ReLU(), nn.Flatten())
        self.linear = nn.Sequential(nn.Linear(sizes[-1] * height * columns, features_dim), nn.ReLU())

    def forward(self, observations: Tensor) -> Tensor:
        """Images (N, C, H, W) -> (N, features_dim)."""
        # With the channels innermost in memory, convolutions of this few channels are nearly twice as fast on a CPU.
        features: Tensor = self.linear(self.cnn(observations.contiguous(memory_format=torch.channels_last)))
        return features


class ImageEncoder(BaseFeaturesExtractor):
    """Images in any arrangement: (H, W), channels first or last, frames stacked in front; bytes or floats.

    They are arranged as channels first, frames as further channels, and brought into [0, 1]; then comes
    Stable-Baselines3's NatureCNN, or :class:`ImpalaCNN` below the 36 x 36 that it needs.

    Args:
        features_dim: size of the output.
        normalized_image: the images are scaled already, whatever their bounds; give the policy
            ``normalize_images=False`` with it.
    """

    def __init__(
        self, observation_space: spaces.Space[Any], features_dim: int = 256, normalized_image: bool = False
    ) -> None:
        check_count("features_dim", features_dim)
        check_switch("normalized_image", normalized_image)
        shape = tuple(observation_space.shape or ())
        if not isinstance(observation_space, spaces.Box) or not 2 <= len(shape) <= 4 or 0 in shape:
            raise ValueError(f'encoder "image" reads images, a Box of 2 to 4 axes, got {observation_space}')
        grid = self._layout = layout_of(shape)
        arranged = spaces.Box(0, 255, (grid.frames * grid.channels, grid.height, grid.width), np.uint8)
        cnn = cnn_for(arranged)
        if cnn is None:
            raise ValueError(
                f'encoder "image" reads images of at least {SMALLEST} x {SMALLEST}; got {shape}, which is '
                f'{grid.height} x {grid.width}; enlarge them in a wrapper, or use encoder "embedding" or "flatten"'
            )
        super().__init__(observation_space, features_dim)
        self.unprocessed = frozenset([""])
        self._arranged = arranged.shape
        self.scales_bytes = bool(observation_space.high.max() == 255) and not normalized_image
        self._scaled_floats = is_image_space(observation_space)
        self.cnn = cnn(arranged, features_dim)

    def forward(self, observations: Tensor) -> Tensor:
        """Images (N, ...) -> (N, features_dim)."""
        # What Stable-Baselines3's preprocessing takes for images comes from it scaled, and as floats.
        scales = self.scales_bytes and not (self._scaled_floats and observations.is_floating_point())
        images = self.arranged(observations).float()
        features: Tensor = self.cnn(images / 255 if scales else images)
        return features

    def arranged(self, observations: Tensor) -> Tensor:
        """Images (N, ...) -> (N, C, H, W), frames as further channels, as they are otherwise."""
        order = (0, *(axis + 1 for axis in self._layout.order))
        return observations.permute(order).reshape(len(observations), *self._arranged)


def cnn_for(space: spaces.Space[Any]) -> type[NatureCNN] | type[ImpalaCNN] | None:
    """The network for images of a space, channels first: Stable-Baselines3's if it can, None below 8 x 8."""
    assert space.shape is not None
    smallest = min(space.shape[1:])
    return NatureCNN if smallest >= SMALLEST_OF_NATURE_CNN else ImpalaCNN if smallest >= SMALLEST else None


class Stage(nn.Module):
    """A convolution, a maximum over neighbors at half the resolution (rounded up), and two residual blocks."""

    def __init__(self, channels_before: int, channels_after: int) -> None:
        super().__init__()
        self.entrance = nn.Conv2d(channels_before, channels_after, kernel_size=3, padding=1)
        self.halve = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.residuals = nn.ModuleList(_residual(channels_after) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        images = self.halve(self.entrance(images))
        for residual in self.residuals:
            images = images + residual(images)
        return images


def _residual(channels: int) -> nn.Sequential:
    """What a residual block adds; no activation is in place, since the input is added to the output."""
    first, second = (nn.Conv2d(channels, channels, kernel_size=3, padding=1) for _ in range(2))
    return nn.Sequential(nn.ReLU(), first, nn.ReLU(), second)


def _image_shape(space: spaces.Space[Any], normalized_image: bool) -> tuple[int, int, int]:
    if not isinstance(space, spaces.Box) or not is_image_space(space, normalized_image=normalized_image):
        raise ValueError(
            f'encoder "impala" reads images, uint8 Box (C, H, W) in [0, 255]; got {space}; for images already scaled '
            "set normalized_image=True, and normalize_images=False for the policy"
        )
    channels, height, columns = space.shape
    if min(height, columns) < SMALLEST:
        raise ValueError(
            f'encoder "impala" reads images of at least {SMALLEST} x {SMALLEST}, channels first; got {space.shape}; '
            'enlarge them in a wrapper, or use encoder "flatten"'
        )
    return channels, height, columns
