"""Runs trained at once are those trained alone; what has ended is not repeated, what was interrupted goes on."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

import train
from agents.runs.directory import RunDirectory
from tests.runs import OWN, PPO, TINY, started, weights

WORDS = [
    *(*TINY, *PPO, "--evaluation.every", "64", "--evaluation.episodes", "2", "--evaluation.final-episodes", "2"),
    "--tracking.no-tensorboard",
]


def seeds(runs: Path, *words: str) -> int:
    return train.main([*WORDS, "--runs", str(runs), "--name", "group", *words])


def last(run: Path) -> Path:
    return RunDirectory(run).checkpoints()[-1][1]


def test_seeds_at_once_are_the_runs_of_seeds_in_order_and_are_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert seeds(tmp_path / "one", "--seeds", "2") == 0
    assert seeds(tmp_path / "two", "--seeds", "2", "--parallel", "2") == 0
    table = capsys.readouterr().out
    assert "The last policies, deterministic actions" in table
    assert "2 seeds" in table
    for seed in (0, 1):
        one, two = (weights(last(tmp_path / folder / f"group-{seed}")) for folder in ("one", "two"))
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert "mean return" in (tmp_path / "two" / "group-0" / "output.txt").read_text()
    before = last(tmp_path / "two" / "group-1").stat().st_mtime_ns
    for words in (["--parallel", "2"], []):
        assert seeds(tmp_path / "two", "--seeds", "2", *words) == 0
        assert capsys.readouterr().out.count("has ended: it is not repeated") == 2
    assert last(tmp_path / "two" / "group-1").stat().st_mtime_ns == before
    assert seeds(tmp_path / "two", "--seeds", "2", "--algorithm.gamma", "0.5") == 2
    assert "algorithm.gamma is 0.5, but the run was made with 0.99" in capsys.readouterr().err


def test_a_seed_that_fails_is_told_with_its_error_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "group-0").mkdir()
    words = ["--seeds", "2", "--parallel", "2", "--env.id", f"{OWN}Frail-v0", "--env.kwargs", "surprise=2"]
    assert seeds(tmp_path, *words) != 0
    errors = capsys.readouterr().err
    assert "seed 0 failed: runs: " in errors
    assert "seed 1 failed: environment tests.own_environments:Frail-v0: " in errors
    assert "output.txt" in errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_seeds_that_are_interrupted_end_save_and_go_on(number: int, tmp_path: Path) -> None:
    words = ["--seeds", "2", "--parallel", "2", "--total-timesteps", "20000"]
    process = started(lambda: seeds(tmp_path, *words))
    paths = [tmp_path / f"group-{seed}" for seed in (0, 1)]
    while not all((path / "metrics.csv").exists() for path in paths):
        assert process.is_alive()
        time.sleep(0.1)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == (130 if number == signal.SIGINT else -9)
    while any(RunDirectory(path).state(train.configs.read(path / "settings.yaml")) == "training" for path in paths):
        time.sleep(0.1)
    steps = [RunDirectory(path).checkpoints()[-1][0] for path in paths]
    assert all(0 < step < 20000 for step in steps)
    assert seeds(tmp_path, *words) == 0
    for path, step in zip(paths, steps, strict=True):
        assert f"resuming from {path / 'checkpoints'}" in (path / "output.txt").read_text()
        assert RunDirectory(path).checkpoints()[-1][0] >= 20000 > step


@pytest.mark.slow
def test_seeds_on_ray_are_those_trained_here(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    assert seeds(tmp_path / "here", "--seeds", "2") == 0
    assert seeds(tmp_path / "ray", "--seeds", "2", "--parallel", "2", "--ray", "local") == 0
    for seed in (0, 1):
        here, there = (weights(last(tmp_path / folder / f"group-{seed}")) for folder in ("here", "ray"))
        assert all(torch.equal(here[name], there[name]) for name in here)
    assert "mean return" in (tmp_path / "ray" / "group-1" / "output.txt").read_text()


def test_ray_that_is_missing_or_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert seeds(tmp_path, "--seeds", "2", "--ray", "local") == 2
    error = capsys.readouterr().err
    assert "ray is needed" in error
    assert "[ray]" in error
    assert list(tmp_path.iterdir()) == []
    assert train.main([*WORDS, "--ray", "local"]) == 2
    assert "--parallel and --ray go with several runs" in capsys.readouterr().err
