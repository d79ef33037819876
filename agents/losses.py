"""Losses of actor-critic algorithms as pure functions.

Axis: N steps of a minibatch, every one a real transition.
"""

import torch
from torch import Tensor


def normalized(advantages: Tensor) -> Tensor:
    """(N,) -> (N,) with mean 0 and standard deviation 1; a single step has no deviation and is left as it is."""
    if advantages.numel() < 2:
        return advantages
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """PPO's objective (Schulman et al. 2017, equation 7), negated: -mean min(r A, clip(r, 1 - eps, 1 + eps) A)."""
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    return -torch.min(advantages * ratio, advantages * clipped).mean()


def policy_gradient(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """Advantage actor-critic's objective (Mnih et al. 2016), negated: -mean log pi(a|s) A."""
    return -(advantages * log_probs).mean()


def value_error(values: Tensor, returns: Tensor, old_values: Tensor, clip_range: float | None) -> Tensor:
    """Mean squared error to the returns; with a range, the prediction may move only so far from the old value."""
    if clip_range is not None:
        values = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return torch.nn.functional.mse_loss(values, returns)


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """KL(old || new) by the low-variance estimator mean (r - 1) - log r (Schulman, "Approximating KL", 2020)."""
    return (log_ratio.exp() - 1.0 - log_ratio).mean()


def clip_fraction(log_ratio: Tensor, clip_range: float) -> Tensor:
    """The share of steps whose probability ratio lies outside 1 +- clip_range."""
    return ((log_ratio.exp() - 1.0).abs() > clip_range).to(log_ratio.dtype).mean()
