"""evaluate.py shows what a run remembers, in its directory and on the terminal."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import evaluate
import train

pytest.importorskip("matplotlib")

WORDS = [
    *("--env.id", "TMaze-v0", "--env.kwargs", "length=2", "--env.n-envs", "2", "--total-timesteps", "32"),
    *("--algorithm.n-steps", "16", "--algorithm.batch-size", "16", "--algorithm.n-epochs", "1", "--threads", "1"),
    *("--policy.memory-kwargs", "hidden_size=4", "--evaluation.every", "0", "--evaluation.final-episodes", "0"),
    *("--tracking.no-tensorboard", "--no-progress"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("insight")
    assert train.main([*WORDS, "--runs", str(runs), "--name", "lstm"]) == 0
    without = [word for word in WORDS if word not in ("--policy.memory-kwargs", "hidden_size=4")]
    assert train.main([*without, "--policy.memory", "none", "--runs", str(runs), "--name", "none"]) == 0
    return runs


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "lstm", tmp_path / "run"))


def evaluated(run: Path, *words: str) -> int:
    return evaluate.main([str(run), "--episodes", "4", "--n-envs", "2", *words])


def test_insight_writes_all_of_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluated(run, "--insight") == 0
    name = "step_000000000032"
    assert sorted(path.name for path in (run / "insight").iterdir()) == sorted(
        f"{name}-{rest}"
        for rest in (
            *("horizon.json", "horizon.png", "inside.json", "inside.npz"),
            *("inside-components.png", "inside-gates.png", "inside-state.png"),
        )
    )
    shown = capsys.readouterr().out
    for words in ("intact", "wiped every step", "wiped every 2 steps", "of another episode", "noise of 0.1"):
        assert words in shown
    ablation = json.loads((run / "evaluations" / f"{name}-4-deterministic-ablation.json").read_text())
    horizon = json.loads((run / "insight" / f"{name}-horizon.json").read_text())
    assert ablation["verdict"] in shown.replace("\n", " ")
    assert horizon["verdict"] in shown
    plain = json.loads((run / "evaluations" / f"{name}-4-deterministic.json").read_text())
    assert len(ablation["conditions"][0]["returns"]) == plain["episodes"] == 4
    arrays = np.load(run / "insight" / f"{name}-inside.npz")
    inside = json.loads((run / "insight" / f"{name}-inside.json").read_text())
    assert arrays["rewards"].sum() == pytest.approx(inside["return"])
    assert arrays["states.0"].shape == (inside["steps"] + 1, 1, 4)
    assert set(inside["gates"]) == {"input", "forget", "output"}


def test_nothing_is_overwritten(run: Path) -> None:
    for _ in range(2):
        assert evaluated(run, "--horizon", "1") == 0
    found = sorted((run / "insight").iterdir())
    assert [path.name[18:] for path in found] == ["horizon-2.json", "horizon-2.png", "horizon.json", "horizon.png"]
    assert len(json.loads(found[0].read_text())["sensitivity"]) == 2
    assert found[0].read_text() == found[2].read_text()


def test_an_agent_without_memory_is_told_so(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(trained / "none", tmp_path / "run"))
    assert evaluated(run, "--insight") == 0
    shown = capsys.readouterr().out
    assert "there is nothing to ablate" in shown
    assert "there is nothing to draw" in shown
    assert "memory horizon: 0 steps" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--inside", "--color", "rewards"), "--color rewards: no step of the episode has 'rewards'; there are"),
        (("--inside", "--colour", "reward"), "is called --color now"),
        (("--horizon", "-1"), "must be at least 0, got -1"),
    ],
)
def test_bad_input_is_told_without_a_traceback(
    words: tuple[str, ...], said: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluated(run, *words) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told


def test_a_folder_that_cannot_be_written_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "insight").write_text("in the way of the folder")
    assert evaluated(run, "--inside") == 2
    assert "--inside" in capsys.readouterr().err


def test_without_matplotlib_it_is_told_before_anything_is_played(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # so Python says it is not there
    assert evaluated(run, "--insight") == 2
    captured = capsys.readouterr()
    assert 'pip install "recurl[plots]"' in captured.err
    assert "mean return" not in captured.out
    assert evaluated(run, "--ablate") == 0  # draws nothing


def test_diagnostics_can_be_switched_off(trained: Path, tmp_path: Path) -> None:
    words = [*WORDS, "--runs", str(tmp_path), "--name", "off", "--tracking.no-memory-diagnostics"]
    assert train.main(words) == 0
    assert "memory/" not in (tmp_path / "off" / "metrics.csv").read_text()
    assert "memory/gradient_lag_0" in (trained / "lstm" / "metrics.csv").read_text()
