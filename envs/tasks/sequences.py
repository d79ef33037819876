"""Tasks whose episodes are short sequences to be remembered, with known best returns, vectorized in NumPy.

    Copy-v0                 read a sequence, then act it out, forwards or in reverse
    AssociativeRecall-v0    see keys with their values, then name the values of keys
    CountRecall-v0          say how often a value has been seen
    PhaseForecast-v0        forecast a wave of hidden frequency and phase one step ahead
    Recall-v0               keep the bits of a sign shown at the start until they are asked for

`best_return` is what a perfect memory earns on average, `memoryless_return` what the best policy earns that acts on the
present observation alone (PhaseForecast with several waves: an upper bound). Actions change nothing that is seen or
asked later, so gamma = 0 loses nothing.

Axes: N environments, R some of them ("rows"), T steps of an episode, D parts of an observation, M waves.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import cache
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.tasks.batch import BatchEnv, Outcome, Rows, Uniforms, check_at_least, single
from envs.tasks.pictures import BACKGROUND, BLUE, GREEN, RED, cell_size, enlarge

Integers = NDArray[np.int64]


class Script(BatchEnv):
    """Episodes written down as they start: what is shown at each step, and which answer to it is right.

    An observation has D parts, each one of `sizes` symbols or absent: Box (sum of sizes,) float32, one-hot part after
    part, zeros for an absent part. Of `answers` actions one is right where there is a question: 1 / (number of
    questions in an episode), and minus that for a wrong one; elsewhere actions change nothing and earn 0. So the best
    return is 1, and always being right with chance p is worth 2 p - 1.
    """

    best_return = 1.0
    symbols: ClassVar[str] = "0123456789"  # as text; those that follow are written as numbers

    def __init__(
        self,
        num_envs: int,
        *,
        sizes: tuple[int, ...],
        answers: int,
        steps: int,
        questions: int,
        uniforms: int,
        space: spaces.Space[Any] | None = None,
        **base: Any,
    ) -> None:
        """`space`: of the observations, where it is another than the Box. `base`: see `BatchEnv`."""
        box = spaces.Box(0.0, 1.0, (sum(sizes),), np.float32)
        super().__init__(num_envs, space or box, spaces.Discrete(answers), uniforms=uniforms, **base)
        self.steps, self._sizes = steps, sizes
        self._unit = np.float32(1.0 / questions)
        self._shown = np.full((num_envs, steps + 1, len(sizes)), -1, dtype=np.int64)
        self._right = np.full((num_envs, steps), -1, dtype=np.int64)
        self._given = np.full((num_envs, steps), -1, dtype=np.int64)
        self._time = np.zeros(num_envs, dtype=np.int64)
        # Symbol s of a part is row s; an absent one, -1, the last row, of zeros.
        self._one_hot = [np.eye(size + 1, size, dtype=np.float32) for size in sizes]

    @property
    def longest_episode(self) -> int:
        return self.steps

    @abstractmethod
    def _write(self, uniforms: Uniforms, shown: Integers, right: Integers) -> None:
        """(R, uniforms) -> fills what is shown (R, T + 1, D) and the right answers (R, T), which are all -1: none."""

    def _begin(self, rows: Rows, uniforms: Uniforms, options: dict[str, Any]) -> None:
        shown = np.full((len(rows), *self._shown.shape[1:]), -1)
        right = np.full((len(rows), self.steps), -1)
        self._write(uniforms, shown, right)
        self._shown[rows], self._right[rows], self._given[rows], self._time[rows] = shown, right, -1, 0

    def _advance(self, actions: Any) -> Outcome:
        right = self._right[self._every_row, self._time]
        self._given[self._every_row, self._time] = actions
        self._time += 1
        rewards = np.where(actions == right, self._unit, -self._unit) * (right >= 0)
        return rewards, self._time == self.steps

    def _observe(self) -> NDArray[Any]:
        parts = self._shown[self._every_row, self._time]
        return np.concatenate([table[parts[:, i]] for i, table in enumerate(self._one_hot)], axis=1)

    def _text(self, row: int) -> str:
        """A column a step, a line a part, then the right answers and those given; "." for none."""
        time = int(self._time[row])
        lines = [*self._shown[row, : time + 1].T, self._right[row, :time], self._given[row, :time]]
        names = [*(f"part {i}" for i in range(len(self._sizes))), "right", "given"]
        return "".join(
            f"{name:8}" + " ".join(map(self._glyph, line)) + "\n" for name, line in zip(names, lines, strict=True)
        )

    def _glyph(self, symbol: int) -> str:
        return "." if symbol < 0 else self.symbols[symbol] if symbol < len(self.symbols) else str(symbol)

    def _picture(self, row: int) -> NDArray[np.uint8]:
        """The last 16 steps, the newest on the right, a shade a symbol; below, answers green if right, red if wrong."""
        time = int(self._time[row])
        recent = np.arange(max(0, time - 15), time + 1)
        colors = np.full((len(self._sizes) + 1, 16, 3), BACKGROUND, dtype=np.uint8)
        for i, size in enumerate(self._sizes):
            symbols = self._shown[row, recent, i]
            shades = (1.0 - 0.8 * (symbols[:, None] + 1) / size) * (255 - np.array(BLUE)) + np.array(BLUE)
            colors[i, 16 - len(recent) :] = np.where(symbols[:, None] < 0, BACKGROUND, shades.clip(0, 255))
        answered = recent[:-1][self._right[row, recent[:-1]] >= 0]
        correct = self._right[row, answered] == self._given[row, answered]
        colors[-1, answered - time + 15] = np.where(correct[:, None], GREEN, RED)
        return enlarge(colors, cell_size(16))


class Copy(Script):
    """Copy-v0: read a sequence of symbols, then act it out.

    ::

        step      0   1   2   3   4   5   6   7
        shown     2   0   0   1   go  go  go  go
        right                     2   0   0   1       reverse: 1  0  0  2

    Observation, Box (symbols + 1,) float32 of 0 and 1: the symbol read, one-hot, then 1 for "go". All zero for `delay`
    steps between reading and acting, and after the end. Actions, Discrete(symbols): a symbol.
    Reward: 0 before the first "go"; then 1 / length for the right symbol, -1 / length for another.
    Start: every symbol with equal chance at every place. End: terminated after 2 * length + delay steps.
    Return: best 1; without memory 2 / symbols - 1, whatever is done: all that is seen while acting is "go".

    After Hochreiter and Schmidhuber (1997) and Graves et al., Neural Turing Machines (2014).
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        length: int = 8,
        symbols: int = 4,
        delay: int = 0,
        reverse: bool = False,
        **base: Any,
    ) -> None:
        """`length`: symbols read, so with `delay` the steps that the first must be kept (the last, with `reverse`,
        `delay` + 1)."""
        check_at_least(1, length=length)
        check_at_least(2, symbols=symbols)
        check_at_least(0, delay=delay)
        super().__init__(
            num_envs,
            sizes=(symbols, 1),
            answers=symbols,
            steps=2 * length + delay,
            questions=length,
            uniforms=length,
            **base,
        )
        self._length, self._order = length, -1 if reverse else 1
        self.memoryless_return = 2.0 / symbols - 1.0

    def _write(self, uniforms: Uniforms, shown: Integers, right: Integers) -> None:
        symbols = _choices(uniforms, self._sizes[0])
        shown[:, : self._length, 0] = symbols
        shown[:, -self._length - 1 : -1, 1] = 0
        right[:, -self._length :] = symbols[:, :: self._order]


class AssociativeRecall(Script):
    """AssociativeRecall-v0: see keys with their values, a pair a step, then name the values of keys.

    ::

        step      0   1   2   3   4   5
        key       d   a   f   a   f   a
        value     3   1   1   ?   ?   ?
        right                 1   1   1

    Observation, Box (keys + values,) float32 of 0 and 1: a key, one-hot, then its value, one-hot, or zeros where it is
    asked. All zero after the end. Actions, Discrete(values): a value.
    Reward: 0 while pairs are shown; then 1 / queries for the right value, -1 / queries for another.
    Start: `pairs` different keys out of `keys`, any with equal chance; values and the keys that are asked, each one of
    the pairs', with equal chance and independent of each other. End: terminated after pairs + queries steps.
    Return: best 1; without memory 2 / values - 1, whatever is done: a key says nothing of its value.

    After Graves et al., Neural Turing Machines (2014), and Ba et al., Using Fast Weights to Attend to the Recent Past
    (2016).
    """

    def __init__(
        self, num_envs: int = 1, *, pairs: int = 4, keys: int = 8, values: int = 4, queries: int = 4, **base: Any
    ) -> None:
        check_at_least(1, pairs=pairs, queries=queries)
        check_at_least(2, values=values)
        if keys < pairs:
            raise ValueError(f"keys must be at least pairs ({pairs}), for every pair has a key of its own, not {keys}")
        super().__init__(
            num_envs,
            sizes=(keys, values),
            answers=values,
            steps=pairs + queries,
            questions=queries,
            uniforms=keys + pairs + queries,
            **base,
        )
        self._pairs = pairs
        self.memoryless_return = 2.0 / values - 1.0

    def _write(self, uniforms: Uniforms, shown: Integers, right: Integers) -> None:
        pairs, (n_keys, n_values) = self._pairs, self._sizes
        ranks, of_values, of_queries = np.split(uniforms, [n_keys, n_keys + pairs], axis=1)
        keys = np.argsort(ranks, axis=1)[:, :pairs]  # the order of random numbers is a random order
        values = _choices(of_values, n_values)
        asked = _choices(of_queries, pairs)
        shown[:, :pairs, 0], shown[:, :pairs, 1] = keys, values
        shown[:, pairs:-1, 0] = np.take_along_axis(keys, asked, axis=1)
        right[:, pairs:] = np.take_along_axis(values, asked, axis=1)


class CountRecall(Script):
    """CountRecall-v0: at every step a value is shown and one is asked: how often has it been shown so far?

    ::

        step      0   1   2   3   4   5
        shown     1   0   0   2   1   2
        asked     1   1   0   0   1   1
        right     1   1   2   2   2   2

    Observation, Box (2 * values,) float32 of 0 and 1: the value shown, one-hot, then the value asked, one-hot. All zero
    after the end. Actions, Discrete(copies + 1): a count, that of the present step included.
    Reward: 1 / T for the right count, -1 / T for another, at each of the T = values * copies steps.
    Start: the values are shown in random order, each `copies` times in an episode; those that are asked are drawn with
    equal chance. End: terminated after T steps.
    Return: best 1; without memory -0.65 with the defaults: the best guesses where the value asked is the one shown now
    and where it is not, from the chance, over all steps, that n of the values before were such (hypergeometric).

    After POPGym's CountRecall (Morad et al., 2023).
    """

    def __init__(self, num_envs: int = 1, *, values: int = 4, copies: int = 5, **base: Any) -> None:
        check_at_least(1, copies=copies)
        check_at_least(2, values=values)
        steps = values * copies
        super().__init__(
            num_envs,
            sizes=(values, values),
            answers=copies + 1,
            steps=steps,
            questions=steps,
            uniforms=2 * steps,
            **base,
        )
        right = _best_guess(copies - 1, steps) / values + _best_guess(copies, steps) * (values - 1) / values
        self.memoryless_return = 2.0 * right - 1.0

    def _write(self, uniforms: Uniforms, shown: Integers, right: Integers) -> None:
        order, of_queries = np.split(uniforms, 2, axis=1)
        values = np.argsort(order, axis=1) % self._sizes[0]
        asked = _choices(of_queries, self._sizes[0])
        counts = self._one_hot[0][values].cumsum(axis=1)
        shown[:, :-1, 0], shown[:, :-1, 1] = values, asked
        right[:] = np.take_along_axis(counts, asked[..., None], axis=2)[..., 0]


class PhaseForecast(BatchEnv):
    """PhaseForecast-v0: forecast, one step ahead, a sum of sine waves whose frequencies and phases are hidden.

    ``x(t) = mean over M waves of sin(2 pi t / period + phase)``

    Observation, Box (1,) float32: x(t), without noise (the wrapper "noise" adds some).
    Actions, Box (1,) float32 in [-1, 1], clipped: the forecast of x(t + 1).
    Reward: 0 for the first 3 M - 1 forecasts, which not even a perfect memory can make; then (1 - |error|) / n, n being
    the number of the other forecasts, length - 3 M + 1.
    Start: every wave's period uniform in [shortest, longest] steps, its phase in [0, 2 pi).
    End: terminated after `length` forecasts.
    Return: best 1, since 3 M values of x determine all that follow (M equations
    ``x(t + M) + x(t - M) = sum over k < M of c(k) (x(t + k) + x(t - k))`` for the M coefficients c); worst -1. Without
    memory 1 - E|x(t + 1) - its median given x(t)|, 0.518 with the defaults; for several waves 1 - (1 - that) / M is an
    upper bound: knowing all waves but one.
    """

    best_return = 1.0

    def __init__(
        self,
        num_envs: int = 1,
        *,
        length: int = 32,
        waves: int = 1,
        shortest: float = 4.0,
        longest: float = 12.0,
        **base: Any,
    ) -> None:
        """`shortest`, `longest`: periods, in steps."""
        check_at_least(1, waves=waves)
        if length < 3 * waves:
            raise ValueError(f"length must be at least 3 * waves ({3 * waves}), so that a forecast counts: {length}")
        if not 2 < shortest <= longest < math.inf:
            raise ValueError(
                f"shortest and longest must be periods with 2 < shortest <= longest: {shortest}, {longest}"
            )
        box = spaces.Box(-1.0, 1.0, (1,), np.float32)
        super().__init__(num_envs, box, box, uniforms=2 * waves, **base)
        self._length, self._unscored = length, 3 * waves - 1
        self._periods = shortest, longest
        self._frequency, self._phase = np.zeros((2, num_envs, waves))
        self._time = np.zeros(num_envs, dtype=np.int64)
        self._signal, self._forecast = np.zeros((2, num_envs))
        self.memoryless_return = 1.0 - _memoryless_error(shortest, longest) / waves

    def _begin(self, rows: Rows, uniforms: Uniforms, options: dict[str, Any]) -> None:
        (shortest, longest), (of_periods, of_phases) = self._periods, np.split(uniforms, 2, axis=1)
        self._frequency[rows] = 2 * np.pi / (shortest + (longest - shortest) * of_periods)
        self._phase[rows] = 2 * np.pi * of_phases
        self._time[rows] = 0
        self._forecast[rows] = 0.0
        self._signal[rows] = self._at(rows, 0)

    def _advance(self, actions: Any) -> Outcome:
        self._forecast[:] = np.clip(actions[:, 0], -1.0, 1.0)
        scored = self._time >= self._unscored
        self._time += 1
        self._signal = self._at(self._every_row, self._time[:, None])
        quality = (1.0 - np.abs(self._forecast - self._signal)) / (self._length - self._unscored)
        return (quality * scored).astype(np.float32), self._time == self._length

    def _observe(self) -> NDArray[np.float32]:
        return self._signal.astype(np.float32)[:, None]

    def _at(self, rows: Rows, times: Any) -> NDArray[np.float64]:
        """x at times (R, 1) or one time, (R,)."""
        values: NDArray[np.float64] = np.sin(self._frequency[rows] * times + self._phase[rows]).mean(axis=1)
        return values

    def _text(self, row: int) -> str:
        return f"x({self._time[row]}) = {self._signal[row]:+.3f}, forecast {self._forecast[row]:+.3f}\n"

    def _picture(self, row: int) -> NDArray[np.uint8]:
        """The last 32 values of x as blue cells, +1 at the top, the newest on the right; its forecast green or red."""
        time = int(self._time[row])
        times = np.arange(max(0, time - 31), time + 1)
        values = self._at(np.full(len(times), row), times[:, None])
        colors = np.full((17, 32, 3), BACKGROUND, dtype=np.uint8)
        if time > 0:
            near = abs(self._forecast[row] - self._signal[row]) < 0.125
            colors[round(8 - 8 * float(self._forecast[row])), -1] = GREEN if near else RED
        colors[np.rint(8 - 8 * values).astype(int), times - time + 31] = BLUE
        return enlarge(colors, 2 * (cell_size(32) // 2))


class Recall(Script):
    """Recall-v0: a sign is shown at the first step and asked for, bit by bit, `length` steps later.

    ::

        step      0   1   2   3   4        length 3, bits 2, with distractors
        bits      01  .   11  .   .
        sign      *   .   .   .   .
        asked     .   .   .   0   1
        right                 0   1

    Observation, Box (3 * bits + 1,) float32 of 0 and 1: every bit, one-hot, or zeros where none is shown; 1 where they
    are the sign's; which bit is asked for, one-hot, or zeros. All zero while waiting and after the end. Actions,
    Discrete(2): a bit.
    Reward: 0 before the first question; then 1 / bits for the right bit, -1 / bits for the other.
    Start: every sign with equal chance. While waiting, other bits, as likely, are shown with chance `distractors` at
    each step; they are not the sign's and mean nothing. End: terminated after length + bits steps.
    Return: best 1; without memory 0, whatever is done.

    After Bengio et al., Learning Long-Term Dependencies with Gradient Descent is Difficult (1994).
    """

    memoryless_return = 0.0

    def __init__(
        self, num_envs: int = 1, *, length: int = 10, bits: int = 1, distractors: float = 0.0, **base: Any
    ) -> None:
        """`length`: steps that the sign must be kept, to the first question. `distractors`: a chance."""
        check_at_least(1, length=length, bits=bits)
        if not 0.0 <= distractors <= 1.0:
            raise ValueError(f"distractors must lie in [0, 1], the chance of some at a step, not be {distractors}")
        super().__init__(
            num_envs,
            sizes=(*[2] * bits, 1, bits),
            answers=2,
            steps=length + bits,
            questions=bits,
            uniforms=bits + ((length - 1) * (bits + 1) if distractors else 0),
            **base,
        )
        self._length, self._bits, self._distractors = length, bits, distractors

    def _write(self, uniforms: Uniforms, shown: Integers, right: Integers) -> None:
        length, bits = self._length, self._bits
        sign, waiting = np.split(uniforms, [bits], axis=1)
        shown[:, 0, :bits] = right[:, length:] = _choices(sign, 2)
        shown[:, 0, bits] = 0
        if self._distractors:
            chances, others = np.split(waiting.reshape(len(uniforms), length - 1, bits + 1), [1], axis=2)
            shown[:, 1:length, :bits] = np.where(chances < self._distractors, _choices(others, 2), -1)
        shown[:, length:-1, bits + 1] = np.arange(bits)


def _choices(uniforms: Uniforms, count: int) -> Integers:
    """Uniform in [0, 1) -> one of `count` with equal chance."""
    return (uniforms * count).astype(np.int64)


def _best_guess(marked: int, steps: int) -> float:
    """Chance of the best guess at how many of `marked` among `steps` - 1 were drawn before an unknown step.

    The mean over t = 0 ... T - 1 draws of ``p(n; t) = C(marked, n) C(T - 1 - marked, t - n) / C(T - 1, t)``, at its
    largest over n.
    """
    chances = [
        [math.comb(marked, n) * math.comb(steps - 1 - marked, t - n) / math.comb(steps - 1, t) if t >= n else 0.0]
        for n in range(marked + 1)
        for t in range(steps)
    ]
    return float(np.reshape(chances, (marked + 1, steps)).mean(axis=1).max())


@cache
def _memoryless_error(shortest: float, longest: float) -> float:
    """E|x' - median of x' given x| for one wave, x = cos(a) and x' = cos(a + w) or cos(a - w) with equal chance.

    a is uniform in [0, pi] and the period 2 pi / w in [shortest, longest]: by the midpoint rule, to 1e-4.
    """
    middles = (np.arange(400) + 0.5) / 400
    angles, frequencies = np.pi * middles[:, None], 2 * np.pi / (shortest + (longest - shortest) * middles)
    following = np.cos(np.concatenate([angles + frequencies, angles - frequencies], axis=1))
    return float(np.abs(following - np.median(following, axis=1, keepdims=True)).mean())


# Single environments, for gymnasium.make.
CopyEnv = single(Copy)
AssociativeRecallEnv = single(AssociativeRecall)
CountRecallEnv = single(CountRecall)
PhaseForecastEnv = single(PhaseForecast)
RecallEnv = single(Recall)
