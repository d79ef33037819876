"""A search over settings: trials that Optuna chooses, each trained with several seeds, so that luck is not searched.

A sweep's directory, under that of the runs:

    base.yaml          the settings that the search starts from
    space.yaml         what is searched, a copy of the file
    journal.log        every trial, as Optuna keeps it: what was chosen, reported and found
    trial-007-seed-1/  the runs
    trials.csv         the trials as a table
    best.yaml          the settings of the best, for --config
    report.html        the table, what decided, the best trials' learning

A trial's seeds are trained one after the other. Its value is the interquartile mean over them of the final evaluation
of the last policy; the periodic evaluations of its first seed, and the mean after each seed, decide whether it is
pruned. A trial that fails is recorded with its error.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

import configs
from agents.analysis import statistics
from agents.analysis.report.comparison import comparison_page
from agents.analysis.report.groups import Scored, grouped, print_uncut
from agents.analysis.report.history import RunError
from agents.analysis.report.search import Tried, columns, ranked, row, sections, short
from agents.checks.extras import require
from agents.checks.text import printable
from agents.runs import launch
from agents.runs.analyses import history_of, last_result
from agents.runs.directory import RunDirectory, run_name, write_atomically, write_table
from agents.runs.several import Pool, RunFailed, as_recorded, going_on, pool, prepared
from configs import CommandError, Settings, SettingsError, Space, reported_as
from configs.space import Parameter

SEEDS = 3
"""Of a trial, where --seeds does not say."""
STARTUP = 10
"""Trials at random before the search learns from them, and half as many before any is pruned."""
NOTE = 60
"""Letters of an error in the terminal's table; trials.csv and the report have all."""
COMPARED = 5
"""Trials whose runs the report shows, the best ones."""
BASE, SPACE, JOURNAL = "base.yaml", "space.yaml", "journal.log"


@dataclass(frozen=True)
class Search:
    """What is searched, from which settings, and how long."""

    settings: Settings
    space: Space
    trials: int
    seeds: int

    @property
    def evaluations(self) -> int:
        """Of a run, at most: the steps at which trials report begin with 1, and after these count seeds."""
        every = self.settings.evaluation.every
        return math.ceil(self.settings.total_timesteps / every) + 1 if every else 1


@dataclass
class Trial:
    """A trial that is being trained."""

    drawn: Any  # Optuna's
    chosen: Mapping[str, Any]
    settings: Settings
    left: list[int]  # seeds
    run: RunDirectory | None = None
    scores: dict[int, float] = field(default_factory=dict)
    reported: int = 0
    is_pruned: bool = False

    @property
    def number(self) -> int:
        return int(self.drawn.number)

    @property
    def value(self) -> float:
        return float(statistics.interquartile_mean(np.array(list(self.scores.values()))))


def run(search: Search, *, parallel: int, ray: str | None = None, typed: Sequence[str] = ()) -> Path:
    """Searches in a directory of its own, on from where it was left, and returns the directory.

    Raises:
        SettingsError: Optuna is missing, or the directory holds another sweep.
        CommandError: no trial was completed.
    """
    settings = search.settings
    with reported_as(SettingsError, "--sweep", ImportError):
        optuna: Any = require("sweep")
    if not settings.evaluation.final_episodes:
        raise SettingsError("evaluation.final_episodes is 0, but a sweep compares the final evaluations: give some")
    launch.check_several(settings, search.seeds + 1)
    name = settings.name or run_name(settings.env.id, settings.policy.memory, "sweep")
    directory = RunDirectory(Path(settings.runs) / name)
    with going_on(typed, settings.name, name), pool(ray) as running, _opened(directory, search):
        study = _study(optuna, directory.path, search)
        _Searching(optuna, study, search, directory.path, running).to_the_end(parallel)
        return _concluded(optuna, study, search, directory.path)


@contextmanager
def _opened(directory: RunDirectory, search: Search) -> Iterator[None]:
    """The sweep's directory, new or that of the same sweep, locked."""
    path, base = directory.path, replace(search.settings, name=None)
    text = configs.dump(base)
    with reported_as(SettingsError, "runs", RunError, OSError):
        if not path.exists():
            path.mkdir(parents=True)
            write_atomically(path / SPACE, search.space.text)
            write_atomically(path / BASE, text)
        elif not (path / BASE).is_file():
            raise RunError(f"{path} exists and is no sweep; choose another name")
        with directory.locked():
            recorded = configs.read(path / BASE)
            with reported_as(SettingsError, str(path)):
                configs.check_resumable(recorded, as_recorded(base, recorded))
            if configs.read_space(path / SPACE) != search.space:
                raise SettingsError(f"{path / SPACE} is another space than the file: start a new sweep")
            (path / f"{JOURNAL}.lock").unlink(missing_ok=True)  # of a process that was killed; this one has the lock
            _without_torn_end(path / JOURNAL)
            yield


def _without_torn_end(journal: Path) -> None:
    """A kill while a line was written leaves a part of it, after which nothing could be read."""
    if journal.is_file():
        content = journal.read_bytes()
        complete = content.rfind(b"\n") + 1
        if complete < len(content):
            with journal.open("r+b") as file:
                file.truncate(complete)


def _study(optuna: Any, path: Path, search: Search) -> Any:
    """Optuna's study of the directory; a new one begins with the base settings, if they are in the space."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = optuna.storages.journal.JournalFileBackend(str(path / JOURNAL))
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(journal),
        study_name="sweep",
        direction="maximize",
        pruner=_pruner(optuna, search),
        load_if_exists=True,
    )
    before = len(study.trials)
    # Another seed each time: the search would begin with the same trials again.
    chosen_by = {"bayes": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}[search.space.method]
    more = {"n_startup_trials": STARTUP} if search.space.method == "bayes" else {}
    seed = np.random.SeedSequence([search.settings.seed, before]).generate_state(1)[0]
    study.sampler = chosen_by(seed=int(seed), **more)
    if not before:
        study.set_user_attr("seeds", search.seeds)
        base = search.space.of(search.settings)
        if base is not None:
            study.enqueue_trial({key: _written(value) for key, value in base.items()}, {"note": "the base settings"})
    elif study.user_attrs.get("seeds") != search.seeds:
        was = study.user_attrs.get("seeds")
        raise SettingsError(f"{path} has {was} seeds a trial, not {search.seeds}: trials would not compare")
    return study


def _pruner(optuna: Any, search: Search) -> Any:
    stop, startup = search.space.stop, STARTUP // 2
    if stop.kind == "none":
        return optuna.pruners.NopPruner()
    if stop.kind == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=stop.min_iter)
    return optuna.pruners.HyperbandPruner(stop.min_iter, max(search.evaluations, stop.min_iter), stop.eta)


class _Searching:
    """Trials, so many at once, until there have been as many as wanted."""

    def __init__(self, optuna: Any, study: Any, search: Search, path: Path, running: Pool) -> None:
        self._states, self._study = optuna.trial.TrialState, study
        self._search, self._path, self._running = search, path, running
        self._trials: list[Trial] = []
        begun = study.get_trials(deepcopy=False, states=[self._states.RUNNING])
        self._interrupted = [optuna.trial.Trial(study, each._trial_id) for each in begun]

    def to_the_end(self, parallel: int) -> None:
        while True:
            while len(self._trials) < parallel and (drawn := self._next()) is not None:
                self._begin(drawn)
            if not self._trials:
                return
            codes = self._running.ended(1.0)
            for trial in list(self._trials):
                assert trial.run is not None
                self._report(trial, trial.run)
                if (code := codes.get(str(trial.run.path))) is not None:
                    self._ended(trial, trial.run, code)

    def _next(self) -> Any:
        """A trial that was interrupted, or a new one; None where there have been enough."""
        if self._interrupted:
            return self._interrupted.pop(0)
        begun = [each for each in self._study.get_trials(deepcopy=False) if each.state != self._states.WAITING]
        return self._study.ask() if len(begun) < self._search.trials else None

    def _begin(self, drawn: Any) -> None:
        search, chosen = self._search, dict[str, Any]()
        for each in search.space.parameters:
            if search.space.applies(each, search.settings, chosen):
                chosen[each.key] = _suggested(drawn, each)
        drawn.set_user_attr("chosen", dict(chosen))
        group = f"{self._path.name} trial {drawn.number}"
        settings = search.space.settings(search.settings, chosen)
        settings = replace(settings, runs=str(self._path), group=group, threads=settings.threads or 1, progress=False)
        seeds = list(range(settings.seed, settings.seed + search.seeds))
        trial = Trial(drawn, chosen, settings, seeds)
        self._trials.append(trial)
        configs.say(f"trial {trial.number}: {_shown(chosen)}")
        self._advance(trial)

    def _advance(self, trial: Trial) -> None:
        """Its next seed is trained, unless it is behind, or was the last."""
        while trial.left:
            seed = trial.left.pop(0)
            name = f"trial-{trial.number:03}-seed-{seed}"
            try:
                trial.settings.check()
                trial.run, done = prepared(replace(trial.settings, seed=seed, name=name))
            except CommandError as error:
                self._fail(trial, str(error))
                return
            trial.reported = 0
            if not done:
                self._running.start(trial.run)
                return
            if not self._scored(trial, trial.run):
                return
        self._close(trial, "COMPLETE", trial.value)
        configs.say(f"trial {trial.number}: return {trial.value:.4g}{self._if_best(trial)}")

    def _report(self, trial: Trial, run: RunDirectory) -> None:
        """The periodic evaluations of the first seed; a trial that is behind the others is stopped."""
        if trial.scores or trial.is_pruned:
            return
        rows = run.periodic_returns()
        for at, value in rows[trial.reported :]:
            step = max(1, round(at / self._search.settings.evaluation.every))
            self._tell(trial, value, min(step, self._search.evaluations))
        is_new, trial.reported = len(rows) > trial.reported, len(rows)
        if is_new and trial.drawn.should_prune():
            trial.is_pruned = True
            self._running.stop(run)

    def _tell(self, trial: Trial, value: float, step: int) -> None:
        """Once: a sweep that goes on reads again what was reported before."""
        known = self._study.get_trials(deepcopy=False)[trial.number].intermediate_values
        if step not in known:
            trial.drawn.report(value, step)

    def _ended(self, trial: Trial, run: RunDirectory, code: int) -> None:
        if trial.is_pruned:
            self._prune(trial)
        elif code:
            self._fail(trial, str(RunFailed(run, code)))
        elif self._scored(trial, run):
            self._advance(trial)

    def _scored(self, trial: Trial, run: RunDirectory) -> bool:
        """Takes a seed's score; whether the trial goes on."""
        result = last_result(run)
        if result is None or not math.isfinite(result.mean):
            self._fail(trial, f"{run.path} has ended without a final evaluation that is a number")
            return False
        trial.scores[configs.read(run.settings).seed] = result.mean
        trial.drawn.set_user_attr("scores", list(trial.scores.values()))
        self._tell(trial, trial.value, self._search.evaluations + len(trial.scores))
        if trial.left and trial.drawn.should_prune():
            self._prune(trial)
            return False
        return True

    def _prune(self, trial: Trial) -> None:
        self._close(trial, "PRUNED")
        configs.say(f"trial {trial.number}: pruned, behind the others")

    def _fail(self, trial: Trial, error: str) -> None:
        trial.drawn.set_user_attr("note", error)
        self._close(trial, "FAIL")
        configs.say(f"trial {trial.number} failed: {error}", error=True)

    def _close(self, trial: Trial, state: str, value: float | None = None) -> None:
        self._trials.remove(trial)
        self._study.tell(trial.drawn, value, self._states[state])

    def _if_best(self, trial: Trial) -> str:
        return ", the best so far" if self._study.best_trial.number == trial.number else ""


def _suggested(drawn: Any, parameter: Parameter) -> Any:
    if parameter.choices:
        named = {_written(value): value for value in parameter.choices}
        return named[drawn.suggest_categorical(parameter.key, list(named))]
    low, high, log = parameter.low, parameter.high, parameter.log
    if parameter.whole:
        return drawn.suggest_int(parameter.key, low, high, step=int(parameter.step or 1), log=log)
    found = drawn.suggest_float(parameter.key, low, high, step=parameter.step, log=log)
    return min(max(float(f"{found:.4g}"), low), high)  # more digits decide nothing and are hard to read


def _written(value: Any) -> Any:
    """A value as Optuna's journal can hold it: lists and mappings as text."""
    return value if isinstance(value, str | int | float | None) else str(value)


def _shown(chosen: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {short(value)}" for key, value in chosen.items())


# What came of it


def _concluded(optuna: Any, study: Any, search: Search, path: Path) -> Path:
    """Table, settings of the best, report."""
    names = [each.key for each in search.space.parameters]
    tried = [_tried(each) for each in study.get_trials(deepcopy=False)]
    rows = (dict(zip(columns(names), row(each, names), strict=True)) for each in tried)
    write_table(path / "trials.csv", columns(names), rows)
    shown = statistics.table("trial", *columns(names)[1:])
    for each in ranked(tried):
        *cells, note = row(each, names)
        shown.add_row(*(Text(printable(cell)) for cell in (*cells, note[:NOTE])))
    print_uncut(shown)
    best = next((each for each in ranked(tried) if each.is_complete), None)
    if best is None:
        raise CommandError(f"none of {len(tried)} trials was completed; {path / 'trials.csv'} says why")
    settings = search.space.settings(replace(search.settings, name=None, group=None), best.chosen)
    about = f"# The best of {len(tried)} trials of {path.name}, number {best.number}: return {best.value:.4g}.\n"
    write_atomically(path / "best.yaml", about + configs.dump(settings))
    _write_report(path, tried, names, _importances(optuna, study))
    configs.say(f"\nThe best is trial {best.number}: {_shown(best.chosen)}")
    configs.say(f"train with it by --config {path / 'best.yaml'}")
    configs.say(f"report written to {path / 'report.html'}")
    return path


def _tried(frozen: Any) -> Tried:
    states = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    state = states.get(frozen.state.name, "unfinished")
    attributes = frozen.user_attrs
    value = frozen.value if state == "complete" else None
    chosen = attributes.get("chosen", frozen.params)
    return Tried(frozen.number, state, value, attributes.get("scores", ()), chosen, attributes.get("note", ""))


def _importances(optuna: Any, study: Any) -> dict[str, float]:
    """Of the parameters that every trial has; none of too few trials to know."""
    complete = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    if len(complete) < STARTUP:
        return {}
    with warnings.catch_warnings(), suppress(ValueError, RuntimeError):
        warnings.simplefilter("ignore")
        found: dict[str, float] = optuna.importance.get_param_importances(study)
        return found if all(map(math.isfinite, found.values())) else {}
    return {}


def _write_report(path: Path, tried: Sequence[Tried], names: Sequence[str], shares: Mapping[str, float]) -> None:
    chosen = [each for each in ranked(tried) if each.is_complete][:COMPARED]
    chosen += [each for each in tried if each.note == "the base settings" and each.is_complete and each not in chosen]
    runs = [run for each in chosen for run in _scored_runs(path, each.number)]
    groups = sorted(grouped(runs), key=lambda group: -group.mean)
    note = f"The runs of the {len(chosen)} best trials: final evaluations of the last policies."
    page = comparison_page(
        groups, note, path / "report.html", title=f"Sweep {path.name}", before=sections(tried, names, shares)
    )
    with reported_as(SettingsError, "report", OSError):
        write_atomically(path / "report.html", page)


def _scored_runs(path: Path, number: int) -> Iterator[Scored]:
    for each in sorted(path.glob(f"trial-{number:03}-seed-*")):
        run = RunDirectory(each)
        with suppress(CommandError):
            result = last_result(run)
            if result is not None:
                yield Scored(history_of(run), np.array(result.returns))
