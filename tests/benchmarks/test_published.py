"""Published rows name tasks of the suite, and their verdicts are right."""

import pathlib

import learning
import published
import pytest
import records
import robustness
from published import BELOW, LONGER, MET, Ours, Published

from configs.command_line import parse

ROW = Published("tmaze-50", "GRU", 0.88, 1_000_000, "T-maze")


def test_every_row_names_a_task_and_a_source() -> None:
    tasks = {task.name for task in (*robustness.TASKS, *robustness.PUBLISHED)}
    assert {row.task for row in published.ROWS} <= tasks
    assert {row.source for row in published.ROWS} == set(published.SOURCES)
    assert {task.name for task in robustness.PUBLISHED} <= {row.task for row in published.ROWS}
    assert len(set(published.ROWS)) == len(published.ROWS)


def test_a_settings_file_is_compared_with_the_memory_that_it_has() -> None:
    tasks = {task.name: task for task in learning.TASKS}
    rows = [row for row in published.ROWS if row.memory]
    assert {row.task for row in rows} == {"cartpole", "pendulum", "mountaincar"}
    for row in rows:
        settings = parse(["--config", tasks[row.task].config]).settings
        assert settings.policy.memory == row.memory in tasks[row.task].memories


@pytest.mark.parametrize(
    ("value", "steps", "verdict"),
    [
        (0.88, 1_000_000, MET),
        (0.8796, 1_000_000, MET),
        (0.879, 500_000, BELOW),
        (1.0, 1_000_001, LONGER),
        (float("nan"), 1, published.FAILED),
    ],
)
def test_a_row_is_met_by_at_least_its_return_in_three_decimals_after_no_more_steps(
    value: float, steps: int, verdict: str
) -> None:
    assert Ours("default", value, steps, 1.0, 3).verdict(ROW) == verdict


def test_the_section_has_the_default_first_and_the_worse_way_of_acting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(records, "DOCS", tmp_path)
    run = {"steps": 1_000_000, "seconds": 120.0, "cpu": "a processor"}
    for name, returns in (("gru/0", 0.9), ("default/0", 0.8), ("default/1", 0.9)):
        records.keep("robustness", {**run, "name": f"tmaze-50/{name}", "sampled": [returns], "deterministic": [1.0]})
    records.keep("learning", {**run, "name": "task/mountaincar/lstm/0", "curve": [[1, 0.0]], "last": [92.0, 94.0]})
    (tmp_path / "learning.md").write_text(learning.PAGE)
    published.write_section()
    page = (tmp_path / "learning.md").read_text()
    (gru, transformer) = (line for line in page.splitlines() if line.startswith("| tmaze-50 |"))
    assert gru.endswith("| 0.85 | 1,000,000 | 2.0 | 2 | below | gru 0.9 (1) |")
    assert "0.98" in transformer
    (zoo,) = (line for line in page.splitlines() if line.startswith("| mountaincar"))
    assert zoo.endswith("| 93 (its file in configs/) | 1,000,000 | 2.0 | 1 | at or above, more steps |  |")
    assert (
        f"0 of 3 rows at or above the published return with no more steps; {len(published.ROWS) - 3} not run." in page
    )
