"""Statistics over seeds, against cases computed by hand and laws."""

import numpy as np
import pytest

from agents.analysis import statistics
from agents.analysis.statistics import bootstrap, improvement_interval, mean, over_seeds, probability_of_improvement


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([5], 5), ([1, 3], 2), ([9, 1, 5], 5), ([0, 1, 2, 9], 1.5), ([1000, 2, 3, 4, 5, 6, 7, -1000], 4.5)],
)
def test_the_interquartile_mean_is_the_mean_of_the_middle_half(values: list[float], expected: float) -> None:
    assert statistics.interquartile_mean(array(*values)) == expected


def test_the_bootstrap_interval_of_a_mean_is_near_the_normal_one_and_always_the_same() -> None:
    values = np.random.default_rng(1).normal(10.0, 2.0, 400)
    low, high = bootstrap(values, mean)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)
    assert bootstrap(values, mean) == (low, high)


def test_wilsons_interval_matches_published_values() -> None:
    # Newcombe 1998, table I: 81 of 263 and 15 of 148, method 3, to four digits.
    assert statistics.wilson((True,) * 81 + (False,) * 182) == pytest.approx((0.2553, 0.3662), rel=0, abs=5e-5)
    assert statistics.wilson((True,) * 15 + (False,) * 133) == pytest.approx((0.0624, 0.1605), rel=0, abs=5e-5)
    assert statistics.wilson((True,) * 20)[1] == 1.0


def test_the_probability_of_improvement_counts_pairs_and_halves_ties() -> None:
    # 3 beats 2 and 1; 1 loses to 2 and ties with 1: (1 + 1 + 0 + 1/2) / 4.
    assert probability_of_improvement(array(3, 1), array(2, 1)) == 0.625
    assert probability_of_improvement(array(3, 2, 4), array(1)) == 1
    assert probability_of_improvement(array(1), array(1, 1)) == 0.5


def test_the_probability_of_improvement_of_the_one_is_what_the_other_lacks() -> None:
    rng = np.random.default_rng(3)
    for n, k in ((2, 5), (7, 7), (4, 1)):
        a, b = rng.integers(0, 4, n).astype(float), rng.integers(0, 4, k).astype(float)
        assert probability_of_improvement(a, b) + probability_of_improvement(b, a) == pytest.approx(1)


def test_the_interval_of_the_probability_of_improvement_covers_what_can_be_drawn() -> None:
    # Of (0, 2) against 1 a draw gives 0, 1/2 or 1 with chances 1/4, 1/2, 1/4: the middle 95 % is all of it.
    assert improvement_interval(array(0, 2), array(1, 1)) == (0, 1)
    assert improvement_interval(array(5, 6, 7), array(1, 2, 3)) == (1, 1)


def test_the_interval_of_the_probability_of_improvement_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.integers(0, 9, 30).astype(float), rng.integers(0, 7, 20).astype(float)
    drawn = probability_of_improvement(
        ours[rng.integers(30, size=(4000, 30))], theirs[rng.integers(20, size=(4000, 20))]
    )
    assert improvement_interval(ours, theirs) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.02)


def test_seeds_are_drawn_and_not_episodes_alone() -> None:
    # Each seed always scores the same, so episodes say nothing: drawn are 0, 1/2 and 1.
    low, high = over_seeds([np.zeros(100), np.ones(100)])
    assert (low, high) == (0, 1)
    narrow = bootstrap(np.concatenate([np.zeros(100), np.ones(100)]), mean)
    assert narrow.low > 0.4
    assert narrow.high < 0.6


def test_every_seed_weighs_the_same_however_many_episodes_it_played() -> None:
    seeds = [array(0), np.ones(99)]
    assert over_seeds(seeds) == (0, 1)
    assert over_seeds([np.full(3, 2.0), np.full(50, 2.0)], statistics.interquartile_mean) == (2, 2)


def test_the_optimality_gap_counts_what_is_missing_and_never_what_is_beyond() -> None:
    assert statistics.optimality_gap(array(0.5, 1.0, 3.0)) == pytest.approx(1 - 2.5 / 3)
    assert statistics.optimality_gap(np.array([[2.0, 2.0], [0.0, 1.0]])).tolist() == [0, 0.5]


def test_a_performance_profile_is_the_share_of_runs_above_every_threshold() -> None:
    assert statistics.performance_profile(array(0, 0.5, 1, 1), array(0, 0.5, 1)).tolist() == [0.75, 0.5, 0]


def test_stratified_draws_runs_of_every_task_among_its_own() -> None:
    # A task without spread has none, whatever the other one does: drawn are (0 or 1 or 2 of 2 ones), and always two 5s.
    low, high = statistics.stratified([array(0, 1), array(5, 5)], mean)
    assert (low, high) == (2.5, 3)
    edges = statistics.stratified([array(0, 1), array(5, 5)], lambda v: statistics.performance_profile(v, array(0, 2)))
    assert edges.tolist() == [[0.5, 0.5], [1, 0.5]]


def test_curves_are_aligned_on_the_steps_that_all_have_reached() -> None:
    one = (array(10, 20, 30, 40), array(0, 1, 2, 3))
    other = (array(15, 25), array(10, 20))
    steps, values = statistics.aligned([one, other])
    assert steps.tolist() == [15, 20, 25]
    assert values.tolist() == [[0.5, 1.0, 1.5], [10, 15, 20]]
    assert [part.shape for part in statistics.aligned([one, (array(80, 90), array(1, 1))])] == [(0,), (2, 0)]


def test_the_interval_of_a_curve_is_over_seeds_at_every_point() -> None:
    middle, low, high = statistics.curve_over_seeds(np.array([[1.0, 0.0], [1.0, 2.0]]))
    assert middle.tolist() == [1, 1]
    assert low.tolist() == [1, 0]
    assert high.tolist() == [1, 2]
