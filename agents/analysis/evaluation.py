"""How good an agent is: whole episodes over many environments, and what can be said from them.

Axes: N environments, E episodes, R bootstrap resamples.

Returns are the true ones, never the normalised ones. Every environment plays a number of episodes that was fixed
beforehand: taking the first E that finish would favour short ones.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize, is_vecenv_wrapped

from agents.algorithms.experience import reset_steps
from agents.algorithms.on_policy import RecurrentOnPolicyAlgorithm
from agents.checkpoint import normalizer_state, previous_inputs, undisturbed
from agents.deploy.player import Player

Values = NDArray[np.float64]
Statistic = Callable[[Values], Values]

FAILED = "recurl.environment_failed"  # what our environments call an episode that ended with a fault

RESAMPLES = 10_000
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """Where a statistic lies with 95 % confidence."""

    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """The episodes of an evaluation, and their statistics.

    Args:
        returns: (E,) undiscounted sums of the true rewards.
        lengths: (E,) steps.
        successes: (E,) what the environment says in ``info["is_success"]``; empty where it says nothing.
        deterministic: whether the most probable action was taken, instead of a sample.
        seed: of environments and samples; None for none.
        cut: how many of the episodes did not end but were cut.
        environments: (E,) which of the N each was played in, those of one in the order of time.
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    successes: tuple[bool, ...] = ()
    deterministic: bool = True
    seed: int | None = None
    cut: int = 0
    environments: tuple[int, ...] = ()

    @property
    def episodes(self) -> int:
        return len(self.returns)

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation between episodes, not of the mean."""
        return float(np.std(self.returns))

    @property
    def median(self) -> float:
        return float(np.median(self.returns))

    @property
    def interquartile_mean(self) -> float:
        return float(interquartile_mean(np.array(self.returns)))

    @property
    def mean_length(self) -> float:
        return float(np.mean(self.lengths))

    @property
    def success_rate(self) -> float | None:
        return float(np.mean(self.successes)) if self.successes else None

    def interval(self, statistic: Statistic) -> Interval:
        """The bootstrap interval of a statistic of the returns."""
        return bootstrap(np.array(self.returns), statistic)

    def to_json(self) -> dict[str, Any]:
        """Everything, as what ``json`` writes."""
        returns = np.array(self.returns)
        return {
            "episodes": self.episodes,
            "cut": self.cut,
            "deterministic": self.deterministic,
            "seed": self.seed,
            "return": {
                "mean": self.mean,
                "mean_interval": list(self.interval(mean)),
                "std": self.std,
                "median": self.median,
                "median_interval": list(self.interval(median)),
                "interquartile_mean": self.interquartile_mean,
                "interquartile_mean_interval": list(self.interval(interquartile_mean)),
                "min": float(returns.min()),
                "max": float(returns.max()),
            },
            "length": {"mean": self.mean_length, "min": min(self.lengths), "max": max(self.lengths)},
            "success_rate": self.success_rate,
            "success_rate_interval": list(wilson(self.successes)) if self.successes else None,
            "confidence": CONFIDENCE,
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "successes": list(self.successes),
        }

    def table(self) -> Table:
        """The statistics for a person."""
        table = Table("", "value", "95 % interval", box=box.SIMPLE_HEAD)
        for column in table.columns[1:]:
            column.justify = "right"
        table.add_row("mean return", _number(self.mean), _interval(self.interval(mean)))
        table.add_row("median", _number(self.median), _interval(self.interval(median)))
        table.add_row(
            "interquartile mean", _number(self.interquartile_mean), _interval(self.interval(interquartile_mean))
        )
        table.add_row("standard deviation", _number(self.std), "")
        table.add_row("lowest, highest", f"{_number(min(self.returns))}, {_number(max(self.returns))}", "")
        table.add_row("mean length", _number(self.mean_length), "")
        if self.success_rate is not None:
            low, high = wilson(self.successes)
            table.add_row("success rate", f"{self.success_rate:.1%}", f"{low:.1%} to {high:.1%}")
        table.add_row("episodes", str(self.episodes), "")
        if self.cut:
            table.add_row("of them cut, without an end", str(self.cut), "")
        return table


def evaluate(
    agent: Player | RecurrentOnPolicyAlgorithm,
    env: VecEnv,
    episodes: int = 100,
    *,
    deterministic: bool | None = None,
    seed: int | None = None,
    max_steps: int | None = None,
) -> Evaluation:
    """Lets an agent act for whole episodes, with its memory carried and reset, and looks on.

    Nothing of the agent moves: a training agent's normaliser is copied, its carried memory is left alone, and so are
    the random states of the process.

    Args:
        agent: a player, or an algorithm while it trains.
        env: environments of the evaluation's own, as they are before normalisation (a ``VecNormalize`` around them is
            taken off). They are reset first.
        episodes: in all, shared out evenly among the environments beforehand.
        deterministic: the most probable action in place of a sample; None: as the player is set.
        seed: of environments and samples; None goes on with their random numbers as they are.
        max_steps: an episode that is longer is cut there and counts as it is, and its environment plays no further; for
            environments in which an episode need not end. None for no limit.

    Raises:
        FloatingPointError: an episode's return is not finite.
        ValueError: the agent does not fit the environments.
    """
    if episodes < 1:
        raise ValueError(f"an evaluation needs at least 1 episode, got {episodes}")
    if isinstance(env, VecNormalize):
        env = env.venv
    with undisturbed(), _acting(_player(agent), deterministic) as player:
        env = player.around(env)
        if player.policy.action_space != env.action_space:
            raise ValueError(f"the agent's actions are {player.policy.action_space}, those here {env.action_space}")
        if seed is not None:
            env.seed(seed)
            torch.manual_seed(seed)
        finished = list(_episodes(player, env, episodes, max_steps))
    successes = [each.success for each in finished if each.success is not None]
    return Evaluation(
        returns=tuple(each.total for each in finished),
        lengths=tuple(each.length for each in finished),
        successes=tuple(successes) if len(successes) == len(finished) else (),
        deterministic=player.deterministic if deterministic is None else deterministic,
        seed=seed,
        cut=sum(each.cut for each in finished),
        environments=tuple(each.environment for each in finished),
    )


class BothWays(NamedTuple):
    """An agent's episodes by the way it is told to act, and by the other: sampling, or the most probable action."""

    told: Evaluation
    other: Evaluation

    @property
    def differ(self) -> bool:
        """Whether the two differ beyond the intervals of their means."""
        one, two = self.told.interval(mean), self.other.interval(mean)
        return one.low > two.high or two.low > one.high

    @property
    def sampled(self) -> Evaluation:
        return self.other if self.told.deterministic else self.told

    @property
    def deterministic(self) -> Evaluation:
        return self.told if self.told.deterministic else self.other


def evaluate_both_ways(
    agent: Player | RecurrentOnPolicyAlgorithm,
    env: VecEnv,
    episodes: int = 100,
    *,
    deterministic: bool = True,
    seed: int | None = None,
    max_steps: int | None = None,
) -> BothWays:
    """:func:`evaluate` with half of the episodes as the agent is told to act, and half the other way.

    Sampling and the most probable action are two policies, and with the last action among its inputs a memory that has
    learned under one reads under the other what it never saw. At least one episode each; of an odd number the way told
    has one more.
    """
    told = evaluate(agent, env, (episodes + 1) // 2, deterministic=deterministic, seed=seed, max_steps=max_steps)
    half = max(episodes // 2, 1)
    other = evaluate(agent, env, half, deterministic=not deterministic, seed=seed, max_steps=max_steps)
    return BothWays(told, other)


class Episode(NamedTuple):
    """One that ended, or was cut."""

    environment: int
    total: float
    length: int
    success: bool | None
    cut: bool = False


def _episodes(player: Player, env: VecEnv, episodes: int, max_steps: int | None) -> Iterator[Episode]:
    """Plays until every environment has finished its share, and gives the episodes as they end."""
    left = (episodes + np.arange(env.num_envs)) // env.num_envs
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, dtype=np.int64)
    monitored = _is_monitored(env)
    player.reset()
    observations = env.reset()
    while left.any():
        observations, rewards, dones, infos = env.step(player.act(observations))
        resets = np.zeros(env.num_envs, dtype=bool)
        resets[reset_steps(lengths == 0, infos) if infos else []] = True
        returns += np.where(resets, 0.0, rewards)
        lengths += ~resets
        for i in np.flatnonzero(dones):
            # One that was cut since the environment failed, and was made anew, says nothing of the agent.
            if left[i] and FAILED not in infos[i]:
                left[i] -= 1
                yield _episode(infos[i], float(returns[i]), int(lengths[i]), int(i), monitored)
            returns[i], lengths[i] = 0.0, 0
        if max_steps is not None:
            for i in np.flatnonzero((lengths >= max_steps) & (left > 0)):
                left[i] = 0
                yield Episode(int(i), float(returns[i]), int(lengths[i]), None, cut=True)
        player.reset(dones | resets)


def _is_monitored(env: VecEnv) -> bool:
    """Whether "episode" in the infos is the word of a Monitor, and not of an environment."""
    return is_vecenv_wrapped(env, VecMonitor) or all(env.env_is_wrapped(Monitor))


def _episode(info: dict[str, Any], total: float, length: int, environment: int, monitored: bool) -> Episode:
    # A monitor counts below wrappers that change rewards or repeat actions: what it says is the task's own measure.
    said = info.get("episode", {}) if monitored else {}
    total, length = float(said.get("r", total)), int(said.get("l", length))
    if not math.isfinite(total):
        raise FloatingPointError(f"the return of an episode in environment {environment} is {total}")
    success = info.get("is_success")
    return Episode(environment, total, length, None if success is None else bool(success))


def _player(agent: Player | RecurrentOnPolicyAlgorithm) -> Player:
    return (
        agent
        if isinstance(agent, Player)
        else Player(agent.policy, normalizer_state(agent), previous=previous_inputs(agent))
    )


@contextmanager
def _acting(player: Player, deterministic: bool | None) -> Iterator[Player]:
    """The player set to act so, and set back after."""
    before = player.deterministic
    player.deterministic = before if deterministic is None else deterministic
    try:
        yield player
    finally:
        player.deterministic = before


def mean(values: Values) -> Values:
    """(..., E) -> (...)"""
    result: Values = np.mean(values, axis=-1)
    return result


def median(values: Values) -> Values:
    """(..., E) -> (...)"""
    result: Values = np.median(values, axis=-1)
    return result


def interquartile_mean(values: Values) -> Values:
    """(..., E) -> (...): the mean of the middle half, a quarter (rounded down) cut off on each side.

    Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
    """
    cut = values.shape[-1] // 4
    result: Values = np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1)
    return result


def bootstrap(values: Values, statistic: Statistic, resamples: int = RESAMPLES) -> Interval:
    """The percentile bootstrap of a statistic over (E,) values; always the same for the same values."""
    rng = np.random.default_rng(0)
    size = len(values)
    at_once = max(1, 2_000_000 // size)  # bounds memory where there are many episodes
    parts = []
    for start in range(0, resamples, at_once):
        drawn = rng.integers(size, size=(min(at_once, resamples - start), size))
        parts.append(statistic(values[drawn]))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.concatenate(parts), [tail, 100 - tail])
    return Interval(float(low), float(high))


def wilson(successes: tuple[bool, ...]) -> Interval:
    """The interval of a rate (Wilson 1927), which stays honest where all succeed or none does."""
    n, rate, z = len(successes), float(np.mean(successes)), 1.959964
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _interval(interval: Interval) -> str:
    return f"{_number(interval.low)} to {_number(interval.high)}"
