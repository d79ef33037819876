"""From a sequence to a sequence of another length: a recurrent encoder, and a decoder that attends to its states.

The encoder runs over the window of an observation, ``h_1 .. h_n``. The decoder then makes M outputs, one after another:

    ``c_j = sum over i of a_ij h_i``, with ``a_j = softmax(score(s_(j-1), h_i))``,
    ``s_j = cell([y_(j-1), c_j], s_(j-1))`` and ``y_j = V [s_j, c_j] + b``.

``score`` is ``v . tanh(W s + U h)`` (Bahdanau, Cho & Bengio, Neural Machine Translation by Jointly Learning to Align
and Translate, 2015) or ``(W s) . h / sqrt(C)`` (Luong, Pham & Manning, 2015, scaled as Vaswani et al., 2017). The
states ``s_1 .. s_M`` become the features. Encoder and decoder: Sutskever, Vinyals & Le (2014).

Windows have padding, with a mask that says what is real; padding changes nothing, wherever it stands.

Axes: B observations, K elements of a window, F numbers of an element, C numbers of an encoder state, D of a decoder
state, M outputs.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

CELLS = {"gru": (nn.GRU, nn.GRUCell), "lstm": (nn.LSTM, nn.LSTMCell)}
ATTENTIONS = ("additive", "dot")
POOLS = ("flatten", "mean", "last")
PREDICTIONS = ("next", "reconstruct")


class Encoded(NamedTuple):
    """What the decoder reads: states (B, K, C), their keys (B, K, A), which are real (B, K); its first state (B, D)."""

    states: Tensor
    keys: Tensor
    real: Tensor
    first: Tensor


class SequenceToSequenceEncoder(BaseFeaturesExtractor):
    """A window, padded to K elements, -> M decoder states -> features.

    The observation is a Box (K, ...), or a Dict with such a window and "mask" (K,), 1 where there is an element, as the
    wrappers ``history`` (with ``mask=True``) and ``pad_sequence`` give it. Several windows of one K stand side by side.
    Without a mask every element is real. Other keys are flattened and stand beside the decoder's states before the
    last layer.

    Args:
        hidden_size: size of the decoder's states, and of the encoder's in each direction.
        cell: ``"gru"`` or ``"lstm"``, of encoder and decoder.
        bidirectional: the encoder also runs from the newest element to the oldest.
        attention: ``"additive"`` or ``"dot"``.
        output_length: M.
        pool: what the features are made of: all M states (``"flatten"``), their mean, or the last.
        predict: what the auxiliary loss asks of the outputs. ``"next"``: the last M elements of the window (of a
            shorter one all but the first), of which the encoder is then shown none. ``"reconstruct"``: all of it. In
            both the decoder is given the true element before each.
        auxiliary_weight: of that loss, the mean squared error over real elements; 0 for none.
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
    ) -> None:
        for name, value in (
            ("features_dim", features_dim),
            ("hidden_size", hidden_size),
            ("output_length", output_length),
        ):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        chosen = {"cell": cell, "attention": attention, "pool": pool, "predict": predict}
        known = {"cell": tuple(CELLS), "attention": ATTENTIONS, "pool": POOLS, "predict": PREDICTIONS}
        for name, choice in chosen.items():
            if choice not in known[name]:
                raise ValueError(f"{name} is one of {', '.join(known[name])}; got {choice!r}")
        if not 0.0 <= auxiliary_weight < float("inf"):
            raise ValueError(f"auxiliary_weight must be a finite number of at least 0, got {auxiliary_weight!r}")
        super().__init__(observation_space, features_dim)
        self._windows, self._mask, self._beside = _parts(observation_space)
        of = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
        size = sum(int(np.prod((of[key].shape or ())[1:])) for key in self._windows)
        self.output_length, self.pool = output_length, pool
        self.predict, self.auxiliary_weight = predict, float(auxiliary_weight)
        run, advance = CELLS[cell]
        self.readers = nn.ModuleList(run(size, hidden_size, batch_first=True) for _ in range(1 + bidirectional))
        width = hidden_size * len(self.readers)
        self.begin = nn.Linear(width, hidden_size)
        self.attention = attention
        self.ask = nn.Linear(hidden_size, hidden_size if attention == "additive" else width)
        self.key = nn.Linear(width, hidden_size, bias=False) if attention == "additive" else nn.Identity()
        self.score = nn.Linear(hidden_size, 1, bias=False) if attention == "additive" else nn.Identity()
        self.has_carry = cell == "lstm"
        self.decoder = advance(size + width, hidden_size)
        self.emit = nn.Linear(hidden_size + width, size)
        self.start = nn.Parameter(torch.zeros(size))
        states = hidden_size * (output_length if pool == "flatten" else 1)
        self.leave = nn.Linear(states + sum(spaces.utils.flatdim(of[key]) for key in self._beside), features_dim)
        self._last: tuple[Tensor, Tensor] | None = None

    def forward(self, observations: Any) -> Tensor:
        """(B, K, ...) or a Dict of (B, ...) -> (B, features_dim)."""
        window, lengths = self._window(observations)
        self._last = (window.detach(), lengths) if self.training and self.auxiliary_weight else None
        states, _, _ = self._decode(self._encode(window, lengths), self.output_length)
        if self.pool == "flatten":
            pooled = states.flatten(1)
        else:
            pooled = states.mean(dim=1) if self.pool == "mean" else states[:, -1]
        beside = [observations[key].flatten(1).float() for key in self._beside]
        return torch.tanh(self.leave(torch.cat((pooled, *beside), dim=1)))

    def auxiliary_losses(self) -> dict[str, Tensor]:
        """The weighted loss of the last pass in training mode, once; nothing where there was none, or no weight."""
        if self._last is None:
            return {}
        last, self._last = self._last, None
        loss = self.auxiliary_weight * self._prediction_loss(*last)
        return {"window_prediction" if self.predict == "next" else "window_reconstruction": loss}

    def outputs(self, observations: Any) -> tuple[Tensor, Tensor]:
        """The decoder's M outputs, (B, M, F), and how it attended: (B, M, n), to the real elements, the oldest first.

        n is the number of elements of the longest window; the weights on what is not there are 0.
        """
        window, lengths = self._window(observations)
        _, outputs, weights = self._decode(self._encode(window, lengths), self.output_length)
        return outputs, weights

    def _window(self, observations: Any) -> tuple[Tensor, Tensor]:
        """Windows (B, K, F) with their real elements at the head and zeros after them, and how many, (B,)."""
        given = observations if isinstance(observations, dict) else {"": observations}
        window = torch.cat([given[key].float().flatten(2) for key in self._windows], dim=2)
        real = given["mask"].bool() if self._mask else window.new_ones(window.shape[:2], dtype=torch.bool)
        order = torch.argsort((~real).long(), dim=1, stable=True)
        lengths = real.sum(dim=1)
        if window.device.type == "cpu":
            # Where asking is free, what is padding for all is left out.
            order = order[:, : max(1, int(lengths.max()))]
        window = window.gather(1, order[..., None].expand(-1, -1, window.shape[2]))
        return window.masked_fill(~_first(lengths, order.shape[1])[..., None], 0.0), lengths

    def _encode(self, window: Tensor, lengths: Tensor) -> Encoded:
        """(B, K, F), the first (B,) elements of each real."""
        steps = torch.arange(window.shape[1], device=window.device).expand(len(window), -1)
        real = _first(lengths, window.shape[1])
        # The second reader, if any, reads the real elements backwards; turning them round twice is the identity.
        orders = (steps, torch.where(real, lengths[:, None] - 1 - steps, steps))
        states, last = [], []
        newest = (lengths - 1).clamp(min=0)[:, None, None]
        for reader, order in zip(self.readers, orders, strict=False):
            run = reader(_taken(window, order))[0].masked_fill(~real[..., None], 0.0)
            last.append(run.gather(1, newest.expand(-1, 1, run.shape[2])).squeeze(1))
            states.append(_taken(run, order))
        joined = torch.cat(states, dim=2)
        return Encoded(joined, self.key(joined), real, torch.tanh(self.begin(torch.cat(last, dim=1))))

    def _decode(self, encoded: Encoded, steps: int, given: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """``steps`` states (B, M, D), outputs (B, M, F) and attention weights (B, M, K).

        ``given``, (B, M, F): what the decoder is told came before each output; None: its own last output.
        """
        hidden, carry = encoded.first, torch.zeros_like(encoded.first)
        before = self.start.expand(len(hidden), -1)
        made: list[tuple[Tensor, Tensor, Tensor]] = []
        for step in range(steps):
            if given is not None:
                before = given[:, step]
            weights = self._attend(hidden, encoded)
            context = (weights[:, None] @ encoded.states).squeeze(1)
            told = torch.cat((before, context), dim=1)
            if self.has_carry:
                hidden, carry = self.decoder(told, (hidden, carry))
            else:
                hidden = self.decoder(told, hidden)
            before = self.emit(torch.cat((hidden, context), dim=1))
            made.append((hidden, before, weights))
        states, outputs, attended = (torch.stack(parts, dim=1) for parts in zip(*made, strict=True))
        return states, outputs, attended

    def _attend(self, hidden: Tensor, encoded: Encoded) -> Tensor:
        """Weights (B, K) of the encoder's states: a distribution over the real ones, all 0 where there are none."""
        asked = self.ask(hidden)[:, None]
        if self.attention == "additive":
            scores = self.score(torch.tanh(asked + encoded.keys)).squeeze(2)
        else:
            scores = (asked * encoded.keys).sum(dim=2) / encoded.keys.shape[2] ** 0.5
        lowest = torch.finfo(scores.dtype).min
        return torch.softmax(scores.masked_fill(~encoded.real, lowest), dim=1) * encoded.real

    def _prediction_loss(self, window: Tensor, lengths: Tensor) -> Tensor:
        """Mean squared error of what ``predict`` asks for, over the real elements asked for."""
        asked, steps = lengths, window.shape[1]
        if self.predict == "next":
            asked = torch.minimum(lengths - 1, torch.full_like(lengths, self.output_length)).clamp(min=0)
            steps = min(self.output_length, steps)
        shown = lengths - asked if self.predict == "next" else lengths
        first = lengths - asked
        places = (first[:, None] + torch.arange(steps, device=window.device)).clamp(max=window.shape[1] - 1)
        targets = _taken(window, places)
        start = self.start.expand(len(window), 1, -1)
        given = torch.cat((start, targets[:, :-1]), dim=1)
        head = window.masked_fill(~_first(shown, window.shape[1])[..., None], 0.0)
        _, outputs, _ = self._decode(self._encode(head, shown), steps, given)
        real = _first(asked, steps)[..., None]
        error = (outputs - targets).square().masked_fill(~real, 0.0).sum()
        return error / (real.sum() * window.shape[2]).clamp(min=1)


def _first(lengths: Tensor, size: int) -> Tensor:
    """(B,) -> (B, size): true for the first so many places of each."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def _taken(rows: Tensor, places: Tensor) -> Tensor:
    """(B, K, F), (B, M) -> (B, M, F)."""
    return rows.gather(1, places[..., None].expand(-1, -1, rows.shape[2]))


def _parts(space: spaces.Space[Any]) -> tuple[list[str], bool, list[str]]:
    """The keys of windows, whether there is a mask, and all other keys; a plain window is the one named ""."""
    if isinstance(space, spaces.Sequence):
        raise ValueError(f"the seq2seq encoder takes padded windows, not {space}: put 'pad_sequence' around it")
    of = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    windows = [key for key, part in of.items() if _is_window(part)]
    if not windows:
        raise ValueError(
            f"the seq2seq encoder reads a window, a Box of shape (elements, numbers of each), and {space} has none; "
            "the wrapper 'history' makes one of the last observations, 'pad_sequence' of a Sequence"
        )
    lengths = {key: (of[key].shape or ())[0] for key in windows}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"windows that stand side by side must be equally long; these have {lengths} elements")
    has_mask = "mask" in of and "mask" not in windows
    if has_mask and of["mask"].shape != (lengths[windows[0]],):
        raise ValueError(
            f"'mask' must have one entry for each of the {lengths[windows[0]]} elements of {windows[0]!r}, so be a "
            f"MultiBinary({lengths[windows[0]]}); got {of['mask']}"
        )
    return windows, has_mask, [key for key in of if key not in windows and not (has_mask and key == "mask")]


def _is_window(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) >= 2 and space.shape[0] > 0 and not is_image_space(space)
