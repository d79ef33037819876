"""What is found about really trained agents is what their tasks need: all the way from train.py to evaluate.py."""

import json
from pathlib import Path
from typing import Any

import pytest

import evaluate
import train

pytest.importorskip("matplotlib")

QUIET = ["--threads", "1", "--no-progress", "--tracking.no-tensorboard", "--evaluation.final-episodes", "0"]


def trained(runs: Path, name: str, *words: str) -> Path:
    assert train.main([*QUIET, "--runs", str(runs), "--name", name, *words]) == 0
    return runs / name


def tmaze(runs: Path, length: int, *words: str) -> Path:
    """An LSTM that has learned a corridor of this length."""
    until_solved = ["--evaluation.stop-at-return", "0.99", "--evaluation.every", "2048", "--evaluation.episodes", "40"]
    return trained(runs, f"{length}", "--config", "tmaze", "--env.kwargs", f"length={length}", *until_solved, *words)


def found(run: Path, *words: str) -> list[dict[str, Any]]:
    assert evaluate.main([str(run), *words]) == 0
    paths = [*run.glob("evaluations/*-ablation.json"), *run.glob("insight/*-horizon.json")]
    return [json.loads(path.read_text()) for path in paths]


def returns_of(ablation: dict[str, Any]) -> dict[str, float]:
    return {each["name"]: each["mean"] for each in ablation["conditions"]}


def test_on_a_tmaze_the_return_falls_to_the_memoryless_one_and_the_sign_lies_within_the_horizon(
    tmp_path: Path,
) -> None:
    fast = ("--policy.memory-kwargs", "hidden_size=16", "--algorithm.learning-rate", "0.003")
    ablation, horizon = found(tmaze(tmp_path, 2, *fast), "--ablate", "--horizon", "--episodes", "100")
    returns = returns_of(ablation)
    assert returns["intact"] >= 0.99
    assert returns["wiped every step"] == pytest.approx(0.5, abs=0.15)
    assert returns["wiped every 2 steps"] == pytest.approx(0.5, abs=0.15)
    assert ablation["verdict"].startswith("the agent uses its memory: without it the return falls from 1.00 to 0.")
    assert horizon["horizon"] == 2


@pytest.mark.slow
def test_the_horizon_grows_with_the_corridor(tmp_path: Path) -> None:
    lengths = (5, 10, 20)
    horizons = [found(tmaze(tmp_path, length), "--horizon")[0]["horizon"] for length in lengths]
    for length, horizon in zip(lengths, horizons, strict=True):
        assert 0.8 * length <= horizon <= length


@pytest.mark.slow
def test_without_a_memory_where_none_is_needed_nothing_falls(tmp_path: Path) -> None:
    until_solved = ["--evaluation.stop-at-return", "475", "--total-timesteps", "150_000"]
    run = trained(tmp_path, "none", "--env.id", "CartPole-v1", "--policy.memory", "none", *until_solved)
    ablation, horizon = found(run, "--ablate", "--horizon")
    assert ablation["fall"] == 0.0
    assert "there is nothing to ablate" in ablation["verdict"]
    assert ablation["conditions"][0]["mean"] >= 450
    assert horizon["horizon"] == 0
