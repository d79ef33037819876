"""Statistics of episodes, of seeds, and of two groups of them against each other.

Axes: S seeds, E episodes, P points of a curve, N and K scores of two groups.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice". Intervals are percentile
bootstraps, always the same for the same values; over fewer than about five seeds they are too narrow.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

Values = NDArray[np.float64]
Statistic = Callable[[Values], Any]
"""(..., E) -> (...)"""

CONFIDENCE = 0.95
RESAMPLES = 10_000
_AT_ONCE = 2_000_000  # numbers; bounds memory

mean: Statistic = partial(np.mean, axis=-1)
median: Statistic = partial(np.median, axis=-1)


class Interval(NamedTuple):
    """Where a statistic lies with 95 % confidence."""

    low: float
    high: float


def number(value: float, digits: int = 3) -> str:
    """For a table: 12.3, 0.500."""
    text = f"{value:.1f}" if abs(value) >= 10 else f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def between(interval: Sequence[float], digits: int = 3) -> str:
    """For a table: 0.250 to 0.750."""
    return f"{number(interval[0], digits)} to {number(interval[1], digits)}"


def table(first: str, *columns: str) -> Table:
    """For a terminal: what rows are of on the left, figures on the right."""
    shown = Table(first, box=box.SIMPLE_HEAD)
    for name in columns:
        shown.add_column(name, justify="right")
    return shown


def interquartile_mean(values: Values) -> Values:
    """The mean without the lowest and the highest quarter (rounded down) of the values."""
    quarter = values.shape[-1] // 4
    middle: Values = mean(np.sort(values, axis=-1)[..., quarter : values.shape[-1] - quarter])
    return middle


def bootstrap(values: Values, statistic: Statistic = mean) -> Interval:
    """(E,) -> the interval of a statistic, episodes drawn."""
    size = len(values)
    return Interval(
        *_percentiles(lambda rng, rows: statistic(values[rng.integers(size, size=(rows, size))]), size).tolist()
    )


def over_seeds(returns: Sequence[Values], statistic: Statistic = mean) -> Interval:
    """S times (E,) -> the interval of a statistic of all episodes: seeds are drawn, then episodes of each.

    Every seed weighs the same, however many episodes it was evaluated on; of one seed alone episodes are drawn.
    """
    if len(returns) == 1:
        return bootstrap(returns[0], statistic)
    seeds, episodes = len(returns), max(map(len, returns))

    def resampled(rng: np.random.Generator, rows: int) -> Values:
        values = np.empty((rows, seeds, episodes))
        chosen = rng.integers(seeds, size=(rows, seeds))
        for seed, of_seed in enumerate(returns):
            here = chosen == seed
            values[here] = of_seed[rng.integers(len(of_seed), size=(np.count_nonzero(here), episodes))]
        drawn: Values = statistic(values.reshape(rows, -1))
        return drawn

    return Interval(*_percentiles(resampled, seeds * episodes).tolist())


def optimality_gap(values: Values, target: float = 1.0) -> Values:
    """By how much values fall short of a target on average; what is beyond the target does not make up for it."""
    gap: Values = target - mean(np.minimum(values, target))
    return gap


def performance_profile(values: Values, thresholds: Values) -> Values:
    """(..., E), (P,) -> (..., P): the share of values above every threshold."""
    above: Values = (values[..., None] > thresholds).mean(axis=-2)
    return above


def stratified(tasks: Sequence[Values], statistic: Statistic, size: int = 1) -> Any:
    """The edges (2, ...) of the interval of a statistic (...) of all runs: of every task its own (S,) runs are drawn.

    Every run weighs the same. ``size`` is how many numbers the statistic computes of a run; it bounds memory.
    """

    def resampled(rng: np.random.Generator, rows: int) -> Values:
        drawn = [runs[rng.integers(len(runs), size=(rows, len(runs)))] for runs in tasks]
        found: Values = statistic(np.concatenate(drawn, axis=1))
        return found

    return _percentiles(resampled, size * sum(map(len, tasks)))


def curve_over_seeds(curves: Values) -> tuple[Values, Values, Values]:
    """(S, P) -> mean, low and high, (P,) each: the mean over seeds at every point and its interval, seeds drawn."""
    seeds = len(curves)
    edges = _percentiles(lambda rng, rows: curves[rng.integers(seeds, size=(rows, seeds))].mean(axis=1), curves.size)
    return curves.mean(axis=0), *edges


def probability_of_improvement(ours: Values, theirs: Values) -> Values:
    """(..., N), (..., K) -> (...): how often a score of ours beats one of theirs, a tie counting half.

    P(X > Y) = 1/(NK) sum_i sum_j S(x_i, y_j) with S = 1, 1/2, 0 for x greater than, equal to, less than y; equation 1
    of Agarwal et al. 2021 for one task, Mann and Whitney's U over NK.
    """
    wins = np.sign(ours[..., :, None] - theirs[..., None, :])
    result: Values = (wins.mean(axis=(-2, -1)) + 1) / 2
    return result


def improvement_interval(ours: Values, theirs: Values) -> Interval:
    """(N,), (K,) -> the interval of the probability of improvement, the scores of both groups drawn.

    What is drawn is how often each value occurs: a thousand episodes cost a thousand counts and not a million pairs.
    """
    values, places = np.unique(np.concatenate([ours, theirs]), return_inverse=True)
    chances = [np.bincount(part, minlength=len(values)) / len(part) for part in np.split(places, [len(ours)])]

    def resampled(rng: np.random.Generator, rows: int) -> Values:
        a, b = (rng.multinomial(n, p, rows) / n for n, p in zip((len(ours), len(theirs)), chances, strict=True))
        drawn: Values = (a * (np.cumsum(b, axis=1) - b / 2)).sum(axis=1)
        return drawn

    return Interval(*_percentiles(resampled, len(values)).tolist())


def wilson(successes: Sequence[bool]) -> Interval:
    """The interval of a rate (Wilson 1927), which stays right where all succeed or none does."""
    n, rate, z = len(successes), float(np.mean(successes)), 1.959964
    center = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return Interval(max(0.0, center - half), min(1.0, center + half))


def aligned(curves: Sequence[tuple[Values, Values]]) -> tuple[Values, Values]:
    """(steps, values) of S runs -> (P,) steps that all have reached, and the values (S, P) there.

    Runs evaluate when an update ends, and so not all at the same steps: values in between are interpolated linearly.
    """
    first, last = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    every = np.unique(np.concatenate([steps for steps, _ in curves]))
    common = every[(every >= first) & (every <= last)]
    return common, np.array([np.interp(common, steps, values) for steps, values in curves])


def _percentiles(resampled: Callable[[np.random.Generator, int], Values], size: int) -> Any:
    """The edges of what so many ``resampled(rng, rows)`` statistics of ``size`` numbers each lie between."""
    rng, rows = np.random.default_rng(0), max(1, _AT_ONCE // max(1, size))
    drawn = [resampled(rng, min(rows, RESAMPLES - start)) for start in range(0, RESAMPLES, rows)]
    tail = 50 * (1 - CONFIDENCE)
    return np.percentile(np.concatenate(drawn), [tail, 100 - tail], axis=0)
