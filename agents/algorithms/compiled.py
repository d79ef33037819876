"""Experimental: an update's objective on a GPU, compiled by ``torch.compile``.

Heads, probabilities, PPO's objective and their gradients are some hundred small kernels on a GPU, which
``torch.compile`` joins. It gives the numbers of the policy's own code, to which tests hold it on a CPU; what it saves
has not been measured on a GPU. ``compiles_update = False`` on an agent does without.

Axis: N steps of a minibatch.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from agents.algorithms.losses import Figures, ppo_objective
from agents.policy.actor_critic import RecurrentActorCriticPolicy
from agents.rollout.buffer import SequenceBatch, map_observations

Compile = Callable[[Callable[..., Any]], Callable[..., Any]]


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(function, dynamic=False)
    return compiled


class CompiledObjective:
    """A minibatch's loss and figures, from what the memories gave.

    Compiled when the first minibatch of a size comes, which takes a while; a policy that cannot be compiled computes as
    it is, after one warning that says why. Numbers that may move while training goes on are handed in as tensors, so
    that nothing is compiled anew for them.

    Args:
        compile: makes of a function one that does the same; ``torch.compile`` by default.
    """

    def __init__(self, policy: RecurrentActorCriticPolicy, compile: Compile = _compile) -> None:
        self.policy = policy
        self._compile = compile
        self._behind_memory = compile(self._compute)
        self._works = True

    def __reduce__(self) -> tuple[Any, ...]:
        """What was compiled computes with this policy: a copy compiles its own."""
        return CompiledObjective, (self.policy, self._compile)

    def __call__(
        self,
        batch: SequenceBatch,
        *,
        normalize: bool,
        clip_range: float,
        clip_range_vf: float | None,
        ent_coef: float,
        vf_coef: float,
    ) -> tuple[Tensor, Figures]:
        """As ``agents.algorithms.losses.ppo_objective``, of a minibatch every step of which is a transition."""

        def on_device(number: float) -> Tensor:
            return torch.full((), number, device=batch.old_values.device)

        hidden = self.policy.remember(batch.observations, batch.state, batch.episode_starts)
        arguments = (
            hidden,
            map_observations(lambda part: part.flatten(0, 1), batch.observations),
            batch.actions.flatten(0, 1),
            batch.old_log_probs.flatten(),
            batch.old_values.flatten(),
            batch.advantages.flatten(),
            batch.returns.flatten(),
            normalize,
            on_device(clip_range),
            None if clip_range_vf is None else on_device(clip_range_vf),
            on_device(ent_coef),
            on_device(vf_coef),
        )
        if self._works:
            try:
                loss, figures = self._behind_memory(*arguments)
                return loss, Figures(*figures)
            except Exception as error:
                self._works = False
                reason = str(error).partition("\n")[0]
                warnings.warn(
                    f"the update is not compiled, because {type(error).__name__}: {reason}; it computes as it is, "
                    "which is slower (compiles_update = False on the agent asks for that without this warning)",
                    UserWarning,
                    stacklevel=2,
                )
        loss, figures = self._compute(*arguments)
        return loss, Figures(*figures)

    def _compute(
        self,
        hidden: Any,
        observations: Any,
        actions: Tensor,
        old_log_probs: Tensor,
        old_values: Tensor,
        advantages: Tensor,
        returns: Tensor,
        normalize: bool,
        clip_range: Tensor,
        clip_range_vf: Tensor | None,
        ent_coef: Tensor,
        vf_coef: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        values, log_probs, entropies = self.policy.judge(hidden, observations, actions)
        loss, figures = ppo_objective(
            log_probs,
            entropies,
            values,
            old_log_probs,
            old_values,
            advantages,
            returns,
            normalize=normalize,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
        )
        return loss, tuple(figures)
