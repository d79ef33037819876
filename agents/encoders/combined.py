"""A Dict observation: one encoder a key, their features concatenated.

Axes: N observations, H features.
"""

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor
from torch import Tensor, nn

from agents.checks.arguments import check_count, check_switch
from agents.encoders.vision import cnn_for


class CombinedEncoder(BaseFeaturesExtractor):
    """Stable-Baselines3's ``CombinedExtractor``, with the same weights and names, for images of every size.

    Images get the CNN that fits them, or none below 8 x 8; all else is flattened.

    Args:
        observation_space: a Dict.
        cnn_output_dim: size of the output of each CNN.
        normalized_image: take Box spaces of three axes, of any type and range, as images; give the policy
            ``normalize_images=False`` with it.
    """

    def __init__(
        self, observation_space: spaces.Dict, cnn_output_dim: int = 256, normalized_image: bool = False
    ) -> None:
        check_count("cnn_output_dim", cnn_output_dim)
        check_switch("normalized_image", normalized_image)
        if not isinstance(observation_space, spaces.Dict):
            raise ValueError(
                f'encoder "combined" reads a Dict; got {observation_space}; use "flatten", or the encoder of its kind'
            )
        super().__init__(observation_space, features_dim=1)
        self.extractors = nn.ModuleDict()
        self._layers = {key: layer_name(key) for key in observation_space.spaces}
        self._features_dim = 0
        for key, part in observation_space.spaces.items():
            cnn = cnn_for(part) if is_image_space(part, normalized_image=normalized_image) else None
            if cnn is None:
                self.extractors[layer_name(key)] = nn.Flatten()
                self._features_dim += get_flattened_obs_dim(part)
            else:
                self.extractors[layer_name(key)] = cnn(part, cnn_output_dim, normalized_image=normalized_image)
                self._features_dim += cnn_output_dim

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Dict of (N, ...) -> (N, H)."""
        return torch.cat([self.extractors[name](observations[key]) for key, name in self._layers.items()], dim=1)


class CombinedOfAnyKeys(CombinedExtractor):
    """Stable-Baselines3's own, for a Dict with keys that cannot name a layer."""

    def __init__(self, observation_space: spaces.Dict, **kwargs: Any) -> None:
        super().__init__(spaces.Dict({layer_name(key): part for key, part in observation_space.items()}), **kwargs)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Dict of (N, ...) -> (N, H)."""
        return super().forward({layer_name(key): part for key, part in observations.items()})


def can_name_a_layer(key: str) -> bool:
    """Whether torch takes a key of a Dict as the name of a layer: no dot, and no attribute of its dict of layers."""
    return key != "" and "." not in key and not key.startswith("=") and not hasattr(nn.ModuleDict(), key)


def layer_name(key: str) -> str:
    """The key, or if it cannot name a layer its characters as hexadecimal numbers, which no two keys share."""
    return key if can_name_a_layer(key) else f"={key.encode().hex()}"
