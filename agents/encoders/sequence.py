"""A recurrent network over a window of past observations, which restarts with every window.

Axes: N observations, K steps of a window, H units, D directions.
"""

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from agents.checks.arguments import check_choice, check_count
from agents.encoders.attention import AttentionPooling
from agents.encoders.recurrence import Recurrence
from agents.encoders.tokens import TokenReader, Tokens, mean

POOLS = ("last", "mean", "attention")


class SequenceEncoder(BaseFeaturesExtractor):
    """RNN (Elman 1990), LSTM (Hochreiter & Schmidhuber 1997) or GRU (Cho et al. 2014) over a window.

    Observations are read as ``agents.encoders.tokens`` says; padding is not run through.

    Args:
        features_dim: size of the output.
        cell: "gru", "lstm" or "rnn".
        hidden_size: H of each direction.
        num_layers: layers.
        bidirectional: read the window from its end as well (Schuster & Paliwal 1997).
        pool: "last": each direction's final state; "mean": of all states; "attention": of all states, weighted by
            additive attention with one learned query.
        mask_key: the key of the mask in a Dict observation; None: every step is valid.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        features_dim: int = 64,
        cell: str = "gru",
        hidden_size: int = 64,
        num_layers: int = 1,
        bidirectional: bool = False,
        pool: str = "last",
        mask_key: str | None = "mask",
    ) -> None:
        check_count("features_dim", features_dim)
        check_choice("pool", pool, POOLS)
        super().__init__(observation_space, features_dim)
        self.reader = TokenReader("sequence", observation_space, mask_key)
        self.recurrence = Recurrence(self.reader.token_size, cell, hidden_size, num_layers, bidirectional)
        size = self.recurrence.output_size
        self.pool = pool
        self.attention = AttentionPooling(size, size) if pool == "attention" else None
        self.projection = nn.Sequential(nn.Linear(size + self.reader.context_size, features_dim), nn.ReLU())

    def forward(self, observations: Any) -> Tensor:
        """Observations (N, ...) -> (N, features_dim)."""
        tokens = self.reader(observations)
        pooled = self._pooled(self.recurrence(tokens.values, tokens.lengths), tokens)
        features: Tensor = self.projection(torch.cat((pooled, tokens.context), dim=1))
        return features

    def _pooled(self, states: Tensor, tokens: Tokens) -> Tensor:
        """(N, K, D * H) -> (N, D * H)."""
        if self.attention is not None:
            pooled: Tensor = self.attention(states, tokens.valid)[0]
            return pooled
        return mean(states, tokens.lengths) if self.pool == "mean" else self.recurrence.final(states, tokens.lengths)
