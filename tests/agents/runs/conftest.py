"""An agent to call back."""

import pytest

from agents import RecurrentPPO
from envs import make


@pytest.fixture
def agent() -> RecurrentPPO:
    policy = dict(memory="lstm", memory_kwargs=dict(hidden_size=4))
    env = make("CartPoleNoVel-v1", 2)
    return RecurrentPPO(
        "RecurrentPolicy", env, n_steps=16, batch_size=16, n_epochs=1, policy_kwargs=policy, seed=0, device="cpu"
    )
