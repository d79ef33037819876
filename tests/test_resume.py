"""A run that was stopped, wherever and however, goes on as if it had not been."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from agents.checkpoint import normalizer_state, read_parameters
from agents.checkpoint.container import read_archive
from agents.kernels.binding import BUILDS
from agents.runs.directory import RunDirectory
from agents.runs.resuming import change_of_schedules
from agents.runs.tracking import TensorBoardWriter
from configs import Settings
from configs.settings import AlgorithmSettings
from tests.runs import OWN, in_a_child, rows_of, started
from tests.runs import TINY as UPDATES

# A checkpoint after each update: 0, 32, ..., 128.
TINY = [
    *(*UPDATES, "--checkpoint.every", "32", "--checkpoint.keep", "100", "--tracking.no-tensorboard", "--seed", "5"),
    *("--evaluation.every", "64", "--evaluation.episodes", "2", "--evaluation.final-episodes", "0"),
]
PPO = ["--algorithm.batch-size", "16", "--algorithm.n-epochs", "2"]
WALK = ["--env.id", f"{OWN}Walk-v0"]
FRAIL = ["--env.id", f"{OWN}Frail-v0"]
SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
CONSTANT = ["--algorithm.learning-rate-schedule", "constant", "--algorithm.ent-coef-schedule", "constant"]
EVERY_TRANSFORM = [
    "--env.wrappers",
    *("{flicker: {probability: 0.3}}", "{noise: {std: 0.1}}", "{delay: {steps: 2}}"),
    *("previous_action_reward", "{history: {length: 3}}"),
]


def trained(root: Path, words: list[str], name: str = "full") -> RunDirectory:
    assert train.main([*TINY, *words, "--runs", str(root), "--name", name]) == 0
    return RunDirectory(root / name)


def stopped(full: RunDirectory, step: int, name: str = "stopped") -> RunDirectory:
    """What a run leaves that is killed long after its checkpoint of this step, and before the next."""
    run = RunDirectory(full.path.with_name(name))
    shutil.copytree(full.path, run.path)
    for saved_at, path in run.checkpoints():
        if saved_at > step:
            path.unlink()
    return run


def assert_equal_runs(one: RunDirectory, other: RunDirectory, step: int = 128) -> None:
    """To the last bit: all that a checkpoint holds, and every figure on the way."""
    assert_equal(*(saved(run, step) for run in (one, other)))
    for name in ("metrics.csv", "evaluations.csv"):
        assert rows_of(one.path / name) == rows_of(other.path / name)


def saved(run: RunDirectory, step: int) -> list[Any]:
    """The data and tensors of a checkpoint, without what is a matter of time, and where its process went on from."""
    data, tensors = read_archive(run.checkpoint(step))
    del data["counters"]["_num_timesteps_at_start"]
    for episode in data["statistics"]["ep_info_buffer"]:
        del episode["t"]
    return [data, tensors]


def learned(run: RunDirectory, step: int) -> list[Any]:
    """Weights, and the optimizer's state of each."""
    parameters = read_parameters(run.checkpoint(step))
    return [parameters["policy"], parameters["policy.optimizer"]["state"]]


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (ours, theirs) in enumerate(zip(one, other, strict=True)):
            assert_equal(ours, theirs, f"{where}/{i}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


CASES = {
    "vector": ["--env.id", "CartPoleNoVel-v1"],
    "vector with every transform": [
        *("--env.id", "PendulumNoVel-v1", "--env.kwargs", "max_episode_steps=25", *EVERY_TRANSFORM),
    ],
    "vector of graphs": ["--env.id", "GraphSearch-v0", "--policy.encoder", "graph"],
    "vector of sequences, no normaliser": [
        *("--env.id", "PhaseForecast-v0"),
        *("--env.no-normalize-observations", "--env.no-normalize-rewards"),
    ],
    "serial": ["--env.id", "CartPole-v1"],
    "serial with every transform": ["--env.id", "TMaze-v0", "--env.backend", "serial", *EVERY_TRANSFORM],
    "serial with wrappers inside and around": [
        *("--env.id", "Acrobot-v1", "--env.kwargs", "max_episode_steps=30"),
        *("--env.wrappers", "{noise: {std: 0.1}}", "gymnasium.wrappers:TimeAwareObservation", "flicker"),
    ],
    "subprocess": [
        *("--env.id", "RepeatPrevious-v0", "--env.wrappers", "flicker"),
        *("--env.backend", "subprocess", "--env.workers", "2"),
    ],
    "linear schedules and noise by state": [
        *("--env.id", "Pendulum-v1", "--env.kwargs", "max_episode_steps=25"),
        *("--algorithm.use-sde", "--algorithm.sde-sample-freq", "4"),
        *("--algorithm.learning-rate-schedule", "linear", "--algorithm.clip-range-schedule", "linear"),
    ],
    "a window and dropout": [
        *("--env.id", "Copy-v0", "--policy.memory", "attention", "--policy.memory-kwargs", "hidden_size=4", "window=5"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_equals_one_that_never_stopped(case: str, tmp_path: Path) -> None:
    full = trained(tmp_path, [*CASES[case], *PPO])
    run = stopped(full, 64)
    assert train.main(["--resume", str(run.path)]) == 0
    assert_equal_runs(full, run)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return trained(tmp_path_factory.mktemp("walked"), [*WALK, "--algorithm.name", "a2c"])


@pytest.mark.parametrize("step", [-1, 32, 96, 128])
def test_it_does_so_from_any_checkpoint_or_its_beginning_with_an_environment_of_ones_own(
    step: int, walked: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stopped(walked, step, f"from-{step}")
    assert train.main(["--resume", str(run.path)]) == 0
    assert ("no checkpoint yet" in capsys.readouterr().err) == (step == -1)
    assert_equal_runs(walked, run)


def test_a_finished_run_goes_on_to_more_steps_as_a_longer_one_would(tmp_path: Path) -> None:
    words = [*WALK, *PPO, "--evaluation.every", "0", *CONSTANT]
    longer = trained(tmp_path, [*words, "--total-timesteps", "192"], "longer")
    run = trained(tmp_path, words)
    assert train.main(["--resume", str(run.path), "--total-timesteps", "192"]) == 0
    assert_equal(*(learned(each, 192) for each in (longer, run)))
    steps = [row["step"] for row in rows_of(run.metrics)]
    assert steps == [*[row["step"] for row in rows_of(longer.metrics)][:4], "128", "160", "192", "192"]


def test_going_on_to_more_steps_says_in_one_line_what_becomes_of_linear_schedules(
    finished: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stopped(finished, 128, "longer")
    assert train.main(["--resume", str(run.path), "--total-timesteps", "256"]) == 0
    changes = "learning_rate goes on at 0.0005 instead of 0, ent_coef goes on at 0.025 instead of 0"
    line = f"total_timesteps is 256 and was 128, where linear schedules end: {changes}"
    assert capsys.readouterr().err.splitlines().count(line) == 1
    before = Settings(total_timesteps=100)
    constant = replace(before, algorithm=AlgorithmSettings(learning_rate_schedule="constant"))
    assert change_of_schedules(before, before, 50) is None
    assert change_of_schedules(constant, replace(constant, total_timesteps=200), 50) is None


def test_where_an_environment_is_not_deterministic_new_episodes_begin_and_that_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = trained(tmp_path, [*WALK, *PPO, "--env.kwargs", "free=true"])
    run = stopped(full, 64)
    assert train.main(["--resume", str(run.path)]) == 0
    assert "new episodes begin" in capsys.readouterr().err
    last, before = (read_parameters(run.checkpoint(step))["policy.optimizer"] for step in (128, 64))
    assert last["state"][0]["step"] == 2 * before["state"][0]["step"]
    moments = [normalizer_state(run.checkpoint(step)).rewards.count for step in (64, 128)]
    assert moments[1] == pytest.approx(moments[0] + 64, abs=1)
    assert [row["step"] for row in rows_of(run.metrics)] == [row["step"] for row in rows_of(full.metrics)]


def test_what_an_older_checkpoint_does_not_say_restarts(
    finished: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stopped(finished, 128, "older")
    shutil.copy(run.best, run.checkpoint(99_000))  # the best agent is saved without its environments
    assert train.main(["--resume", str(run.path), "--total-timesteps", "192"]) == 0
    assert "does not say where its environments stood" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_passed_over(finished: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    run = stopped(finished, 96, "damaged")
    path = run.checkpoint(96)
    path.write_bytes(path.read_bytes()[:-500])
    assert train.main(["--resume", str(run.path)]) == 0
    assert "passing over a checkpoint" in capsys.readouterr().err
    assert_equal_runs(finished, run)
    for _, path in run.checkpoints():
        path.write_bytes(b"PK")
    assert train.main(["--resume", str(run.path)]) == 5
    assert "error: resuming: none of the 4 checkpoints" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "6"], "seed is 6, but the run was made with 5"),
        (["--env.n-envs", "4"], "env.n_envs is 4, but the run was made with 2"),
        (["--policy.memory", "gru"], "policy.memory is gru, but the run was made with hybrid"),
        (["--algorithm.gamma", "0.5"], "algorithm.gamma is 0.5, but the run was made with 0.99"),
        (["--env.backend", "serial"], "env.backend is serial, but the run was made with auto"),
        (["--config", "tmaze"], "leave --config out"),
    ],
)
def test_settings_that_decide_the_run_cannot_differ(
    words: list[str], message: str, finished: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    before = finished.settings.read_text()
    assert train.main(["--resume", str(finished.path), *words]) == 2
    assert message in capsys.readouterr().err
    assert finished.settings.read_text() == before


def test_settings_that_do_not_decide_it_can_and_are_written_down(finished: RunDirectory) -> None:
    run = stopped(finished, 64, "other")
    words = ["--checkpoint.every", "1e6", "--evaluation.episodes", "3", "--tracking.tensorboard"]
    assert train.main(["--resume", str(run.path), *words, "--env.max-restarts", "9"]) == 0
    assert_equal(*(learned(each, 128) for each in (finished, run)))
    assert "max_restarts: 9" in run.settings.read_text()
    assert [row["step"] for row in rows_of(run.path / "resumed.csv")] == ["64"]


@pytest.mark.parametrize(("path", "message"), [("nowhere", "is no directory"), ("", "holds no settings.yaml")])
def test_what_is_no_run_cannot_be_resumed(
    path: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["--resume", str(tmp_path / path)]) == 2
    assert message in capsys.readouterr().err


def test_other_threads_and_kernels_than_before_are_reported(
    finished: RunDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped(finished, 64, "computed-otherwise")
    built = {name: BUILDS.get(name, "none") for name in ("convolutions", "heads", "recurrent", "scan")}
    monkeypatch.setitem(BUILDS, "heads", "another")
    assert train.main(["--resume", str(run.path), "--threads", "2"]) == 0
    errors = capsys.readouterr().err
    before, now = (" and ".join(each.values()) for each in (built, built | {"heads": "another"}))
    assert f"kernels {before} is now {now}" in errors
    assert "threads 1 is now 2: the last bits may differ" in errors
    torch.set_num_threads(1)


def test_two_processes_never_train_in_one_directory(finished: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    with finished.locked():
        assert train.main(["--resume", str(finished.path)]) == 2
    assert "another process is training" in capsys.readouterr().err


def test_tensorboard_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    full = trained(tmp_path, [*CASES["vector"], *PPO, "--tracking.tensorboard"])
    run = stopped(full, 64)
    assert train.main(["--resume", str(run.path)]) == 0
    seen = []
    for each in (full, run):
        events = EventAccumulator(str(each.tensorboard))
        events.Reload()
        seen.append([(event.step, event.value) for event in events.Scalars("train/value_loss")])
    assert seen[0] == seen[1]


def test_tensorboards_files_are_read_in_the_order_they_were_written(tmp_path: Path) -> None:
    for step in range(3):
        TensorBoardWriter(tmp_path, step).close()
    files = sorted(tmp_path.glob("events*"), key=lambda file: file.stat().st_mtime_ns)
    seconds = [file.name.split(".")[3] for file in files]
    assert files == sorted(files)
    assert len(set(seconds)) == 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return trained(tmp_path_factory.mktemp("finished"), [*CASES["vector"], *PPO])


# Kills


def killed(root: Path, words: list[str], kills: int, wait: Callable[[Any, RunDirectory], None]) -> RunDirectory:
    """The run is started, killed when ``wait`` returns, gone on with, killed again, and so on, so many times."""
    run = RunDirectory(root / "killed")
    for _ in range(kills):
        is_there = run.settings.exists()
        resumed = ["--resume", str(run.path)]
        new = [*words, "--runs", str(root), "--name", "killed"]
        process = started(partial(train.main, resumed if is_there else new))
        wait(process, run)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL  # it was at work
        if run.path.exists() and not run.settings.exists():
            shutil.rmtree(run.path)  # killed before it was a run
    return run


@pytest.mark.parametrize(("kills", "longest"), [(3, 1.0), pytest.param(50, 1.5, marks=pytest.mark.slow)])
def test_kills_at_any_moment_change_nothing(tmp_path: Path, kills: int, longest: float) -> None:
    """Each after a random while: as it starts, learns or writes. None comes too late, for the run never ends."""
    moments, words = random.Random(0), [*TINY, *PPO, "--env.id", "CartPole-v1", "--checkpoint.keep", "2"]
    words += CONSTANT  # falling ones would know how long the run is
    endless = [*words, "--total-timesteps", "1e9"]
    earlier: list[Any] = []

    def wait(process: Any, run: RunDirectory) -> None:
        while earlier and not run.settings.exists():  # only the first kill may come before the run is one
            time.sleep(0.005)
        earlier.append(process)
        process.join(timeout=moments.uniform(0.0, longest))

    run = killed(tmp_path, endless, kills, wait)
    end = ["--total-timesteps", str(max([step for step, _ in run.checkpoints()], default=0) + 64)]
    assert train.main(["--resume", str(run.path), *end]) == 0
    assert_equal_runs(trained(tmp_path, [*words, *end]), run, int(end[1]))


@pytest.mark.slow
def test_the_main_job_resumed_after_ten_kills_ends_with_the_same_weights(tmp_path: Path) -> None:
    steps = ["--total-timesteps", "20480", "--checkpoint.every", "1", "--evaluation.every", "5120", "--no-progress"]
    steps += ["--env.n-envs", "8", "--algorithm.n-steps", "128", "--algorithm.batch-size", "256"]  # 20 updates
    words = ["--config", "cartpole_novel", "--threads", "1", "--evaluation.final-episodes", "0", *steps]
    assert train.main([*words, "--runs", str(tmp_path), "--name", "full"]) == 0
    full, updates = RunDirectory(tmp_path / "full"), iter(sorted(random.Random(0).sample(range(2, 19), 10)))

    def wait(process: Any, run: RunDirectory) -> None:
        requested = next(updates)
        while process.is_alive() and not (run.metrics.exists() and len(rows_of(run.metrics)) >= requested):
            time.sleep(0.01)

    run = killed(tmp_path, words, 10, wait)
    assert train.main(["--resume", str(run.path)]) == 0
    assert_equal_runs(full, run, full.checkpoints()[-1][0])


# Signals


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_saves_and_what_is_resumed_equals_a_run_never_stopped(
    number: signal.Signals, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It comes in the middle of the third rollout, and ends the run after that one's update."""
    (tmp_path / "once").mkdir()
    once = [f"once={tmp_path / 'once'}", f"fault={number.name}", "at=40"]
    words = [*PPO, "--checkpoint.every", "0", *FRAIL, "--env.backend", "serial", "--env.kwargs", *once]
    full = trained(tmp_path, words)
    (tmp_path / "once" / "signal").touch()
    handlers = [signal.getsignal(each) for each, _ in SIGNALS]
    assert train.main([*TINY, *words, "--runs", str(tmp_path), "--name", "stopped"]) == code
    assert [signal.getsignal(each) for each, _ in SIGNALS] == handlers
    run = RunDirectory(tmp_path / "stopped")
    ((step, path),) = run.checkpoints()
    assert step == 96
    assert f"stopped by {number.name}; saved {path}" in capsys.readouterr().err
    assert train.main(["--resume", str(run.path)]) == 0
    assert_equal_runs(full, run)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_in_the_final_evaluation_ends_it_at_once_with_all_saved(
    number: signal.Signals, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def trace(frame: Any, event: str, argument: Any) -> None:
        if frame.f_code.co_name == "evaluate_at_the_end":
            sys.settrace(None)
            signal.raise_signal(number)

    words = [*TINY, *PPO, *CASES["vector"], "--evaluation.every", "0", "--evaluation.final-episodes", "5"]
    handlers = [signal.getsignal(each) for each, _ in SIGNALS]
    sys.settrace(trace)
    try:
        assert train.main([*words, "--runs", str(tmp_path), "--name", "mine"]) == code
    finally:
        sys.settrace(None)
    last = RunDirectory(tmp_path / "mine").checkpoint(128)
    assert capsys.readouterr().err == f"stopped by {number.name}; saved {last}\n"
    assert last.exists()
    assert [signal.getsignal(each) for each, _ in SIGNALS] == handlers


ATTACKED = ("runs/callbacks.py", "runs/training.py", "runs/directory.py", "runs/launch.py", "checkpoint/container.py")


def at_a_line(line: int, act: Callable[[], None]) -> Callable[[], int]:
    """Calls ``act`` at the line-th line of what trains and saves, from the first copy of the agent on."""
    seen, started = 0, False

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal seen, started
        if not frame.f_code.co_filename.endswith(ATTACKED):
            return None
        started = started or frame.f_code.co_name == "capture"
        if event == "line" and started:
            seen += 1
            if seen == line:
                sys.settrace(None)
                act()
        return trace

    sys.settrace(trace)
    return lambda: seen


NOT_REACHED = 99


def attacked(words: list[str], line: int, numbers: list[signal.Signals]) -> int:
    """The exit code of a run that gets these signals, one right after the other, at a line; or NOT_REACHED, for how
    often progress is shown differs from run to run, and with it the number of lines."""

    def run() -> int:
        seen = at_a_line(line, lambda: [signal.raise_signal(number) for number in numbers])  # type: ignore[arg-type, return-value]
        code = train.main(words)
        return code if seen() >= line else NOT_REACHED

    return in_a_child(run)[0]


@pytest.mark.parametrize("lines", [2, pytest.param(200, marks=pytest.mark.slow)])
def test_two_signals_at_any_moment_end_a_run_and_lose_nothing(tmp_path: Path, lines: int) -> None:
    words = [*TINY, *PPO, "--env.id", "CartPole-v1", "--evaluation.every", "32", "--total-timesteps", "64"]
    lines_seen = at_a_line(-1, lambda: None)
    assert train.main([*words, "--runs", str(tmp_path), "--name", "full"]) == 0
    sys.settrace(None)
    moments, full = random.Random(0), RunDirectory(tmp_path / "full")
    pairs = [[one, other] for one, _ in SIGNALS for other, _ in SIGNALS]
    for i, line in enumerate(sorted(moments.sample(range(1, lines_seen()), lines))):
        name, numbers = f"attacked-{i}", pairs[(i + 1) % len(pairs)]
        code = attacked([*words, "--runs", str(tmp_path), "--name", name], line, numbers)
        run = RunDirectory(tmp_path / name)
        if code == NOT_REACHED:
            continue
        # As a shell counts it: once all is done and the handlers are given back, SIGTERM ends the process itself.
        assert code in (128 + numbers[0], -numbers[0]), f"line {line}"
        assert run.checkpoints() or not run.last_step(), f"line {line}"  # else nothing was there to lose
        assert train.main(["--resume", str(run.path)]) == 0
        assert_equal_runs(full, run, 64)
        assert not list(run.path.rglob("*.tmp"))


@pytest.mark.parametrize(("backend", "closes"), [("serial", True), ("serial", False), ("subprocess", False)])
def test_two_signals_end_a_run_whose_environment_hangs(backend: str, closes: bool, tmp_path: Path) -> None:
    kwargs = ["--env.kwargs", "fault=hang", "at=40", f"marks={tmp_path}", f"closes={closes}".lower()]
    words = [*TINY, *PPO, *FRAIL, "--env.backend", backend, *kwargs, "--checkpoint.every", "0"]
    words += ["--evaluation.every", "0", "--runs", str(tmp_path), "--name", "mine"]
    process = started(lambda: train.main(words))

    def wait_for(name: str) -> None:
        while not (tmp_path / name).exists():
            assert process.is_alive()
            time.sleep(0.01)

    wait_for("stepping")
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    if backend == "serial" and not closes:
        wait_for("closing")
        os.kill(process.pid, signal.SIGINT)
    process.join()
    # Which of two that wait is delivered first is the system's to decide.
    assert process.exitcode in (143, 130)
    assert [step for step, _ in RunDirectory(tmp_path / "mine").checkpoints()] == [64]
