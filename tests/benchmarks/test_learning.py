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
    names = [run.name for run in learning.all_runs(learning.Settings(equal_seeds=5))]
    assert len(set(names)) == len(names)
    assert {name for name in names if name.startswith("task/tmaze/gru/")} == {f"task/tmaze/gru/{i}" for i in range(10)}
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


def test_fresh_runs_are_kept_elsewhere_and_compared_with_those_before(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(records, "DOCS", tmp_path / "docs")
    records.keep("any", a_result("tmaze/0", 0.5))
    before = records.results_file("any").read_text()
    started: list[str] = []

    def run(name: str) -> records.Run:
        return records.Run(name, lambda steps: started.append(name) or a_result(name, 1.0))

    runs = [run("tmaze/0"), run("new")]

    def run_all() -> None:
        settings = records.Settings(fresh=True, into=str(tmp_path / "again"))
        records.run_all(settings, "any", runs, learning.summary, lambda _: pytest.fail("no page is written"))

    run_all()
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "run      before                     now",
        "tmaze/0  0.50 after 100 steps, 2 s  1.00 after 100 steps, 2 s",
        "new      -                          1.00 after 100 steps, 2 s",
    ]
    run_all()  # continues
    assert len(started) == 2
    assert records.results_file("any").read_text() == before
    assert [path.name for path in (tmp_path / "again").iterdir()] == ["any.jsonl"]
    with pytest.raises(SystemExit, match="--into is the folder of --fresh"):
        records.run_all(records.Settings(into="x"), "any", runs, str, str)  # type: ignore[arg-type]


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
    assert "| 0.400 (0.400 to 0.400) | 0.400 (0.400 to 0.400) |" in gru
    assert "not reached" in gru
    assert "stays memoryless" in none
    assert "| reached |" in lstm
    (equal,) = (line for line in page if line.startswith("| cartpole | 2 and 2"))
    assert "| 2 of 2 | 10.5 (10.0 to 11.0) | 10.5 (10.0 to 11.0) |" in equal
    assert (tmp_path / "learning.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("last", "verdict"),
    [
        ([0.96, 0.97, 0.98], "reached"),
        ([0.9, 0.97, 0.99], "undecided"),  # the upper end lies above the goal, which alone says nothing
        ([0.8, 0.9, 0.94], "not reached"),
    ],
)
def test_a_goal_is_reached_where_the_interval_of_the_last_policies_lies_above_it(
    last: list[float], verdict: str
) -> None:
    (task,) = (task for task in learning.TASKS if task.name == "repeat")
    found = [{**a_result(f"task/repeat/lstm/{seed}", 1.0), "last": [value] * 4} for seed, value in enumerate(last)]
    row = learning._task_row(task, "lstm", found)
    assert row[4:6] == [records.figure(np.array(last)[:, None]), "1.000 (1.000 to 1.000)"]
    assert row[7] == verdict


def test_a_figure_lies_within_its_interval_as_it_is_written() -> None:
    returns = np.array([[500.0] * 300, [499.65] * 300, [499.717] * 300])
    assert records.figure(returns) == "499.8 (499.6 to 500.0)"
    assert records.figure(np.array([[0.25, 0.75], [0.25, 0.75]])).startswith("0.500 (0.250 to 0.750")


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


def test_a_run_is_trained_and_its_best_checkpoint_and_last_policy_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "EPISODES", 2)
    few = ["--algorithm.n-steps", "16", "--algorithm.batch-size", "32", "--evaluation.every", "64", "--env.n-envs", "2"]
    result = records.trained(["--config", "tmaze", "--policy.memory", "gru", "--evaluation.episodes", "2", *few], 64)
    assert (result["steps"], len(result["returns"]), len(result["last"]), result["curve"][-1][0]) == (64, 2, 2, 64)


def test_every_task_has_its_settings_and_they_parse() -> None:
    for task in learning.TASKS:
        for memory in task.memories:
            settings = configs.parse(["--config", task.config, "--policy.memory", memory]).settings
            assert settings.policy.memory == memory
