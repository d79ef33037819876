"""Learning in a run's directory: callbacks, metrics, signals, the last checkpoint.

Everything of a step is on file before the checkpoint of that step, so what comes after it is what to forget.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial

from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import Logger

from agents.algorithms.on_policy import RecurrentOnPolicyAlgorithm
from agents.checkpoint import CheckpointError
from agents.distributed import group
from agents.runs import callbacks
from agents.runs.budget import games
from agents.runs.construction import EvaluationEnvironments
from agents.runs.diagnostics import MemoryDiagnostics, Phases, UpdateEnds
from agents.runs.directory import RunDirectory
from agents.runs.interruption import Interrupted, Interruption
from agents.runs.resuming import restore_pending
from agents.runs.tracking import make_logger
from configs import Settings, say


class Training:
    """Trains an agent, ``resumed`` from a checkpoint or new, and leaves in its run's directory what there is to keep.

    All of it is protected from a second signal but what is ``breakable``.
    """

    def __init__(
        self,
        agent: RecurrentOnPolicyAlgorithm,
        environments: EvaluationEnvironments | None,
        run: RunDirectory,
        settings: Settings,
        interruption: Interruption,
        *,
        resumed: bool = False,
    ) -> None:
        self._agent, self._run, self._settings, self._resumed = agent, run, settings, resumed
        self._interruption = interruption
        self._checkpoints = callbacks.Checkpoints(run, settings.checkpoint.every, settings.checkpoint.keep)
        self._progress = callbacks.ProgressDisplay(
            settings.total_timesteps, shown=settings.progress and group.is_first()
        )
        evaluation: callbacks.BetweenUpdates | None = None
        if environments is not None:
            evaluation = callbacks.PeriodicEvaluation(
                run,
                environments,
                settings.evaluation,
                seed=settings.seed,
                games=partial(games, run, settings),
                report=self._progress.report,
            )
        if evaluation is None or group.size() > 1:
            evaluation = callbacks.InFirstProcess(evaluation)
        update_ends = UpdateEnds()
        diagnostics = [MemoryDiagnostics()] if settings.tracking.memory_diagnostics else []
        self._callbacks: list[BaseCallback] = [update_ends, *diagnostics, callbacks.FiniteWeights()]
        self._callbacks += [self._interruption, self._progress, evaluation, self._checkpoints, Phases(update_ends)]

    def run(self, trained: Callable[[], None] = lambda: None) -> None:
        """Trains to the end, and calls ``trained`` before the metrics are closed, which sends along what it adds.

        Raises:
            Interrupted: by Ctrl-C or SIGTERM; a checkpoint was saved and the message says where.
            FloatingPointError: a weight or a return is not finite; the last checkpoint is that of the update before.
        """
        with self._interruption.listening():
            self._interruption.protected(lambda: self._run_through(trained))

    def _run_through(self, trained: Callable[[], None]) -> None:
        breakable = self._interruption.breakable
        logger = breakable(self._start)
        try:
            self._train_and_save()
            breakable(trained)
        except BaseException:
            with suppress(OSError):  # says no more
                breakable(logger.close)
            raise
        breakable(logger.close)

    def _start(self) -> Logger:
        if not group.is_first():
            self._agent.set_logger(Logger(None, []))
            return self._agent.logger
        step = self._agent.num_timesteps if self._resumed else None
        if step is not None:
            self._run.forget_after(step)
        logger = make_logger(self._run, self._settings.tracking, asdict(self._settings), step)
        self._agent.set_logger(logger)
        if self._resumed:
            restore_pending(self._agent)
        return logger

    def _train_and_save(self) -> None:
        interruption = self._interruption
        try:
            with self._progress.displayed():
                interruption.breakable(self._learn)
        except callbacks.TrainingFinished as reason:
            self._progress.report(str(reason))
            self._checkpoints.on_training_end()
        except Interrupted as interrupted:
            if interrupted.between_updates:
                with suppress(group.PeerLost):
                    self._checkpoints.capture()
            interruption.saved = self._checkpoints.save()
            interruption.check()
        except CheckpointError:
            raise
        except BaseException as error:  # sys.exit() too
            interruption.saved = self._save_what_was_before(error)
            group.leave()  # the others need not wait for what follows here
            if isinstance(error, KeyboardInterrupt):
                # Ctrl-C comes as Interrupted: something that was called has raised this of itself.
                raise RuntimeError("KeyboardInterrupt").with_traceback(error.__traceback__) from error
            raise
        interruption.saved = self._checkpoints.save()
        interruption.check()

    def _learn(self) -> None:
        agent, settings = self._agent, self._settings
        left = settings.total_timesteps - (agent.num_timesteps if self._resumed else 0)
        if left > 0:
            log_interval = settings.tracking.log_interval
            agent.learn(left, self._callbacks, log_interval=log_interval, reset_num_timesteps=not self._resumed)
            return
        # It was ended between its last update and what comes after.
        ending = CallbackList(self._callbacks)
        ending.init_callback(agent)
        ending.on_training_start({}, {})
        ending.on_training_end()

    def _save_what_was_before(self, error: BaseException) -> str | None:
        """Where training has failed; a fault in saving is reported, and does not take that one's place."""
        try:
            in_place = isinstance(error, group.PeerLost) and not group.is_first()
            saved = self._checkpoints.save_in_place_of_first() if in_place else self._checkpoints.save()
        except (CheckpointError, OSError) as trouble:
            if not isinstance(error, OSError):  # where nothing can be written, that has been reported
                say(f"the agent from before the fault could not be saved: {trouble}", error=True)
            return None
        if isinstance(error, group.PeerLost):
            error.is_reported = not group.is_first() and saved is None
        if saved:
            say(f"saved the agent from before the fault: {saved}", error=True)
        return saved
