"""What is written for sb3-contrib acts there as it does here, or is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sb3_contrib
from gymnasium import spaces

from agents import RecurrentPPO
from agents.deploy import to_sb3_zip
from agents.deploy.step import ExportError
from tests.agents.deploy.test_export import ACTIONS, OBSERVATIONS, Drawn, agent


def check(model: RecurrentPPO, path: Path) -> None:
    assert to_sb3_zip(model, path) == path
    theirs = sb3_contrib.RecurrentPPO.load(path, device="cpu")
    state = their_state = None
    for step in range(12):
        seen, starts = model.observation_space.sample(), np.array([step in (0, 5)])
        one, state = model.predict(seen, state, starts, deterministic=True)
        other, their_state = theirs.predict(seen, their_state, starts, deterministic=True)
        assert np.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("critic_memory", ["shared", "detached", "separate", "none"])
@pytest.mark.parametrize("action", ["one of some", "several choices", "bits", "numbers"])
def test_an_lstm_acts_there_as_here(critic_memory: str, action: str, tmp_path: Path) -> None:
    made: Any = dict(memory="lstm", memory_kwargs=dict(hidden_size=8, num_layers=2), critic_memory=critic_memory)
    space = spaces.Discrete(3) if action == "one of some" else ACTIONS[action]
    check(agent(action=space, **made), tmp_path / "agent.zip")


def test_a_policy_of_sb3_contrib_goes_back_with_its_dict_observation(tmp_path: Path) -> None:
    space = spaces.Dict(a=spaces.Box(-1.0, 1.0, (3,)), b=spaces.Discrete(3))
    env: Any = Drawn(space, spaces.Discrete(2))
    kwargs = dict(lstm_hidden_size=8)
    model = RecurrentPPO("MultiInputLstmPolicy", env, n_steps=8, batch_size=8, policy_kwargs=kwargs, device="cpu")
    check(model, tmp_path / "agent.zip")


def test_what_sb3_contrib_has_not_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "agent.zip"
    with pytest.raises(ExportError, match=r"has not the memory GRU, where it has an LSTM alone: export .* as .onnx"):
        to_sb3_zip(agent(memory="gru"), path)
    with pytest.raises(ExportError, match="has not choices that start at another number than 0"):
        to_sb3_zip(agent(action=ACTIONS["one of some"]), path)
    with pytest.raises(ExportError, match="has not a learned initial state"):
        to_sb3_zip(agent(memory_kwargs=dict(hidden_size=8, learned_initial_state=True)), path)
    with pytest.raises(ExportError, match=r"has not the encoder \w+: export"):
        to_sb3_zip(agent(OBSERVATIONS["a dict"]), path)
    with pytest.raises(ExportError, match=r"expected a name that ends in .zip, got .pkl"):
        to_sb3_zip(agent(), tmp_path / "agent.pkl")
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="is there already"):
        to_sb3_zip(agent(), path)
