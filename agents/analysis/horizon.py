"""How far back an input still moves the action.

Axes: T steps of an episode, B chosen steps, F features, K parameters of the action's distribution, L lags.

With ``y_t`` the parameters of the action's distribution at step t that depend on the observation (logits, or means) and
``x_s`` what went into the memory at step s of the same episode, the sensitivity at lag l is

    ``S(l) = mean over the steps t >= l of || d y_t / d x_(t - l) ||``, the Frobenius norm.

Logits are taken up to a number added to all choices of an axis, which changes no probability: the norm is that of
``P d y_t / d x_(t - l)``, where P takes the mean of each axis away. This is the gradient of the action's
log-probability without the factor by which a nearly certain choice shrinks it, ``d log pi(a) / d y = 1_a - pi``: that
factor is the same at every lag, and for a trained agent so small at most steps that a few undecided steps would make up
the whole curve. Gradients through time as a measure of what is remembered: Pascanu, Mikolov & Bengio, On the
difficulty of training recurrent neural networks (2013); with respect to an agent's inputs: Morad et al., Recurrent
Reinforcement Learning with Memoroids (2024).

The *horizon* is the least lag up to which 95 % of the sum of S over all lags lies: 0 for an agent that acts on the
present input alone, k for one that acts on what it saw k steps ago.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from agents.analysis.recording import Recording, first_step_of
from agents.checks.observations import map_observations
from agents.deploy.player import Player
from agents.kernels.devices import to_device
from agents.policy.actor_critic import RecurrentActorCriticPolicy

SHARE = 0.95
STEPS = 256
_AT_ONCE = 2**16  # steps of features in one pass: bounds memory


@dataclass(frozen=True)
class Horizon:
    """The curve over lags, and what it comes to."""

    sensitivity: NDArray[np.float64]  # (L,) S of lags 0, 1, ...
    steps: NDArray[np.int64]  # (L,) how many steps it is the mean over
    share: float = SHARE  # of the sum of S that lies within the horizon

    @property
    def horizon(self) -> int | None:
        """The least lag up to which ``share`` of the sum of S lies; None where no input moves the action."""
        total = self.sensitivity.sum()
        if not total > 0:
            return None
        return int(np.searchsorted(np.cumsum(self.sensitivity), self.share * total * (1 - 1e-9)))

    @property
    def sentence(self) -> str:
        if self.horizon is None:
            return "memory horizon: none, no input moves the action"
        if self.horizon == 0:
            return f"memory horizon: 0 steps, {self.share:.0%} of what moves the action is the present input"
        steps, most = f"{self.horizon} step{'s' if self.horizon > 1 else ''}", len(self.sensitivity) - 1
        share = f"{self.share:.0%} of what moves the action lies within"
        return f"memory horizon: {steps}, {share} (of {most} that were looked at)"

    def to_json(self) -> dict[str, Any]:
        """Everything, as what ``json`` writes."""
        return {
            "verdict": self.sentence,
            "horizon": self.horizon,
            "share": self.share,
            "sensitivity": self.sensitivity.tolist(),
            "steps": self.steps.tolist(),
        }


def memory_horizon(
    player: Player, recordings: Sequence[Recording], lags: int | None = None, *, steps: int = STEPS, seed: int = 0
) -> Horizon:
    """The horizon of an agent over episodes that it played.

    Args:
        recordings: of episodes (:func:`agents.analysis.record`).
        lags: the largest lag; None for the longest episode less one.
        steps: how many steps t, drawn without replacement where there are more.
        seed: of that draw.
    """
    if not recordings or steps < 1 or (lags is not None and lags < 0):
        raise ValueError(
            f"a horizon needs at least 1 episode, 1 step and lag 0; got {len(recordings)}, {steps}, {lags}"
        )
    longest = max(map(len, recordings))
    n_lags = 1 + (longest - 1 if lags is None else min(lags, longest - 1))
    totals, counts = np.zeros(n_lags), np.zeros(n_lags, dtype=np.int64)
    for recording, chosen in zip(recordings, _chosen_steps(recordings, steps, seed), strict=True):
        at_once = max(1, _AT_ONCE // len(recording))
        for batch in np.split(chosen, range(at_once, len(chosen), at_once)):
            for t, row in zip(batch, _norms(player.policy, recording, batch), strict=True):
                by_lag = row[: t + 1][::-1][:n_lags]
                totals[: len(by_lag)] += by_lag
                counts[: len(by_lag)] += 1
    reached = counts > 0
    return Horizon(totals[reached] / counts[reached], counts[reached])


def _chosen_steps(recordings: Sequence[Recording], steps: int, seed: int) -> list[NDArray[np.int64]]:
    """For each episode the chosen steps, in order."""
    edges = np.cumsum([0, *map(len, recordings)])
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.choice(edges[-1], size=min(steps, edges[-1]), replace=False))
    return [drawn[(drawn >= low) & (drawn < high)] - low for low, high in pairwise(edges)]


def _norms(policy: RecurrentActorCriticPolicy, recording: Recording, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """(B,) steps -> (B, T): the Frobenius norm of d y_t / d x_s for every s, 0 after t.

    The episode is laid out once for every chosen step: rows do not touch each other, so one pass back gives all.
    """
    if not len(chosen):
        return np.zeros((0, len(recording)))
    n_steps, n_chosen = int(chosen.max()) + 1, len(chosen)
    memory, device = policy.memory_actor, policy.device
    features = torch.as_tensor(recording.features[:n_steps, None], device=device)
    inputs = features.expand(-1, n_chosen, -1).clone().requires_grad_()
    starts = first_step_of(n_steps).expand(-1, n_chosen).contiguous()
    starts = starts if memory.starts_on_host else to_device(starts, device)
    at = torch.as_tensor(chosen, device=device)
    outputs = memory.unroll(inputs, memory.initial_state(n_chosen), starts)[at, torch.arange(n_chosen)]
    seen, _ = policy.obs_to_tensor(map_observations(lambda part: part[chosen], recording.seen))
    parameters = policy.distribution_parameters(outputs, seen)[0].flatten(1)  # (B, K)
    squares = torch.zeros(n_steps, n_chosen, dtype=torch.float64)
    for direction in _directions(policy.action_space, parameters.shape[1]):
        one = (parameters * direction.to(parameters)).sum()
        (gradient,) = torch.autograd.grad(one, inputs, retain_graph=True, allow_unused=True)
        if gradient is not None:
            squares += gradient.double().square().sum(dim=-1).cpu()
    return squares.sqrt().t().numpy()


def _directions(space: spaces.Space[Any], n_parameters: int) -> Tensor:
    """(K, K): the rows of P, which takes the mean of each axis of choices away."""
    if isinstance(space, spaces.Discrete):
        sizes = [int(space.n)]
    elif isinstance(space, spaces.MultiDiscrete):
        sizes = [int(n) for n in space.nvec.flatten()]
    else:
        return torch.eye(n_parameters)
    projection: Tensor = torch.block_diag(*(torch.eye(n) - 1 / n for n in sizes))  # type: ignore[no-untyped-call]
    return projection
