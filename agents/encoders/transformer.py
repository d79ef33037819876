"""Self-attention over a window of past observations, or over any other tokens.

Axes: N observations, K tokens (the real ones first), W width, A heads, E numbers of a head.
"""

import math
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.nn import functional

from agents.checks.arguments import check_count, check_switch
from agents.encoders.tokens import TokenReader, Tokens, check_choice, check_heads, mean, take

POSITIONS = ("rotary", "learned", "none")
POOLS = ("last", "mean", "cls")


class TransformerEncoder(BaseFeaturesExtractor):
    """A transformer (Vaswani et al. 2017), normalising before each block (Xiong et al. 2020), without dropout.

    Observations are read as ``agents.encoders.tokens`` says, MultiDiscrete ones of equal choices as words. Positions
    count from the observation's own slots, so that the newest of a window is always the same. With
    ``positions="none"``, ``pool="mean"`` or ``"cls"`` and without ``causal`` the order of the tokens does not matter:
    self-attention over a set.

    Args:
        observation_space: of one observation.
        features_dim: size of the output.
        width: W, numbers of a token inside.
        num_layers: blocks of attention and feed-forward network.
        heads: of each attention; they divide the width, into even parts for rotary positions.
        expansion: hidden units of a feed-forward network, as a multiple of the width.
        causal: a token sees only itself and those before it.
        positions: "rotary" (Su et al. 2021, "RoFormer": scores depend on distances alone), "learned" (one vector a
            slot) or "none".
        pool: "last": the last real token, the newest of a window; "mean": of all; "cls": one more token right after
            the last real one, which sees all of them (Devlin et al. 2019, "BERT").
        mask_key: the key of the mask in a Dict observation; None: every token is real.
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
        check_count("features_dim", features_dim)
        check_count("num_layers", num_layers)
        check_count("expansion", expansion)
        check_heads("width", width, heads)
        check_switch("causal", causal)
        check_choice("positions", positions, POSITIONS)
        check_choice("pool", pool, POOLS)
        if positions == "rotary" and width // heads % 2:
            raise ValueError(
                f"rotary positions turn pairs of numbers: width / heads must be even, got {width} / {heads}; use a "
                f"width of {width + heads}, or positions='learned'"
            )
        super().__init__(observation_space, features_dim)
        self.reader = TokenReader("transformer", observation_space, mask_key, "window", words=True)
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
        pooled = self._pooled(tokens)
        if tokens.lengths is not None:
            pooled = pooled.masked_fill((tokens.lengths == 0).unsqueeze(1), 0.0)
        features: Tensor = self.projection(torch.cat((pooled, tokens.context), dim=1))
        return features

    def _pooled(self, tokens: Tokens) -> Tensor:
        """(N, W), without meaning where no token is real."""
        values, slots = self._embedded(tokens)
        visible = self._visible(tokens, values.shape[1])
        turns = _turns(slots, self.of_head) if self.positions == "rotary" else None
        *lower, top = self.blocks
        for block in lower:
            values = block(values, values, visible, turns, turns)
        if self.pool == "mean":
            return mean(self.norm(top(values, values, visible, turns, turns)), tokens.lengths)
        # Of the top block only one token is asked for, so only its query is computed.
        at = self._asked(tokens, values.shape[1])
        asked = take(values, at).unsqueeze(1)
        seen = None if visible is None else visible.expand(len(values), 1, values.shape[1], -1)
        seen = None if seen is None else take(seen[:, 0], at)[:, None, None]
        turn = None if turns is None else take(turns.expand(len(values), -1, -1, -1), at).unsqueeze(1)
        pooled: Tensor = self.norm(top(asked, values, seen, turn, turns))[:, 0]
        return pooled

    def _embedded(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Tokens inside the network, (N, K, W), with the summary after them, and their slots, (N or 1, K)."""
        values = self.embedding(tokens.values)
        slots = tokens.slots
        if slots is None:
            slots = torch.arange(self.reader.length, device=values.device).unsqueeze(0)
        if self.positions == "learned":
            values = values + self.position[slots]
        if self.pool == "cls":
            values = torch.cat((values, self.summary.expand(len(values), 1, -1)), dim=1)
            newest = slots[:, -1:] if tokens.lengths is None else slots.gather(1, _last_place(tokens.lengths)[:, None])
            slots = torch.cat((slots, newest + 1), dim=1)
        return values, slots

    def _visible(self, tokens: Tokens, n_tokens: int) -> Tensor | None:
        """Which keys each query sees, (N or 1, 1, K or 1, K); None: all. Every query sees something.

        Real tokens stand before the others, so that under a causal mask no real one sees another kind.
        """
        real = tokens.real
        if self.causal:
            place = torch.arange(n_tokens, device=tokens.values.device)
            visible = (place.unsqueeze(1) >= place)[None, None]
            if self.pool != "cls" or real is None:
                return visible
            return visible & functional.pad(real, (0, 1), value=True)[:, None, None] | torch.eye(
                n_tokens, dtype=torch.bool, device=visible.device
            )
        if real is None:
            return None
        if self.pool == "cls":
            return functional.pad(real, (0, 1), value=True)[:, None, None]
        first = torch.arange(n_tokens, device=real.device) == 0
        return (real | first)[:, None, None]

    def _asked(self, tokens: Tokens, n_tokens: int) -> Tensor:
        """Which token is asked for the answer, (N,)."""
        if self.pool == "cls" or tokens.lengths is None:
            return torch.full((len(tokens.values),), n_tokens - 1, device=tokens.values.device)
        return _last_place(tokens.lengths)


def _last_place(lengths: Tensor) -> Tensor:
    return (lengths - 1).clamp(min=0)


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
        asking: Tensor,
        values: Tensor,
        visible: Tensor | None,
        asking_turns: Tensor | None,
        turns: Tensor | None,
    ) -> Tensor:
        """(N, Q, W) asking tokens among (N, K, W), which sees which (N, 1, Q, K), turns as `rotated` -> (N, Q, W)."""
        normed = self.norm(values)
        query = self._by_head(self.of_query(normed if asking is values else self.norm(asking)))
        key, value = self._by_head(self.of_key(normed)), self._by_head(self.of_value(normed))
        if asking_turns is not None and turns is not None:
            query, key = rotated(query, asking_turns), rotated(key, turns)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        asking = asking + self.of_heads(attended.transpose(1, 2).flatten(2))
        output: Tensor = asking + self.feed_forward(asking)
        return output

    def _by_head(self, rows: Tensor) -> Tensor:
        """(N, K, W) -> (N, A, K, E)."""
        return rows.reshape(*rows.shape[:2], self.heads, -1).transpose(1, 2)


def rotated(rows: Tensor, turns: Tensor) -> Tensor:
    """Turns each pair of numbers: (N, A, K, E), cosines and sines (N or 1, K, 2, E / 2) -> (N, A, K, E).

    The product of two rows so turned depends on the difference of their angles alone (Su et al. 2021, equation 16).
    """
    cos, sin = turns.unsqueeze(1).unbind(3)
    first, second = rows.chunk(2, dim=3)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=3)


def _turns(slots: Tensor, of_head: int) -> Tensor:
    """Cosine and sine of position times 10000 ** (-2 i / E) for pair i: (N, K) -> (N, K, 2, E / 2)."""
    frequencies = torch.exp(-math.log(10_000.0) / of_head * torch.arange(0, of_head, 2, device=slots.device))
    angles = slots.unsqueeze(2) * frequencies
    return torch.stack((angles.cos(), angles.sin()), dim=2)
