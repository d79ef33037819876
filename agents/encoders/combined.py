"""A Dict observation: one encoder a key, their features concatenated.

Axes: N observations, H features.
"""

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor
from torch import Tensor, nn

from agents.checks.arguments import check_choice, check_count, check_mapping, check_switch
from agents.encoders.kinds import Part, parts_of
from agents.encoders.selection import CNNS, OF_PARTS, SCALES, encoder_of


class CombinedEncoder(BaseFeaturesExtractor):
    """Each part of a Dict by the encoder that fits it, as ``agents.encoders.selection`` says.

    For measurements, images and categories these are the weights and names of Stable-Baselines3's
    ``CombinedExtractor``, but for images that its CNN is too large for.

    Args:
        observation_space: a Dict.
        cnn_output_dim: size of the output of each CNN.
        normalized_image: take Box spaces of three axes, of any type and range, as images; give the policy
            ``normalize_images=False`` with it.
        encoders: by the name of a part, or a key, what reads it in place of the encoder that fits: a name of
            ``OF_PARTS``.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        cnn_output_dim: int = 256,
        normalized_image: bool = False,
        encoders: Mapping[str, str] | None = None,
    ) -> None:
        check_count("cnn_output_dim", cnn_output_dim)
        check_switch("normalized_image", normalized_image)
        check_mapping("encoders", encoders)
        if not isinstance(observation_space, spaces.Dict):
            raise ValueError(
                f'encoder "combined" reads a Dict; got {observation_space}; use "flatten", or the encoder of its kind'
            )
        super().__init__(observation_space, features_dim=1)
        parts = parts_of(observation_space, normalized_image, apart=encoders or ())
        self.encoders = {part.name: encoder_of(part) for part in parts} | dict(encoders or {})
        self.parts = {part.name: part for part in parts}
        for name, encoder in self.encoders.items():
            check_choice("a name in encoders", name, self.parts)
            check_choice(f"encoders[{name!r}]", encoder, OF_PARTS)
        self.extractors = nn.ModuleDict()
        self._features_dim = 0
        untouched: set[str] = set()
        for name, part in self.parts.items():
            kwargs = {} if self.encoders[name] not in CNNS else {"features_dim": cnn_output_dim}
            if normalized_image and self.encoders[name] in SCALES:
                kwargs["normalized_image"] = True
            extractor, size = _extractor(self.encoders[name], part, kwargs)
            self.extractors[layer_name(name)] = extractor
            self._features_dim += size
            if getattr(extractor, "unprocessed", ()):
                untouched.update(part.all_keys())
        self.unprocessed = frozenset(untouched)

    def extractor_of(self, name: str) -> nn.Module:
        """What reads the part of this name."""
        return self.extractors[layer_name(name)]

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Dict of (N, ...) -> (N, H)."""
        return torch.cat([self.extractor_of(name)(part.of(observations)) for name, part in self.parts.items()], dim=1)


def _extractor(name: str, part: Part, kwargs: dict[str, Any]) -> tuple[nn.Module, int]:
    """The encoder of a part, and how many features it gives."""
    if name == "flatten" and part.keys is None:
        return nn.Flatten(), get_flattened_obs_dim(part.space)
    try:
        extractor: Any = OF_PARTS[name](part.space, **kwargs)
    except (ValueError, AssertionError) as error:
        raise ValueError(f"the part {part.name!r} of the observation: {error}") from error
    return extractor, int(extractor.features_dim)


class CombinedOfAnyKeys(CombinedExtractor):
    """Stable-Baselines3's own, for a Dict with keys that cannot name a layer."""

    def __init__(self, observation_space: spaces.Dict, **kwargs: Any) -> None:
        super().__init__(spaces.Dict({layer_name(key): part for key, part in observation_space.items()}), **kwargs)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Dict of (N, ...) -> (N, H)."""
        return super().forward({layer_name(key): part for key, part in observations.items()})


class FlattenedParts(BaseFeaturesExtractor):
    """All keys of a Dict as they are, one after the other: what Stable-Baselines3's ``FlattenExtractor`` is for a
    single array."""

    def __init__(self, observation_space: spaces.Dict) -> None:
        super().__init__(observation_space, features_dim=get_flattened_obs_dim(observation_space))
        self.keys = tuple(observation_space.spaces)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Dict of (N, ...) -> (N, H)."""
        return torch.cat([observations[key].flatten(1) for key in self.keys], dim=1)


def can_name_a_layer(key: str) -> bool:
    """Whether torch takes a key of a Dict as the name of a layer: no dot, and no attribute of its dict of layers."""
    return key != "" and "." not in key and not key.startswith("=") and not hasattr(nn.ModuleDict(), key)


def layer_name(key: str) -> str:
    """The key, or if it cannot name a layer its characters as hexadecimal numbers, which no two keys share."""
    return key if can_name_a_layer(key) else f"={key.encode().hex()}"
