"""Runs by train.py's command line in each of two processes that train together: see ``test_processes.py``.

RANK=0 WORLD_SIZE=2 ... python in_processes.py FOLDER
"""

import contextlib
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import gymnasium

import train
from agents.distributed import group

WORDS = [
    *("--env.n-envs", "4", "--algorithm.n-steps", "16", "--policy.memory-kwargs", "hidden_size=4"),
    *("--algorithm.batch-size", "32", "--algorithm.n-epochs", "1", "--no-progress", "--threads", "1"),
    *("--evaluation.every", "128", "--evaluation.episodes", "2", "--evaluation.final-episodes", "0"),
    *("--tracking.no-tensorboard", "--checkpoint.every", "64", "--algorithm.learning-rate-schedule", "constant"),
    *("--algorithm.ent-coef-schedule", "constant"),
]


class Stops(gymnasium.Wrapper[Any, Any, Any, Any]):
    """SIGTERM comes to the second process alone, in its 40th step."""

    steps = 0

    def step(self, action: Any) -> Any:
        Stops.steps += 1
        if Stops.steps == 40 and group.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step(action)


class NotFinite(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A reward of the second process is not finite."""

    steps = 0

    def step(self, action: Any) -> Any:
        NotFinite.steps += 1
        observation, reward, *more = super().step(action)
        return observation, float("nan") if NotFinite.steps == 40 and group.rank() == 1 else reward, *more


def run(*words: str) -> tuple[int, str, str]:
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = train.main([*WORDS, *words])
    return code, out.getvalue(), errors.getvalue()


def main(folder: Path) -> None:
    runs = ("--runs", str(folder))
    wrapped = ("--env.id", "CartPole-v1", "--env.backend", "serial", "--total-timesteps", "1000")
    found = {
        "complete": run(*runs, "--name", "complete", "--total-timesteps", "256"),
        "half": run(*runs, "--name", "half", "--total-timesteps", "128"),
        "resumed": run("--resume", str(folder / "half"), "--total-timesteps", "256"),
        "stopped": run(*runs, "--name", "stopped", *wrapped, "--env.wrappers", f"{__spec__.name}:Stops"),
        "odd": run(*runs, "--name", "odd", "--env.n-envs", "3"),
        "failed": run(*runs, "--name", "failed", *wrapped, "--env.wrappers", f"{__spec__.name}:NotFinite"),
    }
    (folder / f"{group.rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
