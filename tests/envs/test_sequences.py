"""The best and the memoryless returns of the sequence tasks are what their docstrings say, found by playing them.

Axes: N environments, T steps, D parts of an observation, P policies, E episodes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from envs.tasks.batch import BatchEnv
from envs.tasks.sequences import AssociativeRecall, CountRecall, PhaseForecast, Recall
from envs.tasks.sequences import Copy as CopyTask
from tests.tolerance import assert_close, near

SHARED = np.random.default_rng(0)
Policy = Callable[[list[NDArray[Any]]], NDArray[Any]]


def begin(env: BatchEnv, uniforms: NDArray[np.float64]) -> NDArray[Any]:
    """Put every environment at the start of the episode that its row of `uniforms` decides -> observations."""
    for row in range(env.num_envs):  # the episode after it may be any: one generator for all is faster made
        env._streams.seed(row, SHARED)
    env._begin(env._every_row, uniforms, {})
    env._ready = True
    return env._observe()


def returns(env: BatchEnv, policy: Policy, uniforms: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Play one episode in every environment, that of `uniforms` where given; `policy` sees all observations so far."""
    seen, total = [env.reset(seed=0)[0] if uniforms is None else begin(env, uniforms)], np.zeros(env.num_envs)
    while True:
        observation, rewards, terminated, _, _ = env.step(policy(seen))
        total += rewards
        seen.append(observation)
        if terminated.any():
            assert terminated.all()
            return total


def play(env: BatchEnv, uniforms: list[float], actions: list[Any]) -> tuple[list[Any], list[float]]:
    """The observations and rewards of the one episode that these uniform numbers decide."""
    shown, rewards = [begin(env, np.array([uniforms]))[0].tolist()], []
    for action in actions:
        observation, reward, terminated, _, infos = env.step(np.array([action]))
        shown.append((infos["final_obs"] if terminated[0] else observation)[0].tolist())
        rewards.append(float(reward[0]))
    return shown, rewards


def symbols(part: NDArray[np.float32]) -> NDArray[np.int64]:
    """One-hot (N, symbols) -> (N,), -1 where nothing is shown."""
    return np.where(part.any(axis=1), part.argmax(axis=1), -1)


def middles(*choices: int) -> NDArray[np.float64]:
    """Uniform numbers for every combination of numbers below `choices`: (product, len(choices))."""
    grid = np.array(list(itertools.product(*(range(count) for count in choices))))
    return (grid + 0.5) / np.array(choices)


def best_without_memory(
    make: Callable[[int], BatchEnv],
    symbol_of: Callable[[NDArray[Any]], NDArray[np.int64]],
    episodes: NDArray[np.float64],
) -> float:
    """The best of all maps from symbols to actions, every episode of `episodes` (E, uniforms) being as likely."""
    actions = int(make(1).single_action_space.n)  # type: ignore[attr-defined]
    seen = int(symbol_of(make(1).single_observation_space.high[None])[0])  # type: ignore[attr-defined]
    policies = np.array(list(itertools.product(range(actions), repeat=seen)))
    chosen = policies.repeat(len(episodes), axis=0)
    rows = np.arange(len(chosen))
    totals = returns(
        make(len(chosen)),
        lambda history: chosen[rows, symbol_of(history[-1])],
        np.tile(episodes, (len(policies), 1)),
    )
    return float(totals.reshape(len(policies), -1).mean(axis=1).max())


# Copy


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("length", "delay"), [(1, 0), (8, 0), (5, 7)])
def test_acting_out_what_was_read_earns_the_best_return(length: int, delay: int, reverse: bool) -> None:
    env = CopyTask(40, length=length, symbols=3, delay=delay, reverse=reverse)

    def act_out(seen: list[NDArray[Any]]) -> NDArray[Any]:
        step = len(seen) - 1 - length - delay
        place = length - 1 - step if reverse else step
        return symbols(seen[place][:, :3]) if step >= 0 else np.zeros(40, dtype=int)

    assert_close(returns(env, act_out), env.best_return)


def test_copy_shows_its_symbols_then_go_and_pays_for_each_right_one() -> None:
    shown, rewards = play(CopyTask(1, length=2, symbols=3, delay=1), [0.9, 0.4], [2, 2, 2, 2, 0])  # reads 2, 1
    assert shown == [[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert rewards == [0, 0, 0, 0.5, -0.5]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("length", "count"), [(3, 2), (2, 3)])
def test_no_policy_without_memory_copies_better_than_chance(length: int, count: int, reverse: bool) -> None:
    def symbol(observation: NDArray[Any]) -> NDArray[np.int64]:
        if observation.all():
            return np.array([count + 1])  # how many there are
        return observation.argmax(axis=1)

    value = best_without_memory(
        lambda n: CopyTask(n, length=length, symbols=count, reverse=reverse), symbol, middles(*[count] * length)
    )
    assert value == pytest.approx(CopyTask(symbols=count).memoryless_return)


# AssociativeRecall


@pytest.mark.parametrize(("pairs", "keys", "queries"), [(1, 1, 3), (4, 8, 4), (6, 6, 2)])
def test_looking_up_the_value_of_the_key_earns_the_best_return(pairs: int, keys: int, queries: int) -> None:
    env = AssociativeRecall(40, pairs=pairs, keys=keys, values=3, queries=queries)

    def look_up(seen: list[NDArray[Any]]) -> NDArray[Any]:
        alike = np.stack([(page[:, :keys] * seen[-1][:, :keys]).sum(axis=1) for page in seen[:pairs]])
        values = np.stack([page[:, keys:] for page in seen[:pairs]])
        return (alike[..., None] * values).sum(axis=0).argmax(axis=1)

    assert_close(returns(env, look_up), env.best_return)


def test_keys_come_with_their_values_then_alone() -> None:
    env = AssociativeRecall(1, pairs=2, keys=3, values=2, queries=2)
    # The keys in the order of 0.9, 0.2, 0.5: 1 then 2; their values 1 and 0; the second is asked, then the first.
    shown, rewards = play(env, [0.9, 0.2, 0.5, 0.7, 0.3, 0.6, 0.1], [0, 0, 0, 0])
    assert shown == [[0, 1, 0, 0, 1], [0, 0, 1, 1, 0], [0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert rewards == [0, 0, 0.5, -0.5]


def test_no_policy_without_memory_recalls_better_than_chance() -> None:
    def symbol(observation: NDArray[Any]) -> NDArray[np.int64]:
        if observation.all():
            return np.array([6])  # how many there are
        key, value = symbols(observation[:, :2]), symbols(observation[:, 2:])
        return key + 2 * (value + 1)

    # Both orders of two keys, every pair of values, every pair of questions.
    episodes = np.array([row for row in middles(2, 2, 2, 2, 2, 2) if row[0] != row[1]])
    value = best_without_memory(lambda n: AssociativeRecall(n, pairs=2, keys=2, values=2, queries=2), symbol, episodes)
    assert value == pytest.approx(AssociativeRecall(values=2).memoryless_return) == 0.0
    assert AssociativeRecall(values=5).memoryless_return == pytest.approx(-0.6)


def test_the_keys_of_an_episode_differ_and_all_are_used_alike() -> None:
    env = AssociativeRecall(4000, pairs=3, keys=5, values=4, queries=2)
    env.reset(seed=3)
    keys = env._shown[:, :3, 0]
    assert all(len(set(row)) == 3 for row in keys.tolist())
    np.testing.assert_allclose(np.bincount(keys.ravel()) / keys.size, 1 / 5, atol=0.02)
    np.testing.assert_allclose(np.bincount(env._right[:, 3:].ravel()) / 8000, 1 / 4, atol=0.03)


# CountRecall


@pytest.mark.parametrize(("values", "copies"), [(2, 1), (4, 5), (3, 13)])
def test_counting_earns_the_best_return(values: int, copies: int) -> None:
    env = CountRecall(40, values=values, copies=copies)

    def count(seen: list[NDArray[Any]]) -> NDArray[Any]:
        asked = seen[-1][:, values:]
        return (np.sum([page[:, :values] for page in seen], axis=0) * asked).sum(axis=1).astype(int)

    assert_close(returns(env, count), env.best_return)


def test_a_count_includes_the_present_step() -> None:
    env = CountRecall(1, values=2, copies=2)
    # Places 3, 1, 0, 2 of the ordered pack 0 1 0 1: shown 1, 1, 0, 0; asked 1, 0, 0, 1.
    order, asked = [0.5, 0.3, 0.9, 0.1], [0.8, 0.2, 0.2, 0.8]
    shown, rewards = play(env, [*order, *asked], [1, 0, 1, 0])
    assert shown == [[0, 1, 0, 1], [0, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]]
    assert rewards == [0.25, 0.25, 0.25, -0.25]


@pytest.mark.parametrize(("values", "copies"), [(2, 1), (2, 2)])
def test_no_policy_without_memory_counts_better_than_the_docstring_says(values: int, copies: int) -> None:
    def symbol(observation: NDArray[Any]) -> NDArray[np.int64]:
        if observation.all():
            return np.array([values**2])  # how many there are
        return observation[:, :values].argmax(axis=1) + values * observation[:, values:].argmax(axis=1)

    steps = values * copies
    orders = np.array(list(itertools.permutations((np.arange(steps) + 0.5) / steps)))
    _, firsts = np.unique(orders.argsort(axis=1) % values, axis=0, return_index=True)
    orders = orders[firsts]  # one for each pack: all are as likely
    questions = middles(*[values] * steps)
    episodes = np.concatenate([orders.repeat(len(questions), axis=0), np.tile(questions, (len(orders), 1))], axis=1)
    env = CountRecall(values=values, copies=copies)
    value = best_without_memory(lambda n: CountRecall(n, values=values, copies=copies), symbol, episodes)
    assert value == near(env.memoryless_return)


def test_the_memoryless_return_of_the_default_count_is_that_of_the_best_guesses() -> None:
    env = CountRecall(5000)
    begin(env, np.random.default_rng(0).random((5000, 40)))
    shown, asked = env._shown[:, :-1, 0], env._shown[:, :-1, 1]
    chance = 0.0
    for case in (shown == asked, shown != asked):
        chance += max(((env._right == count) & case).mean() for count in range(6))
    assert env.memoryless_return == pytest.approx(2 * chance - 1, abs=0.005)
    assert env.memoryless_return == pytest.approx(-0.65)


# PhaseForecast


def solve_and_forecast(seen: list[NDArray[Any]], waves: int) -> NDArray[Any]:
    """The coefficients c of x(t + M) + x(t - M) = sum c(k) (x(t + k) + x(t - k)) by least squares, then the next x."""
    x = np.concatenate(seen, axis=1).astype(np.float64)
    forecasts = np.zeros((len(x), 1), np.float32)
    if len(seen) < 3 * waves:
        return forecasts
    centres = np.arange(waves, len(seen) - waves)
    reach = np.arange(waves)
    for row, values in enumerate(x):
        pairs = values[centres[:, None] + reach] + values[centres[:, None] - reach]
        ends = values[centres + waves] + values[centres - waves]
        coefficients = np.linalg.lstsq(pairs, ends, rcond=None)[0]
        last = len(seen) - waves
        forecasts[row] = (values[last + reach] + values[last - reach]) @ coefficients - values[last - waves]
    return forecasts


@pytest.mark.parametrize(("waves", "tolerance"), [(1, 1e-3), (2, 2e-2)])
def test_three_values_a_wave_are_enough_for_the_best_return(waves: int, tolerance: float) -> None:
    env = PhaseForecast(40, length=24, waves=waves)
    totals = returns(env, lambda seen: solve_and_forecast(seen, waves))
    # The observations are rounded to single precision, which two waves of like frequency enlarge.
    assert totals.max() <= env.best_return + 1e-5
    assert totals.mean() == pytest.approx(env.best_return, abs=tolerance)


def test_forecasts_count_by_their_error_and_not_before_they_can_be_made() -> None:
    env = PhaseForecast(1, length=5, shortest=4, longest=8)
    # Period 4 from its crest: 1, 0, -1, 0, 1, 0.
    shown, rewards = play(env, [0.0, 0.25], [[0.7], [0.7], [0.0], [0.5], [-5.0]])
    assert np.ravel(shown).tolist() == near([1, 0, -1, 0, 1, 0])
    assert rewards == near([0, 0, 1 / 3, 0.5 / 3, 0])


def medians_of_bins(now: NDArray[np.float64], following: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """For every bin of the present value the median of the next."""
    cells = bin_of(now, bins)
    return np.array([np.median(following[cells == cell]) for cell in range(bins)])


def bin_of(values: NDArray[np.floating[Any]], bins: int) -> NDArray[np.int64]:
    return np.minimum((values + 1) / 2 * bins, bins - 1).astype(int)


@pytest.mark.parametrize("periods", [(4.0, 12.0), (2.5, 3.5)])
def test_the_median_given_the_present_value_earns_the_memoryless_return(periods: tuple[float, float]) -> None:
    episodes, bins = middles(50, 1000), 100
    env = PhaseForecast(len(episodes), length=3, shortest=periods[0], longest=periods[1])
    begin(env, episodes)
    # The best function of the present value that is constant over a bin.
    medians = medians_of_bins(env._at(env._every_row, 2), env._at(env._every_row, 3), bins)
    earned = returns(env, lambda seen: medians[bin_of(seen[-1], bins)], episodes).mean()
    assert earned == pytest.approx(env.memoryless_return, abs=0.005)


def test_a_wave_of_one_known_frequency_has_its_memoryless_return_in_closed_form() -> None:
    env = PhaseForecast(shortest=5.0, longest=5.0)
    assert env.memoryless_return == near(1 - 2 / np.pi * np.sin(2 * np.pi / 5))


def test_no_function_of_the_sum_of_two_waves_passes_the_bound() -> None:
    episodes, bins = np.random.default_rng(0).random((20_000, 4)), 20
    env = PhaseForecast(len(episodes), length=6, waves=2)
    begin(env, episodes)
    medians = medians_of_bins(env._at(env._every_row, 5), env._at(env._every_row, 6), bins)
    earned = returns(env, lambda seen: medians[bin_of(seen[-1], bins)], episodes).mean()
    assert 0.5 < earned < env.memoryless_return < 1


# Recall


@pytest.mark.parametrize(("length", "bits", "distractors"), [(1, 1, 1.0), (1, 2, 0.0), (30, 1, 0.0), (7, 3, 0.5)])
def test_keeping_the_sign_earns_the_best_return(length: int, bits: int, distractors: float) -> None:
    env = Recall(40, length=length, bits=bits, distractors=distractors)

    def keep(seen: list[NDArray[Any]]) -> NDArray[Any]:
        signs = np.stack([page[:, 2 * bits] for page in seen])
        sign = np.stack(seen)[signs.argmax(axis=0), np.arange(40), : 2 * bits].reshape(40, bits, 2)
        return sign.argmax(axis=2)[np.arange(40), seen[-1][:, 2 * bits + 1 :].argmax(axis=1)]

    np.testing.assert_allclose(returns(env, keep), env.best_return, rtol=1e-5)


def test_the_sign_comes_first_then_what_is_not_it_then_the_questions() -> None:
    env = Recall(1, length=3, bits=2, distractors=0.5)
    # The sign 0 1; then, with 0.4 below the chance, 1 1; then, with 0.6, nothing.
    shown, rewards = play(env, [0.1, 0.9, 0.4, 0.8, 0.7, 0.6, 0.1, 0.1], [0, 1, 0, 0, 0])
    assert shown == [
        [1, 0, 0, 1, 1, 0, 0],
        [0, 1, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0, 0],
    ]
    assert rewards == [0, 0, 0, 0.5, -0.5]


def test_no_policy_without_memory_knows_the_sign() -> None:
    def symbol(observation: NDArray[Any]) -> NDArray[np.int64]:
        weights = 1 + np.arange(observation.shape[1])
        return (observation * weights).sum(axis=1).astype(np.int64)

    value = best_without_memory(lambda n: Recall(n, length=1, bits=1), symbol, middles(2))
    assert value == Recall.memoryless_return == 0.0
