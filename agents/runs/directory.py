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

A directory belongs to one run and is never overwritten.
"""

import csv
import importlib.metadata
import io
import itertools
import json
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

try:
    import fcntl
except ImportError:  # pragma: no cover
    fcntl = None  # type: ignore[assignment]

_CHECKPOINT = re.compile(r"step_(\d+)\.zip")

State = Literal["finished", "training", "stopped"]


class RunError(Exception):
    """A run's directory cannot be made, or is none."""


class RunExists(RunError):
    """There is one of that name already."""


class RunDirectory:
    """Where a run keeps its files.

    Args:
        path: of a directory that exists.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.settings = self.path / "settings.yaml"
        self.metrics = self.path / "metrics.csv"
        self.evaluations = self.path / "evaluations.csv"
        self.best = self.path / "best.zip"
        self.tensorboard = self.path / "tensorboard"
        self.videos = self.path / "videos"
        self._versions = self.path / "versions.json"
        self._identity: tuple[int, int] | None = None

    @classmethod
    def create(cls, root: str | os.PathLike[str], name: str) -> "RunDirectory":
        """A new directory ``root/name``. Raises RunExists, or RunError where it cannot be made."""
        path = Path(root) / name
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise RunExists(f"{path} exists and a run is never overwritten; choose another name") from None
        except OSError as error:
            raise RunError(f"cannot make the run's directory {path}: {error.strerror or error}") from error
        return cls(path)

    @classmethod
    def create_unique(cls, root: str | os.PathLike[str], name: str) -> "RunDirectory":
        """A new directory ``root/name``, or ``root/name-2``, ... Raises RunError where none can be made."""
        for path in _numbered(Path(root), name):
            with suppress(RunExists):  # mkdir decides, so two runs that start at once never share one
                return cls.create(root, path.name)
        raise AssertionError

    @contextmanager
    def removed_if_nothing_came_of_it(self) -> Iterator[None]:
        """Removes the directory, which is new, where what is done inside fails before the first update."""
        try:
            yield
        except Exception:
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
        """Where the checkpoint of a step lies."""
        return self.path / "checkpoints" / f"step_{step:012d}.zip"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, file) of every checkpoint there is, oldest first."""
        found = [(_CHECKPOINT.fullmatch(path.name), path) for path in (self.path / "checkpoints").glob("step_*.zip")]
        return sorted((int(match[1]), path) for match, path in found if match)

    def drop_checkpoints(self, keep: int) -> None:
        """Removes all checkpoints but the latest ``keep``."""
        for _, path in self.checkpoints()[:-keep]:
            path.unlink(missing_ok=True)

    @property
    def has_agent(self) -> bool:
        """Whether an agent has been saved yet."""
        return self.best.is_file() or bool(self.checkpoints())

    def find(self, checkpoint: str) -> Path:
        """The file of ``best``, ``last``, a step, or a path (as it is, or from the run).

        Raises:
            RunError: there is none; the message lists what there is.
        """
        saved = self.checkpoints()
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
        return next(path for path in _numbered(self.path, stem, suffix) if not path.exists())

    def last_step(self) -> int:
        """The latest environment step that left a trace: a row of metrics, an evaluation, a checkpoint."""
        saved = [step for step, _ in self.checkpoints()]
        logged = [int(row["step"]) for path in (self.metrics, self.evaluations) for row in _rows(path)]
        return max([*saved, *logged], default=0)

    def state(self, total_timesteps: int, stop_at_return: float | None = None) -> State:
        """Whether training reached its end, goes on, or was stopped; ``stop_at_return`` is an earlier end."""
        saved = [step for step, _ in self.checkpoints()[-1:]]
        best = self.best_return()
        at_goal = best is not None and stop_at_return is not None and best >= stop_at_return
        if saved and (saved[0] >= total_timesteps or at_goal):
            return "finished"
        return "training" if self._is_locked() else "stopped"

    def best_return(self) -> float | None:
        """The highest mean return of a periodic evaluation, None before the first."""
        means = (_finite(row.get("mean_reward")) for row in _rows(self.evaluations))
        return max((mean for mean in means if mean is not None), default=None)

    def versions(self) -> dict[str, Any]:
        """What the run was made with; empty where that was not written or cannot be read."""
        try:
            found = json.loads(self._versions.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else can train in the directory inside; the lock goes with the process, however that ends.

        Raises:
            RunError: somebody does already.
        """
        descriptor = self._try_lock()
        if descriptor is None:
            raise RunError(f"another process is training in {self.path}; wait for its end or end it")
        try:
            yield
        finally:
            _close(descriptor)

    def _try_lock(self) -> int | None:
        """What to close to unlock the directory; None where another process has locked it."""
        if fcntl is None:  # pragma: no cover
            return -1
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:  # a file system without locks
            pass
        return descriptor

    def _is_locked(self) -> bool:
        descriptor = self._try_lock()
        if descriptor is not None:
            _close(descriptor)
        return descriptor is None

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

    def write_settings(self, text: str) -> None:
        """Atomically: without its settings a run could not be resumed."""
        write_atomically(self.settings, text)

    def write_versions(self) -> None:
        """What the run was made with."""
        write_atomically(self._versions, json.dumps(versions(), indent=2) + "\n")

    def write_plan(self, parts: dict[str, str]) -> None:
        """Adds to versions.json how each part of the agent's policy is computed, and why not faster."""
        write_atomically(self._versions, json.dumps({**self.versions(), "computed": parts}, indent=2) + "\n")

    def note_resume(self, step: int) -> None:
        """Adds to resumed.csv when, from which step, at which commit and by what command a run goes on."""
        row = {"at": _now(), "step": step, "commit": _commit(), "command": shlex.join(sys.argv)}
        _append(self.path / "resumed.csv", row)

    def append_evaluation(self, row: Mapping[str, Any]) -> None:
        """Adds a periodic evaluation to evaluations.csv; every row has the same columns."""
        _append(self.evaluations, row)

    def forget_after(self, step: int) -> None:
        """Removes the rows of metrics.csv and evaluations.csv that come after a step, and what was torn in writing."""
        for path in (self.metrics, self.evaluations):
            columns, rows = rows_until(path, step)
            if columns:
                write_atomically(path, csv_text([columns, *(row.values() for row in rows)]))
            else:
                path.unlink(missing_ok=True)
        # Whoever calls this has locked the directory: nobody else is writing.
        for left_over in (*self.path.glob("*.tmp"), *self.path.glob("checkpoints/*.tmp")):
            left_over.unlink(missing_ok=True)

    def write_evaluation(self, name: str, result: Mapping[str, Any]) -> Path:
        """Writes ``evaluations/name.json``, or ``name-2.json``, ... where that exists, and returns where."""
        return self._write_result("evaluations", name, result)

    def write_insight(self, name: str, result: Mapping[str, Any]) -> Path:
        """Writes ``insight/name.json``, or ``name-2.json``, ...; its plots and arrays lie there under the same stem."""
        return self._write_result("insight", name, result)

    def _write_result(self, folder: str, name: str, result: Mapping[str, Any]) -> Path:
        text = json.dumps(result, indent=2, allow_nan=False) + "\n"
        (self.path / folder).mkdir(exist_ok=True)
        for path in _numbered(self.path / folder, name, ".json"):
            with suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
                file.write(text)
                return path
        raise AssertionError


def runs_in(root: str | os.PathLike[str]) -> list[RunDirectory]:
    """The runs in a folder, those started first first.

    Looked up each time: a list kept in a file would go stale where a run is moved, deleted or copied in.

    Raises:
        RunError: there is no such folder.
    """
    if not Path(root).is_dir():
        raise RunError(f"{os.fspath(root)} is no directory; give the folder that runs are in")
    found = [RunDirectory(path.parent) for path in Path(root).glob("*/settings.yaml")]
    return sorted(found, key=lambda run: (str(run.versions().get("started", "")), run.path.name))


def run_name(env_id: str, memory: str, seed: int | str) -> str:
    """``CartPoleNoVel-v1-lstm-0-20261104-153012``, with what a file name cannot hold replaced."""
    plain = [re.sub(r"[^\w.+-]+", "_", part.rpartition(":")[2]) for part in (env_id, memory)]
    return f"{plain[0]}-{plain[1]}-{seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def rows_until(path: Path, step: float = math.inf) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a CSV file up to a step; none where there is no file. A row that is torn is left out.

    Raises:
        RunError: it is no text.
    """
    if not path.is_file():
        return [], []
    content = path.read_bytes()
    try:
        columns, *rows = [*csv.reader(io.StringIO(content.decode("utf-8"), newline=""))] or [[]]
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RunError(
            f"line {line} of {path} is not UTF-8 (byte {error.start} is {content[error.start]:#04x}): mend it, or "
            "move the file away"
        ) from error
    except csv.Error as error:
        raise RunError(f"{path} cannot be read ({error}): mend it, or move the file away") from error
    if "step" not in columns:
        return [], []
    place = columns.index("step")
    complete = [row for row in rows if len(row) == len(columns) and row[place].isdigit()]
    return columns, [dict(zip(columns, row, strict=True)) for row in complete if int(row[place]) <= step]


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


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


def _append(path: Path, row: Mapping[str, Any]) -> None:
    columns = rows_until(path, 0)[0] if path.exists() else []
    with path.open("a", newline="", encoding="utf-8") as file:
        # A run that an older version began has the columns of that one.
        writer = csv.DictWriter(file, fieldnames=columns or list(row), extrasaction="ignore")
        if not columns:
            writer.writeheader()
        writer.writerow(row)


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, none of one that cannot be read."""
    try:
        return rows_until(path)[1]
    except (RunError, OSError):
        return []


def _finite(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _numbered(folder: Path, stem: str, suffix: str = "") -> Iterator[Path]:
    """stem, stem-2, stem-3, ..."""
    yield folder / f"{stem}{suffix}"
    yield from (folder / f"{stem}-{number}{suffix}" for number in itertools.count(2))


def _close(descriptor: int) -> None:
    with suppress(OSError):
        os.close(descriptor)


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
