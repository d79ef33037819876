"""What acts for a rollout: the contract, and the actor that goes through the policy itself.

Axes: B environments, A components of an action.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from agents.checks.observations import map_observations
from agents.memory import State
from agents.policy.actor_critic import RecurrentActorCriticPolicy
from agents.policy.heads import exploring_with
from agents.rollout.noise import LastingNoise

Finish = Callable[[], tuple[Any, Any, Any]]  # -> values (B,), log-probabilities (B,), state after the step


class Actor(Protocol):
    """Chooses actions for a rollout, with the state in its own kind of array."""

    def begin(self, state: State) -> Any:
        """The state a rollout starts with, as this actor carries it."""

    def end(self, state: Any) -> State:
        """What this actor carries, as tensors."""

    def act(self, observations: Any, state: Any, episode_starts: NDArray[np.bool_]) -> tuple[Any, Finish]:
        """(B, ...), state before, (B,) -> actions (B, A), and what to call for the rest while the environments step."""


class TorchActor:
    """Acts through the policy, whatever it is made of.

    Args:
        forward: what computes a step in place of the policy's call.
        noise: of actions, in place of independent noise.
    """

    def __init__(
        self,
        policy: RecurrentActorCriticPolicy,
        forward: Callable[..., Any] | None = None,
        noise: LastingNoise | None = None,
    ) -> None:
        self._device, self._forward = policy.device, forward or policy
        self._head, self._noise = policy.head, noise

    def begin(self, state: State) -> State:
        return state

    def end(self, state: State) -> State:
        return state

    def act(self, observations: Any, state: State, episode_starts: NDArray[np.bool_]) -> tuple[Any, Finish]:
        with torch.no_grad(), exploring_with(self._head, self._noise):
            actions, values, log_probs, state = self._forward(
                map_observations(lambda part: torch.as_tensor(part, device=self._device), observations),
                state,
                torch.as_tensor(episode_starts, device=self._device),
            )
        if self._device.type == "cpu":
            return actions.numpy(), lambda: (values.numpy(), log_probs.numpy(), state)
        return actions, lambda: (values, log_probs, state)
