"""evaluate.py needs nothing but a run's directory, and says what is wrong with it."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import evaluate
import train

WORDS = [
    *("--env.id", "CartPoleNoVel-v1", "--env.n-envs", "2", "--env.wrappers", "previous_action_reward"),
    *("--algorithm.n-steps", "16", "--algorithm.batch-size", "16", "--algorithm.n-epochs", "1"),
    *("--policy.memory", "gru", "--policy.memory-kwargs", "hidden_size=4", "--total-timesteps", "64"),
    *("--evaluation.every", "32", "--evaluation.episodes", "1", "--evaluation.final-episodes", "0"),
    *("--checkpoint.every", "32", "--tracking.no-tensorboard", "--no-progress", "--name", "run"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("evaluate")
    assert train.main([*WORDS, "--runs", str(runs)]) == 0
    return runs / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy in another place: a run is its directory."""
    return Path(shutil.copytree(trained, tmp_path / "elsewhere"))


def results(run: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((run / "evaluations").glob("*.json"))]


def test_the_table_and_the_file_say_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(run), "--episodes", "7", "--n-envs", "3"]) == 0
    (result,) = results(run)
    shown = capsys.readouterr().out
    for row in ("mean return", "median", "interquartile mean", "standard deviation", "mean length", "95 % interval"):
        assert row in shown
    assert f"{result['return']['mean']:.3f}"[:4] in shown
    assert (result["episodes"], len(result["returns"]), result["deterministic"]) == (7, 7, True)
    assert result["return"]["mean"] == pytest.approx(sum(result["returns"]) / 7)
    assert (result["checkpoint"], result["environment"]["wrappers"]) == ("best.zip", ["previous_action_reward"])


def test_the_same_seed_gives_the_same_episodes_and_nothing_is_overwritten(run: Path) -> None:
    for seed in ("5", "5", "6"):
        assert evaluate.main([str(run), "--episodes", "4", "--stochastic", "--seed", seed]) == 0
    first, again, other = (result["returns"] for result in results(run))
    assert len(list((run / "evaluations").iterdir())) == 3
    assert sorted([first, again, other]).count(first) == 2 or first == again
    assert len({tuple(each) for each in (first, again, other)}) == 2


@pytest.mark.parametrize(
    ("asked", "found"),
    [("best", "best"), ("last", "step_000000000064"), ("32", "step_000000000032"), ("best.zip", "best")],
)
def test_checkpoints_are_chosen_by_name_step_or_path(run: Path, asked: str, found: str) -> None:
    assert evaluate.main([str(run), "--episodes", "1", "--checkpoint", asked]) == 0
    (result,) = results(run)
    assert result["checkpoint"] == f"{found}.zip"


def test_the_result_can_be_written_elsewhere_too(run: Path, tmp_path: Path) -> None:
    assert evaluate.main([str(run), "--episodes", "2", "--json", str(tmp_path / "result.json")]) == 0
    assert json.loads((tmp_path / "result.json").read_text()) == results(run)[0]


def without_settings(run: Path) -> list[str]:
    (run / "settings.yaml").unlink()
    return [str(run)]


def without_agents(run: Path) -> list[str]:
    (run / "best.zip").unlink()
    shutil.rmtree(run / "checkpoints")
    return [str(run)]


def with_a_broken_agent(run: Path) -> list[str]:
    content = bytearray((run / "best.zip").read_bytes())
    content[len(content) // 2] ^= 1
    (run / "best.zip").write_bytes(content)
    return [str(run)]


def with_broken_settings(run: Path) -> list[str]:
    (run / "settings.yaml").write_text("seed: 1\nsede: 2\n")
    return [str(run)]


def with_an_environment_of_another_kind(run: Path) -> list[str]:
    settings = yaml.safe_load((run / "settings.yaml").read_text())
    settings["env"]["id"], settings["env"]["wrappers"], settings["tracking"] = "PendulumNoVel-v1", [], {}
    (run / "settings.yaml").write_text(yaml.safe_dump(settings))
    return [str(run)]


@pytest.mark.parametrize(
    ("break_run", "code", "said"),
    [
        (lambda run: [str(run / "nothing")], 5, "is no directory"),
        (without_settings, 5, "settings.yaml"),
        (without_agents, 5, "holds no saved agent"),
        (with_a_broken_agent, 5, "best.zip"),
        (with_broken_settings, 2, "settings.yaml:2: unknown setting sede"),
        (with_an_environment_of_another_kind, 5, "does not fit PendulumNoVel-v1"),
        (lambda run: [str(run), "--checkpoint", "33"], 5, "has no checkpoint '33'; there are best, last, 32, 64"),
        (lambda run: [str(run), "--checkpoint", "settings.yaml"], 5, "settings.yaml"),
        (lambda run: [str(run), "--episodes", "0"], 2, "must be at least 1, got 0"),
        (lambda run: [str(run), "--video", "pole.avi"], 2, "ends in .mp4 or .gif"),
        (lambda run: [str(run), "--json", str(run / "no" / "where.json"), "--episodes", "1"], 2, "--json"),
    ],
)
def test_a_fault_is_told_without_a_traceback(
    break_run: Any, code: int, said: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(break_run(run)) == code
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_video_is_recorded(run: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "videos" / f"pole{suffix}"
    assert evaluate.main([str(run), "--episodes", "1", "--video", str(path)]) == 0
    assert path.read_bytes()[:3] == b"GIF" if suffix == ".gif" else b"ftyp" in path.read_bytes()[:12]
    assert f"to {path}" in capsys.readouterr().out


def test_a_missing_extra_is_told_how_to_install_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # so Python says it is not there
    assert evaluate.main([str(run), "--episodes", "1", "--video", str(tmp_path / "pole.mp4")]) == 2
    assert 'pip install "recurl[video]"' in capsys.readouterr().err


def test_a_run_that_cannot_be_written_to_is_evaluated_all_the_same(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "evaluations").write_text("in the way of the folder")
    assert evaluate.main([str(run), "--episodes", "1"]) == 0
    captured = capsys.readouterr()
    assert "mean return" in captured.out
    assert "was not written into the run" in captured.err
