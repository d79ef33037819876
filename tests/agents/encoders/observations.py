"""Encoders in their many settings, and observations for them.

Axes: N observations, K tokens, F numbers of a token.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from agents.encoders import ENCODERS

K, F = 6, 3
TOKENS = spaces.Box(-np.inf, np.inf, (K, F))
MASKED = spaces.Dict(history=TOKENS, mask=spaces.MultiBinary(K))
WITH_CONTEXT = spaces.Dict(
    entities=TOKENS, mask=spaces.MultiBinary(K), me=spaces.Box(-1, 1, (2,)), job=spaces.Discrete(3)
)
IMAGE = spaces.Box(0, 255, (3, 12, 9), np.uint8)

# 0, 1, some and all tokens real; as the history wrapper pads, at the end, and with gaps.
REAL = torch.tensor(
    [
        [0, 0, 0, 0, 1, 1],
        [1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 1, 0, 1, 1, 0],
        [0, 0, 1, 0, 0, 0],
    ]
)


class Case(NamedTuple):
    name: str
    kwargs: dict[str, Any]

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.kwargs.items())])


WINDOWS = [
    *(Case("sequence", dict(cell=cell, pool=pool)) for cell in ("rnn", "lstm", "gru") for pool in ("last", "mean")),
    Case("sequence", dict(pool="attention", hidden_size=8)),
    *(
        Case("sequence", dict(cell=cell, bidirectional=True, num_layers=2, pool=pool))
        for cell, pool in (("rnn", "last"), ("lstm", "attention"), ("gru", "mean"))
    ),
    Case("attention", dict(score="dot", heads=4)),
    Case("attention", dict(score="additive", cell="lstm", bidirectional=True)),
    *(
        Case("transformer", dict(positions=positions, pool=pool, causal=causal))
        for positions, pool, causal in (
            ("rotary", "last", True),
            ("rotary", "mean", False),
            ("rotary", "cls", True),
            ("learned", "last", False),
            ("learned", "cls", False),
            ("learned", "mean", True),
        )
    ),
]
SETS = [
    Case("attention", dict(over="set", score="dot", heads=2)),
    Case("attention", dict(over="set", score="additive")),
    Case("transformer", dict(positions="none", pool="mean")),
    Case("transformer", dict(positions="none", pool="cls", num_layers=1)),
]
ALL = [*WINDOWS, *SETS]


def make(case: Case, space: spaces.Space[Any] = MASKED, **kwargs: Any) -> BaseFeaturesExtractor:
    """The encoder of a case, with the same weights every time."""
    torch.manual_seed(0)
    return ENCODERS[case.name](space, **{"features_dim": 32, **case.kwargs, **kwargs})


def some_tokens(n_observations: int = len(REAL), seed: int = 0) -> Tensor:
    """(N, K, F)"""
    return torch.randn(n_observations, K, F, generator=torch.Generator().manual_seed(seed))


def masked(values: Tensor, real: Tensor = REAL) -> dict[str, Tensor]:
    """As Stable-Baselines3 hands it to an extractor."""
    return {"history": values, "mask": real.float()}
