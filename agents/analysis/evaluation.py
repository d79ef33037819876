"""How good an agent is: full episodes over many environments.

Axes: N environments, E episodes.

Returns are the true ones, never the normalized ones. Every environment plays a number of episodes that was fixed
beforehand: taking the first E that finish would favor short ones.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, is_vecenv_wrapped

from agents.analysis import statistics
from agents.analysis.episodes import Agent, Game, playing
from agents.analysis.statistics import between, interquartile_mean, mean, median, number

FAILED = "recurl.environment_failed"  # what our environments call an episode that ended with a fault


@dataclass(frozen=True)
class Evaluation:
    """The episodes of an evaluation, and their statistics."""

    returns: tuple[float, ...]  # (E,) undiscounted sums of the true rewards
    lengths: tuple[int, ...]  # (E,) steps
    successes: tuple[bool, ...] = ()  # (E,) info["is_success"]; empty where the environment says nothing
    deterministic: bool = True  # actions were deterministic, instead of sampled
    seed: int | None = None  # of environments and samples
    truncated: int = 0  # how many of the episodes were truncated by max_steps
    environments: tuple[int, ...] = ()  # (E,) which of the N each was played in, those of one in the order of time

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Evaluation":
        """What :meth:`to_json` gave. Raises KeyError, TypeError or ValueError where it did not."""
        successes = tuple(map(bool, content.get("successes", ())))
        returns, lengths = tuple(map(float, content["returns"])), tuple(map(int, content.get("lengths", ())))
        if not returns:
            raise ValueError("an evaluation has at least one episode")
        truncated = int(content.get("truncated", content.get("cut", 0)))  # "cut": as older versions wrote it
        return cls(returns, lengths, successes, bool(content.get("deterministic")), content.get("seed"), truncated)

    @property
    def episodes(self) -> int:
        return len(self.returns)

    @property
    def mean(self) -> float:
        return self.statistic(mean)

    @property
    def std(self) -> float:
        """Standard deviation between episodes, not of the mean."""
        return float(np.std(self.returns))

    @property
    def median(self) -> float:
        return self.statistic(median)

    @property
    def interquartile_mean(self) -> float:
        return self.statistic(interquartile_mean)

    @property
    def mean_length(self) -> float:
        return float(np.mean(self.lengths))

    @property
    def longest(self) -> int:
        """Steps until the last of the environments, which step together, had played its share."""
        played = np.bincount(self.environments, weights=self.lengths) if self.environments else self.lengths
        return int(np.max(played))

    @property
    def manner(self) -> str:
        return manner(self.deterministic)

    @property
    def success_rate(self) -> float | None:
        return float(np.mean(self.successes)) if self.successes else None

    def statistic(self, statistic: statistics.Statistic) -> float:
        return float(statistic(np.array(self.returns)))

    def interval(self, statistic: statistics.Statistic) -> statistics.Interval:
        """The bootstrap interval of a statistic of the returns."""
        return statistics.bootstrap(np.array(self.returns), statistic)

    def to_json(self) -> dict[str, Any]:
        """Everything, as what ``json`` writes."""
        returns: dict[str, Any] = {"std": self.std, "min": min(self.returns), "max": max(self.returns)}
        for name, statistic in (("mean", mean), ("median", median), ("interquartile_mean", interquartile_mean)):
            returns |= {name: self.statistic(statistic), f"{name}_interval": list(self.interval(statistic))}
        return {
            "episodes": self.episodes,
            "truncated": self.truncated,
            "deterministic": self.deterministic,
            "seed": self.seed,
            "return": returns,
            "length": {"mean": self.mean_length, "min": min(self.lengths), "max": max(self.lengths)},
            "success_rate": self.success_rate,
            "success_rate_interval": list(statistics.wilson(self.successes)) if self.successes else None,
            "confidence": statistics.CONFIDENCE,
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "successes": list(self.successes),
        }

    def table(self) -> Table:
        """The statistics for a person."""
        shown = statistics.table("", "value", "95 % interval")
        located = {"mean return": mean, "median": median, "interquartile mean": interquartile_mean}
        for name, statistic in located.items():
            shown.add_row(name, number(self.statistic(statistic)), between(self.interval(statistic)))
        shown.add_row("standard deviation", number(self.std))
        shown.add_row("lowest, highest", f"{number(min(self.returns))}, {number(max(self.returns))}")
        shown.add_row("mean length", number(self.mean_length))
        if self.success_rate is not None:
            low, high = statistics.wilson(self.successes)
            shown.add_row("success rate", f"{self.success_rate:.1%}", f"{low:.1%} to {high:.1%}")
        shown.add_row("episodes", str(self.episodes))
        if self.truncated:
            shown.add_row("of them truncated", str(self.truncated))
        return shown


def evaluate(
    agent: Agent,
    env: VecEnv,
    episodes: int = 100,
    *,
    deterministic: bool | None = None,
    seed: int | None = None,
    max_steps: int | None = None,
) -> Evaluation:
    """Lets an agent act for full episodes; nothing of it moves (:func:`agents.analysis.episodes.playing`).

    Args:
        agent: a player, or an algorithm while it trains.
        env: environments of the evaluation's own, as they are before normalization. They are reset first.
        episodes: in all, shared out evenly among the environments beforehand.
        deterministic: deterministic actions in place of sampled ones; None: as the player is set.
        seed: of environments and samples; None goes on with their random numbers as they are.
        max_steps: an episode that is longer is truncated there and counts with its return so far, and its environment
            plays no further; for environments without a time limit. None for no limit.

    Raises:
        FloatingPointError: an episode's return is not finite.
        ValueError: the agent does not fit the environments.
    """
    if episodes < 1:
        raise ValueError(f"an evaluation needs at least 1 episode, got {episodes}")
    with playing(agent, env, seed=seed, deterministic=deterministic) as game:
        finished = list(_finished(game, episodes, max_steps))
    successes = [bool(each.success) for each in finished if each.success is not None]
    return Evaluation(
        returns=tuple(each.total for each in finished),
        lengths=tuple(each.length for each in finished),
        successes=tuple(successes) if len(successes) == len(finished) else (),
        deterministic=game.player.deterministic,
        seed=seed,
        truncated=sum(each.truncated for each in finished),
        environments=tuple(each.environment for each in finished),
    )


def manner(deterministic: bool) -> str:
    """How an agent acts, in a word."""
    return "deterministic" if deterministic else "sampled"


def differ(one: Evaluation, other: Evaluation) -> bool:
    """Whether the means differ beyond their intervals."""
    (low, high), (other_low, other_high) = one.interval(mean), other.interval(mean)
    return low > other_high or other_low > high


def evaluate_both_ways(
    agent: Agent, env: VecEnv, episodes: int, *, deterministic: bool, seed: int, max_steps: int | None
) -> dict[str, Evaluation]:
    """:func:`evaluate` with half of the episodes as the agent is set to act, and half the other way, by manner.

    Sampled and deterministic actions are two policies, and with the last action among its inputs a memory that has
    learned under one reads under the other what it never saw. At least one episode each; of an odd number the way
    chosen has one more.
    """
    shares = {deterministic: (episodes + 1) // 2, not deterministic: max(episodes // 2, 1)}
    return {
        manner(way): evaluate(agent, env, share, deterministic=way, seed=seed, max_steps=max_steps)
        for way, share in shares.items()
    }


class Episode(NamedTuple):
    """One that ended, or was truncated by ``max_steps``."""

    environment: int
    total: float
    length: int
    success: bool | None = None
    truncated: bool = False


def _finished(game: Game, episodes: int, max_steps: int | None) -> Iterator[Episode]:
    """Plays until every environment has finished its share, and gives the episodes as they end."""
    n_envs = game.env.num_envs
    left = (episodes + np.arange(n_envs)) // n_envs
    returns, lengths = np.zeros(n_envs), np.zeros(n_envs, dtype=np.int64)
    # Whether "episode" in the infos is the word of a Monitor, and not of an environment.
    monitored = is_vecenv_wrapped(game.env, VecMonitor) or all(game.env.env_is_wrapped(Monitor))
    longest = math.inf if max_steps is None else max_steps
    for step in game.steps:
        returns += step.rewards
        lengths += ~step.only_reset
        for i in map(int, np.flatnonzero(step.dones)):
            info = step.infos[i]
            # An episode that ended because the environment failed and restarted does not measure the agent.
            if left[i] and FAILED not in info:
                left[i] -= 1
                # A monitor counts below wrappers that change rewards or repeat actions: what it says is the task's own.
                measured = info.get("episode", {}) if monitored else {}
                total, length = float(measured.get("r", returns[i])), int(measured.get("l", lengths[i]))
                if not math.isfinite(total):
                    raise FloatingPointError(f"the return of an episode in environment {i} is {total}")
                yield Episode(i, total, length, info.get("is_success"))
            returns[i], lengths[i] = 0.0, 0
        for i in map(int, np.flatnonzero((lengths >= longest) & (left > 0))):
            left[i] = 0
            yield Episode(i, float(returns[i]), int(lengths[i]), truncated=True)
        if not left.any():
            return
