"""A transformer over a window of past observations, or over any other tokens.

Axes: N observations, K tokens (the valid ones first), Q queries, W width, A heads, E numbers of a head.
"""

import math
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.nn import functional

from agents.checks.arguments import check_choice, check_counts, check_heads, check_switch
from agents.encoders.attention import by_head
from agents.encoders.tokens import TokenReader, Tokens, mean, take

POSITIONS = ("rotary", "learned", "none")
POOLS = ("last", "mean", "cls")


class TransformerEncoder(BaseFeaturesExtractor):
    """A transformer (Vaswani et al. 2017) that normalizes before each block (Xiong et al. 2020), without dropout.

    Observations are read as ``agents.encoders.tokens`` says, MultiDiscrete ones of equal choices as words. Positions
    are places in the observation, so that the newest of a window is always the same. With ``positions="none"``,
    ``pool="mean"`` or ``"cls"`` and without ``causal`` the order of tokens does not matter: self-attention over a set.

    Args:
        features_dim: size of the output.
        width: W, numbers of a token inside.
        num_layers: blocks of attention and feed-forward network.
        heads: of each attention; they divide the width, into even parts for rotary positions.
        expansion: hidden units of a feed-forward network, as a multiple of the width.
        causal: a token sees only itself and those before it.
        positions: "rotary" (Su et al. 2021, "RoFormer": scores depend on distances alone), "learned" (one vector a
            place) or "none".
        pool: "last": the last valid token, the newest of a window; "mean": of all; "cls": one more token right after
            the last valid one, which sees all of them (Devlin et al. 2019, "BERT").
        mask_key: the key of the mask in a Dict observation; None: every token is valid.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        features_dim: int = 64,
        width: int = 64,
        num_layers: int = 2,
        heads: int = 4,
        expansion: int = 4,
        causal: bool = False,
        positions: str = "rotary",
        pool: str = "last",
        mask_key: str | None = "mask",
    ) -> None:
        check_counts(features_dim=features_dim, num_layers=num_layers, expansion=expansion)
        check_heads("width", width, heads)
        check_switch("causal", causal)
        check_choice("positions", positions, POSITIONS)
        check_choice("pool", pool, POOLS)
        if positions == "rotary" and width // heads % 2:
            raise ValueError(
                f"rotary positions rotate pairs of numbers: width / heads must be even, got {width} / {heads}; use a "
                f"width of {width + heads}, or positions='learned'"
            )
        super().__init__(observation_space, features_dim)
        self.reader = TokenReader("transformer", observation_space, mask_key, words=True)
        self.causal, self.positions, self.pool, self.of_head = causal, positions, pool, width // heads
        self.embedding = nn.Linear(self.reader.token_size, width)
        if positions == "learned":
            self.position = nn.Parameter(torch.randn(self.reader.length, width) * 0.02)
        if pool == "cls":
            self.summary = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, expansion) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Sequential(nn.Linear(width + self.reader.context_size, features_dim), nn.ReLU())

    def forward(self, observations: Any) -> Tensor:
        """Observations (N, ...) -> (N, features_dim)."""
        tokens = self.reader(observations)
        pooled = self._pooled(tokens).masked_fill((tokens.lengths == 0).unsqueeze(1), 0.0)
        features: Tensor = self.projection(torch.cat((pooled, tokens.context), dim=1))
        return features

    def _pooled(self, tokens: Tokens) -> Tensor:
        """(N, W), without meaning if no token is valid."""
        last_place = (tokens.lengths - 1).clamp(min=0).unsqueeze(1)
        values, slots = self._embedded(tokens, last_place)
        visible = self._visible(tokens.valid, values)
        rotations = _rotations(slots, self.of_head) if self.positions == "rotary" else None
        *lower, top = self.blocks
        for block in lower:
            values = block(values, values, visible, rotations, rotations)
        if self.pool == "mean":
            return mean(self.norm(top(values, values, visible, rotations, rotations)), tokens.lengths)
        # Of the top block only one token is used, so only its query is computed.
        place = torch.full_like(last_place, values.shape[1] - 1) if self.pool == "cls" else last_place
        if visible is not None:
            visible = take(visible.expand(len(values), values.shape[1], -1), place)
        rotation = None if rotations is None else take(rotations.expand(len(values), -1, -1, -1), place)
        pooled: Tensor = self.norm(top(take(values, place), values, visible, rotation, rotations))[:, 0]
        return pooled

    def _embedded(self, tokens: Tokens, last_place: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens inside the network, (N, K, W), with the summary after them, and their places, (N or 1, K)."""
        values, slots = self.embedding(tokens.values), tokens.slots
        if self.positions == "learned":
            values = values + self.position[slots]
        if self.pool == "cls":
            values = torch.cat((values, self.summary.expand(len(values), 1, -1)), dim=1)
            slots = torch.cat((slots, take(slots, last_place[: len(slots)]) + 1), dim=1)
        return values, slots

    def _visible(self, valid: Tensor | None, values: Tensor) -> Tensor | None:
        """Which keys each query sees, (N or 1, K or 1, K); None: all. Every query sees the first one."""
        n_tokens = values.shape[1]
        before = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=values.device).tril()[None]
        # Valid tokens come before padding, so that under a causal mask only the summary could see any.
        if valid is None or (self.causal and self.pool != "cls"):
            return before if self.causal else None
        if self.pool == "cls":
            valid = functional.pad(valid, (0, 1), value=True)
        keys = (valid | (torch.arange(n_tokens, device=values.device) == 0)).unsqueeze(1)
        return keys & before if self.causal else keys


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + feed-forward(norm(x))``.

    Args:
        width: W.
        heads: A.
        expansion: hidden units of the feed-forward network, as a multiple of the width.
    """

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.of_query, self.of_value = nn.Linear(width, width), nn.Linear(width, width)
        self.of_key = nn.Linear(width, width, bias=False)  # softmax would not notice one
        self.of_heads = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width)
        )

    def forward(
        self,
        queries: Tensor,
        values: Tensor,
        visible: Tensor | None,
        query_rotations: Tensor | None,
        rotations: Tensor | None,
    ) -> Tensor:
        """Tokens (N, Q, W) that attend to (N, K, W), which sees which (N, Q, K), rotations as in `rotated` ->
        (N, Q, W)."""
        normed = self.norm(values)
        query = by_head(self.of_query(normed if queries is values else self.norm(queries)), self.heads)
        key, value = by_head(self.of_key(normed), self.heads), by_head(self.of_value(normed), self.heads)
        if query_rotations is not None and rotations is not None:
            query, key = rotated(query, query_rotations), rotated(key, rotations)
        mask = None if visible is None else visible.unsqueeze(1)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        queries = queries + self.of_heads(attended.transpose(1, 2).flatten(2))
        output: Tensor = queries + self.feed_forward(queries)
        return output


def rotated(rows: Tensor, rotations: Tensor) -> Tensor:
    """Rotates each pair of numbers: (N, A, K, E), cosines and sines (N or 1, K, 2, E / 2) -> (N, A, K, E).

    The product of two rotated rows depends on the difference of their angles alone (Su et al. 2021, equation 16).
    """
    cos, sin = rotations.unsqueeze(1).unbind(3)
    first, second = rows.chunk(2, dim=3)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=3)


def _rotations(slots: Tensor, of_head: int) -> Tensor:
    """Cosine and sine of position times 10000 ** (-2 i / E) for pair i: (N, K) -> (N, K, 2, E / 2)."""
    frequencies = torch.exp(-math.log(10_000.0) / of_head * torch.arange(0, of_head, 2, device=slots.device))
    angles = slots.unsqueeze(2) * frequencies
    return torch.stack((angles.cos(), angles.sin()), dim=2)
