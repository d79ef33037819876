"""The contract of a memory: what an agent carries from one step to the next.

A memory maps a stream of features to a stream of outputs and knows nothing of reinforcement learning. It has two
forms that must agree: ``step``, one step for acting, and ``unroll``, a whole sequence at once for learning.

Axes: T time, B sequences (or environments), F features in, H features out, C steps whose state is asked for.

State is always a tuple of tensors, batch first: ``(B, ...)`` each; ``()`` for no memory. It comes in and goes out, a
memory hides none.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.devices import to_device
from agents.kernels.aside import Part, touched_within
from agents.kernels.contract import Array as Array  # so that memories find them here
from agents.kernels.contract import NumpyState as NumpyState
from agents.kernels.contract import NumpyStep as NumpyStep

State = tuple[Tensor, ...]


class Memory(nn.Module, ABC):
    """What is carried between steps. Subclasses are built as ``Memory(input_size, ...)``, all else with defaults.

    Laws, tested for every registered memory: ``unroll`` gives what T calls of ``step`` give, resets included; nothing
    before an episode's start changes any output after it, and the gradient across it is exactly zero.

    A memory is called as any module is, so that hooks on it and on what it is made of see it: ``forward`` is ``step``
    or ``unroll``, by the number of axes. A subclass leaves it as it is.

    Under ``torch.autocast`` features may come in half precision and outputs may leave in it; the state is kept in
    float32 by whoever carries it.
    """

    starts_on_host: ClassVar[bool] = False
    """Whether ``unroll`` reads ``episode_starts`` on the CPU, wherever the features are. Both places are taken; the
    right one spares a copy that on an accelerator the host must wait for."""

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.output_size = output_size

    def forward(self, features: Tensor, state: State, episode_starts: Tensor) -> Any:
        """``step`` of features (B, F), ``unroll`` of features (T, B, F)."""
        return (self.step if features.dim() == 2 else self.unroll)(features, state, episode_starts)

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """The state before an episode's first step, ``(B, ...)`` each, on the device of the parameters."""

    @abstractmethod
    def step(self, features: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        """Acting: (B, F), state before the step, (B,) true where an episode starts -> (B, H), state after the step.

        Where ``episode_starts`` is true the state is the initial one, whatever came in.
        """

    @abstractmethod
    def unroll(self, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
        """Learning: (T, B, F), state before the first step, (T, B) true where an episode starts -> (T, B, H)."""

    @torch.no_grad()
    def states_along(self, features: Tensor, state: State, episode_starts: Tensor, at: Sequence[int]) -> State:
        """The states before the steps ``at`` of a block, with the parameters as they are now and without gradient.

        (T, B, F), state before the first step, (T, B) true where an episode starts -> (C, B, ...) each; ``at`` holds C
        steps from 0 to T, and T stands for the state after the block. Where a step starts an episode its state is the
        initial one. What a memory has no better way for is stepped through, in NumPy where it can be.
        """
        if not state:
            return ()
        starts, last = to_device(episode_starts, features.device), max(at)
        kept = {}
        for t, before in enumerate(self._states(features[:last], state, starts)):
            if t in at:
                kept[t] = self.reset(before, starts[t]) if t < len(starts) else before
        return tuple(torch.stack(parts) for parts in zip(*(kept[t] for t in at), strict=True))

    def _states(self, features: Tensor, state: State, episode_starts: Tensor) -> Iterator[State]:
        """The states before each step of a block and after the last one, no reset made for the step to come."""
        yield state
        device = features.device.type
        in_numpy = device == "cpu" and not torch.is_autocast_enabled(device) and not touched_within("", self)
        numpy_step = self.numpy_step() if in_numpy else None
        if numpy_step is None:
            for x, starts in zip(features, episode_starts, strict=False):
                _, state = self(x, state, starts)
                yield state
            return
        arrays = tuple(part.numpy() for part in state)
        for x, starts in zip(features.numpy(), episode_starts.numpy(), strict=False):
            _, arrays = numpy_step(x, arrays, starts)
            yield tuple(torch.from_numpy(part) for part in arrays)

    def reset(self, state: State, episode_starts: Tensor) -> State:
        """The state (B, ...) with the initial one where ``episode_starts`` (B,) is true."""
        initial = self.initial_state(len(episode_starts))
        return tuple(
            torch.where(episode_starts.view(-1, *[1] * (part.dim() - 1)), fresh, part)
            for part, fresh in zip(state, initial, strict=True)
        )

    def renew(self, state: State) -> State:
        """Draws anew what is random but constant through a rollout (dropout masks); called as a rollout starts."""
        return state

    def computed_by(self) -> Part:
        """How ``unroll`` is computed, and why not faster."""
        return Part("torch")

    def numpy_index_step(self) -> NumpyStep | None:
        """``numpy_step`` for one-hot features, given as the places of their ones: (B,) integers in place of (B, F).

        They are written out, (B, F) at a time, unless a memory has a better way.
        """
        step = self.numpy_step()
        if step is None:
            return None
        rows, last = np.zeros((0, self.input_size), dtype=np.float32), np.zeros(0, dtype=np.intp)

        def written_out(
            places: NDArray[Any], state: NumpyState, episode_starts: NDArray[np.bool_]
        ) -> tuple[Array, NumpyState]:
            nonlocal rows, last
            if len(rows) == len(places):
                rows[np.arange(len(last)), last] = 0.0
            else:
                rows = np.zeros((len(places), self.input_size), dtype=np.float32)
            last = places.copy()
            rows[np.arange(len(last)), last] = 1.0
            output, after = step(rows, state, episode_starts)
            return output.copy() if output is rows else output, after

        return written_out

    def numpy_step(self) -> NumpyStep | None:
        """``step`` on NumPy arrays with the parameters as they are now, or None where only torch has it.

        For small networks on a CPU a step is bound by call overhead, and NumPy has the least of it. Built anew for
        every rollout, so it may copy and rearrange the parameters. Must agree with ``step`` to 1e-6 relative; must not
        write into its arguments.
        """
        return None


class NoMemory(Memory):
    """Passes features through: the feed-forward baseline, on the same code path as every other memory."""

    def __init__(self, input_size: int) -> None:
        super().__init__(input_size, output_size=input_size)

    def initial_state(self, batch_size: int) -> State:
        return ()

    def step(self, features: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        return features, ()

    def numpy_step(self) -> NumpyStep:
        return lambda features, state, episode_starts: (features, ())

    def unroll(self, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
        return features
