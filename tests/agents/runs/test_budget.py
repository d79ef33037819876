"""Evaluations take their share of the environment steps, by no clock."""

from collections import deque
from pathlib import Path
from typing import Any

import pytest

import train
from agents import RecurrentPPO
from agents.runs.budget import SHORTEST, Games, games, games_at_the_end, played_steps
from agents.runs.directory import RunDirectory, append_row
from agents.runs.symptoms import slow_environment
from configs import Settings
from configs.settings import EvaluationSettings
from envs import make
from tests.runs import PPO, TINY, rows_of


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def lasting(steps: int, **evaluation: Any) -> Settings:
    return Settings(evaluation=EvaluationSettings(**evaluation), total_timesteps=steps)


@pytest.fixture
def model() -> RecurrentPPO:
    return RecurrentPPO("RecurrentPolicy", make("CartPoleNoVel-v1", 2), n_steps=8, batch_size=16, device="cpu")


def test_fewer_episodes_are_played_where_all_cost_too_much_and_none_where_a_few_do(
    run: RunDirectory, model: RecurrentPPO
) -> None:
    settings = lasting(10 * SHORTEST, episodes=40, share=8000 / (10 * SHORTEST))

    def at(step: int, last: bool = False) -> Games:
        model.num_timesteps = step
        return games(run, settings, model, last)

    model.ep_info_buffer = deque([{"r": 1.0, "l": 100}])
    assert at(10 * SHORTEST) == Games(40, 1000)  # half of 8000 is for evaluations while training
    assert at(5 * SHORTEST) == Games(20, 1000)
    assert at(13 * SHORTEST // 10).episodes == 5
    assert at(SHORTEST).episodes == 0  # put off
    assert at(1, last=True).episodes == 2  # the last one is made all the same
    append_row(run.evaluations, {"step": SHORTEST, "episodes": 10, "steps": 3000})
    assert at(10 * SHORTEST).episodes == 5  # 150 steps an episode as that one took, and 1000 steps are left
    assert games(run, lasting(SHORTEST, episodes=40, share=None), model, False) == Games(40, 10_000)


def test_an_episode_that_does_not_end_is_truncated_far_beyond_the_usual_length(
    run: RunDirectory, model: RecurrentPPO
) -> None:
    settings = lasting(10 * SHORTEST, episodes=4, share=8000 / (10 * SHORTEST))
    model.num_timesteps, model.ep_info_buffer = 10 * SHORTEST, deque([{"r": 1.0, "l": 20}])
    assert games(run, settings, model, False) == Games(4, 4000)  # four times what there is for each
    model.num_timesteps, model.ep_info_buffer = 1, deque([{"r": 1.0, "l": 90}])
    assert games(run, settings, model, False) == Games(4, 900)  # ten times the usual length


def test_evaluations_after_training_take_what_is_left(run: RunDirectory) -> None:
    settings = lasting(80_000, share=0.1)
    assert games_at_the_end(run, settings) == Games(100, 10_000)  # nothing is known of an episode
    append_row(run.evaluations, {"step": 500, "episodes": 10, "steps": 2000})
    append_row(run.evaluations, {"step": 900, "episodes": 10, "steps": 2000})
    assert played_steps(run) == 4000
    assert games_at_the_end(run, settings).episodes == 10  # 4000 steps for four evaluations, 100 an episode
    assert games_at_the_end(run, lasting(SHORTEST, share=1e-4)).episodes == 2
    assert games_at_the_end(run, lasting(1, share=0.1)).episodes == 2  # as one of SHORTEST: 5000 steps in all


def test_the_same_run_twice_is_evaluated_alike(tmp_path: Path) -> None:
    words = [*TINY, *PPO, "--evaluation.episodes", "2", "--evaluation.final-episodes", "2", "--evaluation.every", "64"]
    words += ["--evaluation.share", "0.02"]
    for name in ("first", "second"):
        assert train.main([*words, "--runs", str(tmp_path), "--name", name]) == 0
    rows = [rows_of(tmp_path / name / "evaluations.csv") for name in ("first", "second")]
    assert rows[0] == rows[1] != []


def test_an_environment_that_takes_most_of_the_time_is_named_with_the_cure() -> None:
    rows = [{"time/environment": 0.8, "time/fps": 10.0}, {"time/environment": 0.6, "time/fps": 12.0}]
    (note,) = slow_environment(rows, "auto")
    assert note.startswith("70% of the time went into the environment, at 12 steps a second in all: ")
    assert "--env.backend subprocess" in note
    assert "--env.workers" in slow_environment(rows, "subprocess")[0]
    assert slow_environment([{"time/environment": 0.4}], "auto") == slow_environment([{}], "auto") == []
