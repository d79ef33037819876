"""Runs of two processes that train together: one directory, resumed bit for bit, ended together."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import train
from agents.checkpoint import SavedAgent
from tests.agents.runs.in_processes import WORDS
from tests.processes import ROOT, ended, started
from tests.runs import rows_of, weights


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    results = ended(started(["-m", "tests.agents.runs.in_processes", str(folder)]))
    assert [code for code, _, _ in results] == [0, 0], results
    return folder


def said(runs: Path, what: str) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each process."""
    return [tuple(json.loads((runs / f"{rank}.json").read_text())[what]) for rank in range(2)]


def counters(file: Path) -> dict[str, Any]:
    saved: Any = SavedAgent(file)
    return {**saved.section("counters"), "_num_timesteps_at_start": None}


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_process_0_alone_prints_and_writes(runs: Path) -> None:
    (code, out, _), (other_code, other_out, other_errors) = said(runs, "complete")
    assert (code, other_code) == (0, 0)
    assert "The run is in" in out
    assert (other_out, other_errors) == ("", "")
    assert rows_of(runs / "complete" / "metrics.csv")[-1]["step"] == "256"
    assert len(rows_of(runs / "complete" / "evaluations.csv")) == 2


def test_a_run_that_goes_on_equals_one_that_was_never_stopped(runs: Path) -> None:
    assert [code for code, _, _ in said(runs, "resumed")] == [0, 0]
    assert "not exactly" not in said(runs, "resumed")[0][2]
    files = [runs / name / "checkpoints" / f"step_{256:012d}.zip" for name in ("complete", "half")]
    assert_same_weights(*files)
    assert counters(files[0]) == {**counters(files[1]), "_total_timesteps": 256}
    for table in ("metrics.csv", "evaluations.csv"):
        assert rows_of(runs / "complete" / table) == rows_of(runs / "half" / table)


def test_a_signal_to_one_process_ends_all_after_the_same_update(runs: Path) -> None:
    (code, _, errors), (other_code, _, other_errors) = said(runs, "stopped")
    assert (code, other_code) == (128 + signal.SIGTERM, 128 + signal.SIGTERM)
    assert errors.splitlines()[-1].startswith("stopped by SIGTERM; saved ")
    assert other_errors == ""
    assert (runs / "stopped" / "checkpoints" / f"step_{128:012d}.zip").exists()


def test_a_number_that_is_not_finite_in_one_process_ends_all_with_a_checkpoint(runs: Path) -> None:
    (code, _, errors), (other_code, _, other_errors) = said(runs, "failed")
    assert (code, other_code) == (6, 4)
    assert "error: training: process 1 of 2: FloatingPointError: the reward of environment" in errors
    assert "saved the agent from before the fault" in errors
    assert other_errors == ""
    assert (runs / "failed" / "checkpoints" / f"step_{64:012d}.zip").exists()


def test_environments_that_cannot_be_divided_are_refused_before_anything_is_made(runs: Path) -> None:
    (code, _, errors), (other_code, *_) = said(runs, "odd")
    assert (code, other_code) == (2, 2)
    assert "n_envs (3) must be a multiple of the 2 processes that share it; use 2 or 4" in errors
    assert not (runs / "odd").exists()


def test_another_number_of_processes_begins_new_episodes_and_says_so(
    runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*WORDS, "--resume", str(runs / "half"), "--total-timesteps", "320"]) == 0
    assert "the checkpoint is of 2 process(es), and here are 1: new episodes begin" in capfd.readouterr().err
    assert (runs / "half" / "checkpoints" / f"step_{320:012d}.zip").exists()


@pytest.mark.slow
def test_ten_kills_of_a_random_process_lose_nothing(tmp_path: Path) -> None:
    steps, rng = 40_000, random.Random(0)
    words = [*WORDS, "--total-timesteps", str(steps), "--runs", str(tmp_path), "--evaluation.every", "10000"]
    words += ["--checkpoint.every", "1000"]
    assert torchrun(*words, "--name", "complete").wait() == 0
    last = tmp_path / "killed" / "checkpoints" / f"step_{steps:012d}.zip"
    process, metrics = torchrun(*words, "--name", "killed"), tmp_path / "killed" / "metrics.csv"
    for kill in range(10):
        until = (kill + 1) * steps / 12
        while process.poll() is None and reached(metrics) < until:
            time.sleep(0.02)
        assert process.poll() is None, f"it ended at kill {kill}"
        os.kill(rng.choice(workers(process)), signal.SIGKILL)
        assert process.wait(timeout=60) != 0
        assert not last.exists()
        process = torchrun(*words, "--resume", str(tmp_path / "killed"))
    assert process.wait() == 0
    assert_same_weights(last, tmp_path / "complete" / "checkpoints" / last.name)


def torchrun(*words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, str(ROOT / "train.py"), *words], env=environment)


def reached(metrics: Path) -> float:
    rows = rows_of(metrics) if metrics.exists() else []
    return max((float(row["step"]) for row in rows if row.get("step")), default=0)


def workers(process: subprocess.Popen[bytes]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(each) for each in children.split() if "train.py" in Path(f"/proc/{each}/cmdline").read_text()]
