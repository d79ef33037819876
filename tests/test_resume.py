"""A run that was stopped, wherever and however, goes on as if it had not been."""

import csv
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch

import train
from agents.checkpoint import normalizer_state, read_parameters
from agents.checkpoint.container import read_archive
from agents.kernels.binding import BUILDS
from agents.runs.directory import RunDirectory

# Updates of 32 steps, a checkpoint after each: 0, 32, ..., 192.
TINY = [
    *("--env.n-envs", "2", "--algorithm.n-steps", "16", "--policy.memory-kwargs", "hidden_size=4"),
    *("--checkpoint.every", "32", "--checkpoint.keep", "100", "--total-timesteps", "192", "--no-progress"),
    *("--evaluation.every", "64", "--evaluation.episodes", "2", "--evaluation.final-episodes", "0"),
    *("--threads", "1", "--tracking.no-tensorboard", "--seed", "5"),
]
PPO = ["--algorithm.batch-size", "16", "--algorithm.n-epochs", "2"]
EVERY_TRANSFORM = [
    "--env.wrappers",
    *("{flicker: {probability: 0.3}}", "{noise: {std: 0.1}}", "{delay: {steps: 2}}"),
    *("previous_action_reward", "{history: {length: 3}}"),
]

MODULE = '''
import os
import gymnasium, numpy as np

class Walk(gymnasium.Env):
    """Shows a number that its own generator moves; with `free`, the system's randomness moves it."""
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self, free=False, render_mode=None):
        self.free = free

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.free:
            self.np_random = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
        self.place, self.length, self.t = 0.0, int(self.np_random.integers(5, 40)), 0
        return self.observe(), {}

    def observe(self):
        return np.array([self.place, self.t], np.float32)

    def step(self, action):
        self.t += 1
        self.place += float(self.np_random.normal()) + int(action) - 1
        return self.observe(), -abs(self.place), abs(self.place) > 8, self.t >= self.length, {}

gymnasium.register("Walk-v0", entry_point=Walk)
'''


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An environment of the user's own."""
    (tmp_path / "walking.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(gymnasium.registry, "Walk-v0", raising=False)
    monkeypatch.delitem(sys.modules, "walking", raising=False)
    return ["--env.id", "walking:Walk-v0"]


def trained(root: Path, words: list[str], name: str = "whole") -> RunDirectory:
    assert train.main([*TINY, *words, "--runs", str(root), "--name", name]) == 0
    return RunDirectory(root / name)


def stopped(whole: RunDirectory, step: int, name: str = "stopped") -> RunDirectory:
    """What a run leaves that is killed long after its checkpoint of this step, and before the next."""
    run = RunDirectory(whole.path.with_name(name))
    shutil.copytree(whole.path, run.path)
    for saved_at, path in run.checkpoints():
        if saved_at > step:
            path.unlink()
    return run


def rows_of(path: Path) -> list[dict[str, str]]:
    """Without what is a matter of time."""
    with path.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def assert_equal_runs(one: RunDirectory, other: RunDirectory, step: int = 192) -> None:
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
    whole = trained(tmp_path, [*CASES[case], *PPO])
    run = stopped(whole, 96)
    assert train.main(["--resume", str(run.path)]) == 0
    assert_equal_runs(whole, run)


@pytest.mark.parametrize("step", [32, 64, 160, 192])
def test_it_does_so_from_any_checkpoint_with_an_environment_of_ones_own(
    step: int, walk: list[str], tmp_path: Path
) -> None:
    whole = trained(tmp_path, [*walk, "--algorithm.name", "a2c"])
    run = stopped(whole, step)
    assert train.main(["--resume", str(run.path)]) == 0
    assert_equal_runs(whole, run)


def test_a_run_that_saved_nothing_yet_starts_from_its_beginning(
    walk: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = trained(tmp_path, [*walk, *PPO])
    run = stopped(whole, -1)
    assert train.main(["--resume", str(run.path)]) == 0
    assert "no checkpoint yet" in capsys.readouterr().err
    assert_equal_runs(whole, run)


def test_a_finished_run_goes_on_to_more_steps_as_a_longer_one_would(walk: list[str], tmp_path: Path) -> None:
    words = [*walk, *PPO, "--evaluation.every", "0", "--algorithm.learning-rate-schedule", "constant"]
    longer = trained(tmp_path, [*words, "--total-timesteps", "256"], "longer")
    run = trained(tmp_path, words)
    assert train.main(["--resume", str(run.path), "--total-timesteps", "256"]) == 0
    assert_equal(*(learned(each, 256) for each in (longer, run)))
    steps = [row["step"] for row in rows_of(run.metrics)]
    assert steps == [*[row["step"] for row in rows_of(longer.metrics)][:6], "192", "224", "256", "256"]


def test_where_an_environment_is_not_deterministic_new_episodes_begin_and_that_is_said(
    walk: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = trained(tmp_path, [*walk, *PPO, "--env.kwargs", "free=true"])
    run = stopped(whole, 96)
    assert train.main(["--resume", str(run.path)]) == 0
    assert "new episodes begin" in capsys.readouterr().err
    last, before = (read_parameters(run.checkpoint(step))["policy.optimizer"] for step in (192, 96))
    assert last["state"][0]["step"] == 2 * before["state"][0]["step"]
    moments = [normalizer_state(run.checkpoint(step)).rewards.count for step in (96, 192)]
    assert moments[1] == pytest.approx(moments[0] + 96, abs=1)
    assert [row["step"] for row in rows_of(run.metrics)] == [row["step"] for row in rows_of(whole.metrics)]


def test_what_an_older_checkpoint_does_not_say_is_begun_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path, [*CASES["vector"], *PPO])
    shutil.copy(run.best, run.checkpoint(99_000))  # the best agent is saved without its environments
    assert train.main(["--resume", str(run.path), "--total-timesteps", "256"]) == 0
    assert "does not say where its environments stood" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = trained(tmp_path, [*CASES["serial"], *PPO])
    run = stopped(whole, 128)
    path = run.checkpoint(128)
    path.write_bytes(path.read_bytes()[:-500])
    assert train.main(["--resume", str(run.path)]) == 0
    assert "passing over a checkpoint" in capsys.readouterr().err
    assert_equal_runs(whole, run)
    for _, path in run.checkpoints():
        path.write_bytes(b"PK")
    assert train.main(["--resume", str(run.path)]) == 5
    assert "error: resuming: none of the 6 checkpoints" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed", "6"], "seed is 6, but the run was made with 5"),
        (["--env.n-envs", "4"], "env.n_envs is 4, but the run was made with 2"),
        (["--policy.memory", "gru"], "policy.memory is gru, but the run was made with lstm"),
        (["--algorithm.gamma", "0.5"], "algorithm.gamma is 0.5, but the run was made with 0.99"),
        (["--env.backend", "serial"], "env.backend is serial, but the run was made with auto"),
        (["--config", "tmaze"], "leave --config out"),
    ],
)
def test_settings_that_decide_the_run_cannot_differ(
    words: list[str], said: str, finished: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    before = finished.settings.read_text()
    assert train.main(["--resume", str(finished.path), *words]) == 2
    assert said in capsys.readouterr().err
    assert finished.settings.read_text() == before


def test_settings_that_do_not_decide_it_can_and_are_written_down(finished: RunDirectory, tmp_path: Path) -> None:
    run = stopped(finished, 96, f"{tmp_path.name}-other")
    words = [
        "--checkpoint.every",
        "1e6",
        "--evaluation.episodes",
        "3",
        "--tracking.tensorboard",
        "--env.max-restarts",
        "9",
    ]
    assert train.main(["--resume", str(run.path), *words]) == 0
    assert_equal(*(learned(each, 192) for each in (finished, run)))
    assert "max_restarts: 9" in run.settings.read_text()
    assert [row["step"] for row in rows_of(run.path / "resumed.csv")] == ["96"]


@pytest.mark.parametrize(("path", "said"), [("nowhere", "is no directory"), ("", "holds no settings.yaml")])
def test_what_is_no_run_cannot_be_resumed(
    path: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["--resume", str(tmp_path / path)]) == 2
    assert said in capsys.readouterr().err


def test_other_threads_than_before_are_told(
    finished: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stopped(finished, 96, f"{tmp_path.name}-threads")
    assert train.main(["--resume", str(run.path), "--threads", "2"]) == 0
    assert "threads 1 is now 2: the last bits may differ" in capsys.readouterr().err
    torch.set_num_threads(1)


def test_other_kernels_than_before_are_told(
    finished: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped(finished, 96, f"{tmp_path.name}-kernels")
    heads, recurrent = (BUILDS.get(name, "none") for name in ("heads", "recurrent"))
    monkeypatch.setitem(BUILDS, "heads", "another")
    assert train.main(["--resume", str(run.path)]) == 0
    told = f"kernels {heads} and {recurrent} is now another and {recurrent}: the last bits may differ"
    assert told in capsys.readouterr().err


def test_two_processes_never_train_in_one_directory(finished: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    with finished.held():
        assert train.main(["--resume", str(finished.path)]) == 2
    assert "another process is training" in capsys.readouterr().err


def test_tensorboard_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    whole = trained(tmp_path, [*CASES["vector"], *PPO, "--tracking.tensorboard"])
    run = stopped(whole, 96)
    assert train.main(["--resume", str(run.path)]) == 0
    seen = []
    for each in (whole, run):
        events = EventAccumulator(str(each.tensorboard))
        events.Reload()
        seen.append([(event.step, event.value) for event in events.Scalars("train/value_loss")])
    assert seen[0] == seen[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return trained(tmp_path_factory.mktemp("finished"), [*CASES["vector"], *PPO])


# Kills


def child(words: list[str]) -> None:
    os.close(2)
    os.open(os.devnull, os.O_WRONLY)
    os._exit(train.main(words))


def start(words: list[str]) -> Any:
    """In a process forked from this one, which has imported everything already."""
    process = multiprocessing.get_context("fork").Process(target=child, args=(words,))
    process.start()
    return process


def killed(root: Path, words: list[str], kills: int, wait: Callable[[Any, RunDirectory], None]) -> RunDirectory:
    """The run is started, killed when ``wait`` returns, gone on with, killed again, and so on, so many times."""
    run = RunDirectory(root / "killed")
    for _ in range(kills):
        is_there = run.settings.exists()
        process = start(["--resume", str(run.path)] if is_there else [*words, "--runs", str(root), "--name", "killed"])
        wait(process, run)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL  # it was at work
        if run.path.exists() and not run.settings.exists():
            run.path.rmdir()  # killed before it was a run: nothing is in it
    return run


def assert_kills_at_any_moment_change_nothing(root: Path, kills: int, longest: float) -> None:
    """Each after a random while: as it starts, learns or writes. None comes too late, for the run never ends."""
    moments, words = random.Random(0), [*TINY, *PPO, "--env.id", "CartPole-v1", "--checkpoint.keep", "2"]
    words += ["--algorithm.learning-rate-schedule", "constant"]  # a falling one would know how long the run is
    endless = [*words, "--total-timesteps", "1e9"]
    run = killed(root, endless, kills, lambda process, _: process.join(timeout=moments.uniform(0.0, longest)))
    end = ["--total-timesteps", str(max([step for step, _ in run.checkpoints()], default=0) + 64)]
    assert train.main(["--resume", str(run.path), *end]) == 0
    assert_equal_runs(trained(root, [*words, *end]), run, int(end[1]))


def test_kills_at_any_moment_change_nothing(tmp_path: Path) -> None:
    assert_kills_at_any_moment_change_nothing(tmp_path, kills=6, longest=1.0)


@pytest.mark.slow
def test_fifty_kills_at_any_moment_change_nothing(tmp_path: Path) -> None:
    assert_kills_at_any_moment_change_nothing(tmp_path, kills=50, longest=1.5)


@pytest.mark.slow
def test_the_main_job_resumed_after_ten_kills_ends_with_the_same_weights(tmp_path: Path) -> None:
    steps = ["--total-timesteps", "20480", "--checkpoint.every", "1", "--evaluation.every", "5120", "--no-progress"]
    words = ["--config", "cartpole_novel", "--threads", "1", "--evaluation.final-episodes", "0", *steps]
    assert train.main([*words, "--runs", str(tmp_path), "--name", "whole"]) == 0
    whole, updates = RunDirectory(tmp_path / "whole"), iter(sorted(random.Random(0).sample(range(2, 19), 10)))

    def wait(process: Any, run: RunDirectory) -> None:
        asked = next(updates)
        while process.is_alive() and not (run.metrics.exists() and len(rows_of(run.metrics)) >= asked):
            time.sleep(0.01)

    run = killed(tmp_path, words, 10, wait)
    assert train.main(["--resume", str(run.path)]) == 0
    assert_equal_runs(whole, run, whole.checkpoints()[-1][0])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_what_is_resumed_equals_a_run_never_stopped(number: int, code: int, tmp_path: Path) -> None:
    words = [*PPO, "--env.id", "CartPole-v1", "--checkpoint.every", "0", "--total-timesteps", "640"]
    whole, run = trained(tmp_path, words), RunDirectory(tmp_path / "stopped")
    process = start([*TINY, *words, "--runs", str(tmp_path), "--name", "stopped"])
    while not (run.metrics.exists() and len(run.metrics.read_text().splitlines()) > 3):
        time.sleep(0.005)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == code
    ((step, _),) = run.checkpoints()
    assert 0 < step < 640
    assert train.main(["--resume", str(run.path)]) == 0
    assert_equal_runs(whole, run, 640)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_the_final_evaluation_ends_it_at_once_with_all_saved(
    number: int, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def trace(frame: Any, event: str, argument: Any) -> None:
        if frame.f_code.co_name == "evaluate_at_the_end":
            sys.settrace(None)
            signal.raise_signal(number)

    words = [*TINY, *PPO, *CASES["vector"], "--evaluation.every", "0", "--evaluation.final-episodes", "5"]
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    sys.settrace(trace)
    try:
        assert train.main([*words, "--runs", str(tmp_path), "--name", "mine"]) == code
    finally:
        sys.settrace(None)
    last = RunDirectory(tmp_path / "mine").checkpoint(192)
    assert capsys.readouterr().err == f"stopped by {signal.Signals(number).name}; saved {last}\n"
    assert last.exists()
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers


# Two signals


ATTACKED = ("runs/callbacks.py", "runs/training.py", "runs/directory.py", "checkpoint/container.py")


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


def attacked(words: list[str], line: int, numbers: list[int]) -> int:
    """The exit code of a run that is sent these signals, one right after the other, at a line."""

    def run() -> None:
        os.close(2)
        os.open(os.devnull, os.O_WRONLY)
        at_a_line(line, lambda: [signal.raise_signal(number) for number in numbers])  # type: ignore[arg-type, return-value]
        os._exit(train.main(words))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def assert_two_signals_at_any_moment_lose_nothing(root: Path, lines: int) -> None:
    words = [*TINY, *PPO, "--env.id", "CartPole-v1", "--checkpoint.every", "64", "--total-timesteps", "128"]
    lines_seen = at_a_line(-1, lambda: None)
    assert train.main([*words, "--runs", str(root), "--name", "whole"]) == 0
    sys.settrace(None)
    moments, whole = random.Random(0), RunDirectory(root / "whole")
    pairs = [[one, other] for one in (signal.SIGTERM, signal.SIGINT) for other in (signal.SIGTERM, signal.SIGINT)]
    for i, line in enumerate(sorted(moments.sample(range(1, lines_seen()), lines))):
        name, numbers = f"attacked-{i}", pairs[i % len(pairs)]
        code = attacked([*words, "--runs", str(root), "--name", name], line, numbers)
        run = RunDirectory(root / name)
        assert code == 128 + numbers[0], f"line {line}"
        assert run.checkpoints() or not run.last_step(), f"line {line}"  # else nothing was there to lose
        assert train.main(["--resume", str(run.path)]) == 0
        assert_equal_runs(whole, run, 128)
        assert not list(run.path.rglob("*.tmp"))


def test_two_signals_at_any_moment_end_a_run_and_lose_nothing(tmp_path: Path) -> None:
    assert_two_signals_at_any_moment_lose_nothing(tmp_path, 4)


@pytest.mark.slow
def test_two_signals_at_two_hundred_moments_end_a_run_and_lose_nothing(tmp_path: Path) -> None:
    assert_two_signals_at_any_moment_lose_nothing(tmp_path, 200)


GATE = '''
import pathlib, time
import gymnasium, numpy as np

class Gate(gymnasium.Env):
    """Its 40th step, and its closing after that, never end; a file says that one has begun."""
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, folder, closes=True, render_mode=None):
        self.folder, self.closes, self.steps = pathlib.Path(folder), closes, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def hang(self, what):
        (self.folder / what).touch()
        while True:
            time.sleep(0.01)

    def step(self, action):
        self.steps += 1
        if self.steps == 40:
            self.hang("stepping")
        return np.zeros(2, np.float32), 1.0, self.steps % 10 == 0, False, {}

    def close(self):
        if self.steps >= 40 and not self.closes:
            self.hang("closing")

gymnasium.register("Gate-v0", entry_point=Gate)
'''


@pytest.mark.parametrize("closes", [True, False])
@pytest.mark.parametrize("backend", ["serial", "subprocess"])
def test_two_signals_end_a_run_whose_environment_hangs(
    backend: str, closes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gate.py").write_text(GATE)
    monkeypatch.syspath_prepend(str(tmp_path))
    task = ["--env.id", "gate:Gate-v0", "--env.backend", backend, "--env.kwargs", f"folder={tmp_path}"]
    words = [*TINY, *PPO, *task, f"closes={closes}".lower(), "--checkpoint.every", "0", "--evaluation.every", "0"]
    process = start([*words, "--runs", str(tmp_path), "--name", "mine"])

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
