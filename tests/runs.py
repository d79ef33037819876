"""Runs of a few updates, by train.py's command line, and what they leave."""

import csv
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agents.checkpoint import read_parameters

# Updates of 32 steps.
TINY = [
    *("--env.n-envs", "2", "--algorithm.n-steps", "16", "--policy.memory-kwargs", "hidden_size=4"),
    *("--total-timesteps", "128", "--no-progress", "--threads", "1"),
]
PPO = ["--algorithm.batch-size", "16", "--algorithm.n-epochs", "1"]
QUIET = ["--evaluation.every", "0", "--evaluation.final-episodes", "0", "--tracking.no-tensorboard"]
OWN = "tests.own_environments:"  # the module of the environments of a user's own


def rows_of(path: Path) -> list[dict[str, str]]:
    """A table without what is a matter of time."""
    with path.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def weights(path: Path) -> dict[str, Any]:
    parameters: dict[str, Any] = read_parameters(path)["policy"]
    return parameters


def started(act: Callable[[], int], stderr: int | None = None) -> Any:
    """A process forked from this one, which has imported everything already; ``act`` gives its exit code."""

    def run() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY) if stderr is None else stderr, 2)
        with open(2, "w", closefd=False) as sys.stderr:
            code = act()
        os._exit(code)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def in_a_child(act: Callable[[], int]) -> tuple[int, str]:
    """What is done there to the process stays there: its exit code, and what it printed as errors."""
    reading, writing = os.pipe()
    process = started(act, writing)
    os.close(writing)
    with open(reading) as errors:
        text = errors.read()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, text
