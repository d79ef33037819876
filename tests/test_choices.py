"""Every memory and every encoder is one word on the command line, over the settings files of the package."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import train
from agents.checkpoint import read_parameters
from agents.encoders import ENCODERS
from agents.memory import MEMORIES
from tests.pairs import each

FEW = [
    *("--env.n-envs", "2", "--algorithm.n-steps", "8", "--algorithm.batch-size", "8", "--algorithm.n-epochs", "1"),
    *("--evaluation.every", "0", "--evaluation.final-episodes", "0", "--checkpoint.every", "0"),
    *("--total-timesteps", "32", "--no-progress", "--tracking.no-tensorboard", "--threads", "1"),
]
# Continuous actions with noise that depends on the state, and masked ones about the nodes of a graph.
FILES = ["pendulum_novel", "graph_search"]
HISTORY = ["--env.wrappers", "{history: {length: 4, mask: true}}"]
SEEN_BY: dict[str, list[str]] = {
    "flatten": ["--config", "tmaze"],
    "combined": ["--config", "graph_search"],
    "nature_cnn": ["--env.id", "Pictures-v0"],
    "impala": ["--env.id", "Pictures-v0"],
    "graph": ["--config", "graph_search"],
    **{name: ["--config", "tmaze", *HISTORY] for name in ("sequence", "attention", "transformer", "seq2seq")},
}


class Pictures(gymnasium.Env[Any, Any]):
    """A picture of noise at every step of an episode of five."""

    observation_space = gymnasium.spaces.Box(0, 255, (36, 36, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.picture(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.picture(), float(action), self.t == 5, False, {}

    def picture(self) -> Any:
        return self.np_random.integers(0, 256, self.observation_space.shape, dtype=np.uint8)


@pytest.fixture(autouse=True)
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = gymnasium.envs.registration.EnvSpec("Pictures-v0", entry_point=f"{__name__}:Pictures")
    monkeypatch.setitem(gymnasium.registry, "Pictures-v0", spec)


def trained(words: list[str], runs: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The parameters of a run of a few steps."""
    assert train.main([*words, *FEW, "--runs", str(runs), "--name", "run"]) == 0, capsys.readouterr().err
    parameters: dict[str, Any] = read_parameters(runs / "run" / "checkpoints" / "step_000000000032.zip")["policy"]
    assert all(bool(part.isfinite().all()) for part in parameters.values())
    return parameters


@pytest.mark.parametrize(("memory", "file"), each(MEMORIES, FILES))
def test_a_memory_is_one_word_over_any_settings_file(
    memory: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(["--config", file, "--policy.memory", memory], tmp_path, capsys)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_encoder_is_one_word_beside_observations_that_it_reads(
    encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained([*SEEN_BY[encoder], "--policy.encoder", encoder], tmp_path, capsys)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_memory_goes_with_pictures(memory: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained([*SEEN_BY["impala"], "--policy.encoder", "impala", "--policy.memory", memory], tmp_path, capsys)
