"""What the evaluations of a run may cost, in environment steps, so that a run depends on no clock once that is known.

A step of an evaluation costs what collecting costs in training; learning comes on top there. How the two compare is
measured in the first update, rounded to a power of two, and stands in the run's settings from then on.
"""

import math
import time
from dataclasses import replace
from typing import NamedTuple

import configs
from agents.analysis.report.history import figures
from agents.runs.callbacks import BetweenUpdates
from agents.runs.directory import RunDirectory, write_atomically
from configs import Settings
from configs.settings import EvaluationSettings

SHORTEST = 50_000
"""Environment steps of training: a shorter run may spend as much as one of this length."""
WHILE_TRAINING = 0.5
"""Share of what is allowed that goes to the periodic evaluations; what they leave is for those after training."""
FEWEST = 2
"""Episodes of the last evaluations, whatever they cost."""


class Games(NamedTuple):
    """Episodes to play, and the steps after which one is truncated."""

    episodes: int
    max_steps: int | None


class EvaluationBudget(BetweenUpdates):
    """Measures in the first update what an evaluation may cost, and says how many episodes that is."""

    def __init__(self, run: RunDirectory, settings: Settings) -> None:
        super().__init__()
        self._run, self._settings = run, settings
        self._began: float | None = None
        self._collected = 0.0

    def _on_training_start(self) -> None:
        self._began = None

    def _on_rollout_end(self) -> None:
        self._collected = time.perf_counter()

    def act(self) -> None:
        now, evaluation = time.perf_counter(), self._settings.evaluation
        if self._began is not None and evaluation.steps is None and evaluation.share is not None:
            cost = (self._collected - self._began) / (now - self._began)
            steps = allowed_steps(evaluation.share, self._settings.total_timesteps, cost)
            self._settings = replace(self._settings, evaluation=replace(evaluation, steps=steps))
            write_atomically(self._run.settings, configs.dump(self._settings))
        self._began = time.perf_counter()

    def games(self, step: int, last: bool) -> Games:
        """Of a periodic evaluation at a step of training; none puts it off, which the ``last`` cannot be."""
        evaluation = self._settings.evaluation
        if evaluation.steps is None:
            return Games(evaluation.episodes, evaluation.max_steps)
        share = min(1.0, max(step, SHORTEST) / self._settings.total_timesteps)
        left = WHILE_TRAINING * share * evaluation.steps - played_steps(self._run, step)
        lengths = [float(episode["l"]) for episode in self.model.ep_info_buffer or ()]
        usual = sum(lengths) / len(lengths) if lengths else None
        each = _steps_of_an_episode(self._run, step) or usual or evaluation.max_steps or 2 * step / self.model.n_envs
        fewest = max(FEWEST, evaluation.episodes // 8)
        count = evaluation.episodes
        while count > fewest and count * each > left:
            count = max(fewest, count // 2)
        if count * each > left:
            count = min(FEWEST, evaluation.episodes) if last else 0
        return Games(count, _longest(left / max(count, 1), usual, evaluation.max_steps))


def allowed_steps(share: float, total_timesteps: int, cost: float) -> int:
    """Steps that evaluations may take, where one costs ``cost`` of a step of training, which is rounded up."""
    rounded = 2.0 ** math.ceil(math.log2(min(1.0, max(cost, 1 / 16))))
    return math.ceil(share * max(total_timesteps, SHORTEST) / rounded)


def for_another_length(settings: Settings, recorded: Settings) -> Settings:
    """Settings of a run that goes on for another number of steps than it was begun with: evaluations get their share
    of those, unless another allowance is given."""
    evaluation = settings.evaluation
    if evaluation.steps is None or evaluation.steps != recorded.evaluation.steps:
        return settings
    longer = max(settings.total_timesteps, SHORTEST) / max(recorded.total_timesteps, SHORTEST)
    return replace(settings, evaluation=replace(evaluation, steps=math.ceil(evaluation.steps * longer)))


def played_steps(run: RunDirectory, step: float = math.inf) -> float:
    """Steps that a run's periodic evaluations have taken up to a step of training."""
    return sum(row.get("steps", 0.0) for row in figures(run.evaluations) if row["step"] <= step)


def games_at_the_end(run: RunDirectory, evaluation: EvaluationSettings) -> Games:
    """Of each of the four evaluations after training: what the periodic ones have left, and at least ``FEWEST``."""
    each = _steps_of_an_episode(run)
    if evaluation.steps is None or each is None:
        return Games(evaluation.final_episodes, evaluation.max_steps)
    left = max(0.0, evaluation.steps - played_steps(run)) / 4
    count = min(evaluation.final_episodes, max(FEWEST, int(left / each)))
    lengths = [row["rollout/ep_len_mean"] for row in figures(run.metrics) if "rollout/ep_len_mean" in row]
    return Games(count, _longest(left / count, lengths[-1] if lengths else None, evaluation.max_steps))


def _steps_of_an_episode(run: RunDirectory, step: float = math.inf) -> float | None:
    """As the last evaluation up to a step of training took."""
    rows = [row for row in figures(run.evaluations) if row["step"] <= step and "steps" in row]
    return max(1.0, rows[-1]["steps"] / (2 * rows[-1]["episodes"])) if rows else None


def _longest(affordable: float, usual: float | None, limit: int | None) -> int | None:
    """Where an episode is truncated: far beyond the usual length, for some games never end without the right action."""
    if usual is None:
        return limit
    longest = math.ceil(max(4 * affordable, 10 * usual))
    return longest if limit is None else min(limit, longest)
