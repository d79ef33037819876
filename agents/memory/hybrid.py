"""Two memories of different kinds side by side.

Axes: T time, B sequences (or environments), F features in, H units of each of the two.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.memory.core import Array, Memory, NumpyState, NumpyStep, State
from agents.memory.ffm import FastForgetful
from agents.memory.recurrent import HORIZON, LSTM


class Hybrid(Memory):
    """An LSTM and fast and forgetful memory side by side: both read the features, their outputs are joined, (..., 2 H).

    The LSTM's gates keep what they choose to, for as long as they choose, which traces that decay do not; traces show
    the order of what was seen, and how long ago, which gates are slow to learn. Hybrids of gates, or attention, and of
    linear recurrences are common in models of language (De et al. 2024, "Griffin").

    State: the LSTM's, (B, 1, H) twice, then that of the traces, (B, D, M C, 2).

    Args:
        hidden_size: H.
        num_layers: D, of the traces; the LSTM has one.
        trace_size, context_size: M and C of the traces.
        chrono_horizon: the longest dependency that both expect, in steps.
    """

    starts_on_host = LSTM.starts_on_host

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 64,
        num_layers: int = 1,
        *,
        trace_size: int = 32,
        context_size: int = 4,
        chrono_horizon: float = HORIZON,
        learned_initial_state: bool = False,
    ) -> None:
        super().__init__(input_size, output_size=2 * hidden_size)
        self.hidden_size, self.num_layers = hidden_size, num_layers
        both: dict[str, Any] = dict(chrono_horizon=chrono_horizon, learned_initial_state=learned_initial_state)
        self.gated = LSTM(input_size, hidden_size, **both)
        both |= dict(trace_size=trace_size, context_size=context_size)
        self.traces = FastForgetful(input_size, hidden_size, num_layers, **both)

    def initial_state(self, batch_size: int) -> State:
        return (*self.gated.initial_state(batch_size), *self.traces.initial_state(batch_size))

    def step(self, features: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        kept, gated = self.gated(features, state[:_PARTS], episode_starts)
        seen, traces = self.traces(features, state[_PARTS:], episode_starts)
        return torch.cat((kept, seen), dim=-1), (*gated, *traces)

    def unroll(self, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
        kept = self.gated(features, state[:_PARTS], episode_starts)
        return torch.cat((kept, self.traces(features, state[_PARTS:], episode_starts)), dim=-1)

    def numpy_step(self) -> NumpyStep | None:
        gated, traces = self.gated.numpy_step(), self.traces.numpy_step()
        if gated is None or traces is None:
            return None

        def step(features: Array, state: NumpyState, episode_starts: NDArray[np.bool_]) -> tuple[Array, NumpyState]:
            kept, of_gated = gated(features, state[:_PARTS], episode_starts)
            seen, of_traces = traces(features, state[_PARTS:], episode_starts)
            return np.concatenate((kept, seen), axis=1), (*of_gated, *of_traces)

        return step


_PARTS = LSTM.carried_parts
