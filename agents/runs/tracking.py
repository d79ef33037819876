"""Where metrics go: a CSV file always, TensorBoard and Weights & Biases on request, under Stable-Baselines3's names.

metrics.csv, flushed line by line, is the record. Weights & Biases never blocks a run for longer than its timeout and
never ends one: where it cannot be reached the run is recorded offline, and where it fails later the run goes on and is
uploaded by hand. What a killed process had not sent, a run that goes on sends out of the file, and nothing twice.
"""

import csv
import hashlib
import http.client
import io
import json
import math
import os
import secrets
import shlex
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat
from torch.utils.tensorboard import SummaryWriter

from agents.analysis.report.groups import INCIDENTAL
from agents.analysis.report.history import RunHistory, rows_until
from agents.analysis.statistics import mean
from agents.runs.directory import RunDirectory, write_table
from configs import say
from configs.settings import TrackingSettings

Answer = TypeVar("Answer")


def make_logger(
    run: RunDirectory, tracking: TrackingSettings, config: Mapping[str, Any], resumed_at: int | None = None
) -> Logger:
    """Stable-Baselines3's logger over a run's directory.

    Args:
        resumed_at: the environment step that a run goes on from: what came after it is dropped, for it comes again.
    """
    writers: list[KVWriter] = [CsvWriter(run.metrics, resumed_at)]
    if tracking.tensorboard:
        writers.append(TensorBoardWriter(run.tensorboard, resumed_at))
    if tracking.wandb != "off":
        writers.append(WandbWriter(run.path, tracking, config))
    return RunLogger(str(run.path), writers)


class RunLogger(Logger):
    """Stable-Baselines3's, that closes all its writers whatever one of them says."""

    def close(self) -> None:
        with ExitStack() as stack:
            for writer in self.output_formats:
                stack.callback(writer.close)


class CsvWriter(KVWriter):
    """A row a dump. A metric that turns up later gets a new column, empty in the rows before."""

    def __init__(self, path: Path, resumed_at: int | None = None) -> None:
        self._path = path
        self._rewrite(*(([], []) if resumed_at is None else rows_until(path, resumed_at)))

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        if os.fstat(self._file.fileno()).st_nlink == 0 or not self._path.exists():
            raise FileNotFoundError(f"{self._path} was removed while the run went on; its rows are lost")
        row = {"step": step, **_numbers(key_values, key_excluded, "csv")}
        if new := [name for name in row if name not in self._columns]:
            self._file.close()
            self._rewrite([*self._columns, *new], rows_until(self._path)[1])
        csv.DictWriter(self._file, self._columns).writerow(row)
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _rewrite(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        self._columns = columns
        write_table(self._path, columns, rows)
        self._file = self._path.open("a", newline="", encoding="utf-8")


class TensorBoardWriter(TensorBoardOutputFormat):
    """Stable-Baselines3's. What the system does not take is an OSError that names the folder."""

    def __init__(self, folder: Path, resumed_at: int | None = None) -> None:
        self._folder = folder
        # Tells readers to forget what earlier files say of later steps; of a run from its beginning, all.
        is_new = not (folder.is_dir() and any(folder.iterdir()))
        restart = None if is_new else 0 if resumed_at is None else resumed_at + 1
        # Readers take files by name, which begins with the second; within one, those of a process are not in order.
        if not is_new and any(str(int(time.time())) in file.name for file in folder.iterdir()):
            time.sleep(1.0)
        with self._named():
            self.writer, self._is_closed = SummaryWriter(str(folder), purge_step=restart), False

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        with self._named():
            super().write(key_values, key_excluded, step)

    def close(self) -> None:
        with self._named():
            super().close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise OSError(f"TensorBoard cannot write to {self._folder}: {_last_line(str(error))}") from error


class WandbWriter(KVWriter):
    """Logs straight to Weights & Biases, with the environment step as the axis of every metric.

    A directory is one run there, with the id in ``wandb_id.txt`` and the files in ``wandb``. At the end go up the
    models, as one artifact whose versions ``best`` and ``latest`` are laid out as a run's directory (``evaluate.py``
    takes them), ``videos/`` and the pictures of ``insight/``; and figures to compare runs by: ``best_return``,
    ``mean_return`` and ``last_return`` of the evaluations (of the training episodes where there was none), ``steps``
    and ``steps_per_second``, and of the final evaluation ``final_return`` and ``final/POLICY_MANNER_return``, each with
    its interval's edges ``_low`` and ``_high``. Online becomes offline where there is no key or no network.
    """

    def __init__(self, directory: Path, tracking: TrackingSettings, config: Mapping[str, Any]) -> None:
        self.mode: Literal["offline", "online"] = "online" if tracking.wandb == "online" else "offline"
        self._directory, self._timeout = directory, tracking.wandb_timeout
        self._deterministic = bool(config.get("evaluation", {}).get("deterministic", True))
        self._unsent: list[str] = []  # why, where something could not be sent
        # What there is to compare runs by: of evaluations, and where there is none of the episodes of training.
        self._seen: dict[str, list[float]] = {"eval/mean_reward": [], "rollout/ep_rew_mean": []}
        self._next = 0  # the number of the row that comes next, that of metrics.csv
        # Its reports on itself wait at exit for a server that does not answer, and it takes our package `agents` for a
        # library of language models and recommends a tool for these.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
        if self.mode == "online" and (reason := _cannot_go_online(self._timeout)):
            _say(f"{reason}; recording offline, upload later with `wandb sync {directory / 'wandb' / 'offline-run-*'}`")
            self.mode = "offline"
        arguments = dict(
            dir=str(directory),
            id=run_id(directory),
            resume="allow",
            name=directory.name,
            project=tracking.wandb_project,
            entity=tracking.wandb_entity,
            group=tracking.wandb_group or config.get("group") or seed_group(config),
            tags=list(tracking.wandb_tags),
            config=dict(config),
        )
        self._run: Any = self._started(arguments)
        self._there, self._there_until = self._already_there()
        for kept in rows_until(directory / "metrics.csv")[1]:
            step = int(kept.pop("step"))
            self._log({"global_step": step, **{name: _value(text) for name, text in kept.items() if text}})

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self._log({"global_step": step, **_numbers(key_values, key_excluded, "wandb")})

    def close(self) -> None:
        """Sends what is left and waits, at most as long as the timeout; on an exception's way up the run has failed."""
        if self._run is None:
            return
        exit_code, address = 0 if sys.exc_info()[0] is None else 1, self._run.url
        with redirect_stderr(io.StringIO()) as warned:  # what it has to say there, we say in one line
            with self._noted():
                self._publish()
            with self._noted():
                self._run.finish(exit_code=exit_code)
        self._run = None
        reasons = "; ".join(self._unsent) or _last_line(warned.getvalue())
        if reasons and self.mode == "online":
            upload = f"what was logged is in {self._files}, upload it with `wandb sync --include-online {self._files}`"
            _say(f"not everything was sent ({reasons}); {upload}")
        elif reasons:
            _say(f"not everything was recorded ({reasons})")
        if self.mode == "offline":
            files = shlex.quote(str(self._directory / "wandb" / self._files.name))
            say(f"Weights & Biases: recorded offline; upload it with `wandb sync {files}`")
        elif not reasons:
            say(f"Weights & Biases: the run is at {address}")

    def _log(self, row: dict[str, Any]) -> None:
        """Sends a row, unless it is there already."""
        number, self._next = self._next, self._next + 1
        for name, seen in self._seen.items():
            if isinstance(value := row.get(name), int | float) and math.isfinite(value):
                seen.append(float(value))
        if "eval/mean_reward" in row:
            row |= self._returns()
        if self._run is None or (number < self._there and row["global_step"] <= self._there_until):
            return
        try:
            self._run.log({**row, "row": number})
        except Exception as error:
            self._give_up(error)

    def _returns(self) -> dict[str, float]:
        """The best, the mean and the last return; empty where there is none yet."""
        returns = next(filter(None, self._seen.values()), [])
        if not returns:
            return {}
        return {"best_return": max(returns), "mean_return": float(np.mean(returns)), "last_return": returns[-1]}

    def _already_there(self) -> tuple[int, int]:
        """How many rows of this run are there from before, and the step of the last: online what the server says."""
        if self._run is None:
            return 0, -1
        if self.mode == "offline":
            return recorded_rows(self._directory)
        last = self._run.summary.get("row"), self._run.summary.get("global_step")
        return (0, -1) if None in last else (int(last[0]) + 1, int(last[1]))

    def _started(self, arguments: dict[str, Any]) -> Any:
        import wandb

        wait = self._timeout
        settings = wandb.Settings(
            silent=True, console="off", init_timeout=wait, finish_timeout=wait, finish_timeout_raises=True
        )
        try:
            run = wandb.init(mode=self.mode, settings=settings, **arguments)
        except Exception as error:
            if self.mode == "offline":
                return self._give_up(error)
            _say(f"could not go online ({_last_line(str(error))}); recording offline")
            self.mode = "offline"
            wandb.teardown()  # what has failed goes on holding the run's id
            return self._started(arguments)
        self._files = Path(run.dir).parent
        for name in ("global_step", "row"):
            run.define_metric(name, hidden=True)
        run.define_metric("*", step_metric="global_step")
        return run

    def _publish(self) -> None:
        """Everything that is no row of metrics. A file that cannot be sent does not keep the others back."""
        import wandb

        summary = self._run.summary
        named = {"steps": summary.get("global_step"), "steps_per_second": summary.get("time/fps")}
        named = {name: each for name, each in named.items() if each is not None}
        summary.update({**self._returns(), **named, **self._final()})
        for path in sorted(self._directory.glob("videos/*")):
            if path.suffix in (".mp4", ".gif"):
                self._show(f"videos/{path.stem}", path, wandb.Video, format=path.suffix[1:])
        for path in sorted(self._directory.glob("insight/*.png")):
            self._show(f"plots/{path.stem}", path, wandb.Image)
        # Sending a model asks the server first, and asks on and on where it has gone.
        if self.mode == "online" and not _server_answers(self._timeout):
            self._unsent.append("the server does not answer")
            return
        run = RunDirectory(self._directory)
        if run.best.is_file():
            self._send_model(run.best, "best")
        for _, model in run.checkpoints()[-1:]:  # the server takes the last that comes for the latest
            self._send_model(model, "latest")

    def _final(self) -> dict[str, float]:
        """The last policy's evaluation after training, as it is set to act, and those of both policies both ways."""
        last = [path.name for _, path in RunDirectory(self._directory).checkpoints()[-1:]]
        found: dict[str, float] = {}
        for file, evaluation in RunHistory(self._directory, {}).results():
            if file not in ("best.zip", *last):
                continue
            policy = "best" if file == "best.zip" else "last"
            names = [f"final/{policy}_{evaluation.manner}_return"]
            if policy == "last" and evaluation.deterministic == self._deterministic:
                names.append("final_return")
            low, high = evaluation.interval(mean)
            for name in names:
                found |= {name: evaluation.mean, f"{name}_low": low, f"{name}_high": high}
        return found

    def _show(self, name: str, path: Path, kind: Callable[..., Any], **options: Any) -> None:
        with self._noted():
            self._run.log({"global_step": self._run.summary.get("global_step", 0), name: kind(str(path), **options)})

    def _send_model(self, model: Path, alias: str) -> None:
        sent = _within(self._timeout, lambda: self._log_model(model, alias), default=None)
        if sent is None:
            self._unsent.append(f"{model.name} was not sent")
        elif self.mode == "online":  # where another is to come after it, not at the same time
            _within(self._timeout, sent.wait, default=None)

    def _log_model(self, model: Path, alias: str) -> Any:
        import wandb

        artifact = wandb.Artifact(f"model-{self._run.id}", type="model")
        for path in (model, self._directory / "settings.yaml"):
            if path.is_file():
                # Immutable: sent from where it lies, without a copy in the user's home.
                name = path.relative_to(self._directory).as_posix()
                artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
        return self._run.log_artifact(artifact, aliases=[alias])

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Whatever fails inside is a reason to give, and nothing more."""
        try:
            yield
        except Exception as error:
            self._unsent.append(_last_line(str(error)) or type(error).__name__)

    def _give_up(self, error: Exception) -> None:
        """Whatever fails there, the run goes on: its metrics are in metrics.csv."""
        self._run = None
        _say(f"no longer recording: {error}")


def recorded_rows(directory: Path) -> tuple[int, int]:
    """How many rows the files of Weights & Biases in a run's directory hold, and the step of the last of them."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    count, until = 0, -1
    for file in directory.glob("wandb/*run-*/run-*.wandb"):
        for data in complete_records(file.read_bytes()):
            try:
                record = Record.FromString(data)
                row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                if "row" in row:
                    count, until = max(count, int(row["row"]) + 1), max(until, int(row["global_step"]))
            except Exception:  # of a newer wandb: what is not understood is not known to be there, and is sent
                break
    return count, until


def complete_records(content: bytes) -> Iterator[bytes]:
    """The records of a file of Weights & Biases, up to one that is torn.

    The format is that of LevelDB's log, after a header of 7 bytes: blocks of 32 KiB that hold parts, each with a
    checksum, a length and a kind (1 complete, 2 first, 3 middle, 4 last).
    """
    at, record = 7, b""
    while at + 7 <= len(content):
        left_in_block = 32768 - at % 32768
        if left_in_block < 7:
            at += left_in_block
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        if kind not in (1, 2, 3, 4) or at + 7 + length > len(content):
            return
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def run_id(directory: Path) -> str:
    """The id that a directory's run has at Weights & Biases, kept in the directory from the first time on."""
    file = directory / "wandb_id.txt"
    if not file.is_file():
        # The agent of a sweep decides it.
        file.write_text((os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)) + "\n", encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()


def seed_group(config: Mapping[str, Any]) -> str | None:
    """A name shared by the runs whose settings differ in nothing but the seed and what does not shape the agent."""
    if "seed" not in config:
        return None
    shared = {name: value for name, value in config.items() if name not in INCIDENTAL}
    digest = hashlib.sha256(json.dumps(shared, sort_keys=True, default=str).encode()).hexdigest()[:6]
    task, memory = config.get("env", {}).get("id"), config.get("policy", {}).get("memory")
    return "-".join(str(part) for part in (task, memory, digest) if part)


def _cannot_go_online(timeout: float) -> str | None:
    """Why not, found out without a prompt and within the timeout; None where it can be tried."""
    if not _within(timeout, _has_key, default=False):
        return "there is no key (`wandb login` stores one)"
    return None if _server_answers(timeout) else f"{_server()} cannot be reached"


def _has_key() -> bool:
    import wandb

    return bool(os.environ.get("WANDB_API_KEY") or wandb.login(prompt=False, verify=False))


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def _server_answers(timeout: float) -> bool:
    """Whether anything comes back: a connection alone may be to a proxy or firewall that swallows the rest."""

    def answers() -> bool:
        try:
            urllib.request.urlopen(_server(), timeout=timeout).close()
        except urllib.error.HTTPError:  # an answer too
            return True
        except (OSError, ValueError, http.client.HTTPException):
            return False
        return True

    return _within(timeout, answers, default=False)


def _within(seconds: float, call: Callable[[], Answer], default: Answer) -> Answer:
    """What the call returns, or the default where it fails or takes longer: DNS knows no timeout of its own."""
    answers = [default]

    def run() -> None:
        try:
            answers.append(call())
        except Exception as error:
            warnings.warn(f"Weights & Biases: {error}", stacklevel=2)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[-1]


def _value(text: str) -> int | float | str:
    """What a row of metrics.csv says, as it was logged."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def _say(message: str) -> None:
    say(f"Weights & Biases: {message}", error=True)


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
