"""The suite's bounds are its environments' own, its switches can be set, and its statistics are right."""

import dataclasses
import pathlib
import shlex

import gymnasium
import numpy as np
import pytest
import robustness
import torch

import configs
import envs  # noqa: F401  (registers the tasks)

ALL = [*robustness.TASKS, *robustness.PUBLISHED]
EXACT = [task for task in ALL if task.source == robustness.EXACT]


@pytest.mark.parametrize("task", EXACT, ids=lambda task: task.name)
def test_exact_bounds_are_those_of_the_environment(task: robustness.Task) -> None:
    env = gymnasium.make(task.id, **task.kwargs).unwrapped
    known = env.memoryless_return, env.best_return  # type: ignore[attr-defined]
    assert (task.memoryless, task.best) == pytest.approx(known, abs=3e-3)


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_a_solved_task_lies_above_memoryless_and_its_arguments_can_be_read(task: robustness.Task) -> None:
    assert task.memoryless < task.solved <= task.best
    settings = configs.parse(task.arguments()).settings
    assert (settings.env.id, settings.env.kwargs) == (task.id, task.kwargs)


@pytest.mark.parametrize("switch", robustness.SWITCHES)
def test_switches_can_be_set(switch: str) -> None:
    configs.parse(shlex.split(robustness.SWITCHES[switch]))


@pytest.mark.parametrize("trial", robustness.TRIALS)
def test_trials_are_trained_and_evaluated(trial: str) -> None:
    """In a process of their own, for they change classes."""
    name, words = robustness.chosen_switch(trial)
    task = dataclasses.replace(robustness.TASKS[0], steps=256)
    few = ["--env.n-envs", "2", "--algorithm.n-steps", "64", "--algorithm.batch-size", "128"]
    result = robustness._run(task, 0, [*few, *words])(0)
    assert "error" not in result, result["error"]
    assert (name, len(result["sampled"])) == (trial, robustness.EPISODES)


def test_the_trials_are_those_there_are() -> None:
    import trials

    assert tuple(trials.TRIALS) == robustness.TRIALS
    with pytest.raises(SystemExit, match="no switch is called nonsense"):
        robustness.chosen_switch("nonsense")


def test_a_rate_of_the_memorys_own_shortens_its_steps_alone() -> None:
    import trials

    from agents import RecurrentPPO

    moves = []
    for algorithm in (RecurrentPPO, trials.MemoryRate03):
        sizes = dict(n_steps=64, batch_size=64, n_epochs=1)
        model = algorithm("RecurrentPolicy", "CartPoleNoVel-v1", seed=0, device="cpu", **sizes)  # type: ignore[arg-type]
        before = {name: part.detach().clone() for name, part in model.policy.named_parameters()}
        model.learn(64)
        moves.append({name: part.detach() - before[name] for name, part in model.policy.named_parameters()})
    for name, move in moves[0].items():
        share = 0.3 if name.startswith("memory_actor.") else 1.0
        torch.testing.assert_close(moves[1][name], share * move, rtol=1e-3, atol=1e-6)
    assert any(move.any() for name, move in moves[0].items() if name.startswith("memory_actor."))


def test_the_switch_before_is_the_earlier_default() -> None:
    settings = configs.parse(shlex.split(robustness.SWITCHES["before"])).settings
    algorithm, policy = settings.algorithm, settings.policy
    assert (settings.env.n_envs, algorithm.n_steps, algorithm.batch_size, algorithm.n_epochs) == (8, 128, 256, 10)
    assert (algorithm.learning_rate, algorithm.learning_rate_schedule, algorithm.ent_coef) == (5e-4, "constant", 0.0)
    assert (algorithm.normalize_advantage, policy.memory_kwargs) == ("batch", {"forget_bias": 1.0})
    assert settings.env.previous_action_reward is False


def test_a_run_is_scored_by_the_worse_of_sampled_and_deterministic_actions() -> None:
    (task,) = (each for each in robustness.TASKS if each.name == "recall-50")
    result = {"sampled": [1.0, 1.0], "deterministic": [0.0, 1.0]}
    assert robustness.score(task, result) == 0.5
    assert not robustness.is_solved(task, result)
    assert robustness.is_solved(task, {**result, "deterministic": [1.0, 1.0]})
    assert robustness.score(task, {"error": "it failed"}) == 0.0
    assert not robustness.is_solved(task, {"error": "it failed"})


def test_discounted_returns_count_a_reward_after_t_steps_by_the_discount_to_the_t(tmp_path: pathlib.Path) -> None:
    import train
    from agents.runs.analyses import Options

    few = ["--env.n-envs", "2", "--algorithm.n-steps", "16", "--algorithm.batch-size", "32", "--total-timesteps", "32"]
    words = ["--env.id", "CartPoleNoVel-v1", *few, "--device", "cpu", "--runs", str(tmp_path), "--no-progress"]
    run = train.train(configs.parse([*words, "--evaluation.final-episodes", "0", "--tracking.no-tensorboard"]).settings)
    options = Options("last", 6, 3)
    lengths, found = (robustness.discounted_returns(run, options, discount) for discount in (1.0, 0.9))
    assert found == pytest.approx([(1 - 0.9**length) / 0.1 for length in lengths])
    assert len(found) == 6


def test_the_interval_resamples_within_every_task() -> None:
    """Tasks with seeds all alike leave nothing to resample."""
    assert robustness.stratified_interval([np.zeros(3), np.ones(3)]) == (0.5, 0.5)


def test_the_page_has_a_row_for_every_task_that_was_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(robustness.records, "DOCS", tmp_path)
    run = {"sampled": [500.0], "deterministic": [400.0, 410.0], "steps": 200_000, "seconds": 40.0, "cpu": "a processor"}
    names = [*(f"cartpole/default/{seed}" for seed in range(2)), "tmaze-500/default/0", "tmaze-500/gru/0"]
    robustness.write_page([{**run, "name": name} for name in names])
    page = (tmp_path / "robustness.md").read_text()
    assert "| cartpole | 2 | 0 | 500.000 | 405.000 | 405.000 | 0.79~ | 475 | 200,000 | 40 |" in page
    assert f"solved 0 of 2 runs (0%) of 1 of {len(robustness.TASKS)} tasks" in page
    assert "gru" not in page  # a task of PUBLISHED is no part of the suite


def test_names_of_tasks_are_unique_and_published_ones_run_apart() -> None:
    assert len({task.name for task in ALL}) == len(ALL)
    runs = robustness.all_runs(robustness.Settings(published=True, only="tmaze"))
    assert "tmaze-500/default/2" in [run.name for run in runs]
    assert "cartpole/default/0" not in [run.name for run in runs]
