"""What the evaluations of a run may cost: a share of the environment steps of training, by no clock.

A step of an evaluation takes no longer than one of training, which is collected and learned from: the same share bounds
the time.
"""

import math
from typing import NamedTuple

from stable_baselines3.common.base_class import BaseAlgorithm

from agents.analysis.report.history import figures
from agents.distributed import group
from agents.runs.directory import RunDirectory
from configs import Settings

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


def games(run: RunDirectory, settings: Settings, model: BaseAlgorithm, last: bool) -> Games:
    """Of a periodic evaluation at the model's step of training; none puts it off, which the ``last`` cannot be."""
    evaluation, step = settings.evaluation, model.num_timesteps
    allowed = _allowed_steps(settings)
    if allowed is None:
        return Games(evaluation.episodes, evaluation.max_steps)
    share = min(1.0, max(step, SHORTEST) / settings.total_timesteps)
    left = WHILE_TRAINING * share * allowed - played_steps(run, step)
    lengths = [float(episode["l"]) for episode in model.ep_info_buffer or ()]
    usual = sum(lengths) / len(lengths) if lengths else None
    each = _steps_of_an_episode(run, step) or usual or evaluation.max_steps or 2 * step / (model.n_envs * group.size())
    fewest = max(FEWEST, evaluation.episodes // 8)
    count = evaluation.episodes
    while count > fewest and count * each > left:
        count = max(fewest, count // 2)
    if count * each > left:
        count = min(FEWEST, evaluation.episodes) if last else 0
    return Games(count, _longest(left / max(count, 1), usual, evaluation.max_steps))


def _allowed_steps(settings: Settings) -> int | None:
    """Environment steps that all evaluations may take; None: any number."""
    share = settings.evaluation.share
    return None if share is None else math.ceil(share * max(settings.total_timesteps, SHORTEST))


def played_steps(run: RunDirectory, step: float = math.inf) -> float:
    """Steps that a run's periodic evaluations have taken up to a step of training."""
    return sum(row.get("steps", 0.0) for row in figures(run.evaluations) if row["step"] <= step)


def games_at_the_end(run: RunDirectory, settings: Settings) -> Games:
    """Of each of the four evaluations after training: what the periodic ones have left, and at least ``FEWEST``."""
    each, allowed, evaluation = _steps_of_an_episode(run), _allowed_steps(settings), settings.evaluation
    if allowed is None or each is None:
        return Games(evaluation.final_episodes, evaluation.max_steps)
    left = max(0.0, allowed - played_steps(run)) / 4
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
