"""Evaluations take their share, by steps alone once the first update has been measured."""

import dataclasses
from collections import deque
from pathlib import Path
from typing import Any

import pytest

import configs
import train
from agents import RecurrentPPO
from agents.runs.budget import (
    SHORTEST,
    EvaluationBudget,
    Games,
    allowed_steps,
    for_another_length,
    games_at_the_end,
    played_steps,
)
from agents.runs.directory import RunDirectory, append_row
from agents.runs.symptoms import slow_environment
from configs import Settings
from configs.settings import EvaluationSettings
from envs import make
from tests.runs import PPO, TINY, rows_of


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def budget(run: RunDirectory, **evaluation: Any) -> EvaluationBudget:
    settings = Settings(evaluation=EvaluationSettings(**evaluation), total_timesteps=10 * SHORTEST)
    made = EvaluationBudget(run, settings)
    made.model = RecurrentPPO("RecurrentPolicy", make("CartPoleNoVel-v1", 2), n_steps=8, batch_size=16, device="cpu")
    return made


@pytest.mark.parametrize(
    ("cost", "rounded"), [(1.0, 1.0), (0.6, 1.0), (0.5, 0.5), (0.26, 0.5), (0.1, 0.125), (1e-9, 1 / 16)]
)
def test_a_tenth_of_the_time_is_so_many_steps_by_what_one_costs(cost: float, rounded: float) -> None:
    assert allowed_steps(0.1, 1_000_000, cost) == 100_000 / rounded
    assert allowed_steps(0.1, 1, 1.0) == SHORTEST / 10  # however short a run is


def test_fewer_episodes_are_played_where_all_cost_too_much_and_none_where_a_few_do(run: RunDirectory) -> None:
    made = budget(run, episodes=40, steps=8000)
    made.model.ep_info_buffer = deque([{"r": 1.0, "l": 100}])
    assert made.games(10 * SHORTEST, False) == Games(40, 1000)  # half of 8000 is for evaluations while training
    assert made.games(5 * SHORTEST, False) == Games(20, 1000)
    assert made.games(13 * SHORTEST // 10, False).episodes == 5
    assert made.games(SHORTEST, False).episodes == 0  # put off
    assert made.games(1, True).episodes == 2  # the last one is made all the same
    append_row(run.evaluations, {"step": SHORTEST, "episodes": 10, "steps": 3000})
    assert (
        made.games(10 * SHORTEST, False).episodes == 5
    )  # 150 steps an episode as that one took, and 1000 steps are left
    assert budget(run, episodes=40, share=None).games(1, False) == Games(40, 10_000)


def test_an_episode_that_does_not_end_is_truncated_far_beyond_the_usual_length(run: RunDirectory) -> None:
    made = budget(run, episodes=4, steps=8000)
    made.model.ep_info_buffer = deque([{"r": 1.0, "l": 20}])
    assert made.games(10 * SHORTEST, False) == Games(4, 4000)  # four times what there is for each
    made.model.ep_info_buffer = deque([{"r": 1.0, "l": 90}])
    assert made.games(1, False) == Games(4, 900)  # ten times the usual length


def test_a_run_that_goes_on_for_longer_may_evaluate_more() -> None:
    recorded = Settings(evaluation=EvaluationSettings(steps=800), total_timesteps=SHORTEST)
    longer = dataclasses.replace(recorded, total_timesteps=4 * SHORTEST)
    assert for_another_length(longer, recorded).evaluation.steps == 3200
    given = dataclasses.replace(longer, evaluation=EvaluationSettings(steps=7))
    assert for_another_length(given, recorded) == given


def test_evaluations_after_training_take_what_is_left(run: RunDirectory) -> None:
    evaluation = EvaluationSettings(steps=8000)
    assert games_at_the_end(run, evaluation) == Games(100, 10_000)  # nothing is known of an episode
    append_row(run.evaluations, {"step": 500, "episodes": 10, "steps": 2000})
    append_row(run.evaluations, {"step": 900, "episodes": 10, "steps": 2000})
    assert played_steps(run) == 4000
    assert games_at_the_end(run, evaluation).episodes == 10  # 4000 steps for four evaluations, 100 an episode
    assert games_at_the_end(run, EvaluationSettings(steps=10)).episodes == 2


def test_what_was_measured_stands_in_the_settings_and_is_not_measured_again(tmp_path: Path) -> None:
    words = [*TINY, *PPO, "--evaluation.episodes", "2", "--evaluation.final-episodes", "2", "--evaluation.every", "64"]
    assert train.main([*words, "--runs", str(tmp_path), "--name", "first"]) == 0
    settings = tmp_path / "first" / "settings.yaml"
    steps = configs.read(settings).evaluation.steps
    assert steps is not None
    assert steps >= SHORTEST / 10
    assert train.main(["--config", str(settings), "--runs", str(tmp_path), "--name", "second"]) == 0
    assert configs.read(tmp_path / "second" / "settings.yaml").evaluation.steps == steps
    assert rows_of(tmp_path / "first" / "evaluations.csv") == rows_of(tmp_path / "second" / "evaluations.csv")


def test_an_environment_that_takes_most_of_the_time_is_named_with_the_cure() -> None:
    rows = [{"time/environment": 0.8, "time/fps": 10.0}, {"time/environment": 0.6, "time/fps": 12.0}]
    (note,) = slow_environment(rows, "auto")
    assert note.startswith("70% of the time went into the environment, at 12 steps a second in all: ")
    assert "--env.backend subprocess" in note
    assert "--env.workers" in slow_environment(rows, "subprocess")[0]
    assert slow_environment([{"time/environment": 0.4}], "auto") == slow_environment([{}], "auto") == []
