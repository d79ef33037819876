"""The clock of a run stops when its task is solved, and what counts as solved is right."""

import dataclasses
import pathlib
from typing import Any

import learning
import pytest
import records
import solution
from solution import TASKS, is_solved

import configs


def test_a_task_is_solved_by_three_evaluations_in_a_row() -> None:
    assert not is_solved([(1, 500.0), (2, 500.0)], 475.0)
    assert not is_solved([(1, 500.0), (2, 500.0), (3, 474.0), (4, 500.0)], 475.0)
    assert is_solved([(1, 0.0), (2, 475.0), (3, 475.0), (4, 500.0)], 475.0)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_settings_of_ours_can_be_read_and_take_no_more_steps_than_theirs(task: solution.Task) -> None:
    assert configs.parse(task.ours.split()).settings.total_timesteps <= task.limit


@pytest.mark.parametrize("learner", [solution.OURS, solution.THEIRS])
def test_both_learners_stop_once_they_are_solved_and_evaluate_equally_often(learner: str) -> None:
    pytest.importorskip("sb3_contrib")
    task = TASKS[0]
    make = solution._ours if learner == solution.OURS else solution._theirs
    words = "--env.n-envs 8 --algorithm.n-steps 32 --algorithm.batch-size 256"
    model, _, limit = make(task, 0, words, 2_048)
    assert limit == 2_048
    few = dataclasses.replace(task, every=256, level=10.0)
    values = iter([0.0, 20.0, 5.0, 20.0, 20.0, 20.0, 20.0])
    result = solution.timed(model, lambda _: next(values), few, limit)
    assert result["solved"]
    assert [step for step, _ in result["curve"]] == [256 * i for i in range(1, 7)]
    assert 0 < result["training"] <= result["in_all"]


def test_the_section_has_medians_and_how_many_times_ours_theirs_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(records, "DOCS", tmp_path)
    for learner, times in ((solution.OURS, 1), (solution.THEIRS, 40)):
        for seed in range(3):
            clocks: dict[str, Any] = dict(training=2.0 * times, in_all=5.0 * times, processor=1.0 * times * (seed + 1))
            records.keep("solution", dict(name=f"cartpole/{learner}/{seed}", solved=seed < 2, steps=50_000, **clocks))
    (tmp_path / "learning.md").write_text(learning.PAGE)
    solution.write_section()
    page = (tmp_path / "learning.md").read_text()
    assert "| CartPole without velocities | RecuRL | 2 of 3 | 50,000 | 2.0 |  |" in page
    assert "| CartPole without velocities | sb3-contrib | 2 of 3 | 50,000 | 80.0 | 40 |" in page
