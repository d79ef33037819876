"""The rollout buffer that preserves hidden state.

Axes: T steps of a rollout, B environments, L steps of a training sequence, C = T / L sequences an environment,
S sequences of a minibatch, R of them with steps before them, K steps of burn-in.

What is collected lies in tensors (T, B, ...) on the training device, but for rewards, episode starts and which steps
are valid: these are needed on the host and stay there, so that reading a minibatch never waits for an accelerator. A
memory's state is kept only where a training sequence starts, or K steps before, (C, B, ...): its size grows with T / L
and not with T. There is no padding and there are no masks, since resets live in the memory.

Observations are one tensor, or a (nested) dict of tensors, in the dtype of their space (images stay bytes).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from agents.checks.observations import map_observations
from agents.checks.spaces import check_observation_space
from agents.kernels.devices import to_device
from agents.memory.core import State
from agents.policy.heads import ActionHead
from agents.rollout.returns import generalized_advantages

Observations = Any  # Tensor, or a dict of Observations
StatesAlong = Callable[[Observations, State, Tensor, Sequence[int]], State]


class BurnIn(NamedTuple):
    """The K steps before those of a minibatch's sequences that have any: all but the first of a rollout. Time first.

    ``sequences`` (R,) says which of the S they are. ``episode_starts`` (K, R) is on the CPU, all else is on the
    training device.
    """

    observations: Observations
    episode_starts: Tensor
    sequences: Tensor


class SequenceBatch(NamedTuple):
    """S whole sequences of L steps, time first.

    ``state`` is the one before each sequence's first step, (S, ...) each; or, of sequences with ``burn_in``, the one
    before the first step of that. ``valid`` is None where every step is a transition, which is the rule; else (L, S),
    false at the steps in which an environment only reset itself. ``episode_starts`` and ``valid`` are on the CPU, all
    else is on the training device.
    """

    observations: Observations
    actions: Tensor
    old_values: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    returns: Tensor
    episode_starts: Tensor
    state: State
    valid: Tensor | None
    burn_in: BurnIn | None = None

    @property
    def n_steps(self) -> int:
        """Valid steps."""
        return self.episode_starts.numel() if self.valid is None else int(self.valid.sum())

    def steps(self, field: Tensor) -> Tensor:
        """(L, S, ...) -> (N, ...): the valid steps of a field, in time order."""
        if self.valid is None:
            return field.flatten(0, 1)
        rows = to_device(self.valid.flatten().nonzero()[:, 0], field.device)
        return field.flatten(0, 1).index_select(0, rows)


class SequenceRolloutBuffer:
    """T steps of B environments, read as shuffled minibatches of whole sequences.

    Args:
        n_steps: T.
        observation_space: any space whose samples are arrays, or a (nested) Dict of such.
        actions: what is stored of an action.
        state: one state of the B environments, as the memory's ``initial_state(B)`` gives it.
        sequence_length: L, a divisor of T; None for the whole rollout.
        rng: the source of the shuffle.
        burn_in: K, from 0 to L: how many steps before a sequence its state is kept, and handed out with it.

    A step of all environments, arrays or tensors (B, ...), is written in three parts: ``add_observations``,
    ``add_actions``, ``add_rewards``. ``compute_returns_and_advantage`` closes the rollout. Reading changes nothing.
    """

    def __init__(
        self,
        n_steps: int,
        observation_space: spaces.Space[Any],
        actions: ActionHead,
        state: State,
        device: torch.device | str = "cpu",
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        n_envs: int = 1,
        sequence_length: int | None = None,
        rng: np.random.Generator | None = None,
        burn_in: int = 0,
    ) -> None:
        self.buffer_size, self.n_envs = n_steps, n_envs
        self.gamma, self.gae_lambda = gamma, gae_lambda
        self.device = torch.device(device)
        self.sequence_length = n_steps if sequence_length is None else sequence_length
        self.burn_in = burn_in
        check_sequence_length(n_steps, self.sequence_length)
        check_burn_in(n_steps, self.sequence_length, burn_in)
        self._rng = rng if rng is not None else np.random.default_rng()

        def room(shape: tuple[int, ...], dtype: torch.dtype, on: torch.device | str = self.device) -> Tensor:
            return torch.zeros((n_steps, n_envs, *shape), dtype=dtype, device=on)

        self.observations: Observations = _room_for_observations(observation_space, room)
        self.actions = room(actions.shape, actions.dtype)
        self.values, self.log_probs, self.advantages, self.returns = (room((), torch.float32) for _ in range(4))
        self.rewards = room((), torch.float32, "cpu")
        self.episode_starts, self.valid = room((), torch.bool, "cpu"), room((), torch.bool, "cpu")
        self._all_valid = True
        self.kept_at = [max(first - burn_in, 0) for first in range(0, n_steps, self.sequence_length)]
        """(C,) the step before which the state of each segment of sequences is kept."""
        self.states: State = tuple(
            torch.zeros((len(self.kept_at), *part.shape), dtype=part.dtype, device=self.device) for part in state
        )
        self.reset()

    def __getstate__(self) -> dict[str, Any]:
        """Without the views through which it is written: those of a copy belong to the copy's own tensors."""
        return {name: value for name, value in vars(self).items() if name != "_rows"}

    @cached_property
    def _rows(self) -> SimpleNamespace:
        """The tensors as something that takes arrays and tensors by assignment: NumPy views on a CPU."""

        def view(tensor: Tensor) -> Any:
            return tensor.numpy() if tensor.device.type == "cpu" else _DeviceRows(tensor)

        names = ("observations", "actions", "rewards", "episode_starts", "values", "log_probs")
        fields = {name: map_observations(view, getattr(self, name)) for name in names}
        return SimpleNamespace(**fields, states=tuple(map(view, self.states)))

    def reset(self) -> None:
        """Empties the buffer for the next rollout."""
        self.pos, self.full, self._closed = 0, False, False
        self._next_order: NDArray[np.int64] | None = None
        self.valid.fill_(True)

    @property
    def real(self) -> Tensor:
        """``valid`` under its first name, which scripts read."""
        return self.valid

    def size(self) -> int:
        """Steps collected so far, each environment counted once."""
        return self.buffer_size if self.full else self.pos

    def add_observations(self, observations: Any, episode_starts: Any, state: Any) -> None:
        """A step's first part: what is known before acting, kept before the environment can write over it.

        Where ``keeps_state`` says so the state is kept; it must be the initial one where an episode starts.
        """
        if self.full:
            raise RuntimeError(f"the rollout buffer holds {self.buffer_size} steps and is full; call reset() first")
        map_observations(lambda to, part: _put(to, self.pos, part), self._rows.observations, observations)
        self._rows.episode_starts[self.pos] = episode_starts
        for segment in self._segments_kept():
            for kept, part in zip(self._rows.states, state, strict=True):
                kept[segment] = part

    def add_actions(self, actions: Any, values: Any, log_probs: Any) -> None:
        """A step's second part: what actor and critic gave."""
        self._rows.actions[self.pos] = actions
        self._rows.values[self.pos] = values
        self._rows.log_probs[self.pos] = log_probs

    def add_rewards(self, rewards: Any) -> None:
        """A step's last part, after which the next step follows."""
        if np.shape(rewards) != (self.n_envs,):
            raise ValueError(f"rewards must have the shape {(self.n_envs,)}, got {np.shape(rewards)}")
        self._rows.rewards[self.pos] = rewards
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def keeps_state(self) -> bool:
        """Whether the state before the next step to be added is kept: a sequence, or its burn-in, starts there."""
        return bool(self._segments_kept())

    def _segments_kept(self) -> list[int]:
        """The segments whose state is the one before the next step: the first two of them where K is L."""
        segment, rest = divmod(self.pos + self.burn_in, self.sequence_length)
        first = [0] if self.pos == 0 else []
        return [*first, segment] if rest == 0 and 0 < segment < len(self.kept_at) else first

    def mark_reset_step(self, environments: Any) -> None:
        """Marks that in the step added last these environments only reset themselves: no transition, not trained on."""
        self.valid[self.pos - 1, environments] = False

    def recompute(
        self, evaluate: Callable[[SequenceBatch], tuple[Tensor, Tensor]], batch_size: int | None = None
    ) -> None:
        """Replaces the values and log-probabilities that acting gave by those that learning starts from.

        For when acting and learning round differently; before the rollout is closed. ``evaluate`` gives those of a
        minibatch, (L, S) each. It gets the very minibatches of the next epoch, since matrix products round by size.
        """
        self._check_full()
        for chosen in self._of_an_epoch(batch_size, ahead=True):
            values, log_probs = evaluate(self._batch(chosen))
            chosen.put(self.values, values.detach())
            chosen.put(self.log_probs, log_probs.detach())

    def recompute_states(self, states_along: StatesAlong) -> None:
        """Replaces the states kept by those that ``states_along`` finds on the way through the rollout from its start.

        It gets the observations (T, B, ...), the state before them, their episode starts and the steps whose state is
        asked for, as ``Memory.states_along`` does.
        """
        self._check_full()
        before = tuple(part[0] for part in self.states)
        found = states_along(self.observations, before, self.episode_starts, self.kept_at)
        for kept, part in zip(self.states, found, strict=True):
            kept.copy_(part)

    def compute_returns_and_advantage(self, last_values: Tensor, dones: Any) -> None:
        """Closes the rollout: (B,) values of the observations after it, and whether they start an episode."""
        self.advantages = generalized_advantages(
            self.rewards,
            self.values,
            self.episode_starts,
            last_values.reshape(self.n_envs).to(self.values),
            torch.as_tensor(dones).bool(),
            self.gamma,
            self.gae_lambda,
        )
        self.returns = self.advantages + self.values
        self._all_valid = bool(self.valid.all())
        self._closed = True

    def get(self, batch_size: int | None = None, *, also_empty: bool = False) -> Iterator[SequenceBatch]:
        """One epoch: minibatches of whole sequences, shuffled, every collected step in exactly one.

        ``batch_size`` counts steps; the number of sequences in a minibatch is what fits, at least one, and evened out
        so that no minibatch is much smaller than the others. None gives everything at once. A minibatch without a
        single transition, of reset steps alone, is left out, unless those are wanted ``also_empty``.
        """
        self._check_full()
        if not self._closed:
            raise RuntimeError("the rollout has no returns yet; call compute_returns_and_advantage() before reading")
        for chosen in self._of_an_epoch(batch_size):
            batch = self._batch(chosen)
            if also_empty or batch.valid is None or batch.valid.any():
                yield batch

    def _check_full(self) -> None:
        if not self.full:
            raise RuntimeError(
                f"the rollout buffer holds {self.pos} of {self.buffer_size} steps; collect the rest before reading"
            )

    def _of_an_epoch(self, batch_size: int | None, ahead: bool = False) -> Iterator["_Sequences"]:
        """What each minibatch of the next epoch takes; looking ``ahead`` leaves that epoch the next one."""
        n_sequences = self.n_envs * (self.buffer_size // self.sequence_length)
        n_batches = number_of_minibatches(n_sequences, self.sequence_length, batch_size)
        if n_batches == 1:
            yield _Sequences(self.sequence_length, self.n_envs, torch.arange(n_sequences))
            return
        order = self._rng.permutation(n_sequences) if self._next_order is None else self._next_order
        self._next_order = order if ahead else None
        on_host = torch.from_numpy(order)
        on_device = to_device(on_host, self.device)
        for chosen in zip(on_host.tensor_split(n_batches), on_device.tensor_split(n_batches), strict=True):
            yield _Sequences(self.sequence_length, self.n_envs, *chosen)

    def _batch(self, chosen: "_Sequences") -> SequenceBatch:
        take = chosen.take
        return SequenceBatch(
            observations=map_observations(take, self.observations),
            actions=take(self.actions),
            old_values=take(self.values),
            old_log_probs=take(self.log_probs),
            advantages=take(self.advantages),
            returns=take(self.returns),
            episode_starts=take(self.episode_starts),
            state=tuple(map(chosen.take_state, self.states)),
            valid=None if self._all_valid else take(self.valid),
            burn_in=self._steps_before(chosen) if self.burn_in and self.states else None,
        )

    def _steps_before(self, chosen: "_Sequences") -> BurnIn | None:
        """The burn-in of a minibatch; None where all its sequences are the first of the rollout."""
        later = (chosen.on_host >= self.n_envs).nonzero()[:, 0]
        if not len(later):
            return None
        before = chosen.on_host[later] - self.n_envs
        segments_before = _Sequences(self.sequence_length, self.n_envs, before, to_device(before, self.device))

        def take(field: Tensor) -> Tensor:
            return segments_before.take(field, self.burn_in)

        return BurnIn(
            observations=map_observations(take, self.observations),
            episode_starts=take(self.episode_starts),
            sequences=to_device(later, self.device),
        )


class _Sequences(NamedTuple):
    """Which sequences a minibatch is made of: reads them out of a field (T, B, ...), and writes into one.

    Sequences are numbered segment after segment of time. ``on_host`` are the numbers (S,) on the CPU, ``on_device`` on
    the training device; None where they are all sequences in order, which need no gathering.
    """

    length: int
    n_envs: int
    on_host: Tensor
    on_device: Tensor | None = None

    def take(self, field: Tensor, last: int | None = None) -> Tensor:
        """(T, B, ...) -> (L, S, ...), or only the ``last`` steps of each."""
        if self.on_device is None:
            return self._by_segment(field).transpose(0, 1).flatten(1, 2)
        numbers = self._numbers(field)
        if self.length == len(field):
            return field.index_select(1, numbers)
        segments = self._by_segment(field)[:, -(last or self.length) :]
        return segments.transpose(1, 2)[numbers // self.n_envs, numbers % self.n_envs].transpose(0, 1)

    def put(self, field: Tensor, values: Tensor) -> None:
        """Writes (L, S) where ``take`` reads it from (T, B)."""
        numbers = self._numbers(field)
        self._by_segment(field).transpose(1, 2)[numbers // self.n_envs, numbers % self.n_envs] = values.transpose(0, 1)

    def take_state(self, part: Tensor) -> Tensor:
        """(C, B, ...) -> (S, ...)"""
        return part.flatten(0, 1) if self.on_device is None else part.flatten(0, 1)[self._numbers(part)]

    def _by_segment(self, field: Tensor) -> Tensor:
        """(T, B, ...) -> (C, L, B, ...), a view."""
        return field.view(-1, self.length, *field.shape[1:])

    def _numbers(self, field: Tensor) -> Tensor:
        return self.on_host if self.on_device is None or field.device.type == "cpu" else self.on_device


class _DeviceRows:
    """Rows of a tensor on an accelerator, written from arrays or tensors without waiting for the copy."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self.shape = tensor.shape
        self.dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))

    def __setitem__(self, row: int, value: Any) -> None:
        self._tensor[row].copy_(to_device(value, self._tensor.device))


def check_sequence_length(n_steps: int, sequence_length: int) -> None:
    """Raises ValueError, with the nearest lengths that fit, unless sequences of this length tile the rollout."""
    if sequence_length < 1:
        raise ValueError(f"sequence_length ({sequence_length}) must be at least 1, or None for the whole rollout")
    if n_steps % sequence_length:
        below = max(n_steps // sequence_length, 1) * sequence_length
        fitting = (str(below),) if below > n_steps else (str(below), str(below + sequence_length))
        raise ValueError(
            f"n_steps ({n_steps}) must be a multiple of sequence_length ({sequence_length}); "
            f"use n_steps {' or '.join(fitting)}, or another sequence_length"
        )


def check_burn_in(n_steps: int, sequence_length: int, burn_in: int) -> None:
    """Raises ValueError unless there are so many steps before every sequence of a rollout but the first."""
    if burn_in < 0:
        raise ValueError(f"burn_in ({burn_in}) must be at least 0")
    if burn_in and sequence_length == n_steps:
        raise ValueError(
            f"burn_in ({burn_in}) takes the steps before a sequence, and here a sequence is the whole rollout of "
            f"{n_steps} steps: set a sequence_length below it, or burn_in=0"
        )
    if burn_in > sequence_length:
        raise ValueError(
            f"burn_in ({burn_in}) must be at most sequence_length ({sequence_length}); "
            f"use {sequence_length}, or longer sequences"
        )


def number_of_minibatches(n_sequences: int, sequence_length: int, batch_size: int | None) -> int:
    """How many minibatches an epoch has, given the steps that one may hold."""
    if batch_size is None:
        return 1
    fitting = max(batch_size // sequence_length, 1)
    return -(-n_sequences // fitting)


def _put(to: Any, row: int, observations: Any) -> None:
    """``to[row] = observations``, which must have its shape: nothing is broadcast or changed.

    Raises:
        ValueError: it has another shape, or a number that the dtype of the space cannot hold.
    """
    expected = to.shape[1:]
    if observations.shape != expected:
        raise ValueError(
            f"observations of {expected[0]} environments must have the shape {tuple(expected)}, got "
            f"{tuple(observations.shape)}: the vector environment gives something else than its observation_space"
        )
    if isinstance(observations, np.ndarray) and observations.dtype != to.dtype:
        _check_holds(to.dtype, observations)
    to[row] = observations


def _check_holds(dtype: Any, observations: NDArray[Any]) -> None:
    """Raises ValueError unless the numbers stay what they are, but for rounding, in the dtype of their space."""
    if dtype.kind == "f" or np.can_cast(observations.dtype, dtype):
        return
    with np.errstate(invalid="ignore"):
        changed = observations.astype(dtype) != observations
    if changed.any():
        raise ValueError(
            f"an observation is {observations[changed].flat[0]}, which its space of {dtype} cannot hold: correct the "
            "environment, or its observation_space"
        )


def _room_for_observations(space: spaces.Space[Any], room: Callable[[tuple[int, ...], torch.dtype], Tensor]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _room_for_observations(part, room) for key, part in space.spaces.items()}
    check_observation_space(space)
    return room(tuple(space.shape or ()), _torch_dtype(space.dtype))


def _torch_dtype(dtype: Any) -> torch.dtype:
    """The dtype kept in the buffer: float64 becomes float32, which is what every network reads."""
    if np.dtype(dtype) == np.float64:
        return torch.float32
    return torch.from_numpy(np.zeros(0, dtype=dtype)).dtype
