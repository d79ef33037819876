"""What environments give, step by step, and what of it must be finite before it reaches the weights.

Axes: T steps of a rollout, B environments.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from agents.checks.observations import leaves, map_observations
from agents.memory import State
from agents.rollout.actor import Actor

RESET_STEP = "recurl.reset_step"
"""The key under which our vector environments mark a reset step: a name of its own, for infos are the user's."""


class Step(NamedTuple):
    """One step of all environments, under the names by which callbacks find it in ``self.locals``."""

    episode_starts: NDArray[np.bool_]
    actions: NDArray[Any]
    clipped_actions: NDArray[Any]
    values: Any
    log_probs: Any
    lstm_states: Any
    new_obs: Any
    rewards: Any
    dones: NDArray[np.bool_]
    infos: Any


class Truncated(NamedTuple):
    """An episode that a time limit ended, with its last observation and the state after its last step, (1, ...)."""

    step: int
    environment: int
    observation: Any
    state: State


def truncated_episodes(n_steps: int, step: Step, actor: Actor) -> list[Truncated]:
    """The episodes that ended at this step without a terminal state."""
    return [
        Truncated(
            n_steps, i, step.infos[i]["terminal_observation"], actor.end(tuple(part[[i]] for part in step.lstm_states))
        )
        for i in np.flatnonzero(step.dones).tolist()
        if step.infos[i].get("TimeLimit.truncated", False) and step.infos[i].get("terminal_observation") is not None
    ]


def reset_steps(episode_starts: NDArray[np.bool_], infos: Any) -> list[int]:
    """The environments that in this step only reset themselves: no transition; the episode starts with the next.

    Vector environments that reset on the next step mark that step in their infos; it follows an episode's end.
    """
    if not np.count_nonzero(episode_starts):  # a quarter of the time of any()
        return []
    return [int(i) for i in np.flatnonzero(episode_starts) if infos[i].get(RESET_STEP)]


def as_bools(dones: Any) -> NDArray[np.bool_]:
    """The ends of episodes (B,), of environments that give 0 and 1 too.

    Raises:
        ValueError: one is neither.
    """
    given: NDArray[Any] = np.asarray(dones)
    if given.dtype == np.bool_:
        return given
    if not np.isin(given, (0, 1)).all():
        raise ValueError(f"dones of a vector environment must be true or false, got {given}")
    return given.astype(np.bool_)


def is_monitors(episode: Any) -> bool:
    """Whether the "episode" in an environment's info is a Monitor's."""
    return isinstance(episode, Mapping) and all(
        isinstance(episode.get(name), int | float | np.number | np.ndarray) for name in ("r", "l")
    )


@functools.cache
def steps_in_two_calls(vec_env: type) -> bool:
    """Whether ``step_async`` and ``step_wait`` do all that ``step`` does: not if a subclass overrides ``step``."""
    for cls in vec_env.__mro__:
        if {"step_async", "step_wait"} & vars(cls).keys():
            return True
        if "step" in vars(cls):
            return False
    return True


def stack(observations: list[Any]) -> Any:
    """Single observations -> a batch."""
    return map_observations(lambda *parts: np.stack(parts), *observations)


def all_finite(observations: Any, device: torch.device) -> torch.Tensor:
    """Whether all numbers are finite, as a tensor () on the device."""
    found = [part.isfinite().all() for part in leaves(observations) if part.is_floating_point()]
    return torch.stack(found).all() if found else torch.ones((), device=device).bool()


def check_experience(observations: Any, rewards: torch.Tensor, rollout: str) -> None:
    """Raises FloatingPointError for the first number that is not finite in observations and rewards (T, B, ...).

    A reward comes before the next observation, which may show it.
    """
    found = [(t, 0, i, "observation") for t, i in not_finite(observations, axes=2)]
    found += [(t, 1, i, "reward") for t, i in not_finite(rewards, axes=2)]
    if found:
        t, _, i, what = min(found)
        raise FloatingPointError(f"the {what} of environment {i} at step {t} of {rollout} is not finite") from None


def check_last_observations(truncated: list[Truncated], last: Any, rollout: str) -> None:
    """Raises FloatingPointError for a number that is not finite in the observations that values are bootstrapped from:
    those of truncated episodes, and (B, ...) after the rollout."""
    for episode in truncated:
        if not_finite(episode.observation, axes=0):
            raise FloatingPointError(
                f"the last observation of the episode of environment {episode.environment} that ended at step "
                f"{episode.step} of {rollout} is not finite"
            )
    for (i,) in not_finite(last, axes=1):
        raise FloatingPointError(f"the observation of environment {i} after {rollout} is not finite")


def not_finite(observations: Any, axes: int) -> list[list[int]]:
    """Where numbers are not finite: indices along the leading axes."""
    found: set[tuple[int, ...]] = set()
    for part in map(torch.as_tensor, leaves(observations)):
        bad = (~part.isfinite()).reshape(*part.shape[:axes], math.prod(part.shape[axes:])).any(-1)
        found |= set(map(tuple, bad.nonzero().tolist()))
    return sorted(map(list, found))
