"""An exported file acts as its agent does, state, normalizer and previous action included, or is not written.

Axes: B agents.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

import envs
from agents import MEMORIES, Memory, Player, RecurrentPPO
from agents.deploy import export, exports
from agents.deploy.onnx import OnnxStep
from agents.deploy.step import AgentStep, ExportError
from envs.vector.vectorize import WrappedVecEnv
from envs.wrappers.transforms import PreviousActionReward

SMALL: dict[str, dict[str, Any]] = {
    "none": {},
    "gtrxl": {"hidden_size": 8, "heads": 2, "window": 4, "num_layers": 1},
    "attention": {"hidden_size": 8, "window": 4},
    **{name: {"hidden_size": 8, "num_layers": 1} for name in ("mingru", "lru", "deltanet")},
    **{name: {"hidden_size": 8, "num_layers": 2} for name in ("ffm", "hybrid")},
}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "GAME", 80)
    monkeypatch.setattr(exports, "DRAWN", {1: 12, 32: 4})


class Drawn(gymnasium.Env[Any, Any]):
    """Observations and actions of the given spaces, drawn; episodes of three steps."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.t += 1
        return self.observation_space.sample(), float(self.np_random.normal()), self.t == 3, False, {}


FLAT = spaces.Box(-2.0, 2.0, (3,))
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "numbers": FLAT,
    "a choice": spaces.Discrete(4, start=2),
    "choices": spaces.MultiDiscrete([3, 2]),
    "a dict": spaces.Dict({"a": FLAT, "b": spaces.Discrete(3), "image": spaces.Box(0, 255, (36, 36, 3), np.uint8)}),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "one of some": spaces.Discrete(3, start=-1),
    "several choices": spaces.MultiDiscrete([2, 3]),
    "bits": spaces.MultiBinary(4),
    "numbers": spaces.Box(np.float32([-0.5, -3.0]), np.float32([0.1, 3.0])),
}


def agent(
    observation: Any = FLAT, action: Any = None, *, inputs: bool = False, normalize: bool = False, **policy: Any
) -> RecurrentPPO:
    action = action or spaces.Discrete(3)
    venv: Any = envs.make(lambda: Drawn(observation, action), 2, seed=0)
    if inputs:
        venv = WrappedVecEnv(venv, PreviousActionReward, {"start": True})
    if normalize:
        venv = VecNormalize(venv)
    policy = {"memory_kwargs": SMALL.get(policy.get("memory", "lstm"), {"hidden_size": 8}), "net_arch": [8], **policy}
    model = RecurrentPPO("RecurrentPolicy", venv, n_steps=8, batch_size=16, policy_kwargs=policy, seed=0, device="cpu")
    model.learn(16)
    return model


def environments(model: RecurrentPPO) -> Any:
    venv: Any = model.get_env()
    return venv.venv if isinstance(venv, VecNormalize) else venv


@pytest.mark.parametrize("memory", MEMORIES)
def test_every_memory_is_exported_to_onnx_and_acts_as_its_agent(memory: str, tmp_path: Path) -> None:
    model = agent(memory=memory)
    written = export(model, tmp_path / "policy.onnx", value=True, env=environments(model))
    assert written.difference < exports.onnx.TOLERANCE
    assert written.steps == sum(n * steps for n, steps in exports.DRAWN.items()) + exports.GAME
    step = OnnxStep(written.path)
    assert step.metadata["difference"] == written.difference
    assert step.output_names[:2] == ["action", "distribution_0"]
    assert step.output_names[-1] == "value"


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_a_script_acts_as_its_agent_whatever_it_sees_and_does(observation: str, action: str, tmp_path: Path) -> None:
    model = agent(OBSERVATIONS[observation], ACTIONS[action], inputs=True, memory="gru")
    written = export(model, tmp_path / "policy.pt", env=environments(model))
    assert written.difference < 1e-5
    loaded = torch.jit.load(written.path, _extra_files=(extra := {"recurl.json": ""}))
    metadata = json.loads(extra["recurl.json"])
    step = AgentStep(Player.of(model))
    assert metadata["inputs"] == step.input_names
    assert len(loaded(*step.example(5))[0]) == 5


@pytest.mark.parametrize("normalize", [False, True])
def test_normalizer_and_previous_inputs_are_inside(normalize: bool, tmp_path: Path) -> None:
    model = agent(action=ACTIONS["numbers"], inputs=True, normalize=normalize)
    written = export(model, tmp_path / "policy.onnx", env=environments(model))
    assert OnnxStep(written.path).all_inputs == [
        *("observation", "reward", "state_in_0", "state_in_1", "state_in_2", "episode_start")
    ]


def test_actions_are_drawn_by_a_seed_with_the_agents_probabilities(tmp_path: Path) -> None:
    for name, space in ACTIONS.items():
        model = agent(action=space, memory="none")
        step = AgentStep(Player.of(model), sample=True)
        inputs = [*step.example(1)[:-2], torch.ones(4000, dtype=torch.bool), torch.tensor(3)]
        inputs[0] = inputs[0].expand(4000, -1)
        with torch.no_grad():
            action, first, *_ = step(*inputs)
            again, *_ = step(*inputs)
            other, *_ = step(*inputs[:-1], torch.tensor(4))
        assert torch.equal(action, again)
        assert not torch.equal(action, other)
        if name == "one of some":
            expected = torch.softmax(first[0], -1)
            found = torch.bincount(action + 1, minlength=3) / 4000
            assert torch.allclose(found, expected, atol=0.03)
        elif name == "bits":
            assert torch.allclose(action.flatten(1).float().mean(0), torch.sigmoid(first[0]), atol=0.03)
    written = export(model, tmp_path / "policy.onnx", sample=True)
    assert "seed" in OnnxStep(written.path).all_inputs


@pytest.mark.parametrize("memory", ["none", "rnn", "lstm", "gru", "mingru", "ffm", "hybrid"])
@pytest.mark.parametrize("inputs", [False, True])
def test_a_c_file_compiles_without_a_warning_and_acts_as_its_agent(memory: str, inputs: bool, tmp_path: Path) -> None:
    seen = list(OBSERVATIONS.values())[:3]
    for i, action in enumerate(ACTIONS.values()):
        model = agent(seen[i % 3], action, inputs=inputs, normalize=i % 3 == 0, memory=memory)
        written = export(model, tmp_path / f"policy{i}.c", env=environments(model))
        assert written.difference < exports.C_TOLERANCE


def test_what_has_no_form_in_c_is_refused_with_where_to_go(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"LRU has no form in C, only NoMemory, RNN, .* have: export it as \.onnx"):
        export(agent(memory="lru"), tmp_path / "policy.c")
    with pytest.raises(ExportError, match=r"reads flat observations, not Dict.*: export it as \.onnx"):
        export(agent(OBSERVATIONS["a dict"]), tmp_path / "policy.c")
    with pytest.raises(ExportError, match="takes the deterministic action and knows no value"):
        export(agent(), tmp_path / "policy.c", value=True)
    with pytest.raises(ExportError, match=r"ELU has no form in C"):
        export(agent(activation_fn=torch.nn.ELU), tmp_path / "policy.c")
    assert not list(tmp_path.iterdir())


class Counting(Memory):
    """Its step asks for a number, which a trace takes for granted."""

    def __init__(self, input_size: int) -> None:
        super().__init__(input_size, output_size=input_size)

    def initial_state(self, batch_size: int) -> Any:
        return (torch.zeros(batch_size, 1),)

    def step(self, features: Any, state: Any, episode_starts: Any) -> Any:
        count = torch.where(episode_starts[:, None], 0.0, state[0]) + 1
        return features * (1.0 if float(count.sum()) == len(features) else -1.0), (count,)

    def unroll(self, features: Any, state: Any, episode_starts: Any) -> Any:
        outputs = []
        for x, starts in zip(features, episode_starts, strict=True):
            output, state = self.step(x, state, starts)
            outputs.append(output)
        return torch.stack(outputs)


@pytest.mark.parametrize("suffix", [".onnx", ".pt"])
def test_a_file_that_acts_otherwise_is_not_written(suffix: str, tmp_path: Path) -> None:
    model = agent(memory=Counting, memory_kwargs={})
    with pytest.raises(ExportError, match=r"differs from the agent by .*: nothing was written"):
        export(model, tmp_path / f"policy{suffix}")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = agent()
    with pytest.raises(ExportError, match=r"expected a name that ends in .onnx or .pt or .c, got .h5"):
        export(model, tmp_path / "policy.h5")
    (tmp_path / "there.onnx").write_text("mine")
    with pytest.raises(FileExistsError, match="is there already: remove it, or give another name"):
        export(model, tmp_path / "there.onnx")
    assert (tmp_path / "there.onnx").read_text() == "mine"
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ImportError, match=r"onnx is needed .*pip install .*\[onnx\]"):
        export(model, tmp_path / "policy.onnx")


class ByHand(torch.nn.Module):
    """What is traced as Stable-Baselines3's documentation exports a policy."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: Any, h: Any, c: Any, starts: Any) -> Any:
        return self.policy(observation, (h, c), starts, deterministic=True)[:3]


def test_a_policy_traced_by_hand_gives_its_own_numbers() -> None:
    model = agent(memory="lstm")
    state, starts = model.policy.initial_state(2), torch.zeros(2, dtype=torch.bool)
    observations = torch.randn(6, 2, 3)
    with torch.no_grad():
        traced: Any = torch.jit.trace(ByHand(model.policy), (observations[0], *state, starts), check_trace=False)
        for seen in observations:
            ours = model.policy(seen, state, starts, True)
            theirs = traced(seen, *state, starts)
            for one, other in zip(ours[:3], theirs, strict=True):
                assert torch.allclose(one.double(), other.double(), atol=1e-5)
            state = ours[3]
