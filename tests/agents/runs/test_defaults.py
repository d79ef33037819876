"""What settings leave open is chosen by family and observation; what they say stays."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

import configs
from agents.runs.defaults import (
    ENT_COEF,
    LEARNING_RATE,
    N_EPOCHS,
    NOISE_CORRELATION,
    NOISE_CORRELATION_OF_CHOICES,
    OF_IMAGES,
    fitted_to_episodes,
    fitted_to_family,
    fitted_to_spaces,
)
from configs import Settings
from configs.settings import AlgorithmSettings, EnvironmentSettings, as_meant, values

IMAGE = spaces.Box(0, 255, (84, 84), np.uint8)
VECTOR = spaces.Box(-1.0, 1.0, (3,))
CHOICES = spaces.Discrete(2)


@pytest.mark.parametrize(
    ("words", "rollout"),
    [
        (["--env.id", "TMaze-v0", "--env.kwargs", "length=20"], (32, 256)),
        (["--env.id", "TMaze-v0", "--env.kwargs", "length=127"], (32, 256)),
        (["--env.id", "TMaze-v0", "--env.kwargs", "length=128"], (16, 512)),
        (["--env.id", "Recall-v0", "--env.kwargs", "length=2000"], (16, 512)),
        (["--env.id", "CartPole-v1"], (16, 512)),
        (["--env.id", "CartPole-v1", "--policy.memory", "none"], (32, 256)),
        (["--env.id", "CartPole-v1", "--env.n-envs", "8"], (8, 512)),
        (["--env.id", "CartPole-v1", "--algorithm.n-steps", "100"], (32, 100)),
        (["--env.id", "CartPole-v1", "--algorithm.sequence-length", "100"], (16, 500)),
        (["--env.id", "TMaze-v0", "--algorithm.sequence-length", "300"], (32, 300)),
        (["--env.id", "no-such-id"], (32, 256)),
    ],
)
def test_a_rollout_is_twice_as_long_as_an_episode_may_be(words: list[str], rollout: tuple[int, int]) -> None:
    fitted, lines = fitted_to_episodes(configs.parse(words).settings)
    assert fitted.rollout == rollout
    assert [line.startswith(f"rollouts of {rollout[1]} steps of {rollout[0]} env") for line in lines] == [True] * (
        rollout[1] >= 500
    )
    assert fitted_to_episodes(fitted) == (fitted, [])


@pytest.mark.parametrize("space", [IMAGE, spaces.Dict(camera=IMAGE, speed=VECTOR)])
def test_images_get_fewer_epochs_and_a_smaller_step(space: Any) -> None:
    fitted, (line,) = fitted_to_spaces(Settings(), space, CHOICES)
    assert (fitted.algorithm.learning_rate, fitted.algorithm.n_epochs) == OF_IMAGES
    assert line.startswith("learning_rate 0.00025 and n_epochs 3, for images")


def test_what_the_user_gives_stays_and_the_usual_is_not_worth_a_line() -> None:
    fitted, lines = fitted_to_spaces(Settings(), VECTOR, CHOICES)
    assert (fitted.algorithm.learning_rate, fitted.algorithm.n_epochs, lines) == (LEARNING_RATE, N_EPOCHS, [])
    every = AlgorithmSettings(
        learning_rate=LEARNING_RATE,
        n_epochs=N_EPOCHS,
        ent_coef=0.0,
        ent_coef_schedule="constant",
        noise_correlation=0.0,
        noise_correlation_schedule="constant",
    )
    given = Settings(algorithm=every)
    assert fitted_to_spaces(given, IMAGE, CHOICES) == (given, [])
    chosen = Settings(env=EnvironmentSettings(id="ALE/Breakout-v5", wrappers=("flatten",)))
    assert fitted_to_family(chosen) == (chosen, [])


def test_entropy_is_rewarded_less_and_less_and_constantly_as_much_as_the_user_says() -> None:
    chosen, none = fitted_to_spaces(Settings(), VECTOR, CHOICES)[0].algorithm, AlgorithmSettings(ent_coef=0.0)
    assert (chosen.ent_coef, chosen.ent_coef_schedule) == (ENT_COEF, "linear")
    given = fitted_to_spaces(Settings(algorithm=none), VECTOR, CHOICES)[0].algorithm
    assert (given.ent_coef, given.ent_coef_schedule) == (0.0, "constant")
    falling = fitted_to_spaces(
        Settings(algorithm=dataclasses.replace(none, ent_coef_schedule="linear")), VECTOR, CHOICES
    )
    assert falling[0].algorithm.ent_coef_schedule == "linear"


@pytest.mark.parametrize(
    ("given", "actions", "expected"),
    [
        ({}, VECTOR, (NOISE_CORRELATION, "linear")),
        ({}, CHOICES, (NOISE_CORRELATION_OF_CHOICES, "constant")),
        ({}, spaces.MultiBinary(3), (NOISE_CORRELATION_OF_CHOICES, "constant")),
        ({"use_sde": True}, VECTOR, (0.0, "constant")),
        ({"noise_correlation": 0.5}, VECTOR, (0.5, "constant")),
        ({"noise_correlation": 0.5, "noise_correlation_schedule": "linear"}, VECTOR, (0.5, "linear")),
    ],
)
def test_noise_lasts_and_that_of_continuous_actions_only_at_first(given: Any, actions: Any, expected: Any) -> None:
    chosen = fitted_to_spaces(Settings(algorithm=AlgorithmSettings(**given)), VECTOR, actions)[0].algorithm
    assert (chosen.noise_correlation, chosen.noise_correlation_schedule) == expected


SDE = ["--algorithm.use-sde"]


@pytest.mark.parametrize(
    "words",
    [["--policy.memory", "none"], ["--env.previous-action-reward", "False"], ["--policy.encoder", "flatten"], SDE],
)
def test_noise_of_choices_that_no_memory_reads_is_independent(words: list[str]) -> None:
    chosen = fitted_to_spaces(configs.parse(words).settings, VECTOR, CHOICES)[0].algorithm
    assert (chosen.noise_correlation, chosen.noise_correlation_schedule) == (0.0, "constant")


def test_a2c_has_no_epochs_and_its_runs_of_before_are_read(tmp_path: Any) -> None:
    settings = Settings(algorithm=AlgorithmSettings(name="a2c"))
    fitted, _ = fitted_to_spaces(settings, IMAGE, CHOICES)
    fitted.check()
    assert fitted.algorithm.n_epochs is None
    before = {key: value for key, value in values(settings).items() if not key.startswith("evaluation.s")}
    written = {**before, "evaluation.stop_at_return": None, "algorithm.n_epochs": 5}
    assert as_meant(written)["algorithm.n_epochs"] is None
    assert as_meant(written)["evaluation.share"] is None


def test_other_families_and_unknown_ids_get_no_wrappers() -> None:
    fitted, lines = fitted_to_family(Settings())
    assert (fitted.env.wrappers, lines) == ((), [])
    assert fitted_to_family(fitted) == (fitted, [])
    assert configs.dump(dataclasses.replace(fitted)).count("wrappers: []") == 1
