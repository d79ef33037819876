"""Memories in the precision of their weights, whatever ``torch.autocast`` says.

What a state holds is rounded again at every step, and the two forms of a memory sum in different orders: in half
precision they would drift apart, and the first ratio of an update from one.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from agents.memory.core import Memory, State

Result = TypeVar("Result")


def in_own_precision(
    method: Callable[[Any, Tensor, State, Tensor], Result],
) -> Callable[[Any, Tensor, State, Tensor], Result]:
    """A memory's ``step`` or ``unroll``, taken out of autocast, with features in the type of its weights."""

    @functools.wraps(method)
    def precise(self: Memory, features: Tensor, state: State, episode_starts: Tensor) -> Result:
        device = features.device.type
        if not torch.is_autocast_enabled(device):
            return method(self, features, state, episode_starts)
        with torch.autocast(device, enabled=False):
            return method(self, features.to(next(self.parameters()).dtype), state, episode_starts)

    return precise
