"""A run's files are read as they are, whatever state the run is in."""

import json
from pathlib import Path

import pytest

from agents.analysis.evaluation import Evaluation
from agents.analysis.report.history import RunError, read_versions
from agents.runs.directory import RunDirectory, runs_in
from configs import Settings
from configs.settings import EvaluationSettings
from tests.agents.analysis.report.runs import FINDING, PNG, record, settings


def test_a_run_that_has_only_begun_has_nothing_to_show(tmp_path: Path) -> None:
    young = record(tmp_path, "young", settings())
    assert young.metrics() == {}
    assert [*young.periodic(), *young.results(), *young.insights()] == []
    assert young.evaluation_curve() is None
    run = RunDirectory(young.path)
    assert (run.last_step(), run.best_return(), run.has_agent) == (0, None, False)


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    growing = record(tmp_path, "growing", settings(), [1.0, 2.0])
    with RunDirectory(growing.path).metrics.open("a") as file:
        file.write("30,3")  # goes on to 3.5
    with (growing.path / "evaluations.csv").open("a") as file:
        file.write("30,5,,9")
    assert growing.metrics()["rollout/ep_rew_mean"].values.tolist() == [1, 2]
    assert [row["mean_reward"] for row in growing.periodic()] == [1, 2]
    assert RunDirectory(growing.path).last_step() == 20


def test_the_interval_of_a_periodic_evaluation_is_of_its_mean(tmp_path: Path) -> None:
    (row,) = record(tmp_path, "one", settings(), [7.0]).periodic()
    # Five episodes of standard deviation 2: the standard error is 2 / sqrt(4).
    assert (row["low"], row["high"]) == pytest.approx((7 - 1.96, 7 + 1.96))


def test_what_is_no_number_is_not_there(tmp_path: Path) -> None:
    strange = record(tmp_path, "strange", settings(), [1.0, float("nan"), 3.0, float("inf")])
    assert strange.evaluation_curve().values.tolist() == [1, 3]  # type: ignore[union-attr]
    assert RunDirectory(strange.path).best_return() == 3


def test_the_final_return_is_the_last_policys_and_not_the_best_of_many_evaluations(tmp_path: Path) -> None:
    run = RunDirectory(record(tmp_path, "one", settings(), [1.0, 9.0, 4.0]).path)
    assert (run.final_return(), run.best_checkpoint_return()) == (4.0, None)  # before it was evaluated after training
    (run.path / "checkpoints").mkdir(exist_ok=True)
    run.checkpoint(30).touch()
    run.best.touch()
    for file, deterministic, value in (
        *((run.checkpoint(30).name, True, 3.0), (run.checkpoint(30).name, False, 2.0)),
        *(("best.zip", True, 5.0), ("best.zip", False, 6.0), (run.checkpoint(20).name, True, 8.0)),
        (run.checkpoint(30).name, True, 7.0),  # by hand, later
    ):
        assert (run.final_evaluation() is None) == (value in (3.0, 2.0, 5.0)), "before the best one is evaluated too"
        result = Evaluation((value, value), (1, 1), deterministic=deterministic).to_json()
        run.write_result("evaluations", "any", {"checkpoint": file, **result})
    assert (run.final_return(), run.final_return(deterministic=False)) == (3.0, 2.0)
    assert (run.best_checkpoint_return(), run.best_checkpoint_return(deterministic=False)) == (5.0, 6.0)
    assert run.best_return() == 9.0


def test_of_two_rows_at_a_step_the_later_counts(tmp_path: Path) -> None:
    twice = record(tmp_path, "twice", settings(), [1.0, 2.0])
    with RunDirectory(twice.path).metrics.open("a") as file:
        file.write("20,5.0,0.3,9\n")
    curve = twice.metrics()["rollout/ep_rew_mean"]
    assert (curve.steps.tolist(), curve.values.tolist()) == ([10, 20], [1, 5])


def test_the_time_of_training_goes_on_after_a_resume(tmp_path: Path) -> None:
    resumed = record(tmp_path, "resumed", settings(), [1.0, 2.0])
    assert resumed.elapsed().values.tolist() == [60, 120]  # type: ignore[union-attr]
    with RunDirectory(resumed.path).metrics.open("a") as file:
        file.write("30,5.0,0.3,7\n40,5.0,0.3,9\n")
    assert resumed.elapsed().values.tolist() == [60, 120, 127, 129]  # type: ignore[union-attr]
    assert record(tmp_path, "young", settings()).elapsed() is None


def test_findings_are_listed_and_ablations_are_no_results(tmp_path: Path) -> None:
    found = record(tmp_path, "found", settings(), findings=True)
    assert [each.name for each in found.insights()] == ["best-2-ablation", "best-horizon", "best-horizon"]
    assert found.insights()[0].content == FINDING
    assert found.insights()[2].content == PNG
    assert found.results() == []


def test_damaged_files_are_passed_over(tmp_path: Path) -> None:
    damaged = record(tmp_path, "damaged", settings(), findings=True)
    for name in ("evaluations/best-2-ablation.json", "insight/best-horizon.png", "versions.json"):
        (damaged.path / name).write_bytes(b"{\xff half of")
    assert [each.name for each in damaged.insights()] == ["best-horizon"]
    assert read_versions(damaged.path) == {}
    for i, content in enumerate(("{half", "[1]", '{"returns": []}', '{"returns": "x"}', '{"returns": [[1]]}')):
        (damaged.path / "evaluations" / f"{i}.json").write_text(content)
    assert damaged.results() == []
    (damaged.path / "evaluations.csv").write_bytes(b"\xff\x00,\n\xfe,1\n")
    assert damaged.periodic() == []
    assert RunDirectory(damaged.path).best_return() is None


def test_runs_are_found_as_they_are_now_in_the_order_they_were_started(tmp_path: Path) -> None:
    for name, started in (("a", "2026-11-21T10:00:00"), ("b", "2026-11-20T10:00:00"), ("c", "2026-11-20T10:00:00")):
        run = RunDirectory(record(tmp_path, name, settings()).path)
        (run.path / "versions.json").write_text(json.dumps({"started": started}))
    (tmp_path / "no run").mkdir()
    assert [run.path.name for run in runs_in(tmp_path)] == ["b", "c", "a"]
    (tmp_path / "b" / "settings.yaml").unlink()
    assert [run.path.name for run in runs_in(tmp_path)] == ["c", "a"]
    with pytest.raises(RunError, match="is no directory"):
        runs_in(tmp_path / "nothing")


def test_a_run_is_finished_where_it_saved_its_last_step_or_reached_its_goal(tmp_path: Path) -> None:
    def until(goal: float | None) -> Settings:
        return Settings(total_timesteps=100, evaluation=EvaluationSettings(stop_at_return=goal))

    run = RunDirectory(record(tmp_path, "run", settings(), [1.0, 8.0]).path)
    (run.path / "checkpoints").mkdir()
    run.checkpoint(90).touch()
    with run.locked():
        assert run.state(until(9)) == run.state(until(None)) == "training"
    assert run.state(until(9)) == run.state(until(None)) == "stopped"
    assert run.state(until(8)) == "finished"
    run.checkpoint(100).touch()
    assert run.state(until(None)) == "finished"
