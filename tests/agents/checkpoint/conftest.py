from collections.abc import Iterator
from typing import Any

import pytest
from stable_baselines3.common.vec_env import VecNormalize

from agents.checkpoint import undisturbed
from tests.agents.probe_envs import clocks, small_ppo


@pytest.fixture(autouse=True)
def _own_random_states() -> Iterator[None]:
    """Loading with an environment sets the process's random states; the other tests keep theirs."""
    with undisturbed():
        yield


@pytest.fixture(scope="module")
def trained() -> Any:
    """A small agent with everything in it: optimizer state, normalizer, carried memory."""
    return small_ppo(VecNormalize(clocks(n_envs=2)), "lstm", "separate").learn(32)
