"""Losses of actor-critic algorithms as pure functions.

Axis: N steps of a minibatch, every one a transition.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents.kernels import heads

Number = Any
"""A float, or a scalar tensor where a compiled function must not be recompiled for every value."""


class Figures(NamedTuple):
    """What is logged of a minibatch, one number each."""

    loss: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    entropy_loss: Tensor
    approx_kl: Tensor
    clip_fraction: Tensor


def ppo_objective(
    log_probs: Tensor,
    entropies: Tensor | None,
    values: Tensor,
    old_log_probs: Tensor,
    old_values: Tensor,
    advantages: Tensor,
    returns: Tensor,
    **settings: Number,
) -> tuple[Tensor, Figures]:
    """PPO's loss (Schulman et al. 2017, equation 9, negated), and what is logged of it; all tensors are (N,).

        L = clipped_surrogate + ent_coef * entropy_loss + vf_coef * value_error,  entropy_loss = -mean H,

    or mean log pi(a|s) in place of -mean H where ``entropies`` is None: an estimate by the actions taken. Compiled if
    available, with the same result, unless a setting is a tensor; no value leaves the device.

    Args:
        settings: normalize, clip_range, clip_range_vf, ent_coef, vf_coef.
    """
    constants = (old_log_probs, old_values, advantages, returns)
    if (
        not heads.takes(log_probs, values)
        or any(isinstance(number, Tensor) for number in settings.values())
        or any(part.requires_grad for part in constants)
    ):
        return _in_torch(log_probs, entropies, values, *constants, **settings)
    in_torch = lambda *given: _in_torch(*given, **settings)[0]  # noqa: E731
    loss, figures = heads.clipped_objective(log_probs, entropies, values, *constants, in_torch=in_torch, **settings)
    return loss, Figures(*figures.unbind())


def _in_torch(
    log_probs: Tensor,
    entropies: Tensor | None,
    values: Tensor,
    old_log_probs: Tensor,
    old_values: Tensor,
    advantages: Tensor,
    returns: Tensor,
    *,
    normalize: bool,
    clip_range: Number,
    clip_range_vf: Number | None,
    ent_coef: Number,
    vf_coef: Number,
) -> tuple[Tensor, Figures]:
    log_ratio = log_probs - old_log_probs
    policy_loss = clipped_surrogate(log_ratio, normalized(advantages) if normalize else advantages, clip_range)
    value_loss = value_error(values, returns, old_values, clip_range_vf)
    entropy_loss = log_probs.mean() if entropies is None else -entropies.mean()
    loss = policy_loss + ent_coef * entropy_loss + vf_coef * value_loss
    with torch.no_grad():
        divergence, clipped = approximate_kl(log_ratio), clip_fraction(log_ratio, clip_range)
    return loss, Figures(
        loss.detach(), policy_loss.detach(), value_loss.detach(), entropy_loss.detach(), divergence, clipped
    )


def normalized(advantages: Tensor) -> Tensor:
    """(N,) -> (N,) with mean 0 and standard deviation 1; a single step has no deviation and is left as it is."""
    if advantages.numel() < 2:
        return advantages
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, clip_range: Number) -> Tensor:
    """PPO's objective (Schulman et al. 2017, equation 7), negated: -mean min(r A, clip(r, 1 - eps, 1 + eps) A)."""
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    return -torch.min(advantages * ratio, advantages * clipped).mean()


def policy_gradient(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """Advantage actor-critic's objective (Mnih et al. 2016), negated: -mean log pi(a|s) A."""
    return -(advantages * log_probs).mean()


def value_error(values: Tensor, returns: Tensor, old_values: Tensor, clip_range: Number | None) -> Tensor:
    """Mean squared error to the returns; with a range, the prediction may move only so far from the old value."""
    if clip_range is not None:
        values = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return torch.nn.functional.mse_loss(values, returns)


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """KL(old || new) by the low-variance estimator mean (r - 1) - log r (Schulman, "Approximating KL", 2020)."""
    return (log_ratio.exp() - 1.0 - log_ratio).mean()


def clip_fraction(log_ratio: Tensor, clip_range: Number) -> Tensor:
    """The share of steps whose probability ratio lies outside 1 +- clip_range."""
    share: Tensor = ((log_ratio.exp() - 1.0).abs() > clip_range).to(log_ratio.dtype).mean()
    return share


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> None:
    """Scales all gradients so that their norm, taken together, is at most ``max_norm``: in place, as
    ``torch.nn.utils.clip_grad_norm_``.

    In single precision squares overflow from a norm of 1.8e19 on, and clipping by an infinite norm would make zeros of
    gradients that are finite: they are added up in double precision then, on an accelerator always, so that no value
    leaves it. What is not finite stays so.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    if gradients[0].is_cpu:
        norm = float(torch.stack(torch._foreach_norm(gradients)).norm())
        if norm <= max_norm:
            return
        if math.isfinite(norm):
            torch._foreach_mul_(gradients, max_norm / (norm + 1e-6))
            return
    exact = torch.stack(torch._foreach_norm(gradients, 2.0, dtype=torch.float64)).norm()
    torch._foreach_mul_(gradients, (max_norm / (exact + 1e-6)).clamp(max=1.0))
