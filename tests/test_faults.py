"""Bad input and faults: what is lost is little, what is left is whole, and the message says what to do."""

import csv
import multiprocessing
import multiprocessing.connection
import os
import resource
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import envs
import evaluate
import train
from agents.checkpoint import read_parameters
from agents.runs.directory import RunDirectory
from envs.vector.errors import EnvError

# Updates of 32 steps, and no checkpoint but at the end.
TINY = [
    *("--env.n-envs", "2", "--algorithm.n-steps", "16", "--policy.memory-kwargs", "hidden_size=4"),
    *("--algorithm.batch-size", "16", "--algorithm.n-epochs", "1", "--threads", "1"),
    *("--checkpoint.every", "0", "--total-timesteps", "128", "--no-progress", "--tracking.no-tensorboard"),
    *("--evaluation.every", "0", "--evaluation.final-episodes", "0"),
]

MODULE = '''
import os, time
import gymnasium, numpy as np

class Frail(gymnasium.Env):
    """Observation (episode's seed modulo 1000, step). Fails where and how it is told, once for each file it finds."""
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, fault="none", at=5, folder="", number=0, render_mode=None):
        self.fault, self.at, self.folder, self.render_mode = fault, at, folder, render_mode
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.t = (seed or 0) % 1000, 0
        return np.array([self.seed, 0], np.float32), {}

    def is_time(self):
        if self.steps != self.at or not self.folder:
            return self.steps == self.at
        for name in sorted(os.listdir(self.folder)):
            try:
                os.unlink(os.path.join(self.folder, name))
                return True
            except FileNotFoundError:  # another environment has just failed instead
                pass
        return False

    def step(self, action):
        self.steps += 1
        self.t += 1
        observation, reward = np.array([self.seed, self.t], np.float32), 1.0
        if self.is_time():
            if self.fault == "raise":
                raise ZeroDivisionError("the wheel came off")
            if self.fault == "die":
                os._exit(7)
            if self.fault == "hang":
                time.sleep(600)
            if self.fault == "reward":
                reward = float("-inf")
            if self.fault == "observation":
                observation[1] = float("inf")
        return observation, reward, self.t == 10, False, {}

    def render(self):
        import pygame
        pygame.display.init()
        pygame.display.set_mode((4, 4))
        return np.zeros((4, 4, 3), np.uint8)

gymnasium.register("Frail-v0", entry_point=Frail)
'''

# Of its own, since it imports torch: no worker of an environment's has to.
STEEP = '''
import torch
from stable_baselines3.common.torch_layers import FlattenExtractor

class Steep(torch.autograd.Function):
    """As it is, with a gradient that is infinite from some call on."""
    calls = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        Steep.calls += 1
        return gradient * (float("inf") if Steep.calls > 4 else 1.0)

class SteepExtractor(FlattenExtractor):
    def __init__(self, observation_space, features_dim=2):
        super().__init__(observation_space)
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, observations):
        return Steep.apply(super().forward(observations) * self.scale)
'''


@pytest.fixture
def frail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "frailty.py").write_text(MODULE)
    (tmp_path / "steep.py").write_text(STEEP)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(gymnasium.registry, "Frail-v0", raising=False)
    for module in ("frailty", "steep"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return [*TINY, "--runs", str(tmp_path / "runs"), "--name", "mine", "--env.id", "frailty:Frail-v0"]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "runs" / "mine")


# Numbers that are not finite


@pytest.mark.parametrize("fault", ["observation", "reward"])
@pytest.mark.parametrize("backend", ["serial", "subprocess"])
def test_numbers_that_are_not_finite_stop_the_run_and_the_agent_before_them_is_saved(
    fault: str, backend: str, frail: list[str], run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--env.no-normalize-observations", "--env.no-normalize-rewards", "--env.backend", backend]
    assert train.main([*frail, *words, "--env.kwargs", f"fault={fault}", "at=39"]) == 4
    told = capsys.readouterr().err
    # Step 39 is number 6, from 0, of the third rollout; what it shows is the next one's observation.
    assert f"the {fault} of environment 0 at step {6 + (fault == 'observation')} of the rollout" in told
    assert "ended at time step 96" in told
    assert [step for step, _ in run.checkpoints()] == [64]
    assert f"saved the agent as it was before: {run.checkpoint(64)}" in told
    assert all(part.isfinite().all() for part in read_parameters(run.checkpoint(64))["policy"].values())


def test_a_gradient_that_is_not_finite_stops_the_run_and_the_weights_before_it_are_saved(
    frail: list[str], run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    # Two minibatches an update: the fifth gradient is the first of the third update, after 96 steps.
    assert train.main([*frail, "--policy.encoder", "steep:SteepExtractor"]) == 4
    told = capsys.readouterr().err
    assert "the gradient of features_extractor.scale is not finite in the update after 96 steps" in told
    assert [step for step, _ in run.checkpoints()] == [64]
    assert all(part.isfinite().all() for part in read_parameters(run.checkpoint(64))["policy"].values())


# Environments


@pytest.mark.parametrize(
    ("backend", "fault"), [("serial", "raise"), ("subprocess", "raise"), ("subprocess", "die"), ("subprocess", "hang")]
)
def test_an_environment_that_fails_is_started_anew_and_its_episode_cut(
    backend: Any, fault: str, frail: list[str], tmp_path: Path
) -> None:
    faults = tmp_path / "faults"
    faults.mkdir()
    (faults / "first").touch()
    venv: Any = envs.make(
        "frailty:Frail-v0",
        2,
        seed=3,
        env_kwargs={"fault": fault, "at": 5, "folder": str(faults)},
        backend=backend,
        workers=2 if backend == "subprocess" else None,
        max_restarts=1,
        resumable=True,
    )
    try:
        observations = venv.reset()
        assert observations[:, 0].tolist() == [3, 4]
        for _ in range(4):
            observations, _, dones, _ = venv.step(np.zeros(2, np.int64))
            assert not dones.any()
        venv.step_async(np.zeros(2, np.int64))
        if fault == "hang":  # the other has answered before the time for the one that never will begins to run
            multiprocessing.connection.wait(venv._connections)
            venv._timeout = 0.05
        with pytest.warns(RuntimeWarning, match=r"it was made anew and its episode cut \(1 of at most 1 times\)"):
            following, rewards, dones, infos = venv.step_wait()
        if fault == "hang":
            venv._timeout = None
        assert dones.sum() == 1
        failed, other = int(np.flatnonzero(dones)[0]), int(np.flatnonzero(~dones)[0])
        assert infos[failed]["TimeLimit.truncated"]
        assert infos[failed]["episode"]["l"] == 5
        np.testing.assert_array_equal(infos[failed]["terminal_observation"], observations[failed])
        assert rewards.tolist() == [float(failed != i) for i in range(2)]
        assert following[other].tolist() == [3 + other, 5]
        # The next episode, with a seed of its own.
        assert following[failed, 1] == 0
        assert following[failed, 0] != 3 + failed
        for t in range(1, 5):
            following, _, dones, _ = venv.step(np.zeros(2, np.int64))
            assert following[failed, 1] == t
        assert venv.restarts == 1
        # What is under way is known through the failure.
        state = venv.snapshot()
        assert [len(taken) for taken in state["actions"]] == [4 if i == failed else 9 for i in range(2)]
    finally:
        venv.close()


@pytest.mark.parametrize(("backend", "fault"), [("serial", "raise"), ("subprocess", "raise"), ("subprocess", "die")])
def test_after_a_set_number_of_times_it_is_given_up(backend: Any, fault: str, frail: list[str]) -> None:
    venv = envs.make(
        "frailty:Frail-v0",
        1,
        env_kwargs={"fault": fault, "at": 2},
        backend=backend,
        workers=1 if backend == "subprocess" else None,
        max_restarts=2,
    )
    venv.reset()
    steps = 0

    def step_to_the_end() -> None:
        nonlocal steps
        while True:
            venv.step(np.zeros(1, np.int64))
            steps += 1

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(EnvError, match="the wheel came off" if fault == "raise" else "died in step 6"):
            step_to_the_end()
    assert len(warned) == 2
    assert steps == 5
    venv.close()


@pytest.mark.parametrize("backend", ["serial", "subprocess"])
def test_a_run_outlives_an_environment_that_fails_and_says_so(
    backend: str, frail: list[str], run: RunDirectory, tmp_path: Path
) -> None:
    faults = tmp_path / "faults"
    faults.mkdir()
    (faults / "first").touch()
    words = [*frail, "--env.backend", backend, "--env.kwargs", f"folder={faults}"]
    with pytest.warns(RuntimeWarning, match="made anew"):
        assert train.main([*words, "fault=raise" if backend == "serial" else "fault=die", "at=20"]) == 0
    assert [step for step, _ in run.checkpoints()] == [128]


def test_a_run_whose_environment_keeps_failing_is_given_up_and_its_agent_saved(
    frail: list[str], run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*frail, "--env.n-envs", "1", "--env.max-restarts", "1", "--env.kwargs", "fault=raise", "at=20"]
    with pytest.warns(RuntimeWarning, match="made anew"):
        assert train.main(words) == 3
    told = capsys.readouterr().err
    assert "the wheel came off" in told
    assert f"saved the agent as it was before: {run.checkpoint(32)}" in told


@pytest.mark.parametrize(
    ("backend", "how"),
    [("serial", "sys.exit(0)"), ("subprocess", "sys.exit(0)"), ("serial", "raise KeyboardInterrupt")],
)
def test_an_environment_that_would_end_the_process_is_a_fault_and_the_agent_is_saved(
    backend: str, how: str, frail: list[str], run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = tmp_path / "frailty.py"
    module.write_text(module.read_text().replace('raise ZeroDivisionError("the wheel came off")', f"import sys; {how}"))
    words = [*frail, "--env.backend", backend, "--env.max-restarts", "0", "--env.kwargs", "fault=raise", "at=20"]
    assert train.main(words) == 3
    told = capsys.readouterr().err
    assert ("KeyboardInterrupt" if "Keyboard" in how else "it called sys.exit(0)") in told
    assert f"saved the agent as it was before: {run.checkpoint(32)}" in told


def test_an_environment_that_fails_once_in_an_evaluation_does_not_end_the_run(
    frail: list[str], run: RunDirectory, tmp_path: Path
) -> None:
    faults = tmp_path / "faults"
    faults.mkdir()
    (faults / "first").touch()
    words = [*frail, "--evaluation.every", "64", "--evaluation.episodes", "6", "--env.n-envs", "1"]
    # The first evaluation, after 64 steps of training, comes to its 45th: in the middle of the second sampled episode.
    words += ["--env.kwargs", f"folder={faults}", "fault=raise", "at=45"]
    with pytest.warns(RuntimeWarning, match="made anew"):
        assert train.main(words) == 0
    with (run.path / "evaluations.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    figures = ("episodes", "mean_ep_length", "deterministic_mean_reward", "sampled_mean_reward")
    assert {tuple(row[name] for name in figures) for row in rows} == {("3", "10.0", "10.0", "10.0")}


# Disks and files


def test_a_run_directory_that_is_removed_ends_the_run_with_one_sentence(
    frail: list[str], run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = tmp_path / "frailty.py"
    gone = f"import shutil; shutil.rmtree({str(run.path)!r})"
    module.write_text(module.read_text().replace('raise ZeroDivisionError("the wheel came off")', gone))
    words = [*frail, "--tracking.tensorboard", "--evaluation.every", "32", "--evaluation.episodes", "1"]
    assert train.main([*words, "--env.n-envs", "1", "--env.kwargs", "fault=raise", "at=40"]) == 5
    told = capsys.readouterr().err
    assert "error: saving: " in told
    assert "was removed" in told
    assert "Traceback" not in told
    assert "saved the agent" not in told
    assert not run.path.exists()


def test_a_table_that_is_no_text_is_told_before_a_run_goes_on(
    frail: list[str], run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(frail) == 0
    with run.metrics.open("ab") as file:
        file.write(b"\xff\n")
    assert train.main(["--resume", str(run.path), "--total-timesteps", "256"]) == 2
    told = capsys.readouterr().err
    assert "metrics.csv is not UTF-8" in told
    assert "Traceback" not in told


def in_a_child(act: Callable[[], int]) -> tuple[int, str]:
    """In a process forked from this one, what it does to itself stays there: its exit code, and what it said."""
    reading, writing = os.pipe()

    def live() -> None:
        os.dup2(writing, 2)
        with open(2, "w", closefd=False) as sys.stderr:
            code = act()
        os._exit(code)

    process = multiprocessing.get_context("fork").Process(target=live)
    process.start()
    os.close(writing)
    with open(reading) as said:
        text = said.read()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, text


def test_a_disk_that_takes_no_more_leaves_the_checkpoint_before_whole(frail: list[str], run: RunDirectory) -> None:
    assert train.main(frail) == 0
    before = run.checkpoint(128).read_bytes()

    def go_on_with_little_room() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, resource.RLIM_INFINITY))
        return train.main(["--resume", str(run.path), "--total-timesteps", "256"])

    code, told = in_a_child(go_on_with_little_room)
    assert code == 5
    assert "could not be written" in told
    assert "Traceback" not in told
    assert [step for step, _ in run.checkpoints()] == [128]
    assert run.checkpoint(128).read_bytes() == before
    assert train.main(["--resume", str(run.path), "--total-timesteps", "256"]) == 0
    assert [step for step, _ in run.checkpoints()] == [128, 256]


def test_a_disk_that_does_not_even_take_a_row_is_told_without_a_traceback(frail: list[str], run: RunDirectory) -> None:
    assert train.main(frail) == 0

    def go_on_without_room() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
        return train.main(["--resume", str(run.path), "--total-timesteps", "256"])

    code, told = in_a_child(go_on_without_room)
    assert code == 5
    assert "error: saving: " in told
    assert "Traceback" not in told
    assert train.main(["--resume", str(run.path), "--total-timesteps", "256"]) == 0


def test_a_place_for_checkpoints_that_cannot_be_used_is_told(
    frail: list[str], run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(frail) == 0
    run.checkpoint(128).unlink()
    (run.path / "checkpoints").rmdir()
    (run.path / "checkpoints").write_text("in the way")
    assert train.main(["--resume", str(run.path)]) == 5
    assert str(run.path / "checkpoints") in capsys.readouterr().err


def test_other_spaces_at_evaluation_are_told(
    frail: list[str], run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(frail) == 0
    text = run.settings.read_text()
    for id in ("TMaze-v0", "CartPole-v1"):  # other actions; other observations
        run.settings.write_text(text.replace("frailty:Frail-v0", id))
        assert evaluate.main([str(run.path), "--episodes", "1"]) == 5
        assert f"does not fit {id}" in capsys.readouterr().err


def test_pictures_without_a_display_are_told(
    frail: list[str], run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pygame").display.quit()
    assert train.main(frail) == 0
    monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
    monkeypatch.delenv("DISPLAY", raising=False)
    assert evaluate.main([str(run.path), "--episodes", "1", "--video", str(run.path / "episode.mp4")]) == 3
    assert "rendering frailty:Frail-v0" in capsys.readouterr().err


def test_a_worker_that_does_not_answer_in_time_ends_the_run_where_that_is_set(
    frail: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*frail, "--env.backend", "subprocess", "--env.timeout", "2", "--env.max-restarts", "0"]
    assert train.main([*words, "--env.kwargs", "fault=hang", "at=20"]) == 3
    assert "did not answer within 2 seconds" in capsys.readouterr().err


def test_a_timeout_needs_workers(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--env.timeout", "2", "--dry-run"]) == 2
    assert "env.timeout goes with env.backend subprocess" in capsys.readouterr().err
    with pytest.raises(ValueError, match="a timeout goes with the backend 'subprocess'"):
        envs.make("CartPoleNoVel-v1", 1, timeout=1.0)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
