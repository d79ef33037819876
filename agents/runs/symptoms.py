"""Why a run has not learned, as far as its own figures tell, and the one setting to try for each reason.

A return that does not rise is looked at together with the policy's entropy and with ``memory/gradient_lag_k``: the
gradient of a sequence's last log-probability with respect to what went into the memory k steps before.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Row = Mapping[str, float]
"""What in a line of metrics.csv or evaluations.csv is a number, by column."""

FEWEST = 6
"""Evaluations below which no symptom is reported."""
COLLAPSED = 0.1
"""Share of the first entropy below which a policy of discrete actions has stopped exploring."""
VANISHED = 1e-4
"""Share of the gradient at lag 0 below which that at a longer lag teaches nothing."""
SLOW = 0.5
"""Share of the time beyond which the environment is what to make faster."""
LAG = "memory/gradient_lag_"


def symptoms(
    metrics: Sequence[Row],
    evaluations: Sequence[Row],
    *,
    sequence_length: int,
    solved_at: float | None = None,
    noise_lasts: bool = False,
) -> list[str]:
    """Sentences for the user; none if the return rose and stayed, or no reason is known.

    Args:
        sequence_length: steps that gradients pass back through, at most.
        solved_at: the return from which the environment counts as solved (Gymnasium's ``reward_threshold``).
        noise_lasts: the noise of continuous actions lasts already.
    """
    returns = _column(evaluations, "mean_reward")
    if len(returns) < FEWEST:
        return []
    third = len(returns) // 3
    first, best, last = returns[:third].mean(), returns.max(), returns[-third:].mean()
    noise = math.hypot(returns[:third].std(), returns[-third:].std()) / math.sqrt(third)
    if best - last > max(0.5 * (best - first), 2 * noise) and best - first > 2 * noise:
        step = _column(evaluations, "step")[returns.argmax()]
        fell = f"the return fell from {best:.4g} at step {step:.0f} to {last:.4g}"
        return [f"{fell}: try --algorithm.learning-rate at half its value, or --algorithm.clip-range 0.1"]
    if last - first > 2 * noise or (solved_at is not None and last >= solved_at):
        return []
    course = f"the return did not rise ({first:.4g} at first, {last:.4g} at the end)"
    length = float(_column(evaluations, "mean_ep_length")[-third:].mean())
    found = [*_entropy(metrics), *_noise(metrics, noise_lasts), *_reach(metrics, length, sequence_length)]
    return [f"{course}, and {each}" for each in found]


def slow_environment(metrics: Sequence[Row], backend: str) -> list[str]:
    """A sentence where more than half of the time was waiting for environments, and what makes that less."""
    shares = _column(metrics, "time/environment")
    if not len(shares) or shares.mean() <= SLOW:
        return []
    rate = _column(metrics, "time/fps")
    speed = f", at {rate[-1]:.0f} steps a second in all" if len(rate) else ""
    cure = "try --env.backend subprocess, which steps it in processes"
    if backend == "subprocess":
        cure = "try more --env.workers, if there are processors for them or it waits itself"
    return [f"{shares.mean():.0%} of the time went into the environment{speed}: {cure}"]


def _entropy(metrics: Sequence[Row]) -> list[str]:
    entropy = -_column(metrics, "train/entropy_loss")
    if len(entropy) < 2 or entropy[0] <= 0 or entropy[-1] >= COLLAPSED * entropy[0]:
        return []
    fell = f"the policy's entropy fell from {entropy[0]:.3g} to {max(entropy[-1], 0.0):.3g}"
    return [f"{fell}: it stopped exploring, try --algorithm.ent-coef 0.1"]


def _noise(metrics: Sequence[Row], noise_lasts: bool) -> list[str]:
    if noise_lasts or not len(_column(metrics, "train/std")):
        return []
    tried = "try --algorithm.noise-correlation 0.9, noise that lasts"
    return [f"the noise of continuous actions is independent at every step, which finds no rare reward: {tried}"]


def _reach(metrics: Sequence[Row], length: float, sequence_length: int) -> list[str]:
    """How far back an action's gradient reaches, against the length of an episode."""
    lags = sorted({int(name.removeprefix(LAG)) for row in metrics for name in row if name.startswith(LAG)})
    gradients = {lag: column[-1] for lag in lags if len(column := _column(metrics, f"{LAG}{lag}"))}
    here = gradients.get(0, 0.0)
    for lag, gradient in gradients.items():
        if lag and lag < length and gradient < VANISHED * here:
            return [
                f"gradients over {lag} steps are {gradient / here:.1g} of those over none while episodes last "
                f"{length:.0f}: try --policy.memory-kwargs chrono_horizon={_power_of_two(length)}, or "
                "--policy.memory gtrxl"
            ]
    if length > sequence_length:
        return [
            f"gradients end at the start of a sequence of {sequence_length} steps while episodes last {length:.0f}: "
            f"try --algorithm.n-steps {_power_of_two(length)}"
        ]
    return []


def _power_of_two(length: float) -> int:
    return 1 << math.ceil(math.log2(max(length, 2.0)))


def _column(rows: Sequence[Row], name: str) -> NDArray[np.float64]:
    """The numbers of a column, without the lines that have none."""
    return np.array([row[name] for row in rows if name in row], dtype=np.float64)
