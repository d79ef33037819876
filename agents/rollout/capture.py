"""Experimental: acting on a GPU, captured as a CUDA graph.

A step of a small network on a GPU is bound by the launches of its kernels: captured once as a CUDA graph it is replayed
with one launch. It gives the numbers of the policy's own code, to which tests hold it on a CPU; what it saves has not
been measured on a GPU. ``captures_acting = False`` on an agent does without.

Axis: B environments.
"""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.memory import State
from agents.policy.actor_critic import RecurrentActorCriticPolicy
from agents.rollout.actor import Finish, TorchActor
from agents.rollout.buffer import map_observations


class GraphActor:
    """Acts through the policy by one CUDA graph a step, captured at the first one.

    Inputs are written into pinned memory of the host and outputs are read from buffers that stay where they are; the
    graph holds everything between: the copies to the device, the policy's ``forward`` with its sampling (torch's
    generator goes on as if it had run eagerly), the state's way back to where the next step finds it, and the copy of
    the actions to the host. The host waits for these alone, in ``on_host``.

    The graph reads the parameters where the learner writes them, so an optimizer's step is seen by the next replay;
    where a parameter has moved in memory, or inputs have another shape, ``begin`` or ``act`` capture anew. What comes
    out of ``act`` is written over by the next call; ``end`` copies the state.

    A policy that cannot be captured acts eagerly, after one warning that says why: its code is run once and not again,
    so it must not be changed by hooks or a subclass, draw exploration noise by state (whose matrices are replaced now
    and then), or ask the device for a number.

    Args:
        capture: makes of a function without arguments one that does the same on the same memory; None for a CUDA graph
            on a GPU, and for the function itself elsewhere.
    """

    def __init__(self, policy: RecurrentActorCriticPolicy, capture: "Capture | None" = None) -> None:
        self._policy = policy
        self._capture = capture or (_captured if policy.device.type == "cuda" else _as_it_is)
        self._step: _Step | None = None
        self._eager: TorchActor | None = None

    def acts_for(self, policy: RecurrentActorCriticPolicy) -> bool:
        """Whether this is the actor of a policy, so that what it captured serves again."""
        return self._policy is policy

    def begin(self, state: State) -> State:
        if self._eager is None and (reason := self._policy.acting_plan(captured=True).part.why):
            self._act_eagerly(reason)
        if self._step is not None and self._step.parameters_moved():
            self._step = None
        return state

    def end(self, state: State) -> State:
        return tuple(part.clone() for part in state)

    def act(self, observations: Any, state: State, episode_starts: NDArray[np.bool_]) -> tuple[Any, Finish]:
        if self._eager is None and (self._step is None or not self._step.fits(observations, state)):
            self._start(observations, state, episode_starts)
        if self._step is not None:
            return self._step(observations, state, episode_starts)
        assert self._eager is not None  # one of the two there always is
        return self._eager.act(observations, state, episode_starts)

    def on_host(self, actions: Any) -> NDArray[Any]:
        if self._step is not None:
            return self._step.actions_on_host()
        assert self._eager is not None
        return self._eager.on_host(actions)

    def _start(self, observations: Any, state: State, episode_starts: NDArray[np.bool_]) -> None:
        """Captures a step of these shapes; the random state stays as if nothing had been run for it."""
        device = self._policy.device
        with _current(device), torch.random.fork_rng([device] if device.type == "cuda" else []):
            try:
                self._step = _Step(self._policy, observations, state, episode_starts, self._capture)
            except (RuntimeError, NotImplementedError) as error:
                self._act_eagerly(f"{type(error).__name__}: {error}".splitlines()[0])

    def _act_eagerly(self, reason: str) -> None:
        self._step, self._eager = None, TorchActor(self._policy)
        warnings.warn(f"acting is not captured as a CUDA graph and so slower: {reason}", stacklevel=2)

    def __reduce__(self) -> tuple[Any, ...]:
        """A graph belongs to its memory: a copy captures its own."""
        return GraphActor, (self._policy, self._capture)


Capture = Callable[[Callable[[], None]], Callable[[], None]]


class _Step:
    """One step of B environments between buffers that stay where they are: a function of no arguments, to be captured.

    Raises:
        RuntimeError: it cannot be captured.
    """

    def __init__(
        self,
        policy: RecurrentActorCriticPolicy,
        observations: Any,
        state: State,
        episode_starts: NDArray[np.bool_],
        capture: Capture,
    ) -> None:
        self._policy, self._device = policy, policy.device
        self._inputs = map_observations(self._on_host_like, observations)
        self._starts = self._on_host_like(episode_starts)
        self._state = tuple(part.detach().clone() for part in state)
        self._write(observations, episode_starts)
        actions, values, log_probs, _ = self._forward()  # tells the shapes
        self._actions, self._values, self._log_probs = (part.clone() for part in (actions, values, log_probs))
        self._actions_on_host = self._on_host_like(actions)
        self._replay = capture(self._run)
        self._done = torch.cuda.Event() if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._addresses = self._where_parameters_are()

    def __call__(self, observations: Any, state: State, episode_starts: NDArray[np.bool_]) -> tuple[Any, Finish]:
        self._wait()  # the last step's copies out of the inputs are then done
        self._write(observations, episode_starts)
        if state is not self._state:
            for kept, part in zip(self._state, state, strict=True):
                kept.copy_(part)
        with _current(self._device):
            self._replay()
            if self._done is not None:
                self._done.record()
        return self._actions, lambda: (self._values, self._log_probs, self._state)

    def actions_on_host(self) -> NDArray[Any]:
        """A copy, since environments may keep what they are given."""
        self._wait()
        return self._actions_on_host.numpy().copy()

    def fits(self, observations: Any, state: State) -> bool:
        """Whether the buffers take these inputs."""
        known = [(part.shape, part.dtype) for part in self._state]
        return known == [(part.shape, part.dtype) for part in state] and _same_kind(self._inputs, observations)

    def parameters_moved(self) -> bool:
        """Whether a parameter or buffer of the policy has other memory than when this was captured."""
        return self._addresses != self._where_parameters_are()

    def _run(self) -> None:
        """All that is captured."""
        actions, values, log_probs, state = self._forward()
        self._actions.copy_(actions)
        self._values.copy_(values)
        self._log_probs.copy_(log_probs)
        for kept, part in zip(self._state, state, strict=True):
            kept.copy_(part)
        self._actions_on_host.copy_(actions, non_blocking=True)

    @torch.no_grad()
    def _forward(self) -> tuple[Tensor, Tensor, Tensor, State]:
        observations = map_observations(self._on_device, self._inputs)
        before = tuple(part.clone() for part in self._state)  # a memory may hand a part of it on as it came
        actions, values, log_probs, state = self._policy(observations, before, self._on_device(self._starts))
        return actions, values, log_probs, state

    def _write(self, observations: Any, episode_starts: NDArray[np.bool_]) -> None:
        _copy_into(self._inputs, observations)
        _copy_into(self._starts, episode_starts)

    def _on_host_like(self, part: Any) -> Tensor:
        tensor = torch.as_tensor(part)
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._device.type == "cuda")

    def _on_device(self, part: Tensor) -> Tensor:
        # On a CPU a copy too: a policy may pass its observations on, and they are written over.
        return part.clone() if self._device.type == "cpu" else part.to(self._device, non_blocking=True)

    def _wait(self) -> None:
        if self._done is not None:
            self._done.synchronize()

    def _where_parameters_are(self) -> list[int]:
        return [part.data_ptr() for part in (*self._policy.parameters(), *self._policy.buffers())]


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a GPU the current one, where streams, events and graphs belong."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _as_it_is(function: Callable[[], None]) -> Callable[[], None]:
    return function


def _captured(function: Callable[[], None]) -> Callable[[], None]:
    """The function as a CUDA graph on the current device.

    It is first run on a stream of its own, as torch asks for, the last time with synchronisations forbidden: one inside
    a capture would leave allocator and generator in its midst.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    mode = torch.cuda.get_sync_debug_mode()
    with torch.cuda.stream(stream):
        try:
            for last in (False, False, True):
                torch.cuda.set_sync_debug_mode("error" if last else mode)
                function()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    replay: Callable[[], None] = graph.replay
    return replay


def _copy_into(buffers: Any, values: Any) -> None:
    if isinstance(buffers, dict):
        for key, part in buffers.items():
            _copy_into(part, values[key])
    else:
        np.copyto(buffers.numpy(), values)


def _same_kind(buffers: Any, values: Any) -> bool:
    """Whether arrays have the shapes and dtypes of the buffers made for them."""
    if isinstance(buffers, dict):
        return buffers.keys() == values.keys() and all(_same_kind(part, values[key]) for key, part in buffers.items())
    array: NDArray[Any] = buffers.numpy()
    return bool(array.shape == values.shape and array.dtype == values.dtype)
