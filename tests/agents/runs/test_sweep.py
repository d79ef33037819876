"""A sweep chooses, trains, prunes and records; killed anywhere, it goes on where it was."""

import csv
from pathlib import Path
from typing import Any

import pytest

import configs
import train
from agents.analysis.report.search import Tried, ranked, sections
from tests.runs import OWN, PPO, TINY

optuna: Any = pytest.importorskip("optuna")

WORDS = [
    *(*TINY, *PPO, "--evaluation.every", "64", "--evaluation.episodes", "2", "--evaluation.final-episodes", "2"),
    *("--tracking.no-tensorboard", "--total-timesteps", "64", "--env.id", f"{OWN}Shown-v0", "--seeds", "2"),
    *("--env.kwargs", "seen=bits", "done=choices"),
]
SPACE = """
method: random
parameters:
  algorithm.learning-rate: {distribution: log_uniform_values, min: 1.0e-4, max: 1.0e-3}
  policy.memory: {values: [lstm, gru]}
  policy.net-arch: {values: [[8], [8, 8]]}
"""


def sweep(folder: Path, space: str, *words: str) -> int:
    file = folder / "space.yaml"
    file.write_text(space)
    return train.main([*WORDS, "--runs", str(folder), "--name", "sweep", "--sweep", str(file), *words])


def study(folder: Path) -> Any:
    journal = optuna.storages.journal.JournalFileBackend(str(folder / "sweep" / "journal.log"))
    storage = optuna.storages.JournalStorage(journal)
    return optuna.create_study(storage=storage, study_name="sweep", direction="maximize", load_if_exists=True)


def test_a_sweep_that_was_killed_goes_on_and_leaves_table_best_settings_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(tmp_path, SPACE, "--trials", "1", "--parallel", "2") == 0
    # As after a kill: a trial that has begun, a lock that nobody holds, half a line.
    found = study(tmp_path)
    asked = found.ask()
    asked.suggest_float("algorithm.learning_rate", 1e-4, 1e-3, log=True)
    journal = tmp_path / "sweep" / "journal.log"
    (tmp_path / "sweep" / "journal.log.lock").symlink_to(journal)
    with journal.open("a") as file:
        file.write('{"op_code":4,"stu')
    capsys.readouterr()
    assert sweep(tmp_path, SPACE, "--trials", "2", "--parallel", "2") == 0
    out = capsys.readouterr().out
    assert "trial 1: return 10" in out
    trials = study(tmp_path).trials
    assert [(each.state.name, each.value) for each in trials] == [("COMPLETE", 10.0)] * 2
    assert trials[1].params["algorithm.learning_rate"] == asked.params["algorithm.learning_rate"]
    assert all(each.user_attrs["scores"] == [10.0, 10.0] for each in trials)
    with (tmp_path / "sweep" / "trials.csv").open(newline="") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["complete", "complete"]
    best = configs.read(tmp_path / "sweep" / "best.yaml")
    assert (best.name, best.group, best.policy.net_arch in ((8,), (8, 8))) == (None, None, True)
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert page.count("data:image/png") >= 1
    assert "trial-000-seed-1" in page
    assert sweep(tmp_path, SPACE, "--trials", "2", "--seeds", "1") == 2
    assert "has 2 seeds a trial, not 1" in capsys.readouterr().err
    assert sweep(tmp_path, SPACE.replace("gru", "rnn"), "--trials", "2") == 2
    assert "another space" in capsys.readouterr().err


def test_a_trial_that_fails_is_recorded_with_its_error_and_the_search_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = "parameters:\n  env.kwargs.seen: {values: [nothing, bits]}\nearly_terminate: {type: hyperband}"
    assert sweep(tmp_path, space, "--trials", "4", "--parallel", "2", "--seeds", "1") == 0
    trials = study(tmp_path).trials
    assert {each.state.name for each in trials} == {"COMPLETE", "FAIL"}
    failed = next(each for each in trials if each.state.name == "FAIL")
    assert "environment tests.own_environments:Shown-v0: " in failed.user_attrs["note"]
    assert "nothing" in failed.user_attrs["note"]
    assert f"trial {failed.number} failed: environment " in capsys.readouterr().err


def test_what_a_sweep_needs_is_said_before_it_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(tmp_path, SPACE, "--evaluation.final-episodes", "0") == 2
    assert "evaluation.final_episodes is 0" in capsys.readouterr().err
    assert sweep(tmp_path, SPACE, "--trials", "0") == 2
    assert sweep(tmp_path, SPACE, "--resume", str(tmp_path)) == 2
    assert train.main(["--sweep", str(tmp_path / "none.yaml")]) == 2
    assert "no sweep file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]


def test_a_sweep_without_optuna_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert sweep(tmp_path, SPACE) == 2
    error = capsys.readouterr().err
    assert "optuna is needed" in error
    assert "[sweep]" in error


def test_a_page_of_a_search_shows_trials_in_the_order_of_their_return() -> None:
    tried = [
        Tried(0, "complete", 1.0, (1.0, 1.0), {"algorithm.gamma": 0.9, "policy.memory": "lstm"}),
        Tried(1, "pruned", None, (0.5,), {"algorithm.gamma": 0.5, "policy.memory": "none"}),
        Tried(2, "complete", 3.0, (3.0, 3.0), {"algorithm.gamma": 0.99}),
        Tried(3, "failed", None, (), {}, "the wheel came off"),
    ]
    assert [each.number for each in ranked(tried)] == [2, 0, 1, 3]
    (blocks,) = sections(tried, ["algorithm.gamma", "policy.memory"], {"algorithm.gamma": 1.0}).values()
    assert [kind for kind, _ in blocks] == ["plain", "pictures", "table"]
    assert "4 trials: 2 complete, 1 pruned, 1 failed" in blocks[0][1]
    assert len(blocks[1][1]) == 2
    assert blocks[2][1]["rows"][0] == ("", ["2", "complete", "3.000", "3.000 3.000", "0.99", "", ""])
    (unfinished,) = sections(tried[1:2], ["algorithm.gamma"], {}).values()
    assert [kind for kind, _ in unfinished] == ["plain", "table"]
