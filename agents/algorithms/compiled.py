"""Experimental: a policy's acting step and PPO's objective on a GPU, compiled by ``torch.compile``.

On a GPU both are bound by the launches of some hundred small kernels, which ``torch.compile`` joins and, for acting,
replays as CUDA graphs. Asked for by ``model.policy.compiles_on_gpu = True``; not timed on a GPU. Tests hold it to the
policy's own numbers on a CPU.

Axes: B environments, N steps of a minibatch.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from agents.algorithms.losses import Figures, ppo_objective
from agents.checks.observations import map_observations
from agents.memory import State
from agents.policy.actor_critic import RecurrentActorCriticPolicy
from agents.rollout.buffer import SequenceBatch

Compile = Callable[..., Callable[..., Any]]  # (function, mode=...) -> the same function, compiled


class CompiledPolicy:
    """What is compiled of a policy, at the first call of each part, and again for inputs of other shapes.

    A policy that cannot be compiled computes as it is, after one warning that says why.

    Args:
        compile: in place of ``torch.compile``.
    """

    def __init__(self, policy: RecurrentActorCriticPolicy, compile: Compile | None = None) -> None:
        self.policy = policy
        self._compile = compile or functools.partial(torch.compile, dynamic=False)
        self._forward = self._compile(policy.forward, mode="reduce-overhead")
        self._objective = self._compile(self._evaluate, mode="default")
        self._works = True

    def __reduce__(self) -> tuple[Any, ...]:
        """What was compiled computes with this policy: a copy compiles its own."""
        return CompiledPolicy, (self.policy, self._compile)

    def act(self, observations: Any, state: State, episode_starts: Tensor) -> tuple[Tensor, Tensor, Tensor, State]:
        """As the policy's ``forward``."""
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        *step, state = self._run(self._forward, self.policy.forward, observations, state, episode_starts)
        actions, values, log_probs = (part.clone() for part in step)  # the next replay writes over them
        return actions, values, log_probs, tuple(part.clone() for part in state)

    def objective(self, batch: SequenceBatch, *, normalize: bool, **numbers: float | None) -> tuple[Tensor, Figures]:
        """As ``agents.algorithms.losses.ppo_objective``, of a minibatch every step of which is a transition."""
        flat = map_observations(lambda part: part.flatten(0, 1), batch.observations)
        features = self.policy.encode(flat, batch.episode_starts.shape)
        hidden = self.policy.unroll(*features, batch.state, batch.episode_starts)
        # As tensors, so that nothing is compiled again where a schedule moves them.
        moving = {
            name: None if number is None else torch.full((), number, device=batch.old_values.device)
            for name, number in numbers.items()
        }
        steps = (batch.old_log_probs, batch.old_values, batch.advantages, batch.returns)
        arguments = (hidden, flat, batch.actions.flatten(0, 1), [part.flatten() for part in steps])
        settings = {"normalize": normalize, **moving}
        loss, figures = self._run(self._objective, self._evaluate, *arguments, settings)
        return loss, Figures(*figures)

    def _evaluate(
        self, hidden: Any, observations: Any, actions: Tensor, steps: list[Tensor], settings: dict[str, Any]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        values, log_probs, entropies = self.policy.evaluate_heads(hidden, observations, actions)
        loss, figures = ppo_objective(log_probs, entropies, values, *steps, **settings)
        return loss, tuple(figures)

    def _run(self, compiled: Callable[..., Any], function: Callable[..., Any], *arguments: Any) -> Any:
        if self._works:
            try:
                return compiled(*arguments)
            except Exception as error:
                self._works = False
                warnings.warn(
                    f"the policy is not compiled, because {type(error).__name__}: {str(error).partition(chr(10))[0]}; "
                    "it computes as it is, which is slower (policy.compiles_on_gpu = False asks for that)",
                    UserWarning,
                    stacklevel=3,
                )
        return function(*arguments)
