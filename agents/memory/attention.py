"""A recurrent memory that attends over its own past outputs.

Axes: T time, B sequences (or environments), F features in, H units, D layers, M slots of the window, K = M + T
positions of a block and the window before it, C steps of a chunk; ``agents.memory.window`` says what a step sees.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.checks.arguments import check_counts
from agents.kernels.devices import to_device
from agents.memory.core import Array, Memory, NumpyState, NumpyStep, State, in_own_precision
from agents.memory.layers import numpy_linear, xavier_linear
from agents.memory.recurrent import GRU, LSTM
from agents.memory.window import Chunk, SlidingWindow, by_slot, chunks, finite, numpy_softmax, push, visible

CELLS: dict[str, Any] = {"lstm": LSTM, "gru": GRU}


class AttentionMemory(Memory):
    """An LSTM or GRU whose output attends over its last M outputs and itself: alignment over hidden states.

    The recurrence itself is untouched, so a whole block of it runs on the fused kernels. Of its outputs h,
    ``w = softmax(score(h_t, h_i))``, ``c_t = sum_i w_i h_i``, and what comes out is ``tanh(W_c [c_t, h_t] + b)``
    (Luong et al. 2015). Scores are "dot", ``h_t . W h_i / sqrt(H)``, or "additive", ``v . tanh(W_q h_t + W_k h_i)``
    (Bahdanau et al. 2015), which costs H times the memory.

    State: the parts of the recurrence (B, D, H), its last M outputs (B, M, H), and how many of them are of the episode,
    (B, 1).

    Args:
        input_size: F.
        hidden_size: H, also the size of the output.
        num_layers: D, of the recurrence.
        cell: "lstm" or "gru".
        window: M, past outputs that are attended to.
        score: "dot" or "additive".
        learned_initial_state: whether the recurrence of an episode starts from a learned state; its window is empty.
    """

    starts_on_host = True  # as the recurrence's, which cuts its block by them

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 64,
        num_layers: int = 1,
        *,
        cell: Literal["lstm", "gru"] = "lstm",
        window: int = 64,
        score: Literal["dot", "additive"] = "dot",
        learned_initial_state: bool = False,
    ) -> None:
        check_counts(window=window)
        if cell not in CELLS:
            raise ValueError(f"cell must be 'lstm' or 'gru'; got {cell!r}")
        if score not in ("dot", "additive"):
            raise ValueError(f"score must be 'dot' or 'additive'; got {score!r}")
        recurrent = CELLS[cell](input_size, hidden_size, num_layers, learned_initial_state=learned_initial_state)
        super().__init__(input_size, output_size=hidden_size)
        self.recurrent: LSTM | GRU = recurrent
        self.hidden_size = hidden_size
        self.window = window
        self.score = score
        self.query = xavier_linear(hidden_size, hidden_size, bias=False)
        if score == "additive":
            self.key = xavier_linear(hidden_size, hidden_size)
            self.alignment = xavier_linear(hidden_size, 1, bias=False)
        self.combine = xavier_linear(2 * hidden_size, hidden_size)

    def initial_state(self, batch_size: int) -> State:
        weight = self.query.weight
        window = weight.new_zeros(batch_size, self.window, self.hidden_size)
        return (*self.recurrent.initial_state(batch_size), window, weight.new_zeros(batch_size, 1))

    @in_own_precision
    def step(self, features: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        *carried, window, count = state
        output, after = self.recurrent(features, tuple(carried), episode_starts)
        starts = episode_starts.view(-1, 1)
        window, count = window.masked_fill(starts.unsqueeze(-1), 0.0), count.masked_fill(starts, 0.0)
        hidden = torch.cat((~visible(count, self.window), torch.zeros_like(starts)), dim=1)
        slots = torch.cat((window, output.unsqueeze(1)), dim=1)
        context = self._weights(output.unsqueeze(1), slots, hidden.unsqueeze(1)) @ finite(slots)
        return self._combined(context.squeeze(1), output), (*after, *push(window, count, output))

    @in_own_precision
    def unroll(self, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
        outputs, slots, found = self._attend(features, state, episode_starts)
        values = finite(slots)
        contexts = [weights @ values[:, chunk.positions] for chunk, weights in found]
        return self._combined(torch.cat(contexts, dim=1), outputs).transpose(0, 1)

    @in_own_precision
    def attention_weights(self, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
        """What each step attends to: (T, B, F), state, (T, B) -> (T, B, M + 1), summing to 1.

        The last is the step's own output, the one before it that of the step before, and so on; 0 where that was in
        another episode, or never.
        """
        _, _, found = self._attend(features, state, episode_starts)
        return torch.cat([by_slot(weights, self.window) for _, weights in found], dim=1).transpose(0, 1)

    def _attend(
        self, features: Tensor, state: State, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor, Iterator[tuple[Chunk, Tensor]]]:
        """The recurrence's outputs (B, T, H), the window before them (B, K, H), and each chunk's weights."""
        *carried, window, count = state
        outputs = self.recurrent(features, tuple(carried), episode_starts).transpose(0, 1)
        slots = torch.cat((window, outputs), dim=1)
        to_see = chunks(count, to_device(episode_starts, count.device), self.window)
        weights = (
            (chunk, self._weights(outputs[:, chunk.steps], slots[:, chunk.positions], chunk.hidden)) for chunk in to_see
        )
        return outputs, slots, weights

    def numpy_step(self) -> NumpyStep | None:
        """One thread at a time."""
        recurrent_step = self.recurrent.numpy_step()
        if recurrent_step is None:
            return None
        score, combine = self._numpy_score(), numpy_linear(self.combine.weight, self.combine.bias)
        sliding = SlidingWindow(*self.initial_state(1)[-2:])

        def step(features: Array, state: NumpyState, episode_starts: NDArray[np.bool_]) -> tuple[Array, NumpyState]:
            *carried, window, count = state
            output, after = recurrent_step(features, tuple(carried), episode_starts)
            slots, mask = sliding.open(window, count, episode_starts)
            slots[:, -1] = output
            scores = score(output, slots)
            if mask is not None:
                scores += mask
            context = (numpy_softmax(scores)[:, None] @ slots)[:, 0]
            combined = combine(np.concatenate((context, output), axis=1))
            np.tanh(combined, out=combined)
            return combined, (*after, *sliding.state_after())

        return step

    def _weights(self, queries: Tensor, slots: Tensor, hidden: Tensor) -> Tensor:
        """(B, C, H), (B, K, H), (B, C, K) true where not to look -> (B, C, K)."""
        if self.score == "dot":
            scores = self.query(queries) @ slots.transpose(1, 2) / math.sqrt(self.hidden_size)
        else:
            sums = self.query(queries).unsqueeze(2) + self.key(slots).unsqueeze(1)
            scores = self.alignment(torch.tanh(sums)).squeeze(-1)
        weights: Tensor = scores.masked_fill(hidden, -math.inf).softmax(dim=-1)
        return weights

    def _combined(self, context: Tensor, output: Tensor) -> Tensor:
        return torch.tanh(self.combine(torch.cat((context, output), dim=-1)))

    def _numpy_score(self) -> Any:
        """(B, H), (B, M + 1, H) -> (B, M + 1)."""
        if self.score == "dot":
            query = numpy_linear(self.query.weight / math.sqrt(self.hidden_size))
            return lambda output, slots: (slots @ query(output)[:, :, None])[:, :, 0]
        query, key = numpy_linear(self.query.weight), numpy_linear(self.key.weight, self.key.bias)
        alignment = self.alignment.weight.detach().numpy()[0].copy()

        def additive(output: Array, slots: Array) -> Array:
            sums = key(slots)
            sums += query(output)[:, None]
            scores: Array = np.tanh(sums, out=sums) @ alignment
            return scores

        return additive
