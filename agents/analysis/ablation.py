"""Whether an agent uses its memory: the same episodes again with the memory wiped, exchanged, or made noisy.

Axes: N environments side by side, B of them, E episodes, C conditions.

A trained agent that carries a memory need not read it. So every condition plays the very episodes that the agent played
with its memory intact (same seeds, and one episode an environment and seed, so that no earlier episode decides how a
later one begins), and is compared episode by episode.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from agents.analysis.episodes import with_policy_attributes
from agents.analysis.evaluation import evaluate
from agents.analysis.statistics import CONFIDENCE, Interval, Values, between, bootstrap, number, table
from agents.deploy.player import Player
from agents.memory import Memory, State

Lengths = NDArray[np.int64]

NOISES = (0.1, 0.3, 1.0)  # in standard deviations of each number of the state
LEAST = 5  # episodes: of fewer, all returns fall by chance in more than one case of twenty
NOTHING = "the agent carries no memory from step to step: there is nothing to ablate"


@dataclass(frozen=True)
class Condition:
    """The E episodes, in their order, with the memory as it is, or changed in one way."""

    kind: str  # "intact", "wiped", "exchanged" or "noise"
    amount: float  # k of wiped every k steps, the scale of noise in standard deviations; else 0
    returns: Values  # (E,) undiscounted true returns
    lengths: Lengths  # (E,) steps
    intact: Values  # (E,) the returns of the same episodes with the memory intact

    @property
    def mean(self) -> float:
        return float(self.returns.mean())

    @cached_property
    def interval(self) -> Interval:
        """Of the mean return."""
        return bootstrap(self.returns)

    @property
    def difference(self) -> float:
        """Of the mean return to that of the intact memory."""
        return float((self.returns - self.intact).mean())

    @cached_property
    def difference_interval(self) -> Interval:
        """Of the mean of the differences episode by episode."""
        return bootstrap(self.returns - self.intact)

    @property
    def falls(self) -> bool:
        """Whether the return is lower than with the memory intact."""
        return self.difference_interval.high < 0

    @property
    def rises(self) -> bool:
        """Whether the return is higher than with the memory intact: the memory hurts."""
        return self.difference_interval.low > 0

    @property
    def name(self) -> str:
        """As the table has it."""
        names = {
            "intact": "intact",
            "wiped": "wiped every step" if self.amount == 1 else f"wiped every {self.amount:g} steps",
            "exchanged": "of another episode",
            "noise": f"noise of {self.amount:g} deviations",
        }
        return names[self.kind]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "amount": self.amount,
            "mean": self.mean,
            "mean_interval": list(self.interval),
            "difference": self.difference,
            "difference_interval": list(self.difference_interval),
            "returns": self.returns.tolist(),
            "lengths": self.lengths.tolist(),
        }


@dataclass(frozen=True)
class Ablation:
    """All conditions, the intact one first."""

    conditions: tuple[Condition, ...]
    deterministic: bool  # actions were deterministic, instead of sampled
    seed: int  # of environments and samples

    @property
    def intact(self) -> Condition:
        return self.conditions[0]

    @property
    def has_memory(self) -> bool:
        return len(self.conditions) > 1

    @property
    def fall(self) -> float:
        """How much of the mean return goes with the memory: intact less wiped every step; 0 without a memory."""
        return -self.conditions[1].difference if self.has_memory else 0.0

    @property
    def enough(self) -> int | None:
        """The least k from which on wiping every k steps shows no loss; None where every k tried shows one."""
        least = None
        for each in reversed(self._of_kind("wiped")):
            if each.falls:
                break
            least = int(each.amount)
        return least

    @property
    def verdict(self) -> str:
        """One sentence."""
        if not self.has_memory:
            return NOTHING
        if len(self.intact.returns) < LEAST:
            return f"too few episodes to tell whether the memory is used: play at least {LEAST}"
        wiped, exchanged = self.conditions[1], self._of_kind("exchanged")
        before, after = number(self.intact.mean, 2), number(wiped.mean, 2)
        if wiped.falls:
            others = "".join(f", with another episode's to {number(each.mean, 2)}" for each in exchanged)
            fall = f"the return falls from {before} to {after}{others}{self._reach}"
            return f"the agent uses its memory: without it {fall}"
        if wiped.rises:
            return f"memory hurts here: without it the return rises from {before} to {after}"
        for each in exchanged:
            if each.falls:
                return (
                    f"the agent reads its memory: with another episode's the return falls from {before} to "
                    f"{number(each.mean, 2)}, though it does without (wiped at every step: {after})"
                )
        low, high = (number(edge, 2) for edge in wiped.difference_interval)
        return (
            f"no evidence that the agent uses its memory: without it the return is {after} instead of {before}, and "
            f"the difference lies between {low} and {high}"
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, as what ``json`` writes."""
        return {
            "verdict": self.verdict,
            "fall": self.fall,
            "enough": self.enough,
            "episodes": len(self.intact.returns),
            "deterministic": self.deterministic,
            "seed": self.seed,
            "confidence": CONFIDENCE,
            "conditions": [each.to_json() for each in self.conditions],
        }

    def table(self) -> Table:
        """The conditions for a person."""
        shown = table("memory", "return", "95 % interval", "difference", "95 % interval")
        for each in self.conditions:
            differences = [number(each.difference, 2), between(each.difference_interval, 2)]
            cells = [each.name, number(each.mean, 2), between(each.interval, 2)]
            shown.add_row(*cells, *([] if each is self.intact else differences))
        return shown

    def _of_kind(self, kind: str) -> list[Condition]:
        return [each for each in self.conditions if each.kind == kind]

    @property
    def _reach(self) -> str:
        if self.enough is not None:
            return f"; wiped every {self.enough} steps it shows no loss"
        most = self._of_kind("wiped")[-1].amount
        return f"; even wiped only every {most:g} steps it falls" if most > 1 else ""


def ablate(
    player: Player,
    env: VecEnv,
    episodes: int = 100,
    *,
    seed: int = 0,
    max_steps: int | None = None,
    wipes: Sequence[int] | None = None,
    noises: Sequence[float] = NOISES,
) -> Ablation:
    """Plays the same episodes with the actor's memory intact and changed; intact alone where there is no memory.

    *Wiped every k steps*: before the steps k, 2 k, ... of an episode the state is the initial one: a step knows of k
    steps at most, itself among them. *Of another episode*: at every step but the first the agent acts on the state of
    the episode played next to its own, while its own is carried on untouched; that state is of a kind that the agent
    knows, and one wiped in mid-episode may not be. *Noise*: before every step but the first, Gaussian noise is added to
    each number of the state, in proportion to its standard deviation over the intact episodes; a part (B, 1) of whole
    numbers counts slots and gets none.

    Args:
        env: environments of the ablation's own, before normalization. One alone has no other episode.
        episodes: E of each condition.
        seed: of the first environment of the first episodes; others count up from it.
        max_steps: an episode is truncated there.
        wipes: the k; None for the powers of two up to the longest intact episode.
        noises: scales in standard deviations.

    Raises:
        ValueError: a k or a scale is out of range, or the agent does not fit the environments.
        FloatingPointError: a return is not finite.
    """
    if episodes < 1:
        raise ValueError(f"an ablation needs at least 1 episode, got {episodes}")
    if any(k < 1 for k in wipes or ()):
        raise ValueError(f"wipes are numbers of steps of at least 1, got {list(wipes or ())}")
    if any(not 0 < scale < np.inf for scale in noises):
        raise ValueError(f"noises are finite scales greater than 0, got {list(noises)}")
    memory = player.policy.memory_actor
    watched = WatchedMemory(memory)

    def play(changed: Memory) -> tuple[Values, Lengths]:
        return _play(with_policy_attributes(player, memory_actor=changed), env, episodes, seed, max_steps)

    intact, lengths = play(watched)
    conditions = [Condition("intact", 0, intact, lengths, intact)]
    if memory.initial_state(1):
        longest = int(lengths.max())
        chosen = sorted({1, *([2**i for i in range(longest.bit_length())] if wipes is None else wipes)})
        changes = [("wiped", k, ChangedMemory(memory, wiping(memory, k))) for k in chosen]
        if env.num_envs > 1:
            changes.append(("exchanged", 0, ChangedMemory(memory, exchanging, carries_own=True)))
        for scale in noises:
            changes.append(("noise", scale, ChangedMemory(memory, noising(watched.deviations(), scale, seed))))
        conditions += [Condition(kind, amount, *play(changed), intact) for kind, amount, changed in changes]
    return Ablation(tuple(conditions), player.deterministic, seed)


def _play(player: Player, env: VecEnv, episodes: int, seed: int, max_steps: int | None) -> tuple[Values, Lengths]:
    """Returns and lengths (E,), in an order that the player has no part in."""
    returns, lengths = [], []
    for first in range(0, episodes, env.num_envs):
        # One episode an environment: how a second one begins may depend on how the first went.
        result = evaluate(player, env, min(env.num_envs, episodes - first), seed=seed + first, max_steps=max_steps)
        order = np.argsort(result.environments)
        returns.append(np.array(result.returns)[order])
        lengths.append(np.array(result.lengths)[order])
    return np.concatenate(returns), np.concatenate(lengths)


Change = Callable[[State, Tensor], State]
"""The state (B, ...) and the ages (B,) of episodes in steps -> the state to act on."""


def wiping(memory: Memory, every: int) -> Change:
    """The initial state every so many steps."""
    return lambda state, ages: memory.reset(state, ages % every == 0)


def exchanging(state: State, ages: Tensor) -> State:
    """The state of the episode next to it."""
    return tuple(part.roll(1, dims=0) for part in state)


def noising(deviations: Sequence[Values], scale: float, seed: int) -> Change:
    """Gaussian noise in proportion to each number's standard deviation."""
    generator = torch.Generator().manual_seed(seed)

    def noise(part: Tensor, of: Values) -> Tensor:
        if not of.any():
            return part
        drawn = torch.randn(part.shape, generator=generator, dtype=torch.float64)
        return part + (drawn * torch.as_tensor(scale * of)).to(part)

    return lambda state, ages: tuple(noise(part, of) for part, of in zip(state, deviations, strict=True))


class ChangedMemory(Memory):
    """Acts on a state that is changed before every step but an episode's first.

    Args:
        carries_own: whether what is carried on follows the true state, and not the changed one.
    """

    def __init__(self, memory: Memory, change: Change, carries_own: bool = False) -> None:
        super().__init__(memory.input_size, memory.output_size)
        self.memory, self.change, self.carries_own = memory, change, carries_own
        self.ages = torch.zeros(0, dtype=torch.int64)

    def initial_state(self, batch_size: int) -> State:
        return self.memory.initial_state(batch_size)

    def step(self, features: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        if episode_starts.all():
            self.ages = torch.zeros_like(episode_starts, dtype=torch.int64)
            output, after = self.memory(features, state, episode_starts)
            return output, after
        self.ages = torch.where(episode_starts, 0, self.ages + 1)
        state = self.memory.reset(state, episode_starts)
        output, after = self.memory(features, self.change(state, self.ages), episode_starts)
        if self.carries_own:
            _, after = self.memory(features, state, episode_starts)
        return output, after

    def unroll(self, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
        raise NotImplementedError("it acts step by step, and nothing is learned with it")


class WatchedMemory(ChangedMemory):
    """Acts as ever, and sums up what is carried, less where it starts, and its square."""

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory, lambda state, ages: state)
        self._origin = [part.double().cpu().numpy() for part in memory.initial_state(1)]
        self._n, self._sums, self._squares = (
            0,
            [0.0 * part[0] for part in self._origin],
            [0.0 * part[0] for part in self._origin],
        )
        self._is_count = [part.shape[1:] == (1,) for part in self._origin]

    def step(self, features: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        output, after = super().step(features, state, episode_starts)
        self._n += len(episode_starts)
        for i, part in enumerate(after):
            moved = part.double().cpu().numpy() - self._origin[i]
            self._sums[i] += moved.sum(axis=0)
            self._squares[i] += (moved**2).sum(axis=0)
            self._is_count[i] &= bool((moved == np.rint(moved)).all())
        return output, after

    def deviations(self) -> list[Values]:
        """The standard deviation of every number of the state, (...) each part; 0 where it is a count."""
        means, squares = ([total / self._n for total in totals] for totals in (self._sums, self._squares))
        variances = (square - mean**2 for square, mean in zip(squares, means, strict=True))
        return [np.sqrt(np.maximum(v, 0)) * (not c) for v, c in zip(variances, self._is_count, strict=True)]
