"""Sentences for a user, from figures made up so that each has one reason."""

import pytest

from agents.runs.symptoms import symptoms


def evaluations(returns: list[float], length: float = 50.0) -> list[dict[str, float]]:
    return [
        {"step": 1000 * i, "mean_reward": value, "mean_ep_length": length} for i, value in enumerate(returns, start=1)
    ]


def metrics(entropy: tuple[float, float] = (1.4, 1.3), **lags: float) -> list[dict[str, float]]:
    columns = {f"memory/gradient_lag_{lag.removeprefix('lag')}": value for lag, value in lags.items()}
    return [{}, *({"train/entropy_loss": -value, **columns} for value in entropy)]


FLAT, RISING = [0.5, 0.4, 0.6, 0.5, 0.6, 0.4], [0.0, 0.1, 0.5, 0.8, 1.0, 1.0]


@pytest.mark.parametrize("returns", [RISING, [-1200.0, -900.0, -500.0, -300.0, -200.0, -190.0]])
def test_nothing_is_said_of_a_return_that_rises(returns: list[float]) -> None:
    assert symptoms(metrics((1.4, 0.01), lag0=1.0, lag8=0.0), evaluations(returns), sequence_length=8) == []


def test_nothing_is_said_of_a_few_evaluations() -> None:
    assert symptoms(metrics((1.4, 0.01)), evaluations(FLAT[:5]), sequence_length=8) == []


def test_an_entropy_that_collapsed_names_the_coefficient() -> None:
    (sentence,) = symptoms(metrics((1.4, 0.05)), evaluations(FLAT), sequence_length=64)
    assert "did not rise (0.45 at first, 0.5 at the end)" in sentence
    assert "fell from 1.4 to 0.05" in sentence
    assert "--algorithm.ent-coef 0.1" in sentence


def test_noise_of_single_steps_names_noise_that_lasts() -> None:
    rows = [{"train/std": 1.0}, {"train/std": 0.9}]
    (sentence,) = symptoms(rows, evaluations(FLAT), sequence_length=64)
    assert "--algorithm.noise-correlation 0.9" in sentence
    assert symptoms(rows, evaluations(FLAT), sequence_length=64, noise_lasts=True) == []


def test_gradients_that_vanish_within_an_episode_name_the_horizon() -> None:
    (sentence,) = symptoms(metrics(lag0=2.0, lag8=1.0, lag32=1e-5, lag64=1e-9), evaluations(FLAT), sequence_length=64)
    assert "over 32 steps are 5e-06" in sentence
    assert "chrono_horizon=64" in sentence


def test_gradients_that_vanish_beyond_an_episode_do_not_matter() -> None:
    assert symptoms(metrics(lag0=1.0, lag64=0.0), evaluations(FLAT), sequence_length=64) == []


def test_nothing_is_said_of_a_task_that_is_solved_from_the_start() -> None:
    assert symptoms(metrics((1.4, 0.05)), evaluations(FLAT), sequence_length=64, solved_at=0.5) == []


def test_episodes_longer_than_a_sequence_name_the_rollout() -> None:
    (sentence,) = symptoms(metrics(lag0=1.0, lag8=0.5), evaluations(FLAT, 300.0), sequence_length=16)
    assert "--algorithm.n-steps 512" in sentence


def test_a_return_that_fell_back_names_where_it_was_best() -> None:
    (sentence,) = symptoms([], evaluations([0.0, 0.2, 0.9, 1.0, 0.2, 0.1]), sequence_length=64)
    assert "fell from 1 at step 4000 to 0.15" in sentence
