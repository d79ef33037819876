"""Whether an agent uses its memory: the same episodes again with the memory wiped, exchanged, or made noisy.

Axes: N environments side by side, E episodes, C conditions.

A trained agent that carries a memory need not read it. So every condition plays the very episodes that the agent played
with its memory intact (same seeds, and one episode an environment and seed, so that no earlier episode decides how a
later one begins), and is compared episode by episode.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor

from agents.analysis.evaluation import CONFIDENCE, Interval, bootstrap, evaluate, mean
from agents.checkpoint import undisturbed
from agents.deploy.player import Player
from agents.memory import State

Values = NDArray[np.float64]
Ages = NDArray[np.int64]

NOISES = (0.1, 0.3, 1.0)
"""Scales of noise, in standard deviations of each number of the state."""

LEAST = 5
"""Episodes: of fewer, all returns fall by chance in more than one case of twenty."""

NOTHING = "the agent carries no memory from step to step: there is nothing to ablate"


@dataclass(frozen=True)
class Condition:
    """The episodes with the memory as it is, or changed in one way.

    Args:
        kind: "intact", "wiped", "exchanged" or "noise".
        amount: k of wiped every k steps, the scale of noise in standard deviations; else 0.
        returns: (E,) undiscounted true returns, in the order of the episodes.
        lengths: (E,) steps.
        interval: of the mean return.
        difference: of the mean return to that of the intact memory.
        difference_interval: of the mean of the differences episode by episode.
    """

    kind: str
    amount: float
    returns: Values
    lengths: Ages
    interval: Interval
    difference: float
    difference_interval: Interval

    @property
    def mean(self) -> float:
        return float(self.returns.mean())

    @property
    def name(self) -> str:
        return condition_name(self.kind, self.amount)

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
    """All conditions, the intact one first.

    Args:
        deterministic: whether the most probable action was taken, instead of a sample.
        seed: of environments and samples.
    """

    conditions: tuple[Condition, ...]
    deterministic: bool
    seed: int

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
        for each in sorted(self._of_kind("wiped"), key=lambda each: -each.amount):
            if each.difference_interval.high < 0:
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
        wiped = self.conditions[1]
        before, after = number(self.intact.mean), number(wiped.mean)
        low, high = wiped.difference_interval
        if high < 0:
            others = "".join(f", with another episode's to {number(each.mean)}" for each in self._of_kind("exchanged"))
            return (
                f"the agent uses its memory: without it the return falls from {before} to {after}{others}{self._reach}"
            )
        if low > 0:
            return f"the memory does harm: without it the return rises from {before} to {after}"
        exchanged = [each for each in self._of_kind("exchanged") if each.difference_interval.high < 0]
        if exchanged:
            return (
                f"the agent reads its memory: with another episode's the return falls from {before} to "
                f"{number(exchanged[0].mean)}, though it does without (wiped at every step: {after})"
            )
        return (
            f"no evidence that the agent uses its memory: without it the return is {after} instead of {before}, and "
            f"the difference lies between {number(low)} and {number(high)}"
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
        table = Table("memory", "return", "95 % interval", "difference", "95 % interval", box=box.SIMPLE_HEAD)
        for column in table.columns[1:]:
            column.justify = "right"
        for each in self.conditions:
            cells = [each.name, number(each.mean), interval(each.interval)]
            is_intact = each.kind == "intact"
            table.add_row(*cells, *(["", ""] if is_intact else [number(each.difference), _differs(each)]))
        return table

    def _of_kind(self, kind: str) -> list[Condition]:
        return [each for each in self.conditions if each.kind == kind]

    @property
    def _reach(self) -> str:
        if self.enough is not None:
            return f"; wiped every {self.enough} steps it shows no loss"
        most = max(each.amount for each in self._of_kind("wiped"))
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
    report: Callable[[str], None] = lambda name: None,
) -> Ablation:
    """Plays the same episodes with the actor's memory intact and changed.

    *Wiped every k steps*: before the steps k, 2 k, ... of an episode the state is the initial one, so that a step knows
    of k steps at most, itself among them; k = 1 leaves no memory at all. *Of another episode*: at every step but the
    first the agent acts on the state of the episode that is played next to its own, while its own is carried on
    untouched; such a state is of a kind that the agent knows, and a wiped one in mid-episode may not be: where wiping
    costs more than another episode's state, the agent does not only lack what it saw but is led astray. *Noise*:
    before every step but the first, Gaussian noise is added to each number of the state and carried on, in proportion
    to that number's standard deviation over the intact episodes. A part (B, 1) of whole numbers is a count (of a
    window's slots) and gets none.

    Args:
        player: the agent; nothing of it moves.
        env: environments of the ablation's own, before normalisation. With one alone there is no other episode, and
            that condition is left out.
        episodes: E of each condition.
        seed: of the first environment of the first episodes; others count up from it.
        max_steps: an episode is cut there.
        wipes: the k; None for the powers of two up to the longest intact episode.
        noises: scales in standard deviations.
        report: is told the name of each condition before it is played.

    Returns:
        The intact condition alone where the agent has no memory.

    Raises:
        ValueError: a k or a scale is out of range, or the agent does not fit the environments.
        FloatingPointError: a return is not finite.
    """
    _check(episodes, wipes, noises)
    env = env.venv if isinstance(env, VecNormalize) else env
    watched = _Watched(player)

    def played(agent: Player) -> tuple[Values, Ages]:
        return _play(agent, env, episodes, seed, max_steps)

    report("intact")
    intact = played(watched)
    found = [_condition("intact", 0, intact, intact[0])]
    if not watched.has_memory:
        return Ablation(tuple(found), player.deterministic, seed)
    chosen = _powers(int(intact[1].max())) if wipes is None else wipes
    changes: list[tuple[str, float, _Changed]] = [("wiped", k, _Wiped(player, k)) for k in sorted({1, *chosen})]
    if env.num_envs > 1:
        changes.append(("exchanged", 0, _Exchanged(player)))
    spread = watched.standard_deviations()
    changes += [("noise", scale, _Noisy(player, scale, spread, seed)) for scale in noises]
    for kind, amount, changed in changes:
        report(condition_name(kind, amount))
        found.append(_condition(kind, amount, played(changed), intact[0]))
    return Ablation(tuple(found), player.deterministic, seed)


def _check(episodes: int, wipes: Sequence[int] | None, noises: Sequence[float]) -> None:
    if episodes < 1:
        raise ValueError(f"an ablation needs at least 1 episode, got {episodes}")
    if any(k < 1 for k in wipes or ()):
        raise ValueError(f"wipes are numbers of steps of at least 1, got {list(wipes or ())}")
    if any(not 0 < scale < np.inf for scale in noises):
        raise ValueError(f"noises are finite scales greater than 0, got {list(noises)}")


def _powers(longest: int) -> list[int]:
    return [2**i for i in range(longest.bit_length()) if 2**i <= longest]


def _play(player: Player, env: VecEnv, episodes: int, seed: int, max_steps: int | None) -> tuple[Values, Ages]:
    """Returns and lengths (E,), in an order that the player has no part in."""
    returns, lengths = [], []
    for first in range(0, episodes, env.num_envs):
        # One episode an environment: how a second one begins may depend on how the first went.
        result = evaluate(player, env, min(env.num_envs, episodes - first), seed=seed + first, max_steps=max_steps)
        order = np.argsort(result.environments)
        returns.append(np.array(result.returns)[order])
        lengths.append(np.array(result.lengths)[order])
    return np.concatenate(returns), np.concatenate(lengths)


def _condition(kind: str, amount: float, played: tuple[Values, Ages], intact: Values) -> Condition:
    returns, lengths = played
    differences = returns - intact
    return Condition(
        kind,
        amount,
        returns,
        lengths,
        bootstrap(returns, mean),
        float(differences.mean()),
        bootstrap(differences, mean),
    )


def condition_name(kind: str, amount: float) -> str:
    """As the table has it."""
    if kind == "wiped":
        return "wiped every step" if amount == 1 else f"wiped every {amount:g} steps"
    return {
        "intact": "intact",
        "exchanged": "of another episode",
        "noise": f"noise of {amount:g} deviations",
    }[kind]


def number(value: float) -> str:
    """As a person reads it: 0.50, 12.3."""
    shown = f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return shown.removeprefix("-") if float(shown) == 0 else shown


def interval(of: Interval) -> str:
    return f"{number(of.low)} to {number(of.high)}"


def _differs(condition: Condition) -> str:
    return interval(condition.difference_interval)


class _Copy(Player):
    """The same agent with a memory of its own."""

    def __init__(self, player: Player) -> None:
        super().__init__(
            player.policy, player._normalizer, previous=player._previous, deterministic=player.deterministic
        )


class _Watched(_Copy):
    """Acts as ever, and takes the standard deviations of what is carried (Welford 1962, batch by batch)."""

    def __init__(self, player: Player) -> None:
        super().__init__(player)
        self._n = 0
        self._moments: list[tuple[Values, Values]] = []  # mean, and sum of squares about it
        self._is_count: list[bool] = []

    @property
    def has_memory(self) -> bool:
        return bool(self._moments)

    def act(self, observation: Any, reward: Any = None) -> NDArray[Any]:
        actions = super().act(observation, reward)
        for i, part in enumerate(self.policy.import_state(self._state, len(self._starts))):
            self._take(i, part.cpu().double().numpy(), part.is_floating_point())
        self._n += len(self._starts)
        return actions

    def standard_deviations(self) -> list[Values]:
        """Of every number of the state, (...) each part; 0 where it is a count."""
        return [
            np.zeros_like(squares) if is_count else np.sqrt(squares / self._n)
            for (_, squares), is_count in zip(self._moments, self._is_count, strict=True)
        ]

    def _take(self, i: int, values: Values, is_float: bool) -> None:
        if i == len(self._moments):
            self._moments.append((np.zeros(values.shape[1:]), np.zeros(values.shape[1:])))
            self._is_count.append(not is_float or values.shape[1:] == (1,))
        centre, squares = self._moments[i]
        n = len(values)
        moved = values.mean(axis=0) - centre
        squares = squares + values.var(axis=0) * n + moved**2 * (self._n * n / (self._n + n))
        self._moments[i] = (centre + moved * (n / (self._n + n)), squares)
        if is_float and not np.array_equal(values, np.rint(values)):
            self._is_count[i] = False


class _Changed(_Copy):
    """Acts on a state that is changed before every step but an episode's first."""

    carries_on = True
    """Whether what follows the changed state is carried, and not what follows the true one."""

    def __init__(self, player: Player) -> None:
        super().__init__(player)
        self._ages = np.zeros(0, dtype=np.int64)

    def act(self, observation: Any, reward: Any = None) -> NDArray[Any]:
        carried, starts = self._state, self._starts
        if carried is None:
            actions = super().act(observation, reward)
            self._ages = np.zeros(len(self._starts), dtype=np.int64)
            return actions
        self._ages = np.where(starts, 0, self._ages + 1)
        changed = self._with(carried, starts)
        if self.carries_on:
            self._state = changed
            return super().act(observation, reward)
        with undisturbed():
            super().act(observation, reward)
        after, self._state, self._starts = self._state, changed, starts
        actions = super().act(observation, reward)
        self._state = after
        return actions

    def _with(self, carried: tuple[NDArray[Any], ...], starts: NDArray[np.bool_]) -> tuple[NDArray[Any], ...]:
        """The changed state; the memory itself resets where an episode starts."""
        state = self.policy.import_state(carried, len(starts))
        at = torch.as_tensor(starts, device=self.policy.device)
        return self.policy.export_state(self._change(self.policy.memory_actor.reset(state, at)))

    def _change(self, state: State) -> State:
        raise NotImplementedError


class _Wiped(_Changed):
    """Every k steps the initial state."""

    def __init__(self, player: Player, every: int) -> None:
        super().__init__(player)
        self._every = every

    def _change(self, state: State) -> State:
        due = torch.as_tensor(self._ages % self._every == 0, device=self.policy.device)
        return self.policy.memory_actor.reset(state, due)


class _Exchanged(_Changed):
    """The state of the episode next to it."""

    carries_on = False

    def _change(self, state: State) -> State:
        return tuple(part.roll(1, dims=0) for part in state)


class _Noisy(_Changed):
    """Noise at every step, in proportion to each number's standard deviation."""

    def __init__(self, player: Player, scale: float, standard_deviations: Sequence[Values], seed: int) -> None:
        super().__init__(player)
        self._scales = [torch.as_tensor(scale * each) for each in standard_deviations]
        self._generator = torch.Generator().manual_seed(seed)

    def _change(self, state: State) -> State:
        return tuple(self._noisy(part, scale) for part, scale in zip(state, self._scales, strict=True))

    def _noisy(self, part: Tensor, scale: Tensor) -> Tensor:
        if not scale.any():
            return part
        noise = torch.randn(part.shape, generator=self._generator, dtype=torch.float64) * scale
        return part + noise.to(part)
