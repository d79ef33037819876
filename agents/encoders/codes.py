"""Categories by embedding: one vector a code, for large choices, for grids of codes, and for texts.

Axes: N observations, C channels, H rows, W columns, K places, E numbers of an embedding.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from agents.checks.arguments import check_count, check_counts, check_switch
from agents.encoders.kinds import codes_of, is_scaled_before, layout_of
from agents.encoders.recurrence import Recurrence
from agents.kernels.aside import why_torch

MOST_IN_A_TABLE = 2**16
MOST_DISTINCT = 0.75
"""Share of distinct observations above which each is encoded."""
CELLS_AFTER_CONVOLUTIONS = 100
"""A grid of more cells is halved by its convolutions until it has no more."""


class EmbeddingEncoder(BaseFeaturesExtractor):
    """Learned vectors for categories in place of one-hot ones.

    Discrete and MultiDiscrete: every place has vectors of its own; their concatenation is projected. A grid of codes,
    an integer Box of 2 to 4 axes: every channel has vectors of its own, the same in all cells; those of a cell's
    channels are added up and read by convolutions of 3 x 3 (Chevalier-Boisvert et al. 2019, "BabyAI", whose version 1.1
    adds embeddings so).

    Takes integers, or what Stable-Baselines3's preprocessing makes of them.

    Args:
        features_dim: size of the output.
        embedding_size: E.
        convolutions: layers of convolutions over a grid.
        normalized_image: the policy has ``normalize_images=False``, and so leaves a grid of bytes as it is.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        features_dim: int = 64,
        embedding_size: int = 8,
        convolutions: int = 1,
        normalized_image: bool = False,
    ) -> None:
        check_counts(features_dim=features_dim, embedding_size=embedding_size)
        check_count("convolutions", convolutions, low=0)
        check_switch("normalized_image", normalized_image)
        if not _has_codes(observation_space):
            raise ValueError(
                'encoder "embedding" reads Discrete, MultiDiscrete and grids of integers (a Box of 2 to 4 axes), got '
                f'{observation_space}; use "flatten"'
            )
        super().__init__(observation_space, features_dim)
        self.unprocessed = frozenset([""])
        self._scaled = is_scaled_before(observation_space) and not normalized_image
        self._grid: _Grid | None = None
        if isinstance(observation_space, spaces.Box):
            self._grid = _Grid(observation_space, embedding_size, convolutions)
            size = self._grid.output_size
        else:
            self._sizes = _sizes(observation_space)
            # One table for all places, each with rows of its own.
            ends = torch.tensor(self._sizes).cumsum(0)
            self._first: Tensor
            self.register_buffer("_first", ends - torch.tensor(self._sizes), persistent=False)
            self.table = nn.Embedding(sum(self._sizes), embedding_size)
            size = embedding_size * len(self._sizes)
        self.projection = nn.Sequential(nn.Linear(size, features_dim), nn.ReLU())

    def forward(self, observations: Tensor) -> Tensor:
        """(N, ...) -> (N, features_dim)."""
        if self._grid is not None:
            return _encoded_once(self._read, self._as_codes(observations))
        features: Tensor = self.projection(self._embedded(observations))
        return features

    def _read(self, codes: Tensor) -> Tensor:
        assert self._grid is not None
        features: Tensor = self.projection(self._grid(codes))
        return features

    def _embedded(self, observations: Tensor) -> Tensor:
        """(N, ...) -> (N, K * E)."""
        one_hot = observations.is_floating_point() and observations[0].numel() == sum(self._sizes) > len(self._sizes)
        if one_hot:
            parts = torch.split(observations.flatten(1), self._sizes, dim=1)
            codes = torch.stack([part.argmax(dim=1) for part in parts], dim=1)
        else:
            codes = observations.reshape(len(observations), len(self._sizes)).long()
        embedded: Tensor = self.table(codes + self._first)
        return embedded.flatten(1)

    def _as_codes(self, observations: Tensor) -> Tensor:
        if observations.is_floating_point():
            return (observations * 255 if self._scaled else observations).round()
        return observations


class _Grid(nn.Module):
    """Codes (N, *grid) -> (N, output_size)."""

    def __init__(self, space: spaces.Box, embedding_size: int, convolutions: int) -> None:
        super().__init__()
        self.low, self.n_codes = codes_of(space)
        self.layout = layout_of(space.shape)
        channels, height, width = self.layout.frames * self.layout.channels, self.layout.height, self.layout.width
        self.channels = channels
        self.first: Tensor
        self.register_buffer("first", torch.arange(channels) * self.n_codes, persistent=False)
        self.table = nn.Embedding(channels * self.n_codes, embedding_size)
        layers: list[nn.Module] = []
        for before, after in pairwise([embedding_size, *[2 * embedding_size] * convolutions]):
            stride = 2 if height * width > CELLS_AFTER_CONVOLUTIONS else 1
            layers += [nn.Conv2d(before, after, 3, stride, padding=1), nn.ReLU()]
            height, width = -(-height // stride), -(-width // stride)
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        self.output_size = height * width * (2 if convolutions else 1) * embedding_size

    def forward(self, codes: Tensor) -> Tensor:
        order = (0, *(axis + 1 for axis in self.layout.order))
        cells = codes.permute(order).reshape(len(codes), self.channels, self.layout.height, self.layout.width)
        cells = (cells.long() - self.low).clamp(0, self.n_codes - 1).permute(0, 2, 3, 1)
        embedded = self.table(cells + self.first).sum(dim=3)  # (N, H, W, E)
        features: Tensor = self.convolutions(embedded.permute(0, 3, 1, 2))
        return features


class TextEncoder(BaseFeaturesExtractor):
    """A GRU (Cho et al. 2014) over the embedded tokens of a text.

    Observations: MultiDiscrete of equal choices, 0 after the text's end, or a Dict of it alone.
    Takes integers, or what Stable-Baselines3's preprocessing makes of them.

    Args:
        features_dim: size of the output, and units of the GRU.
        embedding_size: E.
    """

    def __init__(self, observation_space: spaces.Space[Any], features_dim: int = 64, embedding_size: int = 32) -> None:
        check_counts(features_dim=features_dim, embedding_size=embedding_size)
        keys = list(observation_space.spaces) if isinstance(observation_space, spaces.Dict) else []
        self._key = keys[0] if len(keys) == 1 else ""
        text = observation_space[self._key] if self._key else observation_space  # type: ignore[index]
        choices = text.nvec if isinstance(text, spaces.MultiDiscrete) else None
        if choices is None or choices.ndim != 1 or not choices.size or (choices != choices[0]).any():
            raise ValueError(
                f'encoder "text" reads MultiDiscrete observations of equal choices, got {observation_space}; envs.make '
                "makes them of Text"
            )
        super().__init__(observation_space, features_dim)
        self.unprocessed = frozenset([self._key])
        self._shape = (len(choices), int(choices[0]))
        self.table = nn.Embedding(self._shape[1], embedding_size)
        self.recurrence = Recurrence(embedding_size, "gru", features_dim, 1, False)

    def forward(self, observations: Tensor | dict[str, Tensor]) -> Tensor:
        """Tokens (N, K) -> (N, features_dim), zero for an empty text."""
        if isinstance(observations, dict):
            observations = observations[self._key]
        length, n_choices = self._shape
        if observations.is_floating_point() and observations.shape[1] == length * n_choices:
            observations = observations.reshape(-1, length, n_choices).argmax(dim=2)
        return _encoded_once(self._read, observations.long())

    def _read(self, tokens: Tensor) -> Tensor:
        lengths = (tokens > 0).sum(dim=1)
        # Most texts are shorter than the longest: what is padding in all of them is not run through.
        tokens = tokens[:, : max(1, int(lengths.max()))]
        return self.recurrence.final(self.recurrence(self.table(tokens), lengths), lengths)


def _encoded_once(encode: Callable[[Tensor], Tensor], observations: Tensor) -> Tensor:
    """Rows of codes (N, ...) -> (N, H), equal ones encoded once: a text mostly stays for an episode, and most grids of
    a minibatch come more than once."""
    n = len(observations)
    if n < 2 or observations.device.type != "cpu" or why_torch() is not None:
        return encode(observations)
    rows = np.ascontiguousarray(observations.detach().numpy()).reshape(n, -1)
    _, first, places = np.unique(rows.view(f"V{rows[0].nbytes}").ravel(), return_index=True, return_inverse=True)
    if len(first) > MOST_DISTINCT * n:
        return encode(observations)
    return encode(observations[torch.from_numpy(first)]).index_select(0, torch.from_numpy(places))


def _sizes(space: Any) -> list[int]:
    """The choices of each place."""
    return [int(space.n)] if isinstance(space, spaces.Discrete) else [int(n) for n in space.nvec.ravel()]


def _has_codes(space: spaces.Space[Any]) -> bool:
    if not isinstance(space, spaces.Box):
        return isinstance(space, spaces.Discrete | spaces.MultiDiscrete)
    is_grid = space.dtype.kind in "iub" and 2 <= len(space.shape) <= 4 and 0 not in space.shape
    return is_grid and codes_of(space)[1] <= MOST_IN_A_TABLE
