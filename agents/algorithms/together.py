"""What an algorithm exchanges with the other processes that train the same agent: see ``agents.distributed.group``.

Every process has environments of its own and the same weights. A rollout is collected without a word; at its end one
exchange makes statistics, recent episodes and the decision to go on those of all, and every optimizer step shares one
buffer of gradients (``agents.distributed.gradients``).

Axes: B environments of this process.
"""

import random
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from agents.checkpoint.normalizer import statistics_of
from agents.distributed import group
from agents.rollout.returns import Moments

MUST_AGREE = ("n_envs", "n_steps", "batch_size", "sequence_length", "n_epochs", "num_timesteps", "gamma", "gae_lambda")


class Report(NamedTuple):
    """What a process tells the others at the end of its rollout."""

    failure: str | None = None
    goes_on: bool = True
    all_valid: bool = True
    advantages: Moments = Moments()
    returns: Moments = Moments()
    episodes: tuple[Any, ...] = ()
    statistics: tuple[RunningMeanStd, ...] = ()
    weights: int = 0


class Together:
    """One algorithm's part in it, for as long as it learns. Everything here is called by all processes alike."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._merged: list[RunningMeanStd] = []
        self._episodes: list[Any] = []
        self._recent: tuple[Any, Any] = (None, None)
        self.advantages = Moments()
        """Of the last rollout, all processes'."""
        self.all_valid = True
        """Whether every step of the last rollout is a transition, in all processes."""

    def begin(self) -> None:
        """Before environments are reset: the agent of process 0 for all, random numbers and episodes of their own.

        Raises:
            ValueError: the processes were given different settings.
        """
        model = self._model
        settings = {name: getattr(model, name, None) for name in MUST_AGREE}
        everyones = group.gathered(settings)
        if any(each != settings for each in everyones):
            raise ValueError(f"processes that train together need the same settings, got {everyones}")
        parameters = group.from_first(lambda: (_digest(model.get_parameters()), model.get_parameters()))
        if _digest(model.get_parameters()) != parameters[0]:
            model.set_parameters(parameters[1])
        counted = ("_returns_count", "_returns_mean", "_returns_squares")
        vars(model).update(group.from_first(lambda: {name: getattr(model, name) for name in counted}))
        self._take_statistics()
        self._draw_apart()
        self._seed_apart()

    def share_first_observations(self) -> None:
        """After environments were reset: the normalizer has seen those of all."""
        self._merge(group.gathered(self._seen_since()))

    def begin_rollout(self) -> None:
        model = self._model
        self._episodes = []
        self._recent = model.ep_info_buffer.copy(), model.ep_success_buffer.copy()

    def keep_episodes(self, infos: Sequence[Mapping[str, Any]], dones: Any) -> None:
        """Episodes that ended here in the last step, for all to know of."""
        known = [{name: info[name] for name in ("episode", "is_success") if name in info} for info in infos]
        self._episodes.append((self._model.num_timesteps, known, dones))

    def report_failure(self, error: BaseException) -> None:
        """Tells the others, where they will look at the end of their rollout, that this one has failed."""
        if isinstance(error, group.PeerFailed | group.PeerLost):
            return
        with suppress(group.PeerLost):
            group.gathered(Report(failure=group.failure_of(error)))
            error.is_reported = True  # type: ignore[attr-defined]

    def end_rollout(self, goes_on: bool) -> bool:
        """Whether training goes on, and all that a rollout has counted as that of all processes.

        Raises:
            PeerFailed: another process has failed.
        """
        model, buffer = self._model, self._model.rollout_buffer
        full = goes_on and buffer.full
        report = Report(
            goes_on=goes_on,
            all_valid=bool(buffer.valid.all()),
            advantages=Moments.of(buffer.advantages[buffer.valid]) if full else Moments(),
            returns=Moments.of(buffer.returns[buffer.valid]) if full else Moments(),
            episodes=tuple(self._episodes),
            statistics=self._seen_since(),
            weights=_digest(list(model.policy.state_dict().values())),
        )
        reports: list[Report] = group.gathered(report)
        failure = next((each.failure for each in reports if each.failure is not None), None)
        if failure is not None:
            raise group.PeerFailed(failure)
        self._merge([each.statistics for each in reports])
        self._count_episodes([each.episodes for each in reports])
        if len({each.weights for each in reports}) > 1:
            self._take_weights()
        self.all_valid = all(each.all_valid for each in reports)
        self.advantages = merged(each.advantages for each in reports)
        for each in reports:
            model.count_returns(each.returns)
        return all(each.goes_on for each in reports)

    def minibatch_scale(self, advantages: Tensor) -> tuple[float, float]:
        """What to subtract from advantages (N,) and divide them by, for them to be normalized with everyone's."""
        return merged(Moments(*each) for each in group.numbers(*Moments.of(advantages))).scale()

    def mean(self, value: float, n_steps: int) -> float:
        """The mean over the steps of all processes of what has this mean over those of this one."""
        rows = group.numbers(value * n_steps, n_steps)
        total, count = map(sum, zip(*rows, strict=True))
        return total / max(count, 1)

    def of_all(
        self, figures: Mapping[str, float], values: NDArray[Any], returns: NDArray[Any]
    ) -> tuple[dict[str, float], float]:
        """Figures of an update, the means of all processes that have them; and the explained variance of all steps.

        That is 1 - Var(returns - values) / Var(returns); NaN where returns do not vary.
        """
        parts = [Moments.of(torch.as_tensor(each)) for each in (returns - values, returns)]
        everyones, *moments = zip(*group.gathered((dict(figures), *parts)), strict=True)
        names = dict.fromkeys(name for each in everyones for name in each)
        means = {name: float(np.mean([each[name] for each in everyones if name in each])) for name in names}
        left, all_of_it = map(merged, moments)
        return means, 1.0 - left.squares / all_of_it.squares if all_of_it.squares else float("nan")

    def _statistics(self) -> list[RunningMeanStd]:
        wrapper: VecNormalize | None = self._model.get_vec_normalize_env()
        return [] if wrapper is None else [*statistics_of(wrapper).values(), wrapper.ret_rms]

    def _take_statistics(self) -> None:
        self._merged = group.from_first(lambda: [part.copy() for part in self._statistics()])
        for part, first in zip(self._statistics(), self._merged, strict=True):
            vars(part).update(vars(first.copy()))

    def _seen_since(self) -> tuple[RunningMeanStd, ...]:
        return tuple(since(now, before) for now, before in zip(self._statistics(), self._merged, strict=True))

    def _merge(self, everyones: Sequence[tuple[RunningMeanStd, ...]]) -> None:
        """The normalizer's statistics: what was common before, and what every process has seen since."""
        for i, part in enumerate(self._statistics()):
            for each in everyones:
                if each[i].count > 0:
                    self._merged[i].combine(each[i])
            vars(part).update(vars(self._merged[i].copy()))

    def _count_episodes(self, everyones: Sequence[tuple[Any, ...]]) -> None:
        """Recent episodes of all processes, in the order of their ends."""
        model = self._model
        model.ep_info_buffer, model.ep_success_buffer = self._recent
        ended = [(step, i, infos, dones) for i, each in enumerate(everyones) for step, infos, dones in each]
        for _, _, infos, dones in sorted(ended, key=lambda each: each[:2]):
            model.count_episodes(infos, dones)

    def _take_weights(self) -> None:
        """Those of process 0, for where processors of other kinds round otherwise, or a callback changed some here.

        Counts that a network keeps as it is run (batch statistics) are taken from there at every rollout.
        """
        model = self._model
        first = group.from_first(lambda: {name: part.cpu() for name, part in model.policy.state_dict().items()})
        model.policy.load_state_dict(first)

    def _draw_apart(self) -> None:
        """Random numbers of a process's own where they would be another's: of one seed, or of one file."""
        model = self._model
        states = group.gathered(repr(model.random_generator.bit_generator.state))
        if states.index(states[group.rank()]) == group.rank():
            return
        words = [zlib.crc32(states[group.rank()].encode()), group.rank()]
        model.random_generator.bit_generator.state = np.random.default_rng(words).bit_generator.state
        seed = int(np.random.SeedSequence(words).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  (what Stable-Baselines3 seeds)
        torch.manual_seed(seed)
        model.action_space.seed(seed)

    def _seed_apart(self) -> None:
        """Environment i of all processes gets seed + i, where each process had seeded its own from the same seed."""
        seeds = group.gathered(_seeds(self._model.env))
        own = seeds[group.rank()]
        if own and own[0] is not None and group.rank() > 0 and own == seeds[0]:
            self._model.env.seed(int(own[0]) + group.rank() * len(own))


def since(now: RunningMeanStd, before: RunningMeanStd) -> RunningMeanStd:
    """The statistics of what was seen between two moments: ``before`` combined with these gives ``now``."""
    seen = RunningMeanStd(shape=now.mean.shape)
    seen.count = now.count - before.count
    if seen.count <= 0:
        seen.count = 0.0
        return seen
    seen.mean = before.mean + (now.mean - before.mean) * (now.count / seen.count)
    between = np.square(seen.mean - before.mean) * before.count * seen.count / now.count
    seen.var = np.maximum(now.var * now.count - before.var * before.count - between, 0.0) / seen.count
    return seen


def merged(parts: Iterable[Moments]) -> Moments:
    total = Moments()
    for part in parts:
        total = total.and_also(part)
    return total


def _digest(value: Any) -> int:
    """A checksum of every tensor and number in nested dicts and lists."""
    total = 0
    for part in _leaves(value):
        if isinstance(part, Tensor):
            data: Any = part.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
            total = zlib.crc32(data, total)
        else:
            total = zlib.crc32(repr(part).encode(), total)
    return total


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield key
            yield from _leaves(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _seeds(env: Any) -> list[Any]:
    """The seeds of a vector environment's next episodes, below what is wrapped around it."""
    while "venv" in vars(env):
        env = env.venv
    return list(getattr(env, "_seeds", ()))
