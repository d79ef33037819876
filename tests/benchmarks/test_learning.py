"""The learning benchmark goes on where it was killed, and its statistics are right."""

import json
import pathlib

import learning
import numpy as np
import pytest
import records

import configs
from agents.analysis.evaluation import interquartile_mean


def a_result(name: str, last: float) -> dict[str, object]:
    return dict(name=name, steps=100, seconds=2.0, curve=[[50, 0.0], [100, last]], returns=[last, last, last, last])


def test_names_of_runs_are_unique_and_every_seed_is_there() -> None:
    names = [run.name for run in learning.all_runs(learning.Settings(seeds=3, equal_seeds=5))]
    assert len(set(names)) == len(names)
    assert {name for name in names if name.startswith("task/tmaze/gru/")} == {f"task/tmaze/gru/{i}" for i in range(3)}
    assert sum(name.startswith("equal/pendulum/sb3-contrib/") for name in names) == 5


def test_a_kept_result_is_not_run_again(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    ran = []

    def runs(settings: learning.Settings) -> list[records.Run]:
        def start_of(name: str) -> records.Run:
            def start(steps: int) -> dict[str, object]:
                ran.append(name)
                return {key: value for key, value in a_result(name, 1.0).items() if key != "name"}

            return records.Run(name, start)

        return [start_of("task/tmaze/lstm/0"), start_of("task/tmaze/lstm/1")]

    monkeypatch.setattr(learning, "all_runs", runs)
    monkeypatch.setattr(learning, "DOCS", tmp_path)
    monkeypatch.setattr(learning, "RESULTS", tmp_path / "results" / "learning.jsonl")
    records.keep(learning.RESULTS, a_result("task/tmaze/lstm/0", 1.0))
    learning.main(learning.Settings())
    assert ran == ["task/tmaze/lstm/1"]
    assert [result["name"] for result in records.read(learning.RESULTS)] == ["task/tmaze/lstm/0", "task/tmaze/lstm/1"]
    learning.main(learning.Settings())
    assert ran == ["task/tmaze/lstm/1"]
    learning.main(learning.Settings(steps=10))
    assert len(ran) == 3
    assert len(records.read(learning.RESULTS)) == 2


def test_the_page_says_what_was_reached(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(learning, "DOCS", tmp_path)
    found = [
        a_result(f"task/tmaze/{memory}/{seed}", last)
        for memory, last in (("gru", 0.4), ("none", 0.5))
        for seed in (0, 1)
    ]
    found += [a_result(f"task/repeat/lstm/{seed}", 0.97) for seed in (0, 1)]
    found += [
        a_result(f"equal/cartpole/{who}/{seed}", 10.0 + seed) for who in ("sb3-contrib", "recurl") for seed in (0, 1)
    ]
    learning.write_docs(json.loads(json.dumps(found)))
    page = (tmp_path / "learning.md").read_text().splitlines()
    (gru,) = (line for line in page if line.startswith("| T-maze, length 20 | gru"))
    (none,) = (line for line in page if line.startswith("| T-maze, length 20 | none"))
    (lstm,) = (line for line in page if line.startswith("| RepeatPrevious"))
    assert "| 0.400 | 0.4 to 0.4 |" in gru
    assert "not reached" in gru
    assert "stays memoryless" in none
    assert "| reached |" in lstm
    (equal,) = (line for line in page if line.startswith("| cartpole | 2 and 2"))
    assert "| 2 of 2 | 10.5 (10.0 to 11.0) | 10.5 (10.0 to 11.0) |" in equal
    assert (tmp_path / "learning.png").stat().st_size > 1000


def test_the_interval_covers_the_spread_between_seeds() -> None:
    apart = np.array([[0.0] * 50, [1.0] * 50])
    assert learning.interval(apart, learning.mean) == (0.0, 1.0)
    alike = np.tile([0.0, 1.0], (2, 500))
    low, high = learning.interval(alike, learning.mean)
    assert 0.4 < low < 0.5 < high < 0.6


def test_the_interval_of_a_curve_is_over_seeds_at_each_point() -> None:
    low, high = learning.curve_interval(np.array([[0.0, 5.0], [1.0, 5.0]]))
    assert low.tolist() == [0.0, 5.0]
    assert high.tolist() == [1.0, 5.0]


def test_the_middle_half_is_that_of_evaluation() -> None:
    values = np.array([9.0, 1.0, 2.0, 100.0, 4.0])
    assert learning.interquartile_mean(values) == interquartile_mean(values) == 5.0


def test_every_task_has_its_settings_and_they_parse() -> None:
    for task in learning.TASKS:
        for memory in task.memories:
            settings = configs.parse(["--config", task.config, "--policy.memory", memory]).settings
            assert settings.policy.memory == memory
