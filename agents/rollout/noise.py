"""Noise of actions that lasts from step to step, for exploring where single steps cancel out, and for a memory of
actions that are the same again and again, as those of a policy that does not explore.

Axes: B environments, K numbers of noise for an action: a component of a continuous one, a choice or a bit of others.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.policy.heads import ActionHead, GaussianHead

EVERY = 8
"""One environment of so many explores with noise that lasts, from the first one on: they find what is rare, and the
others, whose noise says more about single steps, are most of what is learned from."""


class LastingNoise(ABC):
    """Noise of which one environment of ``EVERY`` has a part or all of the step before. At every step it is distributed
    as it would be alone, so an action's probability is that of the policy. It goes on across the ends of episodes.

    Args:
        correlation: c, of the noise of one step with that of the next; from 0 to below 1.
        last: (B, K), the noise of the step before; None: there was none.
    """

    def __init__(self, correlation: float, last: NDArray[Any] | None = None) -> None:
        self.correlation = correlation
        self._last: Any = last

    def __call__(self, fresh: Any) -> Any:
        """(B, K) array or tensor of independent noise, which is written over -> this step's."""
        if self._last is not None:
            last, rows = self._last[::EVERY], fresh[::EVERY]
            rows[:] = self.joined(torch.as_tensor(last, device=rows.device) if isinstance(rows, Tensor) else last, rows)
        self._last = fresh.clone() if isinstance(fresh, Tensor) else fresh.copy()
        return fresh

    @abstractmethod
    def joined(self, last: Any, fresh: Any) -> Any:
        """Noise of the step before and independent noise of this one -> this one's."""

    @property
    def last(self) -> NDArray[Any] | None:
        """(B, K), the noise of the last step."""
        last = self._last
        return last.cpu().numpy() if isinstance(last, Tensor) else last


class CorrelatedNoise(LastingNoise):
    """Standard normal noise e of a first-order autoregressive process, e' = c e + sqrt(1 - c^2) x, x standard normal:
    that of continuous actions, as the colored noise of Hollenstein et al. 2024, "Colored Noise in PPO"."""

    def joined(self, last: Any, fresh: Any) -> Any:
        return self.correlation * last + math.sqrt(1.0 - self.correlation**2) * fresh


class RepeatedNoise(LastingNoise):
    """Noise of any distribution that an environment has again, all of it, with probability c.

    Where actions do not matter a policy's choices stay random, and it is this noise that decides: they are the same for
    1 / (1 - c) steps or so. A memory that reads previous actions then knows what they are like where the most probable
    action is taken at every step; one that has seen random ones alone forgets what it was to keep.

    Args:
        rng: decides whose noise is repeated.
    """

    def __init__(self, correlation: float, rng: np.random.Generator, last: NDArray[Any] | None = None) -> None:
        super().__init__(correlation, last)
        self._rng = rng

    def joined(self, last: Any, fresh: Any) -> Any:
        is_new = np.flatnonzero(self._rng.random(len(fresh)) >= self.correlation)
        noise = last.clone() if isinstance(last, Tensor) else last.copy()
        noise[is_new] = fresh[is_new]
        return noise


def lasting_noise(
    head: ActionHead, correlation: float, rng: np.random.Generator, last: NDArray[Any] | None
) -> LastingNoise:
    """The kind for a head's actions."""
    if isinstance(head, GaussianHead):
        return CorrelatedNoise(correlation, last)
    return RepeatedNoise(correlation, rng, last)
