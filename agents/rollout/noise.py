"""Noise of continuous actions that lasts from step to step, for exploring where single steps cancel out.

Axes: B environments, A components of an action.
"""

import math
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

EVERY = 8
"""One environment of so many explores with noise that lasts, from the first one on: they find what is rare, and the
others, whose noise says more about single steps, are most of what is learned from."""


class CorrelatedNoise:
    """Standard normal noise e of a first-order autoregressive process, e' = c e + sqrt(1 - c^2) x, x standard normal.

    It is that of one environment of ``EVERY``; the others have x. At every step all noise is standard normal, so an
    action's probability is what it is without correlation, as with the colored noise of Hollenstein et al. 2024,
    "Colored Noise in PPO". It goes on across the ends of episodes.

    Args:
        correlation: c, of the noise of one step with that of the next; from 0 to below 1.
        last: (B, A), the noise of the step before; None: there was none.
    """

    def __init__(self, correlation: float, last: NDArray[Any] | None = None) -> None:
        self._kept, self._fresh = correlation, math.sqrt(1.0 - correlation**2)
        self._last: Any = last

    def __call__(self, fresh: Any) -> Any:
        """(B, A) array or tensor of independent noise, which is written over -> this step's."""
        last = self._last
        if last is not None:
            if isinstance(fresh, Tensor):
                last = torch.as_tensor(last, device=fresh.device)
            fresh[::EVERY] = self._kept * last[::EVERY] + self._fresh * fresh[::EVERY]
        self._last = fresh
        return fresh

    @property
    def last(self) -> NDArray[Any] | None:
        """(B, A), the noise of the last step."""
        last = self._last
        return last.cpu().numpy() if isinstance(last, Tensor) else last
