"""A run that begins with a teacher."""

from __future__ import annotations

from pathlib import Path

import pytest

import configs
import evaluate
import train
from agents.deploy import export
from agents.deploy.player import Player
from agents.runs.directory import RunDirectory
from configs import SettingsError

SMALL = [
    *("--env.n-envs", "2", "--threads", "1", "--algorithm.n-steps", "16", "--algorithm.batch-size", "16"),
    *("--algorithm.n-epochs", "1", "--total-timesteps", "64", "--evaluation.every", "32", "--evaluation.episodes", "2"),
    *("--evaluation.final-episodes", "0", "--tracking.no-tensorboard", "--no-progress", "--device", "cpu"),
]
STUDENT = [
    *("--env.id", "CartPole-v1", "--policy.memory", "gru", "--policy.memory-kwargs", "hidden_size=4"),
    *("--env.wrappers", "{keep: {key: teacher}}", "{mask: {indices: [1, 3], keys: [observation]}}"),
    *("--policy.kwargs", "privileged=[teacher]", "--policy.critic-memory", "separate"),
    *("--imitation.key", "teacher", "--imitation.n-steps", "8", "--imitation.steps", "48"),
    *("--imitation.critic-steps", "32"),
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("teacher")
    words = ["--env.id", "CartPole-v1", "--policy.memory", "none", "--runs", str(runs), "--name", "teacher"]
    assert train.main([*SMALL, *words]) == 0
    return runs / "teacher"


@pytest.mark.parametrize("kind", ["a run", "an agent's file", "an exported policy"])
def test_a_run_learns_from_a_teacher_first(
    kind: str, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = teacher if kind == "a run" else RunDirectory(teacher).find("best")
    if kind == "an exported policy":
        named = export(Player.load(named), tmp_path / "teacher.onnx").path
    assert (
        train.main([*SMALL, *STUDENT, "--imitation.teacher", str(named), "--runs", str(tmp_path), "--name", "s"]) == 0
    )
    shown = capsys.readouterr().out
    assert shown.count("imitation     ") == 4
    assert "48 steps: loss" in shown
    assert "the critic learned for 32 steps" in shown
    assert RunDirectory(tmp_path / "s").last_step() == 64
    assert train.main(["--resume", str(tmp_path / "s"), "--total-timesteps", "96"]) == 0  # without another lesson
    assert "imitation     " not in capsys.readouterr().out
    if kind == "a run":
        assert evaluate.main([str(tmp_path / "s"), "--episodes", "1", "--card"]) == 0
        shared = tmp_path / "s" / "hub"
        assert str(teacher.parent) not in "".join(
            (shared / name).read_text() for name in ("settings.yaml", "report.html")
        )


def test_a_teacher_that_is_not_there_is_named_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, *STUDENT, "--runs", str(tmp_path), "--name", "s"]
    assert train.main([*words, "--imitation.teacher", str(tmp_path / "none")]) == 5
    assert "imitation.teacher" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_settings_of_a_teacher_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"imitation.teacher is missing: give a run or a file"):
        configs.parse(["--imitation.steps", "10"])
    with pytest.raises(SettingsError, match=r"the actor would act on it: --policy.kwargs 'privileged=\[full\]'"):
        configs.parse(["--imitation.teacher", "runs/t", "--imitation.key", "full"])
