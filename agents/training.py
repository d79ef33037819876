"""A training run from its agent to the files it leaves: callbacks, metrics, signals, the last checkpoint."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

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
from agents.diagnostics import MemoryDiagnostics, Phases
from agents.on_policy import RecurrentOnPolicyAlgorithm
from agents.run_directory import RunDirectory
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
    resumed_at: int | None = None,
    trained: Callable[[], None] = lambda: None,
) -> None:
    """Trains the agent and leaves in the run's directory what there is to keep.

    Args:
        wandb: arguments of :class:`agents.tracking.WandbWriter`, None for none.
        resumed_at: the environment step that a run goes on from, None for a new one.
        trained: is called where training has come to its end, before the metrics are closed: what it adds to the
            run's directory is sent along.

    Raises:
        Interrupted: by Ctrl-C or SIGTERM; a checkpoint was saved and the message says where.
        FloatingPointError: a weight or a return is not finite; the checkpoints are those from before.
    """
    interruption, checkpoints = Interruption(), Checkpoints(run, schedule.checkpoint_every, schedule.checkpoints_kept)
    progress = ProgressDisplay(schedule.total_timesteps, shown=schedule.progress)
    evaluation = PeriodicEvaluation(
        run,
        evaluation_env,
        every=schedule.evaluate_every,
        episodes=schedule.evaluation_episodes,
        deterministic=schedule.deterministic,
        seed=schedule.seed,
        stop_at_return=schedule.stop_at_return,
        max_steps=schedule.longest_episode,
        report=progress.report,
    )
    phases, diagnostics = Phases(), [MemoryDiagnostics()] if schedule.memory_diagnostics else []
    watching = [interruption, FiniteWeights(), progress, checkpoints, evaluation]
    logger = make_logger(run, tensorboard=tensorboard, wandb=wandb, resumed_at=resumed_at)
    agent.set_logger(logger)
    with closing(logger):
        try:
            with interruption.listening(), progress.standing():
                agent.learn(
                    schedule.total_timesteps,
                    [phases.first, *diagnostics, *watching, phases.last],
                    log_interval=schedule.log_interval,
                )
                # The last update's figures come after the last rollout's.
                logger.dump(agent.num_timesteps)
        except TrainingFinished as reason:
            progress.report(str(reason))
            checkpoints.save()
        except Interrupted as interrupted:
            interrupted.args = (f"{interrupted}; saved {checkpoints.save()}",)
            raise
        trained()
