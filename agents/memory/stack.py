"""Residual layers on top of each other, each with a state of its own: what minGRU, LRU and Gated DeltaNet share.

Axes: T time, B sequences (or environments), F features in, H units of the stream, D layers, S the axes of a layer's
state.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.memory.core import Array, Memory, NumpyState, NumpyStep, State, in_own_precision
from agents.memory.layers import numpy_linear, xavier_linear

NumpyLayer = Callable[[Array, Array, Array], Array]
"""One layer of one step: stream (B, H), state before (B, S), room for the state after (B, S) -> stream."""


class Layer(nn.Module):
    """One layer of a :class:`Stack`. It is called, so that hooks on it see it: a ``step`` or an ``unroll``, by the axes
    of the stream."""

    def forward(self, stream: Tensor, *arguments: Any) -> Any:
        return (self.step if stream.dim() == 2 else self.unroll)(stream, *arguments)

    @abstractmethod
    def step(self, stream: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H), state before (B, S) -> (B, H), state after."""

    @abstractmethod
    def unroll(self, stream: Tensor, before: Tensor, initial: Tensor | None, episode_starts: Tensor) -> Tensor:
        """(T, B, H), state before the first step (B, S), a learned initial one (S), (T, B) -> (T, B, H)."""

    @abstractmethod
    def numpy_layer(self) -> NumpyLayer:
        """``step`` in NumPy, on the parameters as they are now."""


class Stack(Memory):
    """An embedding, then D residual layers.

    State: one part, what each layer carries, (B, D, S).

    Args:
        input_size: F.
        hidden_size: H, also the size of the output.
        num_layers: D, each on the output of the one below.
        learned_initial_state: whether an episode starts from a state that is learned, 0 at first, instead of from 0.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        layers: Sequence[Layer],
        state_shape: tuple[int, ...],
        learned_initial_state: bool,
    ) -> None:
        super().__init__(input_size, output_size=hidden_size)
        self.hidden_size, self.num_layers = hidden_size, len(layers)
        self.embedding = xavier_linear(input_size, hidden_size)
        self.layers: Any = nn.ModuleList(layers)
        self._state_shape = (len(layers), *state_shape)
        self.initial = nn.Parameter(torch.zeros(self._state_shape)) if learned_initial_state else None

    def initial_state(self, batch_size: int) -> State:
        if self.initial is not None:
            return (self.initial.detach().repeat(batch_size, *[1] * self.initial.dim()),)
        return (self.embedding.weight.new_zeros(batch_size, *self._state_shape),)

    @in_own_precision
    def step(self, features: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        starts = episode_starts.view(-1, *[1] * len(self._state_shape))
        before = torch.where(starts, 0.0 if self.initial is None else self.initial, state[0])
        stream, after = self.embedding(features), []
        for layer, part in zip(self.layers, before.unbind(1), strict=True):
            stream, new = layer(stream, part)
            after.append(new)
        return stream, (torch.stack(after, dim=1),)

    @in_own_precision
    def unroll(self, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
        stream: Tensor = self.embedding(features)
        for i, layer in enumerate(self.layers):
            initial = None if self.initial is None else self.initial[i]
            stream = layer(stream, state[0][:, i], initial, episode_starts)
        return stream

    def numpy_step(self) -> NumpyStep | None:
        embed = numpy_linear(self.embedding.weight, self.embedding.bias)
        layers: list[NumpyLayer] = [layer.numpy_layer() for layer in self.layers]
        initial = self.initial_state(1)[0].numpy()

        def step(features: Array, state: NumpyState, episode_starts: NDArray[np.bool_]) -> tuple[Array, NumpyState]:
            before = np.ascontiguousarray(state[0])
            if np.count_nonzero(episode_starts):
                before = np.where(episode_starts.reshape(-1, *[1] * (before.ndim - 1)), initial, before)
            after = np.empty_like(before)
            stream = embed(features)
            for i, layer in enumerate(layers):
                stream = layer(stream, before[:, i], after[:, i])
            return stream, (after,)

        return step
