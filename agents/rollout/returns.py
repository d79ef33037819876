"""Returns and advantages as pure functions over a rollout.

Axes: T time, B environments. ``episode_starts[t]`` is true where step t is the first of an episode, so the step before
it was the last of another: nothing flows across.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

FLOOR = 0.1
"""The smallest deviation that advantages are divided by, as a share of the deviation of returns."""


class Moments(NamedTuple):
    """How many numbers have been seen, their mean, and the sum of their squared distances from it."""

    seen: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: Tensor) -> "Moments":
        """Those of values of any shape."""
        if values.numel() == 0:
            return cls()
        exact = values.double()
        mean = float(exact.mean())
        return cls(exact.numel(), mean, float((exact - mean).square().sum()))

    @property
    def std(self) -> float:
        return math.sqrt(self.squares / self.seen) if self.seen else 0.0

    def and_also(self, other: "Moments") -> "Moments":
        """Those of both together (Chan et al. 1979, "Updating formulae ... for computing variances")."""
        if not other.seen:
            return self
        total, apart = self.seen + other.seen, other.mean - self.mean
        share = other.seen / total
        return Moments(total, self.mean + apart * share, self.squares + other.squares + apart**2 * self.seen * share)

    def scale(self, floor: float = 0.0) -> tuple[float, float]:
        """What to subtract from the values and what to divide them by, for mean 0 and standard deviation 1.

        The deviation counts as at least ``floor``; a single value has none, and is left as it is.
        """
        if self.seen < 2:
            return 0.0, 1.0
        return self.mean, max(math.sqrt(self.squares / (self.seen - 1)), floor) + 1e-8


def advantage_scale(advantages: Tensor, returns: Moments) -> tuple[float, float]:
    """What to subtract from a rollout's advantages and what to divide them by, from all of them (N,).

    Their mean, and their standard deviation but at least ``FLOOR`` of the deviation of all returns so far. As a task is
    solved the deviation of its advantages falls towards that of the value's own errors; divided by it they would be
    noise at full size, and the steps along it leave the solution again. Rewards times c give advantages times c and a
    scale times c: what is learned does not depend on their unit.
    """
    if advantages.numel() < 2:
        return 0.0, 1.0
    scale = max(float(advantages.std()), FLOOR * returns.std)
    return float(advantages.mean()), scale + 1e-8


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    episode_starts: Tensor,
    last_values: Tensor,
    last_episode_starts: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16), which stops at the end of every episode.

        A_t = delta_t + gamma * lambda * A_{t+1},  delta_t = r_t + gamma * V(s_{t+1}) - V(s_t),

    where both V(s_{t+1}) and A_{t+1} count as zero if step t + 1 starts an episode. One truncated by a time limit
    has its bootstrap gamma * V(s_{t+1}) already in its last reward.

    Args:
        rewards, values, episode_starts: (T, B); the last is boolean.
        last_values, last_episode_starts: (B,), of the step after the rollout.

    Returns:
        (T, B) advantages; the returns are ``advantages + values``.
    """
    device = values.device
    if device.type != "cpu":  # a sweep over time is many small steps: one copy there and back is cheaper
        rewards, values, episode_starts = rewards.cpu(), values.cpu(), episode_starts.cpu()
        last_values, last_episode_starts = last_values.cpu(), last_episode_starts.cpu()
    next_values = torch.cat((values[1:], last_values[None]))
    goes_on = torch.cat((episode_starts[1:], last_episode_starts[None])).logical_not().to(values.dtype)
    deltas = rewards + gamma * goes_on * next_values - values
    decays = (gamma * gae_lambda) * goes_on
    advantages = deltas.clone()
    # NumPy has a quarter of torch's overhead for a row of a few numbers, and shares the tensor's memory.
    rows, factors = advantages.numpy(), decays.numpy()
    for t in range(len(rows) - 2, -1, -1):
        rows[t] += factors[t] * rows[t + 1]
    return advantages.to(device)
