"""The benchmark of memories gives every learner the same, and its page names the best."""

import json
import pathlib

import memories
import pytest
import records

import configs
import envs  # noqa: F401
from agents.memory import MEMORIES
from agents.runs.defaults import fitted_to_episodes


def a_result(name: str, *returns: float) -> dict[str, object]:
    best = [value + 0.05 for value in returns]
    return dict(
        name=name, steps=100, seconds=2.0, curve=[[100, returns[-1]]], last=list(returns), returns=best, cpu="C"
    )


def a_cost(learner: str) -> dict[str, object]:
    return dict(name=f"cost/{learner}", acting=10.0, training=20.5, state=1234, parameters=56789, cpu="C")


@pytest.fixture
def docs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setattr(records, "DOCS", tmp_path)
    return tmp_path


def test_every_memory_that_is_registered_runs_on_every_task_with_every_seed() -> None:
    names = [run.name for run in memories.all_runs(memories.Settings(seeds=2))]
    assert len(set(names)) == len(names)
    learners = {*MEMORIES, "stack"}
    assert {name for name in names if name.startswith("cost/")} == {f"cost/{learner}" for learner in learners}
    for task in memories.TASKS:
        assert len(task.levels) == 2
        for level in task.levels:
            expected = {f"{task.name}/{level.length}/{learner}/{seed}" for learner in learners for seed in (0, 1)}
            assert {name for name in names if name.startswith(f"{task.name}/{level.length}/")} == expected


@pytest.mark.parametrize("task", memories.TASKS, ids=lambda task: task.name)
def test_all_learners_get_the_same_settings_but_for_their_memory(task: memories.Task) -> None:
    level = task.levels[1]
    by_learner = {
        learner: configs.parse(memories.words(task, level, learner, 5)).settings for learner in memories.learners()
    }
    for learner, settings in by_learner.items():
        assert settings.total_timesteps == level.steps
        assert settings.seed == 5
        assert settings.algorithm == by_learner["none"].algorithm
        assert level.kwargs.items() <= settings.env.kwargs.items()
        assert settings.policy.memory == ("none" if learner == "stack" else learner)
        assert settings.policy.memory_kwargs.get("hidden_size", 64) == 64
        assert settings.env.wrappers == (({"history": {"length": 64}},) if learner == "stack" else None)


def test_the_lengths_of_a_task_rise_within_one_rollout() -> None:
    for task in memories.TASKS:
        lengths = [level.length for level in task.levels]
        assert lengths == sorted(set(lengths))
        for level in task.levels:
            settings = configs.parse(memories.words(task, level, "none", 0)).settings
            assert fitted_to_episodes(settings)[0].rollout[1] > level.length
            assert settings.evaluation.share is None


def test_the_page_says_who_wins_and_what_is_not_told_apart(docs: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    found = [a_cost("gru")]
    returns = {"gru": (0.4, 0.6), "lstm": (0.9, 1.0), "rnn": (0.8, 1.0), "stack": (0.45, 0.55), "none": (-0.6, -0.4)}
    for learner, several in returns.items():
        found += [a_result(f"associative_recall/4/{learner}/{seed}", *several, *several) for seed in (0, 1, 2)]
    found += [a_result(f"tmaze/100/gru/{seed}", 1.0, 1.0) for seed in (0, 1)]
    found += [a_result(f"tmaze/30/gru/{seed}", share, share) for seed, share in enumerate((1.0, 0.5, 1.0))]
    memories.write_docs(json.loads(json.dumps(found)))
    page = (docs / "memories.md").read_text().splitlines()
    assert "| Associative recall | 4 | lstm (0.950) | rnn |" in page
    assert "| T-maze | 100 | gru (1.000) | none of them |" in page
    assert "- 4 pairs: above: rnn, lstm; below: none; not separated: stack." in page
    assert "| gru | 1,234 | 56,789 | 10.0 | 20.5 |" in page
    (none,) = (line for line in page if line.startswith("| Associative recall | 4 | none"))
    (gru,) = (line for line in page if line.startswith("| Associative recall | 4 | gru"))
    (maze,) = (line for line in page if line.startswith("| T-maze | 100 | gru | "))
    assert "| 3 | -0.500 (-0.550 to -0.450) | -0.450 | memoryless | 0k | 600k | 2 |" in none
    assert "| 3 | 0.500 (0.450 to 0.550) | 0.550 | in part |" in gru
    assert "| 2 | 1.000 (1.000 to 1.000) | 1.050 | solved |" in maze
    assert sum("Processors: C." in line for line in page) == 2
    (in_some,) = (line for line in page if line.startswith("| T-maze | 30 | gru | "))
    assert "| solved by 2 of 3 |" in in_some
    assert (docs / "memories.png").stat().st_size > 1000


def test_what_is_possible_without_memory_comes_from_the_environment() -> None:
    by_name = {task.name: task for task in memories.TASKS}
    figures = {name: memories.memoryless_return(task, task.levels[1]) for name, task in by_name.items()}
    assert figures == {"tmaze": 0.5, "associative_recall": -0.5, "copy": -0.5}


@pytest.mark.parametrize("learner", ["gru", "stack"])
def test_a_cost_is_measured_on_a_whole_agent(learner: str) -> None:
    (run,) = (run for run in memories.all_runs(memories.Settings()) if run.name == f"cost/{learner}")
    cost = run.start(4000)
    assert cost["acting"] > 0
    assert cost["training"] > 0
    # 64 units; or 64 observations of 8 keys and 4 values.
    assert cost["state"] == {"gru": 64, "stack": 64 * 12}[learner]
    assert cost["parameters"] > 5 * 64
