"""The same seed gives the same numbers, whatever ran before."""

from typing import Any

import numpy as np
import pytest
import torch

import envs
from agents import RecurrentPPO
from agents.memory import MEMORIES
from agents.runs.construction import normalize
from configs.settings import EnvironmentSettings

SMALL: dict[str, dict[str, Any]] = {
    "none": {},
    "gtrxl": {"hidden_size": 8, "window": 4, "heads": 2},
    "attention": {"hidden_size": 8, "window": 4},
}


def learned(memory: str) -> dict[str, torch.Tensor]:
    """Two updates on 2 environments of 16 steps."""
    env = normalize(envs.make("CartPoleNoVel-v1", 2, wrappers=["flicker"]), EnvironmentSettings())
    policy = {"memory": memory, "memory_kwargs": SMALL.get(memory, {"hidden_size": 8}), "net_arch": [8]}
    agent = RecurrentPPO(
        "RecurrentPolicy", env, n_steps=16, batch_size=16, n_epochs=2, policy_kwargs=policy, seed=7, device="cpu"
    )
    agent.learn(64)
    assert agent._last_state is not None
    carried = {f"state {i}": part for i, part in enumerate(agent._last_state)}
    seen = {"last observation": torch.as_tensor(np.array(agent._last_obs))}
    return {**agent.policy.state_dict(), **carried, **seen}


@pytest.fixture(scope="module")
def in_either_order() -> list[dict[str, dict[str, torch.Tensor]]]:
    """Every memory after those that are registered before it, and after those that come later."""
    return [{name: learned(name) for name in order} for order in (list(MEMORIES), list(reversed(MEMORIES)))]


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_seed_decides_all_numbers_in_whatever_order_memories_are_trained(
    memory: str, in_either_order: list[dict[str, dict[str, torch.Tensor]]]
) -> None:
    one, other = (results[memory] for results in in_either_order)
    assert one.keys() == other.keys()
    for name, numbers in one.items():
        assert torch.equal(numbers, other[name]), name
