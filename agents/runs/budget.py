"""What the evaluations of a run may cost, in environment steps, so that a run depends on no clock once that is known.

A step of an evaluation costs what collecting costs in training; learning comes on top there. How the two compare is
measured in the first update, rounded to a power of two, and stands in the run's settings from then on.
"""

import math
import time
from dataclasses import replace

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

    def episodes(self, step: int, last: bool) -> int:
        """Of a periodic evaluation at a step of training; 0: it is put off, unless it is the ``last``."""
        evaluation = self._settings.evaluation
        if evaluation.steps is None:
            return evaluation.episodes
        share = min(1.0, step / self._settings.total_timesteps)
        left = WHILE_TRAINING * share * evaluation.steps - played_steps(self._run, step)
        fewest = max(FEWEST, evaluation.episodes // 8)
        count, each = evaluation.episodes, self._steps_of_an_episode(step)
        while count > fewest and count * each > left:
            count = max(fewest, count // 2)
        return count if count * each <= left else min(FEWEST, evaluation.episodes) if last else 0

    def _steps_of_an_episode(self, step: int) -> float:
        """As the last evaluation took, else as training's episodes take."""
        rows = [row for row in figures(self._run.evaluations) if row["step"] <= step]
        if rows and "steps" in rows[-1]:
            return rows[-1]["steps"] / (2 * rows[-1]["episodes"])
        lengths = [float(episode["l"]) for episode in self.model.ep_info_buffer or ()]
        if lengths:
            return sum(lengths) / len(lengths)
        longest = self._settings.evaluation.max_steps  # none has ended yet
        return longest or 2 * step / self.model.n_envs


def allowed_steps(share: float, total_timesteps: int, cost: float) -> int:
    """Steps that evaluations may take, where one costs ``cost`` of a step of training, which is rounded up."""
    rounded = 2.0 ** math.ceil(math.log2(min(1.0, max(cost, 1 / 16))))
    return math.ceil(share * max(total_timesteps, SHORTEST) / rounded)


def played_steps(run: RunDirectory, step: float = math.inf) -> float:
    """Steps that a run's periodic evaluations have taken up to a step of training."""
    return sum(row.get("steps", 0.0) for row in figures(run.evaluations) if row["step"] <= step)


def episodes_at_the_end(run: RunDirectory, evaluation: EvaluationSettings) -> int:
    """Of each of the four evaluations after training: what the periodic ones have left, and at least ``FEWEST``."""
    rows = figures(run.evaluations)
    if evaluation.steps is None or not rows or "steps" not in rows[-1]:
        return evaluation.final_episodes
    each = max(1.0, rows[-1]["steps"] / (2 * rows[-1]["episodes"]))
    affordable = int((evaluation.steps - played_steps(run)) / (4 * each))
    return min(evaluation.final_episodes, max(FEWEST, affordable))
