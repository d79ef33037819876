"""Attention: additive and scaled dot-product, over the states of a window and over a set of entities.

Axes: N observations, K tokens (keys), Q queries, A heads, H features.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from agents.checks.arguments import check_count
from agents.encoders.recurrence import Recurrence
from agents.encoders.tokens import TokenReader, Tokens, at_slots, check_choice, check_heads


class Attention(nn.Module, ABC):
    """What both kinds share: each head weighs the keys by a score against the query, and sums its share of the values.

    Args:
        query_size, key_size: numbers of a query and of a key.
        size: H, numbers of the output, divided among the heads.
        heads: A, each with weights of its own.
    """

    def __init__(self, query_size: int, key_size: int, size: int = 64, heads: int = 1) -> None:
        super().__init__()
        check_heads("size", size, heads)
        self.heads, self.output_size = heads, size
        self.of_query = nn.Linear(query_size, size)
        self.of_key = nn.Linear(key_size, size, bias=False)
        self.of_value = nn.Linear(key_size, size)

    def forward(self, queries: Tensor, keys: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(N, Q, ...), (N, K, ...), (N, K) true where a key is real or None -> (N, Q, H), weights (N, A, Q, K).

        Weights are 0 for keys that are not real and add up to 1 over the others. Without a real key all weights are 0
        and so is the output.
        """
        scores = self._scores(self._by_head(self.of_query(queries)), self._by_head(self.of_key(keys)))
        weights = masked_softmax(scores, None if real is None else real[:, None, None])
        summed = weights @ self._by_head(self.of_value(keys))
        return summed.transpose(1, 2).flatten(2), weights

    @abstractmethod
    def _scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(N, A, Q, H / A), (N, A, K, H / A) -> (N, A, Q, K)."""

    def _by_head(self, rows: Tensor) -> Tensor:
        """(N, K, H) -> (N, A, K, H / A)."""
        return rows.reshape(*rows.shape[:2], self.heads, -1).transpose(1, 2)


class AdditiveAttention(Attention):
    """``score(q, k) = v tanh(W q + U k)`` (Bahdanau et al. 2015, "Neural machine translation by jointly learning to
    align and translate")."""

    def __init__(self, query_size: int, key_size: int, size: int = 64, heads: int = 1) -> None:
        super().__init__(query_size, key_size, size, heads)
        of_head = size // heads
        self.direction = nn.Parameter(torch.empty(heads, of_head).uniform_(-1, 1) / math.sqrt(of_head))

    def _scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        agreement = torch.tanh(queries.unsqueeze(3) + keys.unsqueeze(2))  # (N, A, Q, K, H / A)
        return torch.einsum("naqkh,ah->naqk", agreement, self.direction)


class DotProductAttention(Attention):
    """``score(q, k) = (W q) (U k) / sqrt(H / A)``: Luong et al. 2015, "Effective approaches to attention-based neural
    machine translation" ("general"), with the scale and heads of Vaswani et al. 2017, "Attention is all you need"."""

    def _scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        return queries @ keys.transpose(2, 3) / math.sqrt(keys.shape[3])


SCORES: Mapping[str, type[Attention]] = {"additive": AdditiveAttention, "dot": DotProductAttention}


class AttentionPooling(nn.Module):
    """Attention with one learned query: (N, K, key_size) -> (N, H), whatever the order of the keys.

    Yang et al. 2016, "Hierarchical attention networks"; with several heads and dot products the pooling of Lee et al.
    2019, "Set transformer".

    Args:
        key_size, size, heads: as for :class:`Attention`.
        score: "additive" or "dot".
    """

    def __init__(self, key_size: int, size: int = 64, heads: int = 1, score: str = "additive") -> None:
        super().__init__()
        check_choice("score", score, SCORES)
        self.attention = SCORES[score](size, key_size, size, heads)
        self.query = nn.Parameter(torch.randn(size) / math.sqrt(size))

    def forward(self, keys: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(N, K, ...), (N, K) or None -> (N, H), weights (N, A, K); zeros without a real key."""
        output, weights = self.attention(self.query.expand(len(keys), 1, -1), keys, real)
        return output[:, 0], weights[:, :, 0]


def masked_softmax(scores: Tensor, real: Tensor | None) -> Tensor:
    """Softmax over the last axis among what is real, zero elsewhere; all zeros where nothing is."""
    if real is None:
        return scores.softmax(dim=-1)
    weights = scores.masked_fill(~real, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return weights.masked_fill(~real, 0.0)


class AttentionEncoder(BaseFeaturesExtractor):
    """Attention over a window's recurrent states, or over a set of entities, in place of the last state or a mean.

    Over a window, the state after the newest observation asks which of the earlier ones matter, and the features are
    made of both, as Luong et al. 2015 (equation 5) do. Over a set, a learned query weighs the entities; their order
    does not matter. Features of a set without a real entity are those of zeros (and of the context): finite, and the
    same whatever lies there. Observations are read as ``agents.encoders.tokens`` says; context, such as what an agent
    knows of itself, is part of the query and of the output.

    Args:
        observation_space: of one observation.
        features_dim: size of the output.
        over: "window" or "set".
        score: "dot" or "additive".
        heads: each with weights of its own.
        hidden_size: units of the attention, and of the recurrent network over a window.
        cell: of a window: "rnn", "lstm" or "gru" (None: "gru"). A set has none.
        bidirectional: of a window: read it from the end as well.
        mask_key: the key of the mask in a Dict observation; None: every token is real.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        features_dim: int = 64,
        over: str = "window",
        score: str = "dot",
        heads: int = 1,
        hidden_size: int = 64,
        cell: str | None = None,
        bidirectional: bool = False,
        mask_key: str | None = "mask",
    ) -> None:
        check_count("features_dim", features_dim)
        check_choice("over", over, ("window", "set"))
        check_choice("score", score, SCORES)
        check_heads("hidden_size", hidden_size, heads)
        if over == "set" and (cell is not None or bidirectional):
            raise ValueError("cell and bidirectional are for over='window': a set has no order to read it in")
        super().__init__(observation_space, features_dim)
        self.reader = TokenReader("attention", observation_space, mask_key, over)
        size, context_size = self.reader.token_size, self.reader.context_size
        self.recurrence: Recurrence | None = None
        if over == "window":
            self.recurrence = Recurrence(size, cell or "gru", hidden_size, 1, bidirectional)
            state_size = query_size = self.recurrence.output_size
        else:
            self.embedding = nn.Sequential(nn.Linear(size, hidden_size), nn.ReLU())
            self.query = nn.Parameter(torch.randn(hidden_size) / math.sqrt(hidden_size))
            state_size, query_size = hidden_size, hidden_size
        self.attention = SCORES[score](query_size + context_size, state_size, hidden_size, heads)
        known = self.attention.output_size + context_size + (query_size if over == "window" else 0)
        self.projection = nn.Sequential(nn.Linear(known, features_dim), nn.ReLU())

    def forward(self, observations: Any) -> Tensor:
        """Observations (N, ...) -> (N, features_dim)."""
        tokens = self.reader(observations)
        attended, query, _ = self._attend(tokens)
        known = [attended, tokens.context, *([] if self.recurrence is None else [query])]
        features: Tensor = self.projection(torch.cat(known, dim=1))
        return features

    def attention_weights(self, observations: Any) -> Tensor:
        """What is attended to: observations as for ``forward`` -> (N, A, K), each token's weight where it stands."""
        tokens = self.reader(observations)
        return at_slots(self._attend(tokens)[2], tokens, self.reader.length)

    def _attend(self, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of values (N, H), the query without its context (N, ...), weights (N, A, K)."""
        if self.recurrence is None:
            states = self.embedding(tokens.values)
            query = self.query.expand(len(states), -1)
        else:
            states = self.recurrence(tokens.values, tokens.lengths)
            query = self.recurrence.final(states, tokens.lengths)
        asked = torch.cat((query, tokens.context), dim=1).unsqueeze(1)
        attended, weights = self.attention(asked, states, tokens.real)
        return attended[:, 0], query, weights[:, :, 0]
