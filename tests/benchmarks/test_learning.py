"""The benchmarks of learning continue where they were killed, and their statistics are right."""

import json
import pathlib

import learning
import numpy as np
import pytest
import records

import configs


def a_result(name: str, last: float) -> dict[str, object]:
    return dict(name=name, steps=100, seconds=2.0, curve=[[50, 0.0], [100, last]], returns=[last, last, last, last])


def test_names_of_runs_are_unique_and_every_seed_is_there() -> None:
    names = [run.name for run in learning.all_runs(learning.Settings(seeds=3, equal_seeds=5))]
    assert len(set(names)) == len(names)
    assert {name for name in names if name.startswith("task/tmaze/gru/")} == {f"task/tmaze/gru/{i}" for i in range(3)}
    assert sum(name.startswith("equal/pendulum/sb3-contrib/") for name in names) == 5


def test_a_kept_result_is_not_run_again_and_a_trial_is_not_kept(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "DOCS", tmp_path)
    started, reported = [], []

    def run_all(**settings: int) -> None:
        def run(name: str) -> records.Run:
            return records.Run(name, lambda steps: started.append(name) or {"returns": [1.0]})

        runs = [run("tmaze/0"), run("tmaze/1"), run("copy/0")]
        chosen = records.Settings(only="tmaze", **settings)
        records.run_all(chosen, "any", runs, str, lambda found: reported.append(len(found)))

    records.keep("any", a_result("tmaze/0", 1.0))
    for _ in range(2):
        run_all()
    assert (started, reported) == (["tmaze/1"], [2, 2])
    assert [result["name"] for result in records.read("any")] == ["tmaze/0", "tmaze/1"]
    run_all(steps=10)
    assert started[1:] == ["tmaze/0", "tmaze/1"]
    assert len(records.read("any")) == 2


def test_the_page_has_a_verdict_of_every_task(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(records, "DOCS", tmp_path)
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
    assert records.interval(apart) == (0.0, 1.0)
    alike = np.tile([0.0, 1.0], (2, 500))
    low, high = records.interval(alike)
    assert 0.4 < low < 0.5 < high < 0.6


def test_the_interval_of_a_curve_is_over_seeds_at_each_point() -> None:
    low, high = records.curve_interval(np.array([[0.0, 5.0], [1.0, 5.0]]))
    assert low.tolist() == [0.0, 5.0]
    assert high.tolist() == [1.0, 5.0]


def test_the_interquartile_mean_leaves_out_a_quarter_on_each_side() -> None:
    assert records.interquartile_mean(np.array([9.0, 1.0, 2.0, 100.0, 4.0])) == 5.0


def test_a_run_is_trained_and_its_best_checkpoint_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "EPISODES", 2)
    few = ["--algorithm.n-steps", "16", "--algorithm.batch-size", "32", "--evaluation.every", "64", "--env.n-envs", "2"]
    result = records.trained(["--config", "tmaze", "--policy.memory", "gru", "--evaluation.episodes", "2", *few], 64)
    assert (result["steps"], len(result["returns"]), result["curve"][-1][0]) == (64, 2, 64)


def test_every_task_has_its_settings_and_they_parse() -> None:
    for task in learning.TASKS:
        for memory in task.memories:
            settings = configs.parse(["--config", task.config, "--policy.memory", memory]).settings
            assert settings.policy.memory == memory
