"""A run's directory: the one thing that training and evaluation share.

    settings.yaml        the settings as resolved
    trusted_modules.json the modules of its user's own that it imports, signed; only where there are any
    versions.json        Python, packages, commit, machine, command
    metrics.csv          a row per update
    tensorboard/         the same as TensorBoard events
    wandb/               the same as Weights & Biases files, on request
    checkpoints/         step_000000102400.zip, ...: the latest few, and the last
    best.zip             the agent with the best periodic evaluation
    resumed.csv          when it was resumed, and from which step; only where it was
    evaluations.csv      the periodic evaluations
    evaluations/         the evaluations made after training, as JSON
    insight/             what was found about the memory, as JSON, arrays and pictures
    videos/              recorded on request
    output.txt           what was printed, of a run of --seeds or --sweep in a process of its own

A directory belongs to one run and is never overwritten.
"""

import csv
import importlib.metadata
import io
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

from agents.analysis.evaluation import Evaluation
from agents.analysis.report.history import RunError, RunHistory, figures, read_versions, rows_until
from configs import Settings

try:
    import fcntl
except ImportError:  # pragma: no cover
    fcntl = None  # type: ignore[assignment]

_CHECKPOINT = re.compile(r"step_(\d+)\.zip")


class RunDirectory:
    """Where a run keeps its files; of a directory that exists.

    Args:
        agent: one of its files, to be found in place of the best.
    """

    def __init__(self, path: str | os.PathLike[str], agent: Path | None = None) -> None:
        self.path, self._agent = Path(path), agent
        self.settings = self.path / "settings.yaml"
        self.metrics = self.path / "metrics.csv"
        self.evaluations = self.path / "evaluations.csv"
        self.best = self.path / "best.zip"
        self.tensorboard = self.path / "tensorboard"
        self.videos = self.path / "videos"
        self._identity: tuple[int, int] | None = None

    @classmethod
    def create(cls, root: str | os.PathLike[str], name: str, *, numbered: bool = False) -> "RunDirectory":
        """A new directory ``root/name``; where there is one and it may be ``numbered``, ``root/name-2``, ..."""
        for path in numbered_paths(Path(root), name):
            try:
                path.mkdir(parents=True)  # which decides, so that two runs that start at once never share one
                return cls(path)
            except FileExistsError:
                if not numbered:
                    raise RunError(f"{path} exists and a run is never overwritten; choose another name") from None
            except OSError as error:
                raise RunError(f"cannot make the run's directory {path}: {error.strerror or error}") from error
        raise AssertionError

    @contextmanager
    def removed_if_nothing_came_of_it(self) -> Iterator[None]:
        """Removes the directory, which is new, where what is done inside fails before the first update."""
        try:
            yield
        except BaseException:  # Ctrl-C too
            if not self.has_agent and not rows_until(self.metrics)[1]:
                shutil.rmtree(self.path, ignore_errors=True)
            raise

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "RunDirectory":
        """The directory of a run that was started. Raises RunError where there is none."""
        if not Path(path).is_dir():
            raise RunError(f"{os.fspath(path)} is no directory; give that of a run, such as runs/NAME")
        if not (Path(path) / "settings.yaml").is_file():
            raise RunError(f"{os.fspath(path)} holds no settings.yaml, so it is no run of train.py")
        return cls(path)

    def checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step_{step:012d}.zip"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, file) of every checkpoint there is, oldest first."""
        found = [(_CHECKPOINT.fullmatch(path.name), path) for path in (self.path / "checkpoints").glob("step_*.zip")]
        return sorted((int(match[1]), path) for match, path in found if match)

    @property
    def has_agent(self) -> bool:
        """Whether an agent has been saved yet."""
        return self._agent is not None or self.best.is_file() or bool(self.checkpoints())

    def find(self, checkpoint: str) -> Path:
        """The file of ``best``, ``last``, a step, or a path (as it is, or from the run); else RunError."""
        saved = self.checkpoints()
        if checkpoint == "best" and self._agent is not None:
            return self._agent
        if checkpoint == "best" and self.best.is_file():
            return self.best
        # Without a periodic evaluation there is no best; then the last is what the run has to show.
        if checkpoint in ("best", "last") and saved:
            return saved[-1][1]
        if checkpoint.isdigit() and self.checkpoint(int(checkpoint)).is_file():
            return self.checkpoint(int(checkpoint))
        for path in (Path(checkpoint), self.path / checkpoint):
            if checkpoint not in ("", "best", "last") and path.is_file():
                return path
        if not self.has_agent:
            raise RunError(f"{self.path} holds no saved agent; its training was ended before the first was saved")
        known = [*(["best", "last"] if saved else ["best"]), *(str(step) for step, _ in saved)]
        raise RunError(f"{self.path} has no checkpoint {checkpoint!r}; there are {', '.join(known)}")

    def free_name(self, name: str) -> Path:
        """Where a new file of that name can lie: ``name``, or with -2, -3, ... where that is taken."""
        stem, suffix = os.path.splitext(name)
        return next(path for path in numbered_paths(self.path, stem, suffix) if not path.exists())

    def last_step(self) -> int:
        """The latest environment step that left a trace: a row of metrics, an evaluation, a checkpoint."""
        saved = [step for step, _ in self.checkpoints()]
        logged = [row["step"] for path in (self.metrics, self.evaluations) for row in figures(path)]
        return int(max([*saved, *logged], default=0))

    def state(self, settings: Settings) -> Literal["finished", "training", "stopped"]:
        """Whether training reached its end or its goal, goes on, or was stopped."""
        saved, best, goal = self.checkpoints(), self.best_return(), settings.evaluation.stop_at_return
        at_goal = best is not None and goal is not None and best >= goal
        if saved and (saved[-1][0] >= settings.total_timesteps or at_goal):
            return "finished"
        with self._lock() as is_mine:
            return "stopped" if is_mine else "training"

    def final_evaluation(self, *, deterministic: bool = True) -> Evaluation | None:
        """The last policy's evaluation after training, the first that acts so; None before all of them are made."""
        saved, best = self.checkpoints(), self._evaluated(self.best.name, deterministic)
        is_made = saved and (best or not self.best.is_file())
        found = self._evaluated(saved[-1][1].name, deterministic) if is_made else []
        return found[0] if found else None

    def final_return(self, *, deterministic: bool = True) -> float | None:
        """The mean return of :meth:`final_evaluation`, else of the last periodic one; None before the first."""
        found, periodic = self.final_evaluation(deterministic=deterministic), self.periodic_returns()
        return found.mean if found is not None else periodic[-1][1] if periodic else None

    def best_checkpoint_return(self, *, deterministic: bool = True) -> float | None:
        """The best checkpoint's mean return in an evaluation after training, which did not choose it; None before."""
        found = self._evaluated(self.best.name, deterministic)
        return found[-1].mean if found else None

    def _evaluated(self, file: str, deterministic: bool) -> list[Evaluation]:
        """Evaluations of a file after training that act so, oldest first."""
        results = RunHistory(self.path, {}).results()
        return [result for name, result in results if (name, result.deterministic) == (file, deterministic)]

    def periodic_returns(self) -> list[tuple[float, float]]:
        """(step, mean return) of every periodic evaluation."""
        return [(row["step"], row["mean_reward"]) for row in figures(self.evaluations) if "mean_reward" in row]

    def best_return(self) -> float | None:
        """The highest mean return of a periodic evaluation, None before the first: biased upwards, since it is the
        highest of several."""
        return max((value for _, value in self.periodic_returns()), default=None)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else can train in the directory inside, or RunError; the lock goes with the process."""
        with self._lock() as is_mine:
            if not is_mine:
                raise RunError(f"another process is training in {self.path}; wait for its end or end it")
            yield

    @contextmanager
    def _lock(self) -> Iterator[bool]:
        """Whether the directory is locked by this process inside, and not by another."""
        if fcntl is None:  # pragma: no cover
            yield True
            return
        descriptor, is_mine = os.open(self.path, os.O_RDONLY), True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_mine = False
        except OSError:  # a file system without locks
            pass
        try:
            yield is_mine
        finally:
            os.close(descriptor)

    def check_there(self) -> None:
        """Raises FileNotFoundError where it is no longer the directory that it was when this was called first."""
        found = None
        with suppress(FileNotFoundError):
            status = os.stat(self.path)
            found = status.st_dev, status.st_ino
        self._identity = self._identity or found
        if found is None or found != self._identity:
            raise FileNotFoundError(
                f"{self.path} was removed or moved away while the run went on: what was in it is no longer there, and "
                "nothing more was saved"
            )

    def write_versions(self, **more: Any) -> None:
        """What the run was made with, and what else there is to say of that."""
        content = {**(read_versions(self.path) or versions()), **more}
        write_atomically(self.path / "versions.json", json.dumps(content, indent=2) + "\n")

    def note_resume(self, step: int) -> None:
        """Adds to resumed.csv when, from which step, at which commit and by what command a run goes on."""
        row = {"at": _now(), "step": step, "commit": _commit(), "command": shlex.join(sys.argv)}
        append_row(self.path / "resumed.csv", row)

    def forget_after(self, step: int) -> None:
        """Removes the rows of metrics.csv and evaluations.csv that come after a step, and what was torn in writing."""
        for path in (self.metrics, self.evaluations):
            columns, rows = rows_until(path, step)
            if columns:
                write_table(path, columns, rows)
            else:
                path.unlink(missing_ok=True)
        # Whoever calls this has locked the directory: nobody else is writing.
        for left_over in (*self.path.glob("*.tmp"), *self.path.glob("checkpoints/*.tmp")):
            left_over.unlink(missing_ok=True)

    def write_result(self, folder: str, name: str, result: Mapping[str, Any]) -> Path:
        """Writes ``folder/name.json``, or ``name-2.json``, ... where that exists, and returns where."""
        text = json.dumps(result, indent=2, allow_nan=False) + "\n"
        (self.path / folder).mkdir(exist_ok=True)
        for path in numbered_paths(self.path / folder, name, ".json"):
            with suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
                file.write(text)
                return path
        raise AssertionError


def runs_in(root: str | os.PathLike[str]) -> list[RunDirectory]:
    """The runs in a folder, those started first first, or RunError where there is no such folder."""
    if not Path(root).is_dir():
        raise RunError(f"{os.fspath(root)} is no directory; give the folder that runs are in")
    found = [RunDirectory(path.parent) for path in Path(root).glob("*/settings.yaml")]
    return sorted(found, key=lambda run: (str(read_versions(run.path).get("started", "")), run.path.name))


def run_name(env_id: str, memory: str, seed: int | str) -> str:
    """``CartPoleNoVel-v1-lstm-0-20261104-153012``, with what a file name cannot hold replaced."""
    plain = [re.sub(r"[^\w.+-]+", "_", part.rpartition(":")[2]) for part in (env_id, memory)]
    return f"{plain[0]}-{plain[1]}-{seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a CSV file atomically; without columns an empty one."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue() if columns else "")


def write_atomically(path: Path, text: str) -> None:
    """Synced under another name, and then there: a reader, or who comes after a kill, finds all of it or what was."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def versions() -> dict[str, Any]:
    """Python, every installed package, the commit of this source, machine, command and time."""
    packages = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return {
        "started": _now(),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "host": platform.node(),
        "process": os.getpid(),
        "commit": _commit(),
        "packages": dict(sorted((name, version) for name, version in packages.items() if name)),
    }


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a row to a CSV file; every row has the same columns."""
    columns = rows_until(path, 0)[0]
    with path.open("a", newline="", encoding="utf-8") as file:
        # A run that an older version began has the columns of that one.
        writer = csv.DictWriter(file, fieldnames=columns or list(row), extrasaction="ignore")
        if not columns:
            writer.writeheader()
        writer.writerow(row)


def numbered_paths(folder: Path, stem: str, suffix: str = "") -> Iterator[Path]:
    """stem, stem-2, stem-3, ..."""
    yield folder / f"{stem}{suffix}"
    yield from (folder / f"{stem}-{number}{suffix}" for number in itertools.count(2))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


@cache  # of what is running
def _commit() -> str | None:
    """The commit this source is at, marked where files were changed since; None where it is no repository."""
    source = Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():
        return None

    def git(*words: str) -> str:
        command = ["git", "-C", str(source), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (" (changed)" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
