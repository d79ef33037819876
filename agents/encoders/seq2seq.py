"""From a sequence to a sequence of another length: a recurrent encoder, and a decoder that attends to its states.

The encoder runs over the window of an observation, ``h_1 .. h_n``. The decoder then makes M outputs, one after another:

    ``c_j = sum over i of a_ij h_i``, with ``a_j = softmax(score(s_(j-1), h_i))``,
    ``s_j = cell([y_(j-1), c_j], s_(j-1))`` and ``y_j = V [s_j, c_j] + b``.

``score`` is ``v . tanh(W s + U h)`` (Bahdanau, Cho & Bengio 2015) or ``(W s) . h / sqrt(C)`` (Luong, Pham & Manning
2015, scaled as Vaswani et al. 2017). The states ``s_1 .. s_M`` become the features. Encoder and decoder: Sutskever,
Vinyals & Le 2014.

Axes: N observations, K tokens of a window, F numbers of a token, C numbers of an encoder state, D of a decoder state,
M outputs.
"""

from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from agents.checks.arguments import check_choice, check_counts, check_range
from agents.encoders.attention import SCORES, masked_softmax
from agents.encoders.tokens import TokenReader, first_places, last, mirrored, take

CELLS = {"gru": (nn.GRU, nn.GRUCell), "lstm": (nn.LSTM, nn.LSTMCell)}
POOLS = ("flatten", "mean", "last")
PREDICTIONS = {"next": "window_prediction", "reconstruct": "window_reconstruction"}
"""What the auxiliary loss predicts, and its name."""


class Encoded(NamedTuple):
    """What the decoder reads: states (N, K, C), their keys, which are valid (N, K), and its first state (N, D)."""

    states: Tensor
    keys: Tensor
    valid: Tensor
    first: Tensor


class SequenceToSequenceEncoder(BaseFeaturesExtractor):
    """A recurrent encoder and a decoder that attends to it: a window of K tokens -> M decoder states -> features.

    Observations are read as ``agents.encoders.tokens`` says, as the wrappers ``history`` (with ``mask=True``) and
    ``pad_sequence`` give them.

    Args:
        features_dim: size of the output.
        hidden_size: size of the decoder's states, and of the encoder's in each direction.
        cell: ``"gru"`` or ``"lstm"``, of encoder and decoder.
        bidirectional: the encoder also runs from the newest token to the oldest.
        attention: ``"additive"`` or ``"dot"``.
        output_length: M.
        pool: what the features are made of: all M states (``"flatten"``), their mean, or the last.
        predict: targets of the auxiliary loss. ``"next"``: the last M tokens of the window (of a shorter one all but
            the first), which the encoder does not see. ``"reconstruct"``: all tokens of the window. In both
            the decoder is given the true token before each (teacher forcing).
        auxiliary_weight: of that loss, the mean squared error over valid tokens; 0 for none.
        mask_key: the key of the mask in a Dict observation; None: every token is valid.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        features_dim: int = 64,
        hidden_size: int = 64,
        cell: str = "gru",
        bidirectional: bool = False,
        attention: str = "additive",
        output_length: int = 4,
        pool: str = "flatten",
        predict: str = "next",
        auxiliary_weight: float = 0.0,
        mask_key: str | None = "mask",
    ) -> None:
        check_counts(features_dim=features_dim, hidden_size=hidden_size, output_length=output_length)
        choices = {"cell": (cell, CELLS), "attention": (attention, SCORES), "pool": (pool, POOLS)}
        for name, (choice, known) in {**choices, "predict": (predict, PREDICTIONS)}.items():
            check_choice(name, choice, known)
        check_range("auxiliary_weight", auxiliary_weight, 0.0)
        super().__init__(observation_space, features_dim)
        self.reader = TokenReader("seq2seq", observation_space, mask_key)
        self.output_length, self.pool, self.attention = output_length, pool, attention
        self.predict, self.auxiliary_weight = predict, float(auxiliary_weight)
        size, (layer, decoder) = self.reader.token_size, CELLS[cell]
        self.readers = nn.ModuleList(layer(size, hidden_size, batch_first=True) for _ in range(1 + bidirectional))
        width = hidden_size * len(self.readers)
        self.begin = nn.Linear(width, hidden_size)
        self.ask = nn.Linear(hidden_size, hidden_size if attention == "additive" else width)
        self.key = nn.Linear(width, hidden_size, bias=False) if attention == "additive" else nn.Identity()
        self.score = nn.Linear(hidden_size, 1, bias=False) if attention == "additive" else nn.Identity()
        self.decoder = decoder(size + width, hidden_size)
        self.emit = nn.Linear(hidden_size + width, size)
        self.start = nn.Parameter(torch.zeros(size))
        states = hidden_size * (output_length if pool == "flatten" else 1)
        self.leave = nn.Linear(states + self.reader.context_size, features_dim)
        self._window: tuple[Tensor, Tensor] | None = None  # of the last pass in training mode

    def forward(self, observations: Any) -> Tensor:
        """Observations (N, ...) -> (N, features_dim)."""
        tokens = self.reader(observations)
        self._window = (tokens.values.detach(), tokens.lengths) if self.training and self.auxiliary_weight else None
        states, _, _ = self._decode(self._encode(tokens.values, tokens.lengths), self.output_length)
        if self.pool == "flatten":
            pooled = states.flatten(1)
        else:
            pooled = states.mean(dim=1) if self.pool == "mean" else states[:, -1]
        return torch.tanh(self.leave(torch.cat((pooled, tokens.context), dim=1)))

    def auxiliary_losses(self) -> dict[str, Tensor]:
        """The weighted loss of the last pass in training mode, once; nothing if there was none, or no weight."""
        if self._window is None:
            return {}
        window, self._window = self._window, None
        return {PREDICTIONS[self.predict]: self.auxiliary_weight * self._prediction_loss(*window)}

    def outputs(self, observations: Any) -> tuple[Tensor, Tensor]:
        """The decoder's M outputs, (N, M, F), and its attention weights, (N, M, n), to the valid tokens in order.

        n is the length of the longest window; weights of padding are 0.
        """
        tokens = self.reader(observations)
        _, outputs, weights = self._decode(self._encode(tokens.values, tokens.lengths), self.output_length)
        return outputs, weights

    def _encode(self, values: Tensor, lengths: Tensor) -> Encoded:
        """(N, K, F), the first ``lengths`` tokens of each valid."""
        valid = first_places(lengths, values.shape[1])
        states, final = [], []
        for reader, backwards in zip(self.readers, (False, True), strict=False):
            run = reader(mirrored(values, lengths) if backwards else values)[0].masked_fill(~valid[..., None], 0.0)
            final.append(last(run, lengths))
            states.append(mirrored(run, lengths) if backwards else run)
        joined = torch.cat(states, dim=2)
        return Encoded(joined, self.key(joined), valid, torch.tanh(self.begin(torch.cat(final, dim=1))))

    def _decode(self, encoded: Encoded, steps: int, teacher: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """``steps`` states (N, M, D), outputs (N, M, F) and attention weights (N, M, K).

        ``teacher``, (N, M, F): what the decoder reads before each output; None: its own last output.
        """
        hidden, carry = encoded.first, torch.zeros_like(encoded.first)
        before = self.start.expand(len(hidden), -1)
        decoded: list[tuple[Tensor, Tensor, Tensor]] = []
        for step in range(steps):
            if teacher is not None:
                before = teacher[:, step]
            weights = self._attend(hidden, encoded)
            context = (weights[:, None] @ encoded.states).squeeze(1)
            inputs = torch.cat((before, context), dim=1)
            if isinstance(self.decoder, nn.LSTMCell):
                hidden, carry = self.decoder(inputs, (hidden, carry))
            else:
                hidden = self.decoder(inputs, hidden)
            before = self.emit(torch.cat((hidden, context), dim=1))
            decoded.append((hidden, before, weights))
        states, outputs, attended = (torch.stack(parts, dim=1) for parts in zip(*decoded, strict=True))
        return states, outputs, attended

    def _attend(self, hidden: Tensor, encoded: Encoded) -> Tensor:
        """Weights (N, K) of the encoder's states, all 0 if none is valid."""
        query = self.ask(hidden)[:, None]
        if self.attention == "additive":
            scores = self.score(torch.tanh(query + encoded.keys)).squeeze(2)
        else:
            scores = (query * encoded.keys).sum(dim=2) / encoded.keys.shape[2] ** 0.5
        return masked_softmax(scores, encoded.valid)

    def _prediction_loss(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Mean squared error over the valid targets."""
        n_tokens = values.shape[1]
        if self.predict == "next":
            n_targets = (lengths - 1).clamp(min=0, max=self.output_length)
            visible, steps = lengths - n_targets, min(self.output_length, n_tokens)
        else:
            n_targets, visible, steps = lengths, lengths, n_tokens
        places = (lengths - n_targets)[:, None] + torch.arange(steps, device=values.device)
        targets = take(values, places.clamp(max=n_tokens - 1))
        teacher = torch.cat((self.start.expand(len(values), 1, -1), targets[:, :-1]), dim=1)
        seen = values.masked_fill(~first_places(visible, n_tokens)[..., None], 0.0)
        _, outputs, _ = self._decode(self._encode(seen, visible), steps, teacher)
        valid = first_places(n_targets, steps)[..., None]
        error = (outputs - targets).square().masked_fill(~valid, 0.0).sum()
        return error / (valid.sum() * values.shape[2]).clamp(min=1)
