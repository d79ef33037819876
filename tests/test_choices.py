"""Every memory and every encoder is one word on the command line, over the settings files of the package."""

from pathlib import Path

import pytest

import train
from agents.encoders import ENCODERS
from agents.memory import MEMORIES
from tests.pairs import each
from tests.runs import OWN, QUIET, weights

FEW = [
    *("--env.n-envs", "2", "--algorithm.n-steps", "8", "--algorithm.batch-size", "8", "--algorithm.n-epochs", "1"),
    *(*QUIET, "--checkpoint.every", "0", "--total-timesteps", "32", "--no-progress", "--threads", "1"),
]
# Continuous actions with noise that depends on the state, and masked ones about the nodes of a graph.
FILES = ["pendulum_novel", "graph_search"]
PICTURES = ["--env.id", f"{OWN}Shown-v0", "--env.kwargs", "seen=picture", "done=choice"]
HISTORY = ["--env.wrappers", "{history: {length: 4, mask: true}}"]
SEEN_BY: dict[str, list[str]] = {
    "flatten": ["--config", "tmaze"],
    "combined": ["--config", "graph_search"],
    "nature_cnn": [*PICTURES],
    "impala": [*PICTURES],
    "image": [*PICTURES],
    **{
        encoder: ["--env.id", f"{OWN}Shown-v0", "--env.kwargs", f"seen={seen}", "done=choice"]
        for encoder, seen in (("scaled", "bytes"), ("embedding", "choices"), ("text", "text"))
    },
    "graph": ["--config", "graph_search"],
    **{name: ["--config", "tmaze", *HISTORY] for name in ("sequence", "attention", "transformer", "seq2seq")},
}


def train_a_little(words: list[str], runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of a few steps, whose parameters are finite."""
    assert train.main([*words, *FEW, "--runs", str(runs), "--name", "run"]) == 0, capsys.readouterr().err
    parameters = weights(runs / "run" / "checkpoints" / "step_000000000032.zip")
    assert all(part.isfinite().all() for part in parameters.values())


@pytest.mark.parametrize(("memory", "file"), each(MEMORIES, FILES))
def test_a_memory_is_one_word_over_any_settings_file(
    memory: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_a_little(["--config", file, "--policy.memory", memory], tmp_path, capsys)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_encoder_is_one_word_over_observations_that_it_reads(
    encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_a_little([*SEEN_BY[encoder], "--policy.encoder", encoder], tmp_path, capsys)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_memory_goes_with_pictures(memory: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_a_little([*SEEN_BY["impala"], "--policy.encoder", "impala", "--policy.memory", memory], tmp_path, capsys)
