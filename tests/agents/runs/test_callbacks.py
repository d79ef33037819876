"""Between two updates, and only there, a run stops, saves, evaluates and is shown."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from stable_baselines3.common.callbacks import CallbackList

from agents import RecurrentPPO
from agents.runs.callbacks import (
    Checkpoints,
    FiniteWeights,
    PeriodicEvaluation,
    ProgressDisplay,
)
from agents.runs.construction import EvaluationEnvironments
from agents.runs.directory import RunDirectory, write_table
from agents.runs.interruption import Interruption
from agents.runs.training import Training
from configs import Settings
from configs.settings import EvaluationSettings, TrackingSettings
from envs import make
from tests.runs import rows_of


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def evaluation(
    run: RunDirectory, report: Callable[[str], None] = lambda line: None, **settings: Any
) -> PeriodicEvaluation:
    chosen = EvaluationSettings(**{"every": 64, "episodes": 2, **settings})
    environments = EvaluationEnvironments(lambda n: make("CartPoleNoVel-v1", n), 2)
    return PeriodicEvaluation(run, environments, chosen, seed=0, report=report)


def test_checkpoints_are_saved_on_whole_updates_and_the_latest_kept(agent: RecurrentPPO, run: RunDirectory) -> None:
    # Rollouts of 32 steps: the first boundaries after 50, 100, 150, 200 are 64, 128, 160, 224.
    agent.learn(256, Checkpoints(run, every=50, keep=3))
    assert [step for step, _ in run.checkpoints()] == [160, 224, 256]


def test_without_an_interval_only_the_last_is_saved(agent: RecurrentPPO, run: RunDirectory) -> None:
    agent.learn(96, Checkpoints(run, every=0, keep=3))
    assert [step for step, _ in run.checkpoints()] == [96]


def test_evaluations_come_at_their_steps_and_after_the_last_update(agent: RecurrentPPO, run: RunDirectory) -> None:
    lines: list[str] = []
    agent.learn(160, evaluation(run, report=lines.append))
    assert [line.split(":")[0] for line in lines] == ["step 64", "step 128", "step 160"]
    assert [row["step"] for row in rows_of(run.evaluations)] == ["64", "128", "160"]
    assert run.best.is_file()


def test_the_best_is_kept_and_a_worse_one_is_not(agent: RecurrentPPO, run: RunDirectory) -> None:
    agent.learn(32, evaluation(run, every=32))
    best, (row,) = run.best.read_bytes(), rows_of(run.evaluations)
    write_table(run.evaluations, list(row), [{**row, "mean_reward": "1e9"}])
    agent.learn(32, evaluation(run, every=32), reset_num_timesteps=False)
    assert run.best.read_bytes() == best


def test_weights_that_are_not_finite_end_training_before_anything_is_saved(
    agent: RecurrentPPO, run: RunDirectory
) -> None:
    agent.learn(32)
    with torch.no_grad():
        next(agent.policy.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="are not finite"):
        agent.learn(32, [FiniteWeights(), Checkpoints(run, every=1, keep=1)], reset_num_timesteps=False)
    assert run.checkpoints() == []


def display(total: int, *, terminal: bool, seconds: float = 0.0) -> tuple[ProgressDisplay, io.StringIO]:
    progress, text = ProgressDisplay(total, seconds=seconds), io.StringIO()
    progress._console = Console(file=text, force_terminal=terminal, width=120)
    return progress, text


def test_without_a_terminal_there_are_plain_lines_of_the_steps_that_a_run_went_on_by(
    agent: RecurrentPPO,
) -> None:
    progress, text = display(320, terminal=False)
    agent.num_timesteps = 32
    with progress.displayed():
        agent.learn(264, progress, reset_num_timesteps=False)  # to the end of a full rollout
    first, *_, middle, last = text.getvalue().splitlines()
    assert first.startswith("32 of 320 steps, 0 a second, - left")
    assert re.fullmatch(r"288 of 320 steps, [\d,]+ a second, \d+:\d\d:\d\d left, return \d+\.\d\d", middle)
    assert last.startswith("320 of 320 steps, ")
    assert "\x1b" not in text.getvalue()


@pytest.mark.parametrize("width", [120, 50])
def test_on_a_terminal_there_is_a_bar_and_on_a_narrow_one_every_figure(agent: RecurrentPPO, width: int) -> None:
    progress, text = display(320, terminal=True)
    progress._console.width = width
    with progress.displayed():
        agent.learn(320, progress)
        progress.report("something happened")
    seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
    assert {"320", "steps", "second", "left", "return", "something"} <= set(seen.replace(",", "").split())
    assert ("━" in seen, "…" in seen) == (width == 120, False)


def test_progress_can_be_silent(agent: RecurrentPPO, capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressDisplay(64, shown=False)
    with progress.displayed():
        agent.learn(64, progress)
        progress.report("nothing")
    assert capsys.readouterr() == ("", "")


def test_no_callback_of_a_run_needs_a_step(run: RunDirectory) -> None:
    callbacks = [FiniteWeights(), Interruption(), ProgressDisplay(1), evaluation(run), Checkpoints(run, 1, 1)]
    assert not any(callback.needs_steps for callback in callbacks)
    assert CallbackList(list(callbacks)).callbacks == callbacks


def test_the_figures_of_the_last_update_are_written(agent: RecurrentPPO, run: RunDirectory) -> None:
    settings = Settings(
        total_timesteps=64,
        evaluation=EvaluationSettings(every=0),
        tracking=TrackingSettings(tensorboard=False),
        progress=False,
    )
    Training(agent, make("CartPoleNoVel-v1", 1), run, settings, Interruption()).run()
    assert [row["train/n_updates"] for row in rows_of(run.metrics)] == ["", "1", "2"]
