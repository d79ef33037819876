"""A training run from its agent to the files it leaves: callbacks, metrics, signals, the last checkpoint."""

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from agents.algorithms.on_policy import RecurrentOnPolicyAlgorithm
from agents.checkpoint import CheckpointError
from agents.checks.text import printable
from agents.runs.callbacks import (
    Checkpoints,
    FiniteWeights,
    Interrupted,
    Interruption,
    PeriodicEvaluation,
    ProgressDisplay,
    TrainingFinished,
)
from agents.runs.diagnostics import MemoryDiagnostics, Phases
from agents.runs.directory import RunDirectory
from agents.runs.resuming import restore_pending
from agents.runs.tracking import make_logger


@dataclass(frozen=True)
class Schedule:
    """What happens in a run, and when. Counts are environment steps; an ``every`` of 0 is never."""

    total_timesteps: int
    seed: int
    evaluate_every: int
    evaluation_episodes: int
    deterministic: bool
    stop_at_return: float | None
    longest_episode: int | None
    checkpoint_every: int
    checkpoints_kept: int
    log_interval: int
    progress: bool
    memory_diagnostics: bool = True


def learn(
    agent: RecurrentOnPolicyAlgorithm,
    evaluation_env: VecEnv,
    run: RunDirectory,
    schedule: Schedule,
    *,
    tensorboard: bool = True,
    wandb: Mapping[str, Any] | None = None,
    resumed: bool = False,
    trained: Callable[[], None] = lambda: None,
    interruption: Interruption | None = None,
) -> None:
    """Trains the agent and leaves in the run's directory what there is to keep.

    Everything of a step is on file before the checkpoint of that step, so what comes after it is what to forget.

    Args:
        resumed: the agent comes from a checkpoint of this run, and goes on from there.
        wandb: arguments of :class:`agents.runs.tracking.WandbWriter`, None for none.
        trained: is called where training has come to its end, before the metrics are closed: what it adds to the
            run's directory is sent along.
        interruption: that of a caller who listens to signals around this already.

    Raises:
        Interrupted: by Ctrl-C or SIGTERM; a checkpoint was saved and the message says where.
        FloatingPointError: a weight or a return is not finite; the last checkpoint is that of the update before.
    """
    listener = interruption or Interruption()
    checkpoints = Checkpoints(run, schedule.checkpoint_every, schedule.checkpoints_kept)
    progress = ProgressDisplay(schedule.total_timesteps, shown=schedule.progress)
    evaluation = _periodic_evaluation(run, evaluation_env, schedule, progress.report)
    phases = Phases()
    callbacks: list[BaseCallback] = [phases.first, *([MemoryDiagnostics()] if schedule.memory_diagnostics else [])]
    callbacks += [FiniteWeights(), listener, progress, evaluation, checkpoints, phases.last]

    def start() -> Logger:
        step = agent.num_timesteps if resumed else None
        if step is not None:
            run.forget_after(step)
        logger = make_logger(run, tensorboard=tensorboard, wandb=wandb, resumed_at=step)
        agent.set_logger(logger)
        if resumed:
            restore_pending(agent)
        return logger

    def train_and_save() -> None:
        try:
            with progress.standing():
                listener.breakable(partial(_learn, agent, schedule, callbacks, resumed))
        except TrainingFinished as reason:
            progress.report(str(reason))
            checkpoints.on_training_end()
        except Interrupted as interrupted:
            if interrupted.between_updates:
                checkpoints.capture()
            listener.saved = checkpoints.save()
            listener.check()
        except CheckpointError:
            raise
        except BaseException as error:  # sys.exit() too
            listener.saved = _save_what_was_before(checkpoints, error)
            if isinstance(error, KeyboardInterrupt):
                # Ctrl-C comes as Interrupted: something that was called has raised this of itself.
                raise RuntimeError("KeyboardInterrupt").with_traceback(error.__traceback__) from error
            raise
        listener.saved = checkpoints.save()
        listener.check()

    def whole() -> None:
        logger = listener.breakable(start)
        try:
            train_and_save()
            listener.breakable(trained)
        except BaseException:
            with suppress(OSError):  # says no more
                listener.breakable(logger.close)
            raise
        listener.breakable(logger.close)

    with listener.listening():
        listener.protected(whole)


def _save_what_was_before(checkpoints: Checkpoints, error: BaseException) -> str | None:
    """Where training has failed; a fault in saving is told, and does not take that one's place."""
    try:
        saved = checkpoints.save()
    except (CheckpointError, OSError) as trouble:
        if not isinstance(error, OSError):  # where nothing can be written, that has been said
            print(printable(f"the agent as it was before could not be saved: {trouble}"), file=sys.stderr)
        return None
    if saved:
        print(printable(f"saved the agent as it was before: {saved}"), file=sys.stderr)
    return saved


def _periodic_evaluation(
    run: RunDirectory, env: VecEnv, schedule: Schedule, report: Callable[[str], None]
) -> PeriodicEvaluation:
    return PeriodicEvaluation(
        run,
        env,
        every=schedule.evaluate_every,
        episodes=schedule.evaluation_episodes,
        deterministic=schedule.deterministic,
        seed=schedule.seed,
        stop_at_return=schedule.stop_at_return,
        max_steps=schedule.longest_episode,
        report=report,
    )


def _learn(agent: RecurrentOnPolicyAlgorithm, schedule: Schedule, callbacks: list[BaseCallback], resumed: bool) -> None:
    left = schedule.total_timesteps - (agent.num_timesteps if resumed else 0)
    if left > 0:
        agent.learn(left, callbacks, log_interval=schedule.log_interval, reset_num_timesteps=not resumed)
        return
    # It was ended between its last update and what comes after.
    ending = CallbackList(callbacks)
    ending.init_callback(agent)
    ending.on_training_start({}, {})
    ending.on_training_end()
