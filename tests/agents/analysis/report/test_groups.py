"""Runs are grouped by their settings, seeds are counted once, and groups are compared by what they have."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from agents.analysis.report.groups import (
    Scored,
    aggregates,
    differences,
    grouped,
    improvements,
    score_rows,
    score_table,
)
from agents.analysis.statistics import mean
from tests.agents.analysis.report.runs import scored, settings


def test_runs_that_differ_in_seed_name_and_place_alone_are_a_group(tmp_path: Path) -> None:
    runs = [
        scored(tmp_path, "c", settings("lstm", seed=2, name="c", threads=2), 5.0, 7.0),
        scored(tmp_path, "a", settings("none", seed=0), 1.0),
        scored(tmp_path, "b", settings("lstm", seed=1, group="g"), 1.0, 3.0),
    ]
    lstm, none = grouped(runs)
    assert [run.history.name for run in lstm.runs] == ["b", "c"]
    assert (lstm.label, none.label) == ("memory lstm", "memory none")
    assert lstm.scores.tolist() == [2, 6]
    assert (lstm.mean, lstm.interquartile_mean) == (4, 4)
    assert tuple(lstm.interval) == pytest.approx((1, 7), abs=1)
    assert differences([lstm.settings, none.settings]) == {"policy.memory": ["lstm", "none"]}


def test_labels_name_what_differs(tmp_path: Path) -> None:
    small, large = (
        replace(settings(), policy=replace(settings().policy, memory_kwargs={"hidden_size": size})) for size in (8, 64)
    )
    labels = [group.label for group in grouped([scored(tmp_path, "s", small, 1.0), scored(tmp_path, "l", large, 1.0)])]
    assert labels == ["hidden_size 8", "hidden_size 64"]


def test_labels_leave_out_what_all_have_that_can_have_it(tmp_path: Path) -> None:
    lstm, none = settings("lstm"), settings("none")
    lstm = replace(lstm, policy=replace(lstm.policy, memory_kwargs={"hidden_size": 64}))
    groups = grouped([scored(tmp_path, "l", lstm, 1.0), scored(tmp_path, "n", none, 1.0)])
    assert [group.label for group in groups] == ["memory lstm", "memory none"]
    assert "policy.memory_kwargs.hidden_size" in differences([group.settings for group in groups])


def test_a_seed_that_was_run_twice_is_one_seed(tmp_path: Path) -> None:
    runs = [scored(tmp_path, name, settings(seed=4), 1.0, 2.0) for name in ("first", "again")]
    (group,) = grouped(runs)
    assert len(group.runs) == 2
    assert group.scores.tolist() == [1.5]


def test_groups_are_compared_over_seeds_and_one_seed_is_compared_with_nothing(tmp_path: Path) -> None:
    several = [scored(tmp_path, f"l{seed}", settings("lstm", seed=seed), 1.0, 5.0) for seed in range(2)]
    others = [scored(tmp_path, f"g{seed}", settings("gru", seed=seed), 2.0, 2.0) for seed in range(2)]
    alone = scored(tmp_path, "n", settings("none"), 0.0, 3.0)
    groups = grouped([*several, *others, alone])
    (found,) = improvements(groups)
    assert (found.ours, found.theirs, found.probability) == ("memory lstm", "memory gru", 1.0)
    assert [group.to_json()["mean_interval"] is None for group in groups] == [False, False, True]
    rows = [cells for kind, cells in score_rows(groups) if kind == "single"]
    assert rows == [("n (memory none)", "0", "1.500", "one seed", "1.500", "one seed", "2")]


def test_over_tasks_every_run_is_a_score_between_the_lowest_and_highest_of_its_task(tmp_path: Path) -> None:
    def runs(task: str, memory: str, *means: float) -> list[Scored]:
        chosen = settings(memory)
        chosen = replace(chosen, env=replace(chosen.env, id=task))
        return [scored(tmp_path, f"{task}{memory}{i}", replace(chosen, seed=i), m, m) for i, m in enumerate(means)]

    easy = [*runs("Easy-v0", "lstm", 10.0, 20.0), *runs("Easy-v0", "none", 0.0, 5.0)]
    hard = [*runs("Hard-v0", "lstm", -1.0, -2.0), *runs("Hard-v0", "none", -3.0)]
    groups = grouped([*easy, *hard])
    assert [(group.task, group.label) for group in groups] == [
        (task, f"memory {memory}") for task in ("Easy-v0", "Hard-v0") for memory in ("lstm", "none")
    ]
    (lstm,) = aggregates(groups)  # of the other label there is one seed on a task, which says nothing of others
    assert lstm.label == "memory lstm"
    assert [scores.tolist() for scores in lstm.tasks] == [[0.5, 1], [1, 0.5]]
    assert lstm.located(mean) == (0.75, (0.5, 1))
    assert lstm.to_json()["optimality gap"]["value"] == 0.25
    share, low, high = lstm.profile(np.array([0.4, 0.6]))
    assert (share.tolist(), low.tolist(), high.tolist()) == ([1, 0.5], [1, 0], [1, 1])
    assert [each.task for each in improvements(groups)] == ["Easy-v0"]
    assert [len(aggregates(grouped(some))) for some in (easy, hard, easy[:1])] == [2, 1, 0]


def test_the_table_has_a_row_a_run_and_a_row_a_group_and_takes_names_as_they_are(tmp_path: Path) -> None:
    runs = [scored(tmp_path, f"[bold]x{seed}[red]", settings(seed=seed), seed, seed + 1.0) for seed in range(2)]
    out = io.StringIO()
    Console(file=out, width=200).print(score_table(grouped(runs)))
    lines = out.getvalue().splitlines()
    assert sum("[bold]x" in line and "[red]" in line for line in lines) == 2
    (of_group,) = (line for line in lines if "2 seeds" in line)
    assert "1.000" in of_group
