"""A run's directory: the one thing that training and evaluation share.

    settings.yaml        the settings as resolved
    trusted_modules.json the modules of its user's own that it imports, signed; only where there are any
    versions.json        Python, packages, commit, machine, command
    metrics.csv          a row per update
    tensorboard/         the same as TensorBoard events
    wandb/               the same as Weights & Biases files, when asked for
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
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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
        self._identity: tuple[int, int] | None = None

    @classmethod
    def create(cls, root: str | os.PathLike[str], name: str) -> "RunDirectory":
        """A new directory ``root/name``.

        Raises:
            RunExists: there is one of that name.
            RunError: it cannot be made.
        """
        try:
            (Path(root) / name).mkdir(parents=True)
        except FileExistsError:
            raise RunExists(f"{Path(root) / name} exists and a run is never overwritten; choose another name") from None
        except OSError as error:
            raise RunError(f"cannot make the run's directory {Path(root) / name}: {error.strerror or error}") from error
        return cls(Path(root) / name)

    @classmethod
    def create_unique(cls, root: str | os.PathLike[str], name: str) -> "RunDirectory":
        """A new directory ``root/name``, or ``root/name-2``, ... where that exists.

        Raises:
            RunError: none can be made.
        """
        suffix = 1
        while True:
            try:
                # mkdir decides, so two runs that start at once never share one.
                return cls.create(root, name if suffix == 1 else f"{name}-{suffix}")
            except RunExists:
                suffix += 1

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "RunDirectory":
        """The directory of a run that was started.

        Raises:
            RunError: there is none.
        """
        if not Path(path).is_dir():
            raise RunError(f"{os.fspath(path)} is no directory; give that of a run, such as runs/NAME")
        if not (Path(path) / "settings.yaml").is_file():
            raise RunError(f"{os.fspath(path)} holds no settings.yaml, so it is no run of train.py")
        return cls(path)

    @property
    def settings(self) -> Path:
        return self.path / "settings.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def best(self) -> Path:
        return self.path / "best.zip"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def videos(self) -> Path:
        return self.path / "videos"

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.path / "checkpoints" / f"step_{step:012d}.zip"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, file) of every checkpoint there is, oldest first."""
        found = [(_CHECKPOINT.fullmatch(path.name), path) for path in (self.path / "checkpoints").glob("step_*.zip")]
        return sorted((int(match[1]), path) for match, path in found if match)

    @property
    def has_agent(self) -> bool:
        """Whether an agent has been saved yet."""
        return self.best.is_file() or bool(self.checkpoints())

    def free_name(self, name: str) -> Path:
        """Where a new file of that name can lie: ``name``, or with -2, -3, ... where that is taken."""
        path, suffix = self.path / name, 1
        while path.exists():
            suffix += 1
            path = (self.path / name).with_stem(f"{Path(name).stem}-{suffix}")
        return path

    def drop_checkpoints(self, keep: int) -> None:
        """Removes all checkpoints but the latest ``keep``."""
        for _, path in self.checkpoints()[:-keep]:
            path.unlink(missing_ok=True)

    def find(self, checkpoint: str) -> Path:
        """The file of ``best``, ``last``, a step, or a path (as it is, or from the run).

        Raises:
            RunError: there is none; the message lists what there is.
        """
        there = self.checkpoints()
        if checkpoint == "best" and self.best.is_file():
            return self.best
        # Without a periodic evaluation there is no best; then the last is what the run has to show.
        if checkpoint in ("best", "last") and there:
            return there[-1][1]
        if checkpoint.isdigit() and self.checkpoint(int(checkpoint)).is_file():
            return self.checkpoint(int(checkpoint))
        for path in (Path(checkpoint), self.path / checkpoint):
            if checkpoint not in ("", "best", "last") and path.is_file():
                return path
        known = [*(["best", "last"] if there else ["best"] if self.best.is_file() else []), *(str(s) for s, _ in there)]
        if not known:
            raise RunError(f"{self.path} holds no saved agent; its training was ended before the first was saved")
        raise RunError(f"{self.path} has no checkpoint {checkpoint!r}; there are {', '.join(known)}")

    def last_step(self) -> int:
        """The latest environment step that left a trace: a row of metrics, an evaluation, a checkpoint."""
        saved = [step for step, _ in self.checkpoints()[-1:]]
        return max([*saved, _last_step_of(self.metrics), _last_step_of(self.path / "evaluations.csv")])

    def state(self, total_timesteps: int, stop_at_return: float | None = None) -> State:
        """Whether training reached its end, goes on, or was stopped; ``stop_at_return`` is an earlier end."""
        saved = [step for step, _ in self.checkpoints()[-1:]]
        best = self.best_return()
        at_goal = best is not None and stop_at_return is not None and best >= stop_at_return
        if saved and (saved[0] >= total_timesteps or at_goal):
            return "finished"
        return "training" if self._is_at_work() else "stopped"

    def best_return(self) -> float | None:
        """The highest mean return of a periodic evaluation, None before the first."""
        try:
            with (self.path / "evaluations.csv").open(newline="", encoding="utf-8") as file:
                found = [_finite(row.get("mean_reward")) for row in csv.DictReader(file)]
        except (OSError, ValueError, csv.Error):
            return None
        return max((mean for mean in found if mean is not None), default=None)

    def versions(self) -> dict[str, Any]:
        """What the run was made with; empty where that was not written or cannot be read."""
        try:
            found = json.loads((self.path / "versions.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _is_at_work(self) -> bool:
        """Whether somebody holds the directory, or the process that started the run is still there."""
        if self._is_held():
            return True
        made = self.versions()
        process = made.get("process")
        if made.get("host") != platform.node() or not isinstance(process, int) or process < 1:
            return False
        if made.get("process_started") != _process_started(process):  # another has its number now
            return False
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
        except OverflowError:  # no process has such a number
            return False
        except OSError:  # somebody else's process
            return True
        return True

    def write_settings(self, text: str) -> None:
        """Appears whole or not at all: without its settings a run could not be resumed."""
        _write_whole(self.settings, text)

    def write_versions(self) -> None:
        """What the run was made with."""
        _write_whole(self.path / "versions.json", json.dumps(versions(), indent=2) + "\n")

    def write_plan(self, parts: dict[str, str]) -> None:
        """Adds to versions.json how each part of the agent's policy is computed, and why not faster."""
        _write_whole(self.path / "versions.json", json.dumps({**self.versions(), "computed": parts}, indent=2) + "\n")

    def note_resume(self, step: int) -> None:
        """Adds to resumed.csv when, from which step, at which commit and by what command a run goes on."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._append(
            self.path / "resumed.csv", {"at": now, "step": step, "commit": _commit(), "command": shlex.join(sys.argv)}
        )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else can train in the directory inside; the mark goes with the process, however that ends.

        Raises:
            RunError: somebody does already.
        """
        if fcntl is None:  # pragma: no cover
            yield
            return
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise RunError(f"another process is training in {self.path}; wait for its end or end it") from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            with suppress(OSError):
                os.close(descriptor)

    def _is_held(self) -> bool:
        if fcntl is None:  # pragma: no cover
            return False
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return False
        finally:
            os.close(descriptor)
        return False

    def evaluations_until(self, step: int) -> list[dict[str, str]]:
        """The rows of evaluations.csv up to a step."""
        return rows_until(self.path / "evaluations.csv", step)[1]

    def forget_after(self, step: int) -> None:
        """Removes the rows of metrics.csv and evaluations.csv that come after a step, and what was torn in writing."""
        for path in (self.metrics, self.path / "evaluations.csv"):
            columns, rows = rows_until(path, step)
            if not columns:
                path.unlink(missing_ok=True)
                continue
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, fieldnames=columns)
            writer.writeheader()
            writer.writerows(rows)
            _write_whole(path, text.getvalue())
        # Whoever calls this holds the directory: nobody else is writing.
        for left_over in (*self.path.glob("*.tmp"), *self.path.glob("checkpoints/*.tmp")):
            left_over.unlink(missing_ok=True)

    def check_there(self) -> None:
        """Raises FileNotFoundError where it is no longer the directory that it was when this was called first."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            found = None
        else:
            found = status.st_dev, status.st_ino
        self._identity = self._identity or found
        if found is None or found != self._identity:
            raise FileNotFoundError(
                f"{self.path} was removed or moved away while the run went on: what was in it is no longer there, and "
                "nothing more was saved"
            )

    def write_evaluation(self, name: str, result: Mapping[str, Any]) -> Path:
        """Writes ``evaluations/name.json``, or ``name-2.json``, ... where that exists, and returns where."""
        folder = self.path / "evaluations"
        folder.mkdir(exist_ok=True)
        return write_json_once(folder / f"{name}.json", result)

    def write_insight(self, name: str, result: Mapping[str, Any]) -> Path:
        """Writes ``insight/name.json``, or ``name-2.json``, ... where that exists, and returns where.

        Whoever got a name may write beside it what begins with the same: plots, arrays.
        """
        folder = self.path / "insight"
        folder.mkdir(exist_ok=True)
        return write_json_once(folder / f"{name}.json", result)

    def append_evaluation(self, row: Mapping[str, Any]) -> None:
        """Adds a periodic evaluation to evaluations.csv; every row has the same columns."""
        self._append(self.path / "evaluations.csv", row)

    def _append(self, path: Path, row: Mapping[str, Any]) -> None:
        columns = rows_until(path, 0)[0] if path.exists() else []
        with path.open("a", newline="", encoding="utf-8") as file:
            # A run that an older version began has the columns of that one.
            writer = csv.DictWriter(file, fieldnames=columns or list(row), extrasaction="ignore")
            if not columns:
                writer.writeheader()
            writer.writerow(row)


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


def _last_step_of(path: Path) -> int:
    """The step in a CSV file's last whole line, 0 where there is none. Reads no more than the file's end."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 2**16))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return 0
    step = _finite(lines[-1].split(b",")[0].decode("ascii", "replace")) if lines else None
    return int(step or 0)


def _finite(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _write_whole(path: Path, text: str) -> None:
    """Beside its place, synced, and then there: a reader, or who comes after a kill, finds all of it or what was."""
    beside = path.with_name(f"{path.name}.tmp")
    with beside.open("w", newline="", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def rows_until(path: Path, step: float = math.inf) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a CSV file up to a step; none where there is no file. A row that is not whole is left out.

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
    whole = [row for row in rows if len(row) == len(columns) and row[place].isdigit()]
    return columns, [dict(zip(columns, row, strict=True)) for row in whole if int(row[place]) <= step]


def write_json_once(path: Path, content: Mapping[str, Any]) -> Path:
    """Writes a file that does not exist yet, numbering its name where it does, and returns where."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    suffix = 1
    while True:
        candidate = path if suffix == 1 else path.with_stem(f"{path.stem}-{suffix}")
        try:
            with candidate.open("x", encoding="utf-8") as file:
                file.write(text)
            return candidate
        except FileExistsError:
            suffix += 1


def run_name(env_id: str, memory: str, seed: int | str) -> str:
    """``CartPoleNoVel-v1-lstm-0-20261104-153012``, with what a file name cannot hold replaced."""
    plain = [re.sub(r"[^\w.+-]+", "_", part.rpartition(":")[2]) for part in (env_id, memory)]
    return f"{plain[0]}-{plain[1]}-{seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def versions() -> dict[str, Any]:
    """A run's id, Python, every installed package, the commit of this source, machine, command and time."""
    packages = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "host": platform.node(),
        "process": os.getpid(),
        "process_started": _process_started(os.getpid()),
        "commit": _commit(),
        "packages": dict(sorted((name, version) for name, version in packages.items() if name)),
    }


def _process_started(process: int) -> str | None:
    """When a process began, in ticks since the system did, and which start of the system that was."""
    try:
        # Behind the name, which is in brackets and may hold some itself.
        ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{ticks} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    except (OSError, IndexError):
        return None


def _commit() -> str | None:
    """The commit this source is at, marked where files were changed since; None where it is no repository."""
    source = Path(__file__).resolve().parents[1]
    if not (source / ".git").exists():
        return None

    def git(*words: str) -> str:
        command = ["git", "-C", str(source), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (" (changed)" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
