"""Bad input and faults: what is lost is little, what is left is complete, and the message says what to do."""

import multiprocessing.connection
import resource
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import envs
import evaluate
import train
from agents.runs.directory import RunDirectory
from envs.vector.errors import EnvError
from tests.runs import OWN, PPO, QUIET, TINY, in_a_child, rows_of, weights

FRAIL = f"{OWN}Frail-v0"

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
def words(tmp_path: Path) -> list[str]:
    """No checkpoint but at the end."""
    place = ["--runs", str(tmp_path / "runs"), "--name", "mine", "--env.id", FRAIL]
    return [*TINY, *PPO, *QUIET, "--checkpoint.every", "0", *place]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "runs" / "mine")


@pytest.fixture
def once(tmp_path: Path) -> str:
    """A folder that stands for one fault."""
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "first").touch()
    return str(tmp_path / "faults")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def saved_steps(run: RunDirectory) -> list[int]:
    """All of whose checkpoints are finite."""
    assert all(part.isfinite().all() for _, path in run.checkpoints() for part in weights(path).values())
    return [step for step, _ in run.checkpoints()]


# Numbers that are not finite


@pytest.mark.parametrize("fault", ["observation", "reward"])
@pytest.mark.parametrize("backend", ["serial", "subprocess"])
def test_numbers_that_are_not_finite_stop_the_run_and_the_agent_before_them_is_saved(
    fault: str, backend: str, words: list[str], run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    words += ["--env.no-normalize-observations", "--env.no-normalize-rewards", "--env.backend", backend]
    assert train.main([*words, "--env.kwargs", f"fault={fault}", "at=39"]) == 4
    errors = capsys.readouterr().err
    # Step 39 is number 6, from 0, of the third rollout; what it shows is the next one's observation.
    assert f"the {fault} of environment 0 at step {6 + (fault == 'observation')} of the rollout" in errors
    assert "ended at time step 96" in errors
    assert saved_steps(run) == [64]
    assert f"saved the agent from before the fault: {run.checkpoint(64)}" in errors


def test_a_gradient_that_is_not_finite_stops_the_run_and_the_weights_before_it_are_saved(
    words: list[str],
    run: RunDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "steep.py").write_text(STEEP)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "steep", raising=False)
    # Two minibatches an update: the fifth gradient is the first of the third update, after 96 steps.
    assert train.main([*words, "--policy.encoder", "steep:SteepExtractor"]) == 4
    errors = capsys.readouterr().err
    assert "the gradient of features_extractor.scale is not finite in the update after 96 steps" in errors
    assert saved_steps(run) == [64]


# Environments


@pytest.mark.parametrize(
    ("backend", "fault"), [("serial", "raise"), ("subprocess", "raise"), ("subprocess", "die"), ("subprocess", "hang")]
)
def test_an_environment_that_fails_is_restarted_and_its_episode_truncated(backend: Any, fault: str, once: str) -> None:
    venv: Any = envs.make(
        FRAIL,
        2,
        seed=3,
        env_kwargs={"fault": fault, "at": 5, "once": once},
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
        with pytest.warns(RuntimeWarning, match=r"\(1 of at most 1 times\)"):
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
def test_after_a_set_number_of_times_it_is_given_up(backend: Any, fault: str) -> None:
    workers = 1 if backend == "subprocess" else None
    kwargs = {"fault": fault, "at": 2}
    venv = envs.make(FRAIL, 1, env_kwargs=kwargs, backend=backend, workers=workers, max_restarts=2)
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
    assert (len(warned), steps) == (2, 5)
    venv.close()


@pytest.mark.parametrize(("backend", "fault"), [("serial", "raise"), ("subprocess", "die")])
def test_a_run_outlives_an_environment_that_fails_and_warns(
    backend: str, fault: str, words: list[str], run: RunDirectory, once: str
) -> None:
    words += ["--env.backend", backend, "--env.kwargs", f"once={once}", f"fault={fault}", "at=20"]
    with pytest.warns(RuntimeWarning, match="1 of at most 3 times"):
        assert train.main(words) == 0
    assert saved_steps(run) == [128]


@pytest.mark.parametrize(
    ("backend", "fault", "message"),
    [
        ("serial", "raise", "own_environments.py"),
        ("subprocess", "raise", "own_environments.py"),
        ("serial", "exit", "it called sys.exit(0)"),
        ("subprocess", "exit", "it called sys.exit(0)"),
        ("serial", "interrupt", "KeyboardInterrupt"),
    ],
)
def test_an_environment_that_keeps_failing_or_would_end_the_process_is_a_fault_and_the_agent_is_saved(
    backend: str, fault: str, message: str, words: list[str], run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    words += ["--env.backend", backend, "--env.max-restarts", "0", "--env.kwargs", f"fault={fault}", "at=20"]
    assert train.main(words) == 3
    errors = capsys.readouterr().err
    assert message in errors
    assert f"environment {FRAIL}: " in errors
    assert ("the wheel came off" in errors) == (fault == "raise")
    assert f"saved the agent from before the fault: {run.checkpoint(32)}" in errors
    assert backend == "subprocess" or "Traceback" not in errors


def test_an_environment_that_fails_once_in_an_evaluation_does_not_end_the_run(
    words: list[str], run: RunDirectory, once: str
) -> None:
    words += ["--evaluation.every", "64", "--evaluation.episodes", "6", "--env.n-envs", "1"]
    # The first evaluation, after 64 steps of training, comes to its 45th: in the middle of the second sampled episode.
    words += ["--env.kwargs", f"once={once}", "fault=raise", "at=45"]
    with pytest.warns(RuntimeWarning, match="1 of at most 3 times"):
        assert train.main(words) == 0
    figures = ("episodes", "mean_ep_length", "deterministic_mean_reward", "sampled_mean_reward")
    found = {tuple(row[name] for name in figures) for row in rows_of(run.evaluations)}
    assert found == {("3", "10.0", "10.0", "10.0")}


def test_a_worker_that_does_not_answer_in_time_ends_the_run_where_that_is_set(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words += ["--env.backend", "subprocess", "--env.timeout", "2", "--env.max-restarts", "0"]
    assert train.main([*words, "--env.kwargs", "fault=hang", "at=20"]) == 3
    assert "did not answer within 2 seconds" in capsys.readouterr().err
    with pytest.raises(ValueError, match="a timeout goes with the backend 'subprocess'"):
        envs.make("CartPoleNoVel-v1", 1, timeout=1.0)


# Disks and files


def test_a_run_directory_that_is_removed_ends_the_run_with_one_sentence(
    words: list[str], run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    words += ["--tracking.tensorboard", "--evaluation.every", "32", "--evaluation.episodes", "1", "--env.n-envs", "1"]
    assert train.main([*words, "--env.kwargs", "fault=remove", f"marks={run.path}", "at=40"]) == 5
    errors = capsys.readouterr().err
    assert "error: saving: " in errors
    assert "was removed" in errors
    assert "Traceback" not in errors
    assert "saved the agent" not in errors
    assert not run.path.exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("finished")
    words = [*TINY, *PPO, *QUIET, "--checkpoint.every", "0", "--env.id", FRAIL, "--runs", str(runs), "--name", "mine"]
    assert train.main(words) == 0
    return runs / "mine"


@pytest.fixture
def going_on(finished: Path, run: RunDirectory) -> list[str]:
    """The command that goes on with a run that is finished."""
    shutil.copytree(finished, run.path)
    return ["--resume", str(run.path), "--total-timesteps", "256"]


def test_a_table_that_is_no_text_is_reported_before_a_run_goes_on(
    going_on: list[str], run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    with run.metrics.open("ab") as file:
        file.write(b"\xff\n")
    assert train.main(going_on) == 2
    errors = capsys.readouterr().err
    assert "metrics.csv is not UTF-8" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("room", [None, 64])
def test_a_disk_that_is_full_is_reported_without_a_traceback_and_leaves_the_checkpoint_before(
    room: int | None, going_on: list[str], run: RunDirectory
) -> None:
    """Full when the next checkpoint is half written, or when the next row of metrics comes."""
    before = run.checkpoint(128).read_bytes()

    def go_on_with_little_room() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room or len(before) // 2, resource.RLIM_INFINITY))
        return train.main(going_on)

    code, errors = in_a_child(go_on_with_little_room)
    assert code == 5
    assert "error: saving: " in errors
    assert room or "could not be written" in errors
    assert "Traceback" not in errors
    assert saved_steps(run) == [128]
    assert run.checkpoint(128).read_bytes() == before
    assert train.main(going_on) == 0
    assert saved_steps(run) == [128, 256]


def test_a_place_for_checkpoints_that_cannot_be_used_is_reported(
    going_on: list[str], run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    run.checkpoint(128).unlink()
    (run.path / "checkpoints").rmdir()
    (run.path / "checkpoints").write_text("in the way")
    assert train.main(going_on) == 5
    assert str(run.path / "checkpoints") in capsys.readouterr().err


@pytest.mark.usefixtures("going_on")
def test_other_spaces_at_evaluation_are_reported(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    text = run.settings.read_text()
    for id in ("TMaze-v0", "CartPole-v1"):  # other actions; other observations
        run.settings.write_text(text.replace(FRAIL, id))
        assert evaluate.main([str(run.path), "--episodes", "1"]) == 5
        assert f"does not fit {id}" in capsys.readouterr().err


@pytest.mark.usefixtures("going_on")
def test_pictures_without_a_display_are_reported(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pygame").display.quit()
    monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
    monkeypatch.delenv("DISPLAY", raising=False)
    assert evaluate.main([str(run.path), "--episodes", "1", "--video", str(run.path / "episode.mp4")]) == 3
    assert f"rendering {FRAIL}" in capsys.readouterr().err
