"""Encoders in their many settings, observations for them, and environments that give such observations.

Axes: N observations, K tokens, F numbers of a token.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
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

# 0, 1, some and all tokens valid; as the history wrapper pads, at the end, and with gaps.
VALID = torch.tensor(
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


SEQ2SEQ = [
    Case("seq2seq", dict(cell=cell, bidirectional=both, attention=attention, pool=pool))
    for cell, both, attention, pool in (
        ("gru", False, "additive", "flatten"),
        ("gru", True, "dot", "mean"),
        ("lstm", True, "additive", "last"),
        ("lstm", False, "dot", "flatten"),
    )
]
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
    *SEQ2SEQ,
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


def some_tokens(n_observations: int = len(VALID), seed: int = 0) -> Tensor:
    """(N, K, F)"""
    return torch.randn(n_observations, K, F, generator=torch.Generator().manual_seed(seed))


def masked(values: Tensor, valid: Tensor = VALID) -> dict[str, Tensor]:
    """As Stable-Baselines3 gives it to an extractor."""
    return {"history": values, "mask": valid.float()}


class Noise(gym.Env[Any, Any]):
    """Random observations; the reward is 1 for action 0, episodes last 3, 4, 5, ... steps.

    ``observe`` draws an observation; None: a sample of the space.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any] | None = None,
        observe: Callable[[np.random.Generator], Any] | None = None,
    ) -> None:
        self.observation_space, self.action_space = observation_space, action_space or spaces.Discrete(3)
        self._observe = observe
        self._episode = self._step = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self._episode, self._step = self._episode + 1, 0
        return self.observe(), {}

    def observe(self) -> Any:
        return self._observe(self.np_random) if self._observe else self.observation_space.sample()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self._step += 1
        return self.observe(), float(np.all(action == 0)), self._step == 2 + self._episode, False, {}


class MaskedNoise(Noise):
    """For sb3-contrib's MaskablePPO."""

    def action_masks(self) -> list[bool]:
        return [True, self._step % 2 == 0, True]


GRAPH = spaces.Graph(spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(3))
SEQUENCE = spaces.Sequence(spaces.Box(-1.0, 1.0, (2,)))


def random_graph(rng: np.random.Generator) -> spaces.GraphInstance:
    """1 to 5 nodes and 0 to 6 edges."""
    nodes, edges = int(rng.integers(1, 6)), int(rng.integers(0, 7))
    return spaces.GraphInstance(
        rng.uniform(-1.0, 1.0, (nodes, 2)).astype(np.float32),
        rng.integers(0, 3, edges),
        rng.integers(0, nodes, (edges, 2)),
    )


def random_sequence(rng: np.random.Generator) -> tuple[Any, ...]:
    """0 to 5 elements."""
    return tuple(rng.uniform(-1.0, 1.0, (rng.integers(0, 6), 2)).astype(np.float32))


class Setting(NamedTuple):
    """An environment of noise: observation space, what draws from it, wrappers of ``envs.make``."""

    space: spaces.Space[Any]
    observe: Callable[[np.random.Generator], Any] | None = None
    wrappers: tuple[tuple[str, dict[str, Any]], ...] = ()


PAD_GRAPH = (("pad_graph", {"max_nodes": 5, "max_edges": 6}),)
PAD_SEQUENCE = (("pad_sequence", {"max_length": 5}),)
SETTINGS = {
    "window": Setting(MASKED),
    "set": Setting(WITH_CONTEXT),
    "box": Setting(TOKENS),
    "image": Setting(IMAGE),
    "graph": Setting(GRAPH, random_graph, PAD_GRAPH),
    "sequence": Setting(SEQUENCE, random_sequence, PAD_SEQUENCE),
}
