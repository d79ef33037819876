"""An encoder is one word on the command line."""

from pathlib import Path

import pytest

import evaluate
import train

from .observations import Case

TINY = [
    *(
        "--env.id",
        "RepeatPrevious-v0",
        "--env.n-envs",
        "2",
        "--algorithm.n-steps",
        "16",
        "--algorithm.batch-size",
        "16",
    ),
    *("--algorithm.n-epochs", "1", "--policy.memory", "none", "--evaluation.every", "0"),
    *("--evaluation.episodes", "1", "--total-timesteps", "32", "--no-progress", "--tracking.no-tensorboard"),
]
HISTORY = ["--env.wrappers", "{history: {length: 4, mask: true}}"]
CASES = [
    Case("sequence", {"cell": "lstm", "hidden_size": 8, "bidirectional": True}),
    Case("attention", {"score": "additive", "hidden_size": 8}),
    Case("transformer", {"width": 8, "heads": 2, "causal": True}),
]


@pytest.mark.parametrize("backend", ["vector", "serial"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_run_with_an_encoder_is_trained_and_evaluated(
    case: Case, backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--policy.encoder-kwargs", *(f"{name}={str(value).lower()}" for name, value in case.kwargs.items())]
    chosen = ["--policy.encoder", case.name, *given, "--env.backend", backend, "--evaluation.final-episodes", "0"]
    run = ["--runs", str(tmp_path), "--name", "run"]
    assert train.main([*TINY, *HISTORY, *chosen, *run]) == 0, capsys.readouterr().err
    assert evaluate.main([str(tmp_path / "run"), "--episodes", "1"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_run_without_a_window_is_told_how_to_have_one(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*TINY, "--policy.encoder", case.name, "--runs", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "reads a window" in told
    assert HISTORY[0] in told
    assert "Traceback" not in told
