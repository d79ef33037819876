"""Several runs trained at once, each in a process of its own, on this machine or on a Ray cluster; and seeds of one.

A run is resumed from its directory in any case, so that one that a kill, a lost node or Ctrl-C has interrupted goes on
where it was. What it prints goes into its directory, as ``output.txt``.
"""

import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import configs
from agents.analysis.report.history import RunError
from agents.checks.extras import require
from agents.runs import launch
from agents.runs.analyses import last_result, print_seeds
from agents.runs.directory import RunDirectory, run_name, write_atomically
from agents.runs.interruption import Interrupted, Interruption
from configs import CommandError, Settings, SettingsError, reported_as
from configs.settings import changed, values
from envs.vector.processes import as_a_worker_starts

OUTPUT = "output.txt"
STOPPING = 30.0
"""Seconds that runs have to save what they are at, all of them together, before they are killed."""


class SeedsFailed(CommandError):
    """Some of several seeds could not be trained; its exit code is that of the first of them."""

    def __init__(self, failed: Mapping[int, CommandError], seeds: int) -> None:
        reasons = "; ".join(f"seed {seed}: {error}" for seed, error in failed.items())
        super().__init__(f"{len(failed)} of {seeds} seeds failed. {reasons}")
        self.exit_code = next(iter(failed.values())).exit_code


class RunFailed(CommandError):
    """A run in a process of its own has ended with an error."""

    def __init__(self, run: RunDirectory, code: int) -> None:
        super().__init__(f"{_last_error(run) or f'ended with exit code {code}'} ({run.path / OUTPUT})")
        self.exit_code = code if code > 0 else 1


# Where runs are trained


class Processes(AbstractContextManager["Processes"]):
    """Runs in processes of this machine. What is left of them at the end is stopped, and can be resumed."""

    def __init__(self) -> None:
        self._running: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._running)

    def start(self, run: RunDirectory) -> None:
        """Trains in the run's directory, to the end and its evaluation."""
        methods = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if hasattr(context, "set_forkserver_preload"):
            context.set_forkserver_preload([__name__])  # torch is imported once for all
        with as_a_worker_starts():
            process = context.Process(target=_in_a_process, args=(str(run.path), os.getcwd()))
            process.start()
        self._running[str(run.path)] = process

    def ended(self, seconds: float) -> dict[str, int]:
        """The exit codes, by directory, of runs that have ended; waits so long for the first."""
        if self._running:
            wait([process.sentinel for process in self._running.values()], seconds)
        codes = {path: each.exitcode for path, each in self._running.items() if each.exitcode is not None}
        for path in codes:
            self._running.pop(path).join()
        return codes

    def stop(self, run: RunDirectory) -> None:
        """The run saves what it is at and ends, which :meth:`ended` tells."""
        process = self._running[str(run.path)]
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)

    def __exit__(self, *_: object) -> None:
        processes = list(self._running.values())
        try:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)
            deadline = time.monotonic() + STOPPING
            for process in processes:
                process.join(max(0.0, deadline - time.monotonic()))
        finally:
            for process in processes:
                process.kill()
                process.join()
            self._running.clear()


class RayTasks(AbstractContextManager["RayTasks"]):
    """Runs as tasks of a Ray cluster, which restarts on another node those that a node is lost with.

    The folder that this runs in and that of the runs are the same on all nodes, as on a shared file system.
    """

    def __init__(self, address: str) -> None:
        """Raises SettingsError where there is no Ray, or no cluster at the address."""
        with reported_as(SettingsError, "--ray", ImportError):
            self._ray = require("ray")
        from envs.vector.cluster import connect

        with reported_as(SettingsError, f"--ray {address}", ConnectionError, RuntimeError, ValueError):
            connect(None if address == "local" else address)
        self._task: Any = self._ray.remote(num_cpus=1, max_retries=3)(_as_a_task)
        self._running: dict[Any, str] = {}

    def __len__(self) -> int:
        return len(self._running)

    def start(self, run: RunDirectory) -> None:
        """See :class:`Processes`."""
        path = str(run.path.resolve())
        self._running[self._task.remote(path, os.getcwd(), list(sys.path))] = str(run.path)

    def ended(self, seconds: float) -> dict[str, int]:
        """See :class:`Processes`."""
        ready, _ = self._ray.wait(list(self._running), timeout=seconds) if self._running else ([], [])
        return {self._running.pop(each): self._code(each) for each in ready}

    def stop(self, run: RunDirectory) -> None:
        """See :class:`Processes`."""
        for each, path in self._running.items():
            if path == str(run.path):
                self._ray.cancel(each)

    def __exit__(self, *_: object) -> None:
        for each in self._running:
            self._ray.cancel(each)
        with suppress(Exception):
            self._ray.wait(list(self._running), num_returns=len(self._running) or 1, timeout=STOPPING)
        self._running.clear()
        self._ray.shutdown()

    def _code(self, task: Any) -> int:
        try:
            return int(self._ray.get(task))
        except self._ray.exceptions.TaskCancelledError:
            return 128 + signal.SIGTERM
        except self._ray.exceptions.RayError as error:
            configs.say(f"ray: {error}", error=True)
            return 1


Pool = Processes | RayTasks


def pool(ray: str | None) -> Pool:
    """Where runs are trained: in processes here, or on the Ray cluster of this address."""
    return Processes() if ray is None else RayTasks(ray)


def _in_a_process(path: str, folder: str) -> None:
    """Trains, and ends when the process that started this does, whatever ends that."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C in a terminal is for the process that started this, which stops the runs
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def follow() -> None:
        wait([sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
    sys.exit(_trained(path, folder))


def _as_a_task(path: str, folder: str, import_path: list[str]) -> int:
    sys.path += [entry for entry in import_path if entry not in sys.path]
    return _trained(path, folder)


def _trained(path: str, folder: str) -> int:
    """The exit code of training in a run's directory, from where it is; what is printed goes into a file there."""
    os.chdir(folder)
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    with (Path(path) / OUTPUT).open("a", encoding="utf-8") as file, closing(_Restored(kept)):
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)

        def command(argv: Sequence[str] | None) -> None:
            settings = configs.read(Path(path) / "settings.yaml")
            launch.resume(path, replace(settings, progress=False), (), [*configs.command_words("train"), path])

        return configs.run(command, [])


class _Restored:
    """Standard output and error as they were, at the end: a worker of Ray's serves several runs."""

    def __init__(self, kept: Sequence[int]) -> None:
        self._kept = kept

    def close(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for descriptor, each in zip((1, 2), self._kept, strict=True):
            os.dup2(each, descriptor)
            os.close(each)


def _last_error(run: RunDirectory) -> str | None:
    """What the run's output says that went wrong."""
    with suppress(OSError):
        text = (run.path / OUTPUT).read_text(encoding="utf-8", errors="replace")
        _, found, message = text.rpartition("error: ")
        lines = message.strip().splitlines() if found else text.strip().splitlines()[-1:]
        return " ".join(lines)[:500] or None
    return None


# A run's directory, new or gone on with


def prepared(settings: Settings) -> tuple[RunDirectory, bool]:
    """The run's directory under its name, and whether all of it is done.

    Raises:
        SettingsError: there is one of that name, of other settings.
    """
    assert settings.name is not None
    path = Path(settings.runs) / settings.name
    if not (path / "settings.yaml").is_file():
        return launch.new_run(settings), False
    run = RunDirectory(path)
    recorded = configs.read(run.settings)
    settings = as_recorded(settings, recorded)
    with reported_as(SettingsError, str(path)):
        configs.check_resumable(recorded, settings)
    with reported_as(SettingsError, "runs", RunError), _locked_in_time(run):
        wanted = settings.evaluation
        done = run.state(settings) == "finished" and (
            not wanted.final_episodes or run.final_evaluation(deterministic=wanted.deterministic) is not None
        )
        if not done:
            write_atomically(run.settings, configs.dump(settings))
    return run, done


@contextmanager
def _locked_in_time(run: RunDirectory) -> Iterator[None]:
    """As ``run.locked``, once a process whose parent was killed has saved what it was at."""
    for _ in range(int(STOPPING)):
        try:
            with run.locked():
                pass
            break
        except RunError:
            time.sleep(1.0)
    with run.locked():
        yield


def as_recorded(settings: Settings, recorded: Settings) -> Settings:
    """The settings, and where they leave the choice, what was chosen."""
    now, before = values(settings), values(recorded)
    return changed(settings, {key: before[key] for key, value in now.items() if value is None})


# Seeds


def train_seeds(
    settings: Settings, seeds: int, *, parallel: int = 1, ray: str | None = None, typed: Sequence[str] = ()
) -> list[RunDirectory]:
    """Trains a run for each of ``seeds`` seeds, from the settings' own on, and prints one table of all.

    Under the same name it goes on: what has ended is not repeated. ``typed``: the words of the command line, for the
    message of an interruption.
    """
    launch.check_several(settings, seeds)
    base = settings.name or run_name(settings.env.id, settings.policy.memory, "seeds")
    every = {
        seed: replace(settings, seed=seed, name=f"{base}-{seed}", group=settings.group or base)
        for seed in range(settings.seed, settings.seed + seeds)
    }
    one_by_one = parallel == 1 and ray is None
    with going_on(typed, settings.name, base):
        runs, failed = _in_order(every) if one_by_one else _at_once(every, parallel, ray)
    print_seeds(list(runs.values()))
    if failed:
        raise SeedsFailed(failed, seeds)
    return list(runs.values())


@contextmanager
def going_on(typed: Sequence[str], name: str | None, base: str) -> Iterator[None]:
    """Ends what is done inside at once where Ctrl-C or SIGTERM comes, with the command that goes on with it."""
    try:
        with Interruption().at_once():
            yield
    except Interrupted:
        if typed:
            configs.say(f"go on with: {shlex.join([*typed, *([] if name else ['--name', base])])}", error=True)
        raise


Trained = tuple[dict[int, RunDirectory], dict[int, CommandError]]
"""Runs that have ended, and what has failed, by seed."""


def _in_order(every: Mapping[int, Settings]) -> Trained:
    runs: dict[int, RunDirectory] = {}
    failed: dict[int, CommandError] = {}
    for place, (seed, settings) in enumerate(every.items(), 1):
        # The threads measured for the first serve all: the runs of a group differ in their seed alone.
        threads = configs.read(next(iter(runs.values())).settings).threads if runs else settings.threads
        configs.say(f"\nseed {seed}, run {place} of {len(every)} of the group {settings.group}")
        try:
            runs[seed] = _trained_here(replace(settings, threads=threads))
        except CommandError as error:
            failed[seed] = error
            configs.say(f"seed {seed} failed: {error}", error=True)
    return runs, failed


def _trained_here(settings: Settings) -> RunDirectory:
    assert settings.name is not None
    path = Path(settings.runs) / settings.name
    if not (path / "settings.yaml").is_file():
        return launch.train(settings)
    run, done = prepared(settings)
    if done:
        configs.say(f"{run.path} has ended: it is not repeated")
        return run
    return launch.resume(str(path), configs.read(run.settings), (), [*configs.command_words("train"), str(path)])


def _at_once(every: Mapping[int, Settings], parallel: int, ray: str | None) -> Trained:
    runs: dict[int, RunDirectory] = {}
    failed: dict[int, CommandError] = {}
    waiting, started = deque(every), dict[str, int]()
    with pool(ray) as running:
        while waiting or len(running):
            while waiting and len(running) < parallel:
                seed = waiting.popleft()
                try:
                    run, done = prepared(replace(every[seed], threads=every[seed].threads or 1))
                except CommandError as error:
                    failed[seed] = error
                    configs.say(f"seed {seed} failed: {error}", error=True)
                    continue
                if done:
                    runs[seed] = run
                    configs.say(f"seed {seed}: {run.path} has ended: it is not repeated")
                else:
                    started[str(run.path)] = seed
                    configs.say(f"seed {seed}: training in {run.path}")
                    running.start(run)
            for path, code in running.ended(1.0).items():
                seed, run = started[path], RunDirectory(path)
                if code:
                    failed[seed] = RunFailed(run, code)
                    configs.say(f"seed {seed} failed: {failed[seed]}", error=True)
                else:
                    runs[seed] = run
                    configs.say(f"seed {seed}: ended, {described(run)}")
    return dict(sorted(runs.items())), failed


def described(run: RunDirectory) -> str:
    """The result of a run's last agent in a word or two."""
    result = last_result(run)
    return "not evaluated" if result is None else f"mean return {result.mean:.4g} of the last policy"
