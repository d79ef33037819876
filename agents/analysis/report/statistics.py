"""What can be said from several runs of the same settings, and of two such groups against each other.

Axes: S seeds, E episodes, P points of a curve, N and K scores of two groups.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice". Intervals are percentile
bootstraps, always the same for the same values; with fewer than about five seeds they are too narrow.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agents.analysis.evaluation import CONFIDENCE, Interval, Statistic, mean

Values = NDArray[np.float64]

RESAMPLES = 10_000
_AT_ONCE = 2_000_000  # numbers; bounds memory


def over_seeds(returns: Sequence[Values], statistic: Statistic = mean) -> Interval:
    """S times (E,) -> the interval of a statistic of all episodes: seeds are drawn, then episodes of each.

    Every seed weighs the same, however many episodes it was evaluated on.
    """
    rng = np.random.default_rng(0)
    seeds, episodes = len(returns), max(map(len, returns))
    drawn = []
    for rows in _batches(seeds * episodes):
        values = np.empty((rows, seeds, episodes))
        chosen = rng.integers(seeds, size=(rows, seeds))
        for seed, of_seed in enumerate(returns):
            here = chosen == seed
            values[here] = of_seed[rng.integers(len(of_seed), size=(np.count_nonzero(here), episodes))]
        drawn.append(statistic(values.reshape(rows, -1)))
    return _middle(np.concatenate(drawn))


def curve_over_seeds(curves: Values) -> tuple[Values, Values, Values]:
    """(S, P) -> mean, low and high, (P,) each: the mean over seeds at every point and its interval, seeds drawn."""
    rng = np.random.default_rng(0)
    seeds, points = curves.shape
    resamples = np.concatenate(
        [curves[rng.integers(seeds, size=(rows, seeds))].mean(axis=1) for rows in _batches(seeds * points)]
    )
    low, high = np.percentile(resamples, _tails(), axis=0)
    return curves.mean(axis=0), low, high


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

    What is drawn is how often each value occurs, so that a thousand episodes cost a thousand counts and not a million
    pairs.
    """
    rng = np.random.default_rng(0)
    values, places = np.unique(np.concatenate([ours, theirs]), return_inverse=True)
    chances = [np.bincount(part, minlength=len(values)) / len(part) for part in np.split(places, [len(ours)])]
    drawn = []
    for rows in _batches(len(values)):
        a, b = (rng.multinomial(n, p, rows) / n for n, p in zip((len(ours), len(theirs)), chances, strict=True))
        drawn.append((a * (np.cumsum(b, axis=1) - b / 2)).sum(axis=1))
    return _middle(np.concatenate(drawn))


def aligned(curves: Sequence[tuple[Values, Values]]) -> tuple[Values, Values]:
    """(steps, values) of S runs -> (P,) steps that all have reached, and the values (S, P) there.

    Runs evaluate when an update ends, and so not all at the same steps: between two points a curve is a straight line.
    """
    first, last = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    every = np.unique(np.concatenate([steps for steps, _ in curves]))
    common = every[(every >= first) & (every <= last)]
    return common, np.array([np.interp(common, steps, values) for steps, values in curves])


def _batches(size: int) -> list[int]:
    """How many resamples of ``size`` numbers to draw at a time, adding up to all."""
    rows = max(1, min(RESAMPLES, _AT_ONCE // max(1, size)))
    return [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]


def _tails() -> tuple[float, float]:
    tail = 50 * (1 - CONFIDENCE)
    return tail, 100 - tail


def _middle(drawn: Values) -> Interval:
    low, high = np.percentile(drawn, _tails())
    return Interval(float(low), float(high))
