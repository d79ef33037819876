"""Between two updates, and only there, a run stops, saves, evaluates and is shown."""

import io
import re
import signal
import threading
import time
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
    Interrupted,
    Interruption,
    PeriodicEvaluation,
    ProgressDisplay,
)
from agents.runs.construction import EvaluationEnvironments
from agents.runs.directory import RunDirectory, write_table
from agents.runs.training import Training
from configs import Settings
from configs.settings import EvaluationSettings, TrackingSettings
from envs import make
from tests.runs import rows_of


@pytest.fixture
def agent() -> RecurrentPPO:
    policy = dict(memory="lstm", memory_kwargs=dict(hidden_size=4))
    env = make("CartPoleNoVel-v1", 2)
    return RecurrentPPO(
        "RecurrentPolicy", env, n_steps=16, batch_size=16, n_epochs=1, policy_kwargs=policy, seed=0, device="cpu"
    )


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


def test_a_signal_ends_training_on_a_whole_update(agent: RecurrentPPO) -> None:
    interruption = Interruption()

    def train() -> None:
        with interruption.listening():
            signal.raise_signal(signal.SIGTERM)
            agent.learn(10_000, interruption)

    with pytest.raises(Interrupted) as caught:
        train()
    assert (agent.num_timesteps, caught.value.exit_code) == (0, 143)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_where_no_update_ends_in_time_the_signal_ends_it_at_once() -> None:
    interruption = Interruption(grace=0.05)

    def wait() -> None:
        with interruption.listening():
            signal.raise_signal(signal.SIGINT)
            time.sleep(600)

    with pytest.raises(Interrupted, match="SIGINT"):
        wait()


def test_what_is_protected_ends_before_a_second_signal_counts_and_what_can_be_broken_in_it_does_not() -> None:
    interruption, done = Interruption(), []

    def save() -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        done.append("saved")
        with pytest.raises(Interrupted, match="SIGTERM; saved here"):
            interruption.breakable(lambda: signal.raise_signal(signal.SIGINT))
        done.append("went on")

    interruption.saved = "here"
    with pytest.raises(Interrupted) as caught, interruption.listening():
        interruption.protected(save)
    assert (done, caught.value.exit_code) == (["saved", "went on"], 143)


def test_what_fails_after_a_signal_is_the_interruption() -> None:
    def fail() -> None:
        with Interruption().listening():
            signal.raise_signal(signal.SIGINT)
            raise EOFError("a worker is gone")

    with pytest.raises(Interrupted):
        fail()


def test_signals_outside_the_main_thread_and_the_timer_of_others_are_left_alone() -> None:
    before, timer = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)

    def listen() -> None:
        with Interruption().listening():
            seen.append(signal.getsignal(signal.SIGINT))

    seen: list[Any] = []
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [before]
    with Interruption().listening():
        assert signal.getsignal(signal.SIGALRM) is timer
    assert signal.getsignal(signal.SIGALRM) is timer


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
