"""What every registered memory and encoder costs: the figures of their pages on the site, into docs/results/costs.json.

    python benchmarks/costs.py

Memories: of 64 units on 64 features, all else by default; acting is a step for 8 environments, training a pass over 8
sequences of 128 steps and back. Encoders: acting is 8 observations, training 1024 of them and back (images: 8), of the
spaces in ``EXAMPLES``; each sample is the CPU time of one thread, medians of turns, all taking turns.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from measuring import environment_of_measurement, medians_in_turn, use_threads
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import Tensor, nn

from agents.encoders import ENCODERS
from agents.memory import MEMORIES, Memory, make_memory

COSTS = Path(__file__).parents[1] / "docs/results/costs.json"
UNITS, STEPS, SEQUENCES, ENVIRONMENTS, OBSERVATIONS, IMAGES = 64, 128, 8, 8, 1024, 8
TURNS = 21

WINDOW = spaces.Box(-1.0, 1.0, (8, 8))
IMAGE = spaces.Box(0, 255, (3, 64, 64), np.uint8)
GRAPH = spaces.Dict(
    nodes=spaces.Box(-1.0, 1.0, (8, 8)),
    node_mask=spaces.MultiBinary(8),
    edges=spaces.Box(-1.0, 1.0, (16, 4)),
    edge_mask=spaces.MultiBinary(16),
    edge_index=spaces.Box(0, 7, (16, 2), np.int64),
)
EXAMPLES: dict[str, tuple[str, spaces.Space[Any]]] = {
    "flatten": ("8 numbers", spaces.Box(-1.0, 1.0, (8,))),
    "scaled": ("128 bytes", spaces.Box(0, 255, (128,), np.uint8)),
    "nature_cnn": ("images 3 x 64 x 64", IMAGE),
    "impala": ("images 3 x 64 x 64", IMAGE),
    "image": ("images 64 x 64 x 3", spaces.Box(0, 255, (64, 64, 3), np.uint8)),
    "embedding": ("grids 7 x 7 of 3 codes", spaces.Box(0, 10, (7, 7, 3), np.uint8)),
    "text": ("texts of 16 tokens of 64", spaces.MultiDiscrete([64] * 16)),
    "sequence": ("windows of 8 steps of 8 numbers", WINDOW),
    "attention": ("windows of 8 steps of 8 numbers", WINDOW),
    "transformer": ("windows of 8 steps of 8 numbers", WINDOW),
    "seq2seq": ("windows of 8 steps of 8 numbers", WINDOW),
    "graph": ("graphs of 8 nodes and 16 edges", GRAPH),
    "combined": ("8 numbers and a category of 5", spaces.Dict(a=spaces.Box(-1.0, 1.0, (8,)), b=spaces.Discrete(5))),
}
"""Encoder -> what it reads here, in words and as a space."""


def of_memories() -> dict[str, dict[str, float]]:
    """Memory -> parameters, numbers carried for each environment, microseconds of acting and of training."""
    memories = {name: make_memory(name, UNITS, _sized(name)) for name in MEMORIES}
    acting = {name: _step(memory) for name, memory in memories.items()}
    training = {name: _pass(memory) for name, memory in memories.items()}
    return {
        name: {
            "parameters": _parameters(memory),
            "state": sum(part[0].numel() for part in memory.initial_state(1)),
            **times,
        }
        for (name, memory), times in zip(memories.items(), _timed(acting, training), strict=True)
    }


def of_encoders() -> dict[str, dict[str, Any]]:
    """Encoder -> what it reads here, parameters, microseconds of acting and of training."""
    read = {name: EXAMPLES[name] for name in ENCODERS if name in EXAMPLES}
    encoders = {name: ENCODERS[name](space) for name, (_, space) in read.items()}
    acting = {name: _encoding(encoder, ENVIRONMENTS) for name, encoder in encoders.items()}
    training = {
        name: _encoding(encoder, IMAGES if "images" in read[name][0] else OBSERVATIONS, learns=True)
        for name, encoder in encoders.items()
    }
    return {
        name: {"reads": read[name][0], "parameters": _parameters(encoder), **times}
        for (name, encoder), times in zip(encoders.items(), _timed(acting, training), strict=True)
    }


Work = dict[str, Callable[[], object]]


def _timed(acting: Work, training: Work) -> list[dict[str, float]]:
    step, update = (medians_in_turn(each, TURNS, time.process_time) for each in (acting, training))
    return [{"acting": round(1e6 * step[name], 1), "training": round(1e6 * update[name])} for name in acting]


def _sized(name: str) -> dict[str, int]:
    return {} if name == "none" else {"hidden_size": UNITS}


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _step(memory: Memory) -> Callable[[], object]:
    """A step as the acting loop takes it: in NumPy where there is one."""
    features, state = torch.randn(ENVIRONMENTS, UNITS), memory.initial_state(ENVIRONMENTS)
    starts = torch.zeros(ENVIRONMENTS, dtype=torch.bool)
    in_numpy = memory.numpy_step()
    if in_numpy is None:
        return lambda: memory.step(features, state, starts)
    step, arrays = in_numpy, tuple(part.detach().numpy() for part in state)
    return lambda: step(features.numpy(), arrays, starts.numpy())


def _pass(memory: Memory) -> Callable[[], object]:
    features, state = torch.randn(STEPS, SEQUENCES, UNITS, requires_grad=True), memory.initial_state(SEQUENCES)
    starts = torch.rand(STEPS, SEQUENCES) < 0.02
    return lambda: memory.unroll(features, state, starts).sum().backward()


def _encoding(encoder: Any, n_observations: int, learns: bool = False) -> Callable[[], object]:
    space: spaces.Space[Any] = encoder._observation_space
    space.seed(0)
    stacked = _stacked([space.sample() for _ in range(n_observations)])
    observations = preprocess_obs(stacked, space)

    def act() -> object:
        with torch.no_grad():
            return encoder(observations)

    def learn() -> object:
        features: Tensor = encoder(observations)
        return features.sum().backward() if features.requires_grad else features

    return learn if learns else act


def _stacked(samples: list[Any]) -> Any:
    if isinstance(samples[0], dict):
        stacked = {key: _stacked([sample[key] for sample in samples]) for key in samples[0]}
        return {key: torch.ones_like(part) if key.endswith("mask") else part for key, part in stacked.items()}
    return torch.as_tensor(np.stack(samples))


def main() -> None:
    use_threads(1)
    torch.manual_seed(0)
    measured = environment_of_measurement(1)
    costs = {"measured": measured, "memories": of_memories(), "encoders": of_encoders()}
    COSTS.write_text(json.dumps(costs, indent=1) + "\n")


if __name__ == "__main__":
    main()
