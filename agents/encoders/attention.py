"""Attention: additive and scaled dot-product, over the states of a window and over a set of entities.

Axes: N observations, K tokens (keys), Q queries, A heads, H features.
"""

import math
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from agents.checks.arguments import check_choice, check_count, check_heads
from agents.encoders.recurrence import Recurrence
from agents.encoders.tokens import TokenReader, Tokens, at_slots

SCORES = ("additive", "dot")


class Attention(nn.Module):
    """Each head weights the keys by a score against the query, and sums its share of the values.

    Args:
        query_size, key_size: numbers of a query and of a key.
        size: H, numbers of the output, divided among the heads.
        heads: A, each with weights of its own.
        score: "additive": ``v tanh(W q + U k)`` (Bahdanau et al. 2015, "Neural machine translation by jointly learning
            to align and translate"). "dot": ``(W q) (U k) / sqrt(H / A)`` (Luong et al. 2015, "Effective approaches to
            attention-based neural machine translation", with the scale and heads of Vaswani et al. 2017).
    """

    def __init__(self, query_size: int, key_size: int, size: int = 64, heads: int = 1, score: str = "additive") -> None:
        super().__init__()
        check_choice("score", score, SCORES)
        check_heads("size", size, heads)
        self.heads, self.output_size, self.score = heads, size, score
        self.of_query = nn.Linear(query_size, size)
        self.of_key = nn.Linear(key_size, size, bias=False)
        self.of_value = nn.Linear(key_size, size)
        if score == "additive":
            of_head = size // heads
            self.direction = nn.Parameter(torch.empty(heads, of_head).uniform_(-1, 1) / math.sqrt(of_head))

    def forward(self, queries: Tensor, keys: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(N, Q, ...), (N, K, ...), (N, K) or None if all keys are valid -> (N, Q, H), weights (N, A, Q, K).

        Weights are 0 for padding and add up to 1 over the others. Without a valid key weights and output are 0.
        """
        scores = self._scores(by_head(self.of_query(queries), self.heads), by_head(self.of_key(keys), self.heads))
        weights = masked_softmax(scores, None if valid is None else valid[:, None, None])
        summed = weights @ by_head(self.of_value(keys), self.heads)
        return summed.transpose(1, 2).flatten(2), weights

    def _scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(N, A, Q, H / A), (N, A, K, H / A) -> (N, A, Q, K)."""
        if self.score == "dot":
            return queries @ keys.transpose(2, 3) / math.sqrt(keys.shape[3])
        agreement = torch.tanh(queries.unsqueeze(3) + keys.unsqueeze(2))  # (N, A, Q, K, H / A)
        return torch.einsum("naqkh,ah->naqk", agreement, self.direction)


class AttentionPooling(nn.Module):
    """Attention with one learned query: (N, K, key_size) -> (N, H), whatever the order of the keys.

    Yang et al. 2016, "Hierarchical attention networks"; with several heads and dot products the pooling of Lee et al.
    2019, "Set transformer". Arguments are those of :class:`Attention`.
    """

    def __init__(self, key_size: int, size: int = 64, heads: int = 1, score: str = "additive") -> None:
        super().__init__()
        self.attention = Attention(size, key_size, size, heads, score)
        self.query = nn.Parameter(torch.randn(size) / math.sqrt(size))

    def forward(self, keys: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(N, K, ...), (N, K) or None -> (N, H), weights (N, A, K); zeros without a valid key."""
        output, weights = self.attention(self.query.expand(len(keys), 1, -1), keys, valid)
        return output[:, 0], weights[:, :, 0]


def by_head(rows: Tensor, heads: int) -> Tensor:
    """(N, K, H) -> (N, A, K, H / A)."""
    return rows.reshape(*rows.shape[:2], heads, -1).transpose(1, 2)


def masked_softmax(scores: Tensor, valid: Tensor | None) -> Tensor:
    """Softmax over the valid entries of the last axis; the others are zero, all of them if none is valid."""
    if valid is None:
        return scores.softmax(dim=-1)
    weights = scores.masked_fill(~valid, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return weights.masked_fill(~valid, 0.0)


class AttentionEncoder(BaseFeaturesExtractor):
    """Attention over a window's recurrent states, or over a set of entities.

    Over a window, the query is the state after the newest observation, and the features are made of that state and of
    what it attends to (Luong et al. 2015, equation 5). Over a set, the query is learned and order does not matter; a
    set without a valid entity has the features of zeros and the context. Observations are read as
    ``agents.encoders.tokens`` says; context is part of the query and of the output.

    Args:
        features_dim: size of the output.
        over: "window" or "set".
        score: "dot" or "additive".
        heads: each with weights of its own.
        hidden_size: units of the attention, and of the recurrent network over a window.
        cell: of a window: "rnn", "lstm" or "gru" (None: "gru"). A set has none.
        bidirectional: of a window: read it from the end as well.
        mask_key: the key of the mask in a Dict observation; None: every token is valid.
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
        check_heads("hidden_size", hidden_size, heads)
        if over == "set" and (cell is not None or bidirectional):
            raise ValueError("cell and bidirectional are for over='window': a set has no order to read it in")
        super().__init__(observation_space, features_dim)
        self.reader = TokenReader("attention", observation_space, mask_key, over)
        size, context_size = self.reader.token_size, self.reader.context_size
        self.recurrence: Recurrence | None = None
        if over == "window":
            self.recurrence = Recurrence(size, cell or "gru", hidden_size, 1, bidirectional)
            state_size = self.recurrence.output_size
        else:
            self.embedding = nn.Sequential(nn.Linear(size, hidden_size), nn.ReLU())
            self.query = nn.Parameter(torch.randn(hidden_size) / math.sqrt(hidden_size))
            state_size = hidden_size
        self.attention = Attention(state_size + context_size, state_size, hidden_size, heads, score)
        inputs = hidden_size + context_size + (state_size if over == "window" else 0)
        self.projection = nn.Sequential(nn.Linear(inputs, features_dim), nn.ReLU())

    def forward(self, observations: Any) -> Tensor:
        """Observations (N, ...) -> (N, features_dim)."""
        tokens = self.reader(observations)
        attended, query, _ = self._attend(tokens)
        inputs = [attended, tokens.context, *([] if self.recurrence is None else [query])]
        features: Tensor = self.projection(torch.cat(inputs, dim=1))
        return features

    def attention_weights(self, observations: Any) -> Tensor:
        """Observations as for ``forward`` -> (N, A, K), the weight of each token at its place in the observation."""
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
        in_context = torch.cat((query, tokens.context), dim=1).unsqueeze(1)
        attended, weights = self.attention(in_context, states, tokens.valid)
        return attended[:, 0], query, weights[:, :, 0]
