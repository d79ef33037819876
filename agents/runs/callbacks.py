"""What happens between two updates of a training run: checking, showing, saving, evaluating.

All of these act where a rollout is about to start, that is between updates and never in the middle of one, and none
does anything at a step.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, ClassVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import safe_mean

from agents.analysis.evaluation import Evaluation, differ, evaluate_both_ways, manner
from agents.analysis.report.history import RunError, rows_until
from agents.checkpoint import Captured
from agents.distributed import group
from agents.runs.construction import EvaluationEnvironments
from agents.runs.directory import RunDirectory, append_row
from agents.runs.resuming import capture
from configs import printable
from configs.settings import EvaluationSettings


class TrainingFinished(Exception):
    """Raised between two updates where training has reached what it was for."""


class BetweenUpdates(BaseCallback):
    """Calls ``act`` before every rollout and after the last update."""

    needs_steps: ClassVar[bool] = False  # collecting need not stop at every step to call

    def act(self) -> None:
        raise NotImplementedError

    def _on_rollout_start(self) -> None:
        self.act()

    def _on_training_end(self) -> None:
        self.act()

    def _on_step(self) -> bool:
        return True


class FiniteWeights(BetweenUpdates):
    """Ends training where a weight is no longer finite, before anything is saved."""

    def act(self) -> None:
        group.from_first(self._check)

    def _check(self) -> None:
        parameters = dict(self.model.policy.named_parameters())
        name = self._first_not_finite(parameters)
        if name is None:
            return
        after = f"after {self.model.num_timesteps} steps"
        which = self._first_not_finite({key: each.grad for key, each in parameters.items() if each.grad is not None})
        if which is None:
            raise FloatingPointError(
                f"the weights {name} are not finite {after}: an observation or reward was not finite or far too large, "
                "or the learning rate is too high"
            )
        raise FloatingPointError(
            f"the gradient of {which} is not finite in the update {after}, and so are the weights {name}: an "
            "observation or reward was far too large, a layer of the network has no gradient there, or the learning "
            "rate is too high"
        )

    def _first_not_finite(self, tensors: Mapping[str, torch.Tensor]) -> str | None:
        return next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)


class Checkpoints(BetweenUpdates):
    """Saves the agent every so many steps (0: only the last) and keeps the latest few.

    The agent is copied before every rollout, so that what is saved is always one that stood between two updates, where
    it can be resumed exactly, whatever interrupts a rollout or an update and in whatever state that leaves it.
    """

    def __init__(self, run: RunDirectory, every: int, keep: int) -> None:
        super().__init__()
        self._run, self._every, self._keep = run, every, keep
        self._next = every
        self._captured: tuple[int, Captured] | None = None
        self._saved_at: int | None = None

    def _on_training_start(self) -> None:
        self._next = _after(self.model.num_timesteps, self._every) if self._every else 0

    def act(self) -> None:
        self.capture()
        if group.is_first():
            self._run.check_there()
        if self._every and self.model.num_timesteps >= self._next:
            self._next = _after(self.model.num_timesteps, self._every)
            self.save()

    def save(self) -> str | None:
        """Saves the agent as it last was between two updates and returns where; None before the first rollout, and in
        all processes but the first."""
        return self._write() if group.is_first() else None

    def save_in_place_of_first(self, seconds: float = 1.0) -> str | None:
        """The same in another process, where the first one has ended without saving that."""
        for _ in range(10):
            with suppress(RunError), self._run.locked():
                is_there = self._captured is None or self._run.checkpoint(self._captured[0]).exists()
                return None if is_there else self._write()
            time.sleep(seconds / 10)
        return None

    def _write(self) -> str | None:
        if self._captured is None:
            return None
        step, agent = self._captured
        self._run.check_there()
        path = self._run.checkpoint(step)
        if self._saved_at != step:
            path.parent.mkdir(exist_ok=True)
            agent.save(path)
            self._saved_at = step
            for _, old in self._run.checkpoints()[: -self._keep]:
                old.unlink(missing_ok=True)
        return str(path)

    def _on_training_end(self) -> None:
        # The last update's figures come after the last rollout's, and before the file that says they were written.
        if self.logger.name_to_value:
            self.logger.dump(self.model.num_timesteps)
        self.capture()
        self.save()

    def capture(self) -> None:
        """Copies the agent as it is now, between two updates."""
        model: Any = self.model
        self._captured = model.num_timesteps, capture(model)


class InFirstProcess(BetweenUpdates):
    """A callback that acts in process 0 alone, while the others wait; what it raises ends training in all."""

    def __init__(self, callback: BetweenUpdates | None) -> None:
        """``callback``: None in the others."""
        super().__init__()
        self._callback = callback

    def _init_callback(self) -> None:
        if self._callback is not None:
            self._callback.init_callback(self.model)

    def _on_training_start(self) -> None:
        if self._callback is not None:
            self._callback.on_training_start(self.locals, self.globals)

    def act(self) -> None:
        self._together(lambda each: each.act())

    def _on_training_end(self) -> None:
        self._together(lambda each: each.on_training_end())

    def _together(self, act: Callable[[BetweenUpdates], None]) -> None:
        def run() -> str | None:
            try:
                if self._callback is not None:
                    act(self._callback)
            except TrainingFinished as reason:
                return str(reason)
            return None

        reason = group.from_first(run)
        if reason is not None:
            raise TrainingFinished(reason)


class PeriodicEvaluation(BetweenUpdates):
    """Evaluates the agent every so many steps on environments of its own, and keeps the best one as best.zip.

    Half of the episodes are played with sampled actions and half with deterministic ones; the best agent is that of the
    higher return by the way that the settings name. Seeds come from the run's seed and the step alone, so that an
    evaluation depends on nothing that ran before it. ``report`` gets a line about each.
    """

    def __init__(
        self,
        run: RunDirectory,
        environments: EvaluationEnvironments,
        settings: EvaluationSettings,
        *,
        seed: int,
        games: Callable[[BaseAlgorithm, bool], tuple[int, int | None]] | None = None,
        report: Callable[[str], None] = print,
    ) -> None:
        """``games``: of the model as it is, at the last evaluation or not, how many episodes of how many steps at most;
        0 puts an evaluation off."""
        super().__init__()
        self._run, self._environments, self._settings = run, environments, settings
        self._seed, self._report = seed, report
        self._games = games or (lambda model, last: (settings.episodes, settings.max_steps))
        self._every = self._next = settings.every
        self._last, self._best = -1, -math.inf
        self._is_limited = False

    def _on_training_start(self) -> None:
        """Goes on after the evaluations that the run has had."""
        step = self.model.num_timesteps
        before = rows_until(self._run.evaluations, step)[1]
        self._last = max((int(row["step"]) for row in before), default=-1)
        self._next = _after(max(self._last, 0), self._every) if self._every else 0
        known = [float(row["mean_reward"]) for row in before] if self._run.best.is_file() else []
        self._best = max(known, default=-math.inf)

    def act(self) -> None:
        if self._every and self.model.num_timesteps >= self._next:
            self._next = _after(self.model.num_timesteps, self._every)
            self._evaluate()

    def _on_training_end(self) -> None:
        if self._every and self.model.num_timesteps > self._last:
            self._evaluate(last=True)

    def _evaluate(self, *, last: bool = False) -> None:
        step = self.model.num_timesteps
        episodes, max_steps = self._games(self.model, last)
        if episodes < self._settings.episodes and not self._is_limited:
            self._is_limited = True
            self._report(
                f"evaluations play fewer than {self._settings.episodes} episodes, or are postponed: they may take "
                f"{self._settings.share:.0%} of the steps of training (--evaluation.share None: any)"
            )
        if not episodes:
            return
        self._last = step
        env = self._environments.playing((episodes + 1) // 2)
        seed = int(np.random.SeedSequence([self._seed, step]).generate_state(1)[0] >> 1)
        model: Any = self.model
        both = evaluate_both_ways(
            model,
            env,
            episodes,
            deterministic=self._settings.deterministic,
            seed=seed,
            max_steps=max_steps,
        )
        result = both[manner(self._settings.deterministic)]
        # Of equals the later one: it has seen more.
        is_best = result.mean >= self._best
        self._run.check_there()
        if is_best:
            self._best = result.mean
            self.model.save(self._run.best)
        means_by_way = {f"{way}_mean_reward": each.mean for way, each in sorted(both.items())}
        self._record(result, means_by_way, step, taken=sum(each.longest for each in both.values()) * env.num_envs)
        best = ", the best so far" if is_best else ""
        n_truncated = sum(each.truncated for each in both.values())
        truncated = f" ({n_truncated} truncated after {max_steps:,} steps)" if n_truncated else ""
        means = ", ".join(f"{each.mean:.2f} {way}" for way, each in sorted(both.items()))
        which_differ = ", whose intervals do not overlap" if differ(*both.values()) else ""
        n_episodes = sum(each.episodes for each in both.values())
        self._report(f"step {step:,}: mean return {means}{which_differ}, over {n_episodes} episodes{truncated}{best}")
        goal = self._settings.stop_at_return
        if goal is not None and result.mean >= goal:
            raise TrainingFinished(f"mean return {result.mean:.2f} reaches stop_at_return ({goal})")

    def _record(self, result: Evaluation, means: dict[str, float], step: int, *, taken: int) -> None:
        figures: dict[str, Any] = {
            "mean_reward": result.mean,
            "std_reward": result.std,
            "median_reward": result.median,
            "interquartile_mean_reward": result.interquartile_mean,
            "mean_ep_length": result.mean_length,
            **means,
        }
        if result.success_rate is not None:
            figures["success_rate"] = result.success_rate
        for name, value in figures.items():
            self.logger.record(f"eval/{name}", value)
        self.logger.record("time/total_timesteps", step, exclude="tensorboard")
        self.logger.dump(step)
        row = {"step": step, "episodes": result.episodes, "success_rate": None, **figures, "steps": taken}
        append_row(self._run.evaluations, row)


class ProgressDisplay(BetweenUpdates):
    """A progress bar with rate, time left and last return on a terminal, a line every few ``seconds`` elsewhere."""

    def __init__(self, total: int, *, shown: bool = True, seconds: float = 10.0) -> None:
        super().__init__()
        self._total, self._shown, self._seconds = total, shown, seconds
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._started = self._last_line = time.monotonic()
        self._first: int | None = None  # step, not the first one where a run goes on

    def report(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._shown:
            self._console.print(printable(line), highlight=False, soft_wrap=True, markup=False)

    @contextmanager
    def displayed(self) -> Iterator[None]:
        """The bar is on the terminal inside."""
        if not (self._shown and self._console.is_terminal):
            yield
            return
        narrow = self._console.width < 70  # what there is to read comes first, on two lines
        text = TextColumn("{task.description}", table_column=Column(no_wrap=not narrow))
        # Drawn only between updates: a thread of its own would take time from them.
        with Progress(*([] if narrow else [BarColumn()]), text, console=self._console, auto_refresh=False) as self._bar:
            self._bar.add_task(self._text(), total=self._total)
            yield
        self._bar = None

    def _on_training_start(self) -> None:
        self._started = self._last_line = time.monotonic()
        self._first = self.model.num_timesteps
        # The last rollout is a full one.
        rollout = self.model.n_envs * group.size() * getattr(self.model, "n_steps", 1)
        self._total = self._first + math.ceil((self._total - self._first) / rollout) * rollout

    def act(self) -> None:
        now = time.monotonic()
        if self._bar is not None:
            done, task = self.model.num_timesteps, self._bar.task_ids[0]
            self._bar.update(task, description=self._text(), total=self._total, completed=done, refresh=True)
        elif self._shown and now - self._last_line >= self._seconds:
            self._last_line = now
            self.report(self._text())

    def _text(self) -> str:
        if self._first is None:
            return f"0 of {self._total:,} steps, - a second, - left, return -"
        done = self.model.num_timesteps
        rate = (done - self._first) / max(time.monotonic() - self._started, 1e-9)
        left = timedelta(seconds=round(max(0, self._total - done) / rate)) if rate else "-"
        recent = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        last = f"{safe_mean(recent):.2f}" if recent else "-"
        return f"{done:,} of {self._total:,} steps, {rate:,.0f} a second, {left} left, return {last}"


def _after(step: int, every: int) -> int:
    """The next multiple of ``every``."""
    return (step // every + 1) * every
