"""A training run from its agent to the files it leaves: callbacks, metrics, signals, the last checkpoint."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import VecEnv

from agents.callbacks import (
    Checkpoints,
    FiniteWeights,
    Interrupted,
    Interruption,
    PeriodicEvaluation,
    ProgressDisplay,
    TrainingFinished,
)
from agents.checkpoint import CheckpointError
from agents.diagnostics import MemoryDiagnostics, Phases
from agents.on_policy import RecurrentOnPolicyAlgorithm
from agents.resuming import restore_pending
from agents.run_directory import RunDirectory
from agents.text import printable
from agents.tracking import make_logger


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
) -> None:
    """Trains the agent and leaves in the run's directory what there is to keep.

    Everything of a step is on file before the checkpoint of that step, so what comes after it is what to forget.

    Args:
        resumed: the agent comes from a checkpoint of this run, and goes on from there.
        wandb: arguments of :class:`agents.tracking.WandbWriter`, None for none.
        trained: is called where training has come to its end, before the metrics are closed: what it adds to the
            run's directory is sent along.

    Raises:
        Interrupted: by Ctrl-C or SIGTERM; a checkpoint was saved and the message says where.
        FloatingPointError: a weight or a return is not finite; the last checkpoint is that of the update before.
    """
    interruption, checkpoints = Interruption(), Checkpoints(run, schedule.checkpoint_every, schedule.checkpoints_kept)
    progress = ProgressDisplay(schedule.total_timesteps, shown=schedule.progress)
    evaluation = _periodic_evaluation(run, evaluation_env, schedule, progress.report)
    step = agent.num_timesteps if resumed else None
    if step is not None:
        run.forget_after(step)
    logger = make_logger(run, tensorboard=tensorboard, wandb=wandb, resumed_at=step)
    agent.set_logger(logger)
    if resumed:
        restore_pending(agent)
    phases = Phases()
    callbacks: list[BaseCallback] = [phases.first, *([MemoryDiagnostics()] if schedule.memory_diagnostics else [])]
    callbacks += [FiniteWeights(), interruption, progress, evaluation, checkpoints, phases.last]
    try:
        with interruption.listening(), progress.standing():
            _learn(agent, schedule, callbacks, resumed)
        trained()
    except TrainingFinished as reason:
        progress.report(str(reason))
        checkpoints.on_training_end()
        trained()
    except Interrupted as interrupted:
        if interrupted.between_updates:
            checkpoints.capture()
        if saved := checkpoints.save():
            interrupted.args = (f"{interrupted}; saved {saved}",)
        raise
    except CheckpointError:
        raise
    except Exception:
        if saved := checkpoints.save():
            print(printable(f"saved the agent as it was before: {saved}"), file=sys.stderr)
        raise
    finally:
        logger.close()


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
