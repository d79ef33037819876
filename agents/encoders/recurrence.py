"""Recurrent networks over the tokens of an observation, in one direction or both.

Axes: N observations, K tokens (the real ones first), F numbers of a token, H units, D directions.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from agents.checks.arguments import check_count, check_switch
from agents.encoders.tokens import check_choice, last
from agents.memory import GRU, LSTM, RNN

CELLS: Mapping[str, type[RNN] | type[LSTM] | type[GRU]] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}


class Recurrence(nn.Module):
    """A vanilla RNN, LSTM or GRU that starts anew with every observation, on the kernels of ``agents.memory``.

    With two directions (Schuster & Paliwal 1997) each layer reads what both directions of the layer below give, as in
    ``torch.nn.LSTM(bidirectional=True)``.

    Args:
        input_size: F.
        cell: a name in ``CELLS``.
        hidden_size: H of each direction.
        num_layers: layers.
        bidirectional: read the tokens from the end as well.
    """

    def __init__(self, input_size: int, cell: str, hidden_size: int, num_layers: int, bidirectional: bool) -> None:
        super().__init__()
        check_choice("cell", cell, CELLS)
        check_count("hidden_size", hidden_size)
        check_count("num_layers", num_layers)
        check_switch("bidirectional", bidirectional)
        self.hidden_size = hidden_size
        self.output_size = (1 + bidirectional) * hidden_size
        sizes = [input_size, *[self.output_size] * (num_layers - 1)]
        self.forwards = nn.ModuleList(CELLS[cell](size, hidden_size) for size in sizes)
        self.backwards = nn.ModuleList(CELLS[cell](size, hidden_size) for size in sizes if bidirectional)

    def forward(self, values: Tensor, lengths: Tensor | None) -> Tensor:
        """States after each token, (N, K, F), (N,) real ones or None -> (N, K, D * H).

        What comes out for tokens that are not real has no meaning; what comes out for real ones knows nothing of them.
        """
        states = values.transpose(0, 1)
        for layer, onwards in enumerate(self.forwards):
            directions = [_unroll(onwards, states)]
            if self.backwards:
                mirrored = _unroll(self.backwards[layer], _mirrored(states, lengths))
                directions.append(_mirrored(mirrored, lengths))
            states = torch.cat(directions, dim=2)
        return states.transpose(0, 1)

    def final(self, states: Tensor, lengths: Tensor | None) -> Tensor:
        """Each direction's state after all that it reads: (N, K, D * H) -> (N, D * H), zero without a real token."""
        after_last = last(states[..., : self.hidden_size], lengths)
        if not self.backwards:
            return after_last
        of_first = None if lengths is None else lengths.clamp(max=1)
        return torch.cat((after_last, last(states[:, :1, self.hidden_size :], of_first)), dim=1)


def _unroll(cell: nn.Module, values: Tensor) -> Tensor:
    """(K, N, F) -> (K, N, H), from the initial state and without resets."""
    assert isinstance(cell, RNN | LSTM | GRU)
    starts = torch.zeros(values.shape[:2], dtype=torch.bool)  # on the CPU, where the kernels look for resets
    states: Tensor = cell(values, cell.initial_state(values.shape[1]), starts)
    return states


def _mirrored(values: Tensor, lengths: Tensor | None) -> Tensor:
    """(K, N, F) with the order of the real tokens turned around; its own inverse."""
    if lengths is None:
        return values.flip(0)
    place = torch.arange(len(values), device=values.device).unsqueeze(1)
    source = torch.where(place < lengths, lengths - 1 - place, place)
    return values.gather(0, source.unsqueeze(2).expand(-1, -1, values.shape[2]))
