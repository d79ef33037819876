"""Where metrics go: a CSV file always, TensorBoard and Weights & Biases beside it, under Stable-Baselines3's names.

The CSV file is flushed line by line, so that it is whole whatever ends the process. Weights & Biases never blocks a
run for longer than its timeout and never ends one: where it cannot be reached the run is recorded offline, and where it
fails later the run goes on without it.
"""

import csv
import http.client
import os
import sys
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat

from agents.run_directory import RunDirectory

Mode = Literal["off", "offline", "online"]
Answer = TypeVar("Answer")


def make_logger(
    run: RunDirectory,
    *,
    tensorboard: bool = True,
    wandb: Mapping[str, Any] | None = None,
    resumed_at: int | None = None,
) -> Logger:
    """Stable-Baselines3's logger over a run's directory.

    Args:
        resumed_at: the step from which a run goes on: what TensorBoard was told of later ones it forgets.
        wandb: arguments of :class:`WandbWriter`, None for none.
    """
    writers: list[KVWriter] = [CsvWriter(run.metrics)]
    if tensorboard:
        writers.append(_tensorboard(run.tensorboard, resumed_at))
    if wandb is not None:
        writers.append(WandbWriter(run.path, id=run.id, **wandb))
    return Logger(str(run.path), writers)


def _tensorboard(folder: Path, resumed_at: int | None) -> TensorBoardOutputFormat:
    output = TensorBoardOutputFormat(str(folder))
    if resumed_at is not None:
        output.writer.close()
        output.writer = type(output.writer)(log_dir=str(folder), purge_step=resumed_at + 1)
    return output


class CsvWriter(KVWriter):
    """A row a dump, after those there are. A metric that turns up later gets a new column, empty in the rows before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a+", newline="", encoding="utf-8")
        self._file.seek(0)
        self._columns: list[str] = next(csv.reader(self._file), [])
        self._file.seek(0, os.SEEK_END)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        row = {"step": step, **_numbers(key_values, key_excluded, "csv")}
        new = [name for name in row if name not in self._columns]
        if new:
            self._add_columns(new)
        csv.writer(self._file).writerow([row.get(name, "") for name in self._columns])
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _add_columns(self, names: list[str]) -> None:
        """Rewrites what there is under a longer header, beside the file and then in its place."""
        self._file.close()
        with self._path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))[1:]
        self._columns += names
        beside = self._path.with_suffix(".tmp")
        with beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self._columns)
            writer.writerows([*row, *[""] * (len(self._columns) - len(row))] for row in rows)
        beside.replace(self._path)
        self._file = self._path.open("a", newline="", encoding="utf-8")


class WandbWriter(KVWriter):
    """Logs straight to Weights & Biases, with the environment step as the axis of every metric.

    Args:
        directory: the files go to ``directory/wandb``.
        mode: online becomes offline where there is no key or no network.
        timeout: seconds to wait for the server, at the start and again at the end.
        id: of the run, which a run that is resumed goes on with; None for a new one.
    """

    def __init__(
        self,
        directory: Path,
        *,
        mode: Mode,
        project: str,
        config: Mapping[str, Any],
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        timeout: float = 8.0,
        id: str | None = None,
    ) -> None:
        self.mode: Mode = mode
        # Its reports on itself wait at exit for a server that does not answer, and it takes our package `agents` for a
        # library of language models and recommends a tool for these.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
        if mode == "online" and (reason := _cannot_go_online(timeout)):
            _say(f"{reason}; recording offline, upload later with `wandb sync {directory / 'wandb' / 'offline-run-*'}`")
            self.mode = "offline"
        arguments = dict(
            dir=str(directory),
            name=directory.name,
            project=project,
            entity=entity,
            group=group,
            tags=list(tags),
            config=dict(config),
            id=id,
            resume=None if id is None else "allow",
        )
        self._run: Any = self._started(arguments, timeout)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        if self._run is None:
            return
        try:
            self._run.log({"global_step": step, **_numbers(key_values, key_excluded, "wandb")})
        except Exception as error:
            self._give_up(error)

    def close(self, exit_code: int = 0) -> None:
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=exit_code)
        except Exception as error:
            self._give_up(error)
        self._run = None

    def _started(self, arguments: dict[str, Any], timeout: float) -> Any:
        try:
            return _start(self.mode, arguments, timeout)
        except Exception as error:
            if self.mode == "offline":
                return self._give_up(error)
            _say(f"could not go online ({str(error).splitlines()[0]}); recording offline")
        self.mode = "offline"
        try:
            return _start("offline", arguments, timeout)
        except Exception as error:
            return self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Whatever fails there, the run goes on: its metrics are in metrics.csv."""
        self._run = None
        _say(f"no longer recording: {error}")


def _start(mode: Any, arguments: dict[str, Any], timeout: float) -> Any:
    import wandb

    known = set(getattr(wandb.Settings, "model_fields", ()))
    # finish_timeout is recent; without it finish() waits for an upload however long that takes.
    options: dict[str, Any] = {"init_timeout": timeout, "finish_timeout": timeout, "silent": True, "console": "off"}
    settings = wandb.Settings(**{name: value for name, value in options.items() if name in known})
    run = wandb.init(mode=mode, settings=settings, **arguments)
    run.define_metric("global_step", hidden=True)
    run.define_metric("*", step_metric="global_step")
    return run


def _cannot_go_online(timeout: float) -> str | None:
    """Why not, found out without a prompt and within the timeout; None where it can be tried."""
    if not _within(timeout, _has_key, default=False):
        return "there is no key (`wandb login` stores one)"
    server = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    if not _within(timeout, lambda: _answers(server, timeout), default=False):
        return f"{server} cannot be reached"
    return None


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    try:
        return bool(wandb.login(prompt=False))
    except TypeError:  # wandb before 0.31 has no such argument
        return bool(wandb.api.api_key)


def _answers(server: str, timeout: float) -> bool:
    """Whether anything comes back: a connection alone may be to a proxy or firewall that swallows the rest."""
    try:
        urllib.request.urlopen(server, timeout=timeout).close()
    except urllib.error.HTTPError:  # an answer too
        return True
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True


def _within(seconds: float, question: Callable[[], Answer], default: Answer) -> Answer:
    """The answer, or the default where it fails or takes longer: looking up a name knows no timeout of its own."""
    answers = [default]

    def ask() -> None:
        try:
            answers.append(question())
        except Exception as error:
            warnings.warn(f"Weights & Biases: {error}", stacklevel=2)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[-1]


def _say(message: str) -> None:
    print(f"Weights & Biases: {message}", file=sys.stderr)


def _numbers(key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], writer: str) -> dict[str, Any]:
    """What of a dump is a number or a text and not excluded from this writer."""
    numbers: dict[str, Any] = {}
    for name, value in sorted(key_values.items()):
        if writer in (key_excluded.get(name) or ()):
            continue
        if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.size == 1):
            value = value.item()
        if isinstance(value, (bool, int, float, str)):
            numbers[name] = value
    return numbers
