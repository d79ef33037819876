"""An exported file is played with onnxruntime and NumPy alone, and acts as its agent does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents import Player
from agents.checkpoint import CheckpointError
from agents.deploy import export, exports
from recurl import play
from recurl.play import ExportedPolicy, ExportedPolicyError
from tests.agents.deploy.test_export import ACTIONS, OBSERVATIONS, agent

ROOT = Path(__file__).parents[3]
ALONE = """
import importlib.abc, json, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "stable_baselines3", "sb3_contrib", "gymnasium", "agents", "onnx"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
import numpy as np
from recurl.play import ExportedPolicy

policy, rng = ExportedPolicy(sys.argv[1]), np.random.default_rng(0)
print(json.dumps([policy.act(rng.normal(size=(2, 3)), np.ones(2)).tolist() for _ in range(4)]))
"""


def exported(tmp_path: Path, *, sample: bool = False, **made: Any) -> tuple[Player, Path]:
    model = agent(**made)
    written = export(model, tmp_path / "policy.onnx", sample=sample)
    return Player.of(model), written.path


@pytest.fixture(scope="module")
def lstm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exports, "DRAWN", {2: 4})
        yield exported(tmp_path_factory.mktemp("lstm"), inputs=True, normalize=True, action=ACTIONS["numbers"])


def test_a_file_is_played_where_torch_cannot_be_imported(lstm: Any) -> None:
    player, path = lstm
    done = subprocess.run([sys.executable, "-c", ALONE, path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rng = np.random.default_rng(0)
    player.reset()
    expected = [player.act(rng.normal(size=(2, 3)), np.ones(2)) for _ in range(4)]
    assert np.allclose(json.loads(done.stdout), expected, atol=1e-5)


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_it_acts_as_the_agents_player_whatever_it_sees_resets_included(
    observation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "DRAWN", {2: 2})
    player, path = exported(tmp_path, observation=OBSERVATIONS[observation], memory="gru")
    policy, space = ExportedPolicy(path), player.observation_space
    space.seed(0)
    for step in range(6):
        if step == 3:
            policy.reset()
            player.reset()
        seen = space.sample()
        if step % 2 and isinstance(seen, dict):  # as the environment gives it
            seen["image"] = np.moveaxis(seen["image"], 0, -1)
        assert np.array_equal(policy.act(seen), player.act(seen))


def test_predict_hands_the_state_out_and_takes_it_back(lstm: Any) -> None:
    player, path = lstm
    policy, rng = ExportedPolicy(path), np.random.default_rng(1)
    player.reset()
    state, starts = None, np.ones(2, dtype=bool)
    for step in range(6):
        seen, rewards = rng.normal(size=(2, 3)), rng.normal(size=2)
        player.reset(starts)
        action, state = policy.predict(seen, state, starts, reward=rewards)
        assert np.allclose(action, player.act(seen, rewards), atol=1e-5)
        starts = np.array([step == 2, False])
    again, _ = policy.predict(seen, policy.initial_state(2), np.ones(2, dtype=bool), reward=rewards)
    assert np.allclose(again, policy.predict(seen)[0])


def test_a_file_that_draws_draws_anew_at_every_step_and_repeats_by_its_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "DRAWN", {2: 2})
    _, path = exported(tmp_path, action=ACTIONS["numbers"], memory="none", sample=True)
    first, again, other = (ExportedPolicy(path, seed=seed) for seed in (0, 0, 1))
    drawn = [first.act(np.zeros(3, np.float32)) for _ in range(3)]
    assert len({tuple(each) for each in drawn}) == 3
    assert np.array_equal(drawn[0], again.act(np.zeros(3)))
    assert not np.array_equal(drawn[0], other.act(np.zeros(3)))
    with pytest.raises(ExportedPolicyError, match="samples its actions; export it without --with-sampling"):
        first.predict(np.zeros(3), deterministic=True)


def test_what_it_does_not_take_is_refused_in_one_sentence_with_its_cure(lstm: Any) -> None:
    policy = ExportedPolicy(lstm[1])
    with pytest.raises(ExportedPolicyError, match=r"observation has shape \(4,\), expected \(3,\) for one agent, or"):
        policy.act(np.zeros(4))
    with pytest.raises(ExportedPolicyError, match="observation is not finite"):
        policy.act(np.full(3, np.nan))
    with pytest.raises(ExportedPolicyError, match="deterministic actions; export it with --with-sampling"):
        policy.predict(np.zeros(3), deterministic=False)
    policy.act(np.zeros(3))
    with pytest.raises(ExportedPolicyError, match=r"sees the reward of its last action too: expected act\("):
        policy.act(np.zeros(3))
    with pytest.raises(ExportedPolicyError, match=r"memory of one agent, .* a batch of 2; call reset\(\)"):
        policy.act(np.zeros((2, 3)), np.zeros(2))
    _, state = policy.predict(np.zeros(3))
    with pytest.raises(ExportedPolicyError, match=r"state has parts .*: hand in what the last call returned"):
        policy.predict(np.zeros((2, 3)), state, reward=np.zeros(2))


def test_files_it_cannot_play_are_named_with_what_to_do(
    lstm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(lstm[1])
    for entry in model.metadata_props:
        if entry.key == "recurl.format":
            entry.value = "99"
    onnx.save(model, tmp_path / "newer.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    (tmp_path / "broken.onnx").write_text("no model")
    with pytest.raises(ExportedPolicyError, match=r"of format 99 .* plays format 1: export it again"):
        ExportedPolicy(tmp_path / "newer.onnx")
    with pytest.raises(ExportedPolicyError, match="an ONNX model that RecuRL did not write: write one with"):
        ExportedPolicy(tmp_path / "foreign.onnx")
    with pytest.raises(ExportedPolicyError, match=r"no ONNX model, .*: write it again with"):
        ExportedPolicy(tmp_path / "broken.onnx")
    with pytest.raises(ExportedPolicyError, match=r"expected an exported policy.onnx, got .pt: torch.jit.load"):
        ExportedPolicy(tmp_path / "policy.pt")
    with pytest.raises(FileNotFoundError, match=r"no file .*: write one with evaluate.py RUN --export"):
        ExportedPolicy(tmp_path / "none.onnx")
    with pytest.raises(CheckpointError, match=r"an exported policy, not a saved agent: recurl.play.ExportedPolicy"):
        Player.load(lstm[1])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"needs onnxruntime: pip install onnxruntime"):
        ExportedPolicy(lstm[1])


def test_the_format_that_is_written_is_the_one_that_is_played() -> None:
    assert play.FORMAT == exports.FORMAT
