"""Recurrent networks over the tokens of an observation, in one direction or both.

Axes: N observations, K tokens (the valid ones first), F numbers of a token, H units, D directions.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from agents.checks.arguments import check_choice, check_counts, check_switch
from agents.encoders.tokens import last, mirrored
from agents.memory import GRU, LSTM, RNN

CELLS: Mapping[str, type[RNN] | type[LSTM] | type[GRU]] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}


class Recurrence(nn.Module):
    """A vanilla RNN, LSTM or GRU that restarts with every observation, on the kernels of ``agents.memory``.

    With two directions (Schuster & Paliwal 1997) each layer reads both directions of the layer below, as in
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
        check_counts(hidden_size=hidden_size, num_layers=num_layers)
        check_switch("bidirectional", bidirectional)
        self.hidden_size = hidden_size
        self.output_size = (1 + bidirectional) * hidden_size
        sizes = [input_size, *[self.output_size] * (num_layers - 1)]
        self.forwards = nn.ModuleList(CELLS[cell](size, hidden_size) for size in sizes)
        self.backwards = nn.ModuleList(CELLS[cell](size, hidden_size) for size in sizes if bidirectional)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """States after each token, (N, K, F), (N,) valid ones -> (N, K, D * H); those of padding have no meaning."""
        for layer, cell in enumerate(self.forwards):
            states = [_unroll(cell, values)]
            if self.backwards:
                states.append(mirrored(_unroll(self.backwards[layer], mirrored(values, lengths)), lengths))
            values = torch.cat(states, dim=2)
        return values

    def final(self, states: Tensor, lengths: Tensor) -> Tensor:
        """Each direction's state after all that it reads: (N, K, D * H) -> (N, D * H), zero without a valid token."""
        forwards, backwards = states[..., : self.hidden_size], states[:, :1, self.hidden_size :]
        return torch.cat((last(forwards, lengths), last(backwards, lengths.clamp(max=1))), dim=1)


def _unroll(cell: nn.Module, values: Tensor) -> Tensor:
    """(N, K, F) -> (N, K, H), from the initial state and without resets."""
    assert isinstance(cell, RNN | LSTM | GRU)
    by_step = values.transpose(0, 1)
    episode_starts = torch.zeros(by_step.shape[:2], dtype=torch.bool)  # on the CPU, where the kernels look for resets
    states: Tensor = cell(by_step, cell.initial_state(len(values)), episode_starts)
    return states.transpose(0, 1)
