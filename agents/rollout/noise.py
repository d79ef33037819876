"""Noise of continuous actions that lasts from step to step, for exploring where single steps cancel out.

Axes: B environments, A components of an action.
"""

import math
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class CorrelatedNoise:
    """Standard normal noise e of a first-order autoregressive process: e' = c e + sqrt(1 - c^2) x, x standard normal.

    At every step the noise is standard normal, so an action's probability is what it is without correlation, as with
    the colored noise of Hollenstein et al. 2024, "Colored Noise in PPO". It goes on across the ends of episodes.

    Args:
        correlation: c, of the noise of one step with that of the next; from 0 to below 1.
        last: (B, A), the noise of the step before; None: there was none.
    """

    def __init__(self, correlation: float, last: NDArray[Any] | None = None) -> None:
        self._kept, self._fresh = correlation, math.sqrt(1.0 - correlation**2)
        self._last: Any = last

    def __call__(self, fresh: Any) -> Any:
        """(B, A) array or tensor of independent noise -> this step's."""
        last = self._last
        if last is not None and isinstance(fresh, Tensor):
            last = torch.as_tensor(last, device=fresh.device)
        self._last = fresh if last is None else self._kept * last + self._fresh * fresh
        return self._last

    @property
    def last(self) -> NDArray[Any] | None:
        """(B, A), the noise of the last step."""
        last = self._last
        return last.cpu().numpy() if isinstance(last, Tensor) else last
