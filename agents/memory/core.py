"""The contract of a memory: what an agent carries from one step to the next.

A memory maps a stream of features to a stream of outputs and knows nothing of reinforcement learning. It has two
forms that must agree: ``step``, one step for acting, and ``unroll``, a whole sequence at once for learning.

Axes: T time, B sequences (or environments), F features in, H features out, C steps whose state is requested.

State is always a tuple of tensors, batch first: ``(B, ...)`` each; ``()`` for no memory. It comes in and goes out, a
memory hides none.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.kernels.aside import Part, touched_within
from agents.kernels.contract import Array as Array  # so that memories find them here
from agents.kernels.contract import NumpyState as NumpyState
from agents.kernels.contract import NumpyStep as NumpyStep
from agents.kernels.contract import State as State
from agents.kernels.devices import to_device

Result = TypeVar("Result")


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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """What a subclass computes with is checked before: a state of another batch or type never gets as far."""
        super().__init_subclass__(**kwargs)
        for name in ("step", "unroll", "attention_weights"):
            if name in vars(cls):
                setattr(cls, name, _checked(vars(cls)[name]))
        if "numpy_step" in vars(cls):
            cls.numpy_step = _of_checked_steps(vars(cls)["numpy_step"])  # type: ignore[method-assign]

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.output_size = output_size
        self._fitting: set[Any] = set()

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
        initial one; so ``episode_starts`` may hold the steps after the block too. It is stepped through, in NumPy
        where it can be.
        """
        self.check(features.shape, state, episode_starts[: len(features)])
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
        arrays = tuple(part.detach().numpy() for part in state)
        for x, starts in zip(features.detach().numpy(), episode_starts.numpy(), strict=False):
            _, arrays = numpy_step(x, arrays, starts)
            yield tuple(torch.from_numpy(part) for part in arrays)

    def check(self, features: Sequence[int], state: Any, episode_starts: Any) -> None:
        """Raises a ValueError or TypeError unless features of this shape, a state and episode starts fit together, for
        ``step`` (B, F), ``unroll`` (T, B, F), or a step in NumPy; all memories ask this first.

        Nothing is broadcast and nothing converted: the state has the shapes, and the types, that ``initial_state``
        gives for as many sequences. What fits is remembered by its shapes, for the same come again and again.
        """
        if torch.compiler.is_compiling() or torch._C._is_tracing():  # sizes are no numbers there
            return
        try:
            given = (features, episode_starts.shape, episode_starts.dtype)
            key = (*given, *[(part.shape, part.dtype) for part in state])
        except (AttributeError, TypeError) as error:
            raise TypeError(
                f"{type(self).__name__} takes a state that is a tuple of tensors or arrays, and episode_starts that "
                f"are one; got {type(state).__name__} and {type(episode_starts).__name__}"
            ) from error
        if key not in self._fitting:
            self._check(tuple(features), state, episode_starts)
            if len(self._fitting) >= _MOST_REMEMBERED:
                self._fitting.clear()
            self._fitting.add(key)

    def _check(self, features: tuple[int, ...], state: Any, episode_starts: Any) -> None:
        steps, initial = tuple(episode_starts.shape), self.initial_state(1)
        expected = [(steps[-1] if steps else 0, *part.shape[1:]) for part in initial]
        found = [tuple(part.shape) for part in state]
        if len(steps) not in (1, 2) or features != (*steps, self.input_size) or found != expected:
            raise ValueError(
                f"{type(self).__name__} expects features (B, {self.input_size}), episode_starts (B,) and a state as "
                f"initial_state(B) gives it, {[tuple(part.shape) for part in initial]} for B = 1, or features "
                f"(T, B, {self.input_size}) with episode_starts (T, B); got features {features}, "
                f"episode_starts {steps} and state {found}"
            )
        if 0 in steps:
            raise ValueError(
                f"{type(self).__name__} takes at least one step of one sequence; episode_starts are {steps}"
            )
        if _type_of(episode_starts) != "bool":
            raise TypeError(
                f"episode_starts must be boolean; got {_type_of(episode_starts)}, use episode_starts.bool()"
            )
        types = [_type_of(part) for part in initial]
        if [_type_of(part) for part in state] != types:
            raise TypeError(
                f"the state of {type(self).__name__} must be {' and '.join(sorted(set(types)))}, as initial_state "
                f"gives it; got {', '.join(_type_of(part) for part in state)}"
            )

    def reset(self, state: State, episode_starts: Tensor) -> State:
        """The state (B, ...) with the initial one where ``episode_starts`` (B,) is true."""
        self.check((len(episode_starts), self.input_size), state, episode_starts)
        initial = self.initial_state(len(episode_starts))
        return tuple(
            torch.where(episode_starts.view(-1, *[1] * (part.dim() - 1)), fresh, part)
            for part, fresh in zip(state, initial, strict=True)
        )

    def renew(self, state: State) -> State:
        """Redraws what is random but constant through a rollout (dropout masks); called as a rollout starts."""
        return state

    def computed_by(self) -> Part:
        """How ``unroll`` is computed, and why not faster."""
        return Part("torch")

    def fits_numpy(self) -> bool:
        """Whether a step in NumPy can read the parameters: all are float32 on a CPU."""
        return all(parameter.is_cpu and parameter.dtype is torch.float32 for parameter in self.parameters())

    def numpy_index_step(self) -> NumpyStep | None:
        """``numpy_step`` for one-hot features, given as the places of their ones: (B,) integers in place of (B, F).

        They are written out, (B, F) at a time, unless a memory has a better way.
        """
        step = self.numpy_step()
        if step is None:
            return None

        def written_out(
            places: NDArray[Any], state: NumpyState, episode_starts: NDArray[np.bool_]
        ) -> tuple[Array, NumpyState]:
            rows = np.zeros((len(places), self.input_size), dtype=np.float32)
            rows[np.arange(len(places)), places] = 1.0
            return step(rows, state, episode_starts)

        return written_out

    def numpy_step(self) -> NumpyStep | None:
        """``step`` on NumPy arrays with the parameters as they are now, or None where only torch has it.

        For small networks on a CPU a step is bound by call overhead, and NumPy has the least of it. Made for every
        rollout, if all parameters are float32 on a CPU, so it may copy and rearrange them. Must agree with ``step`` to
        1e-6 relative; must not write into its arguments.
        """
        return None


_MOST_REMEMBERED = 256  # shapes of a memory; more come only of blocks that never repeat


def _type_of(array: Any) -> str:
    """Of a tensor or an array: "float32" for either."""
    return str(array.dtype).removeprefix("torch.")


def _checked(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def checked(self: Memory, features: Tensor, state: State, episode_starts: Tensor, *rest: Any, **named: Any) -> Any:
        self.check(features.shape, state, episode_starts)
        return method(self, features, state, episode_starts, *rest, **named)

    return checked


def _of_checked_steps(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method that makes a step in NumPy, as one that makes a checked step."""

    @functools.wraps(method)
    def make(self: Memory) -> NumpyStep | None:
        step = method(self) if self.fits_numpy() else None
        if step is None:
            return None
        fitting: set[Any] = set()  # shapes; a lookup takes a quarter of what check() does

        def checked_step(
            features: Array, state: NumpyState, episode_starts: NDArray[np.bool_]
        ) -> tuple[Array, NumpyState]:
            shapes = (features.shape, episode_starts.shape, *[part.shape for part in state])
            if shapes not in fitting:
                self.check(features.shape, state, episode_starts)
                fitting.add(shapes)
            output: tuple[Array, NumpyState] = step(features, state, episode_starts)
            return output

        return checked_step

    return make


def in_own_precision(
    method: Callable[[Any, Tensor, State, Tensor], Result],
) -> Callable[[Any, Tensor, State, Tensor], Result]:
    """A memory's ``step`` or ``unroll``, taken out of autocast, with features in the type of its weights.

    What a state holds is rounded again at every step, and the two forms of a memory sum in different orders: in half
    precision they would drift apart, and the first ratio of an update from one.
    """

    @functools.wraps(method)
    def precise(self: Memory, features: Tensor, state: State, episode_starts: Tensor) -> Result:
        device = features.device.type
        if not torch.is_autocast_enabled(device):
            return method(self, features, state, episode_starts)
        with torch.autocast(device, enabled=False):
            return method(self, features.to(next(self.parameters()).dtype), state, episode_starts)

    return precise


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
