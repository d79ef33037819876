"""Metrics reach their files whole, and Weights & Biases can neither block nor end a run."""

import base64
import hashlib
import json
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import wandb
from stable_baselines3.common.logger import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

from agents.analysis.evaluation import Evaluation
from agents.runs.directory import RunDirectory
from agents.runs.tracking import CsvWriter, WandbWriter, complete_records, make_logger, run_id, seed_group
from configs.settings import TrackingSettings
from tests.runs import rows_of, started


def test_every_row_is_on_disk_at_once_and_metrics_that_turn_up_later_get_a_column(tmp_path: Path) -> None:
    writer = CsvWriter(tmp_path / "metrics.csv")
    writer.write({"a": 1.5}, {}, 1)
    assert rows_of(tmp_path / "metrics.csv") == [{"step": "1", "a": "1.5"}]
    writer.write({"b": 'x,\n"y'}, {}, 2)
    picture = Image(np.zeros((2, 2, 3)), "HWC")  # no number, and so left out
    excluded = {"d": ("csv",), "a": ("tensorboard",)}
    writer.write({"a": np.float32(2.5), "c": np.array([7]), "d": 4, "e": picture, "f": math.nan}, excluded, 3)
    writer.close()
    assert rows_of(tmp_path / "metrics.csv") == [
        {"step": "1", "a": "1.5", "b": "", "c": "", "f": ""},
        {"step": "2", "a": "", "b": 'x,\n"y', "c": "", "f": ""},
        {"step": "3", "a": "2.5", "b": "", "c": "7", "f": "nan"},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_run_that_goes_on_keeps_what_came_before_and_drops_what_comes_again(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for resumed_at, steps in ((None, (10, 20, 30)), (20, (30, 40))):
        logger = make_logger(run, TrackingSettings(), {}, resumed_at)
        for step in steps:
            logger.record("a", float(step + (resumed_at or 0)))
            if step == 40:
                logger.record("b", 1.0)
            logger.dump(step)
        logger.close()
        (tmp_path / "metrics.csv").open("a").write("99")  # a row that was cut short
        if resumed_at is None:  # readers take files in the order of their names, which begin with the second
            (earlier,) = (tmp_path / "tensorboard").iterdir()
            earlier.rename(earlier.with_name("events.out.tfevents.0000000001.earlier"))
    rows = [(row["step"], row["a"], row["b"]) for row in rows_of(tmp_path / "metrics.csv")[:-1]]
    assert rows == [("10", "10.0", ""), ("20", "20.0", ""), ("30", "50.0", ""), ("40", "60.0", "1.0")]
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("a")
    assert [(each.step, each.value) for each in read] == [(10, 10.0), (20, 20.0), (30, 50.0), (40, 60.0)]


def test_what_cannot_be_written_is_one_sentence_and_nothing_is_written_on(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    logger = make_logger(run, TrackingSettings(tensorboard=False), {})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
    run.metrics.unlink()
    logger.record("a", 1)
    with pytest.raises(FileNotFoundError, match=r"metrics\.csv was removed while the run went on"):
        logger.dump(1)
    run.tensorboard.write_text("in the way")
    with pytest.raises(OSError, match=r"TensorBoard cannot write to .*tensorboard"):
        make_logger(run, TrackingSettings(), {})


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


class Server(BaseHTTPRequestHandler):
    """What a run asks for as it starts."""

    def do_GET(self) -> None:
        self.answer(200)

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
        if "upsertBucket" not in request.get("query", ""):
            self.answer(200)
            return
        named, project = request["variables"], {"id": "p", "name": "p", "entity": {"id": "e", "name": "somebody"}}
        bucket = {"id": "b", "name": named["name"], "displayName": named["displayName"], "project": project}
        self.answer(200, {"upsertBucket": {"bucket": {**bucket, "config": "{}"}, "inserted": True}})
        threading.Thread(target=self.server.shutdown).start()  # gone as soon as a run has started
        self.server.server_close()

    def answer(self, status: int, data: dict[str, Any] | None = None) -> None:
        content = json.dumps({"data": data or {}}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words: Any) -> None:
        pass


class RefusingServer(Server):
    """Takes nobody's key."""

    def do_POST(self) -> None:
        self.answer(401)


@contextmanager
def serving(kind: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


class Recorded:
    """What is in the file that a run leaves, complete once the service behind it has written the end."""

    def __init__(self, directory: Path, mode: str = "offline-run") -> None:
        (file,) = directory.glob(f"wandb/{mode}-*/run-*.wandb")
        self.records = list(self._read(file))
        while not any(record.WhichOneof("record_type") == "exit" for record in self.records):
            time.sleep(0.1)
            self.records = list(self._read(file))

    def all(self, kind: str) -> list[Any]:
        return [getattr(record, kind) for record in self.records if record.WhichOneof("record_type") == kind]

    @property
    def config(self) -> dict[str, Any]:
        return {each.key: json.loads(each.value_json) for run in self.all("run") for each in run.config.update}

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [self._row(history) for history in self.all("history")]

    @classmethod
    def rows_in(cls, file: Path) -> list[dict[str, Any]]:
        """Of a file that may have been cut short."""
        return [cls._row(record.history) for record in cls._read(file) if record.HasField("history")]

    @staticmethod
    def _row(history: Any) -> dict[str, Any]:
        return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in history.item}

    @property
    def summary(self) -> dict[str, Any]:
        updates = [each for summary in self.all("summary") for each in summary.update]
        return {"/".join(each.nested_key) or each.key: json.loads(each.value_json) for each in updates}

    def column(self, name: str) -> list[tuple[int, Any]]:
        """(environment step, value) of every row that has one."""
        return [(row["global_step"], row[name]) for row in self.rows if name in row]

    @staticmethod
    def _read(file: Path) -> Iterator[Any]:
        return map(Record.FromString, complete_records(file.read_bytes()))


@pytest.mark.usefixtures("no_account")
def test_an_offline_run_reads_back_whole(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.checkpoint(2000).parent.mkdir()
    contents = {run.best: b"the best", run.checkpoint(2000): b"the last", run.settings: b"seed: 0"}
    for path, content in contents.items():
        path.write_bytes(content)
    for folder, name in (("insight", "curve.png"), ("videos", "best.mp4"), ("videos", "notes.txt")):
        (tmp_path / folder).mkdir(exist_ok=True)
        PIL.Image.new("RGB", (4, 2)).save(tmp_path / folder / name, format="png")
    config = {"seed": 0, "algorithm": {"gamma": 0.5}, "env": {"id": "TMaze-v0"}, "policy": {"memory": "gru"}}
    writer = WandbWriter(
        tmp_path, TrackingSettings(wandb="offline", wandb_project="mine", wandb_tags=("a", "b")), config
    )
    writer.write({"rollout/ep_rew_mean": 9.0, "time/fps": 250}, {}, 1000)
    writer.write({"eval/mean_reward": 3.0}, {}, 1000)
    writer.write({"eval/mean_reward": 1.0, "train/loss": 0.25}, {}, 2000)
    writer.close()

    read = Recorded(tmp_path)
    (about, *_) = read.all("run")
    assert (about.run_id, about.project, about.display_name) == (run_id(tmp_path), "mine", tmp_path.name)
    assert (about.run_group, list(about.tags)) == (seed_group(config), ["a", "b"])
    assert {name: read.config[name] for name in config} == config
    assert ("*", "global_step") in {(metric.glob_name, metric.step_metric) for metric in read.all("metric")}
    assert read.column("rollout/ep_rew_mean") == [(1000, 9.0)]
    assert read.column("eval/mean_reward") == [(1000, 3.0), (2000, 1.0)]
    assert read.column("best_return") == [(1000, 3.0), (2000, 3.0)]
    assert read.column("train/loss") == [(2000, 0.25)]
    compared = {"best_return": 3.0, "mean_return": 2.0, "last_return": 1.0, "steps": 2000, "steps_per_second": 250}
    assert {name: read.summary[name] for name in compared} == compared
    shown = {name for row in read.rows for name in row if name.startswith(("videos/", "plots/"))}
    assert {name.rpartition("/")[0] for name in shown} == {"videos/best", "plots/curve"}

    best, latest = read.all("artifact")
    assert (set(best.aliases), set(latest.aliases)) == ({"best", "latest"}, {"latest"})  # the later one takes it over
    assert best.name == latest.name == f"model-{run_id(tmp_path)}"
    for artifact, model in ((best, run.best), (latest, run.checkpoint(2000))):
        listed = {entry.path: entry.digest for entry in artifact.manifest.contents}
        # The paths are those of a run's directory, so that evaluate.py takes what is downloaded.
        assert listed == {
            path.relative_to(tmp_path).as_posix(): base64.b64encode(hashlib.md5(contents[path]).digest()).decode()
            for path in (model, run.settings)
        }


@pytest.mark.usefixtures("no_account")
def test_the_final_evaluation_is_in_the_summary_with_its_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path)
    run.checkpoint(20).parent.mkdir()
    for path in (run.best, run.checkpoint(10), run.checkpoint(20)):
        path.touch()
    returns = {"step_000000000010": 0.0, "step_000000000020": 2.0, "best": 5.0}
    for checkpoint, value in returns.items():
        for deterministic in (True, False):
            result = Evaluation((value, value + 1 + deterministic), (1, 1), deterministic=deterministic).to_json()
            run.write_result(
                "evaluations", f"{checkpoint}-{deterministic}", {"checkpoint": f"{checkpoint}.zip", **result}
            )
    WandbWriter(tmp_path, TrackingSettings(wandb="offline"), {"evaluation": {"deterministic": False}}).close()
    summary = Recorded(tmp_path).summary
    assert [summary[f"final_return{edge}"] for edge in ("", "_low", "_high")] == [2.5, 2.0, 3.0]
    assert summary["final/last_deterministic_return"] == 3
    assert [summary[f"final/best_sampled_return{edge}"] for edge in ("", "_low", "_high")] == [5.5, 5, 6]
    (files,) = tmp_path.glob("wandb/offline-run-*")
    assert f"upload it with `wandb sync {files}`" in capsys.readouterr().out


@pytest.mark.usefixtures("no_account")
def test_a_run_that_goes_on_has_the_same_id_and_remembers_its_best(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,eval/mean_reward\n100,\n200,7.5\n300,2.5\n400,9")  # the last cut short
    (tmp_path / "wandb_id.txt").write_text("abcd1234\n")
    writer = WandbWriter(tmp_path, TrackingSettings(wandb="offline"), {"group": "pair", "seed": 3})
    writer.write({"eval/mean_reward": 5.0}, {}, 400)
    writer.close()
    read = Recorded(tmp_path)
    assert (read.all("run")[0].run_id, read.all("run")[0].run_group) == ("abcd1234", "pair")
    assert read.column("best_return") == [(200, 7.5), (300, 7.5), (400, 7.5)]


def log_and_end(directory: Path, steps: list[int], resumed_at: int | None, end: str) -> None:
    """In a process of its own, with a service of its own."""

    def log() -> int:
        logger = make_logger(RunDirectory(directory), TrackingSettings(wandb="offline"), {}, resumed_at)
        for step in steps:
            logger.record("a", float(step))
            logger.dump(step)
        if end == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        logger.close()
        wandb.teardown()
        return 0

    process = started(log)
    process.join()
    assert process.exitcode == (-signal.SIGKILL if end == "kill" else 0)


@pytest.mark.usefixtures("no_account")
@pytest.mark.parametrize("resumed_at", [20, None])
def test_after_kills_nothing_is_lost_and_nothing_is_sent_twice(tmp_path: Path, resumed_at: int | None) -> None:
    wandb.teardown()
    log_and_end(tmp_path, [10, 20, 30], None, "kill")
    if resumed_at is not None:
        log_and_end(tmp_path, [30], resumed_at, "kill")
    log_and_end(tmp_path, [10, 20, 30, 40] if resumed_at is None else [30, 40], resumed_at, "close")
    sent = []
    for file in sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb")):
        sent += [(row["global_step"], row["a"]) for row in Recorded.rows_in(file) if "a" in row]
    assert sorted(sent) == [(10, 10.0), (20, 20.0), (30, 30.0), (40, 40.0)]
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("a")
    assert [(each.step, each.value) for each in read] == [(10, 10.0), (20, 20.0), (30, 30.0), (40, 40.0)]


def test_the_agent_of_a_sweep_decides_the_id_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "sweep123")
    assert run_id(tmp_path) == "sweep123"
    monkeypatch.setenv("WANDB_RUN_ID", "another1")
    assert run_id(tmp_path) == "sweep123"
    monkeypatch.delenv("WANDB_RUN_ID")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert run_id(tmp_path / "a") != run_id(tmp_path / "b")


def test_runs_share_a_group_where_only_the_seed_differs() -> None:
    config = {"seed": 0, "name": "x", "env": {"id": "TMaze-v0", "n_envs": 8}, "policy": {"memory": "lstm"}}
    group = seed_group(config)
    assert group is not None
    assert group.startswith("TMaze-v0-lstm-")
    assert seed_group({**config, "seed": 1, "name": "y"}) == group
    assert seed_group({**config, "env": {"id": "TMaze-v0", "n_envs": 9}}) != group
    assert seed_group({"algorithm": {}}) is None


@pytest.mark.usefixtures("no_account")
def test_without_a_key_no_server_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        writer = WandbWriter(tmp_path, TrackingSettings(wandb="online"), {})
        writer.write({"a": 1.0}, {}, 5)
        writer.close()
        with pytest.raises(BlockingIOError):
            server.accept()
    assert writer.mode == "offline"
    assert "there is no key" in capsys.readouterr().err
    assert Recorded(tmp_path).column("a") == [(5, 1.0)]


@pytest.fixture
def online(no_account: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With a key, and with nothing left over from what other tests did with wandb; its end is that of a process."""
    wandb.teardown()
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    yield
    wandb.teardown()


@pytest.mark.usefixtures("online")
def test_a_server_that_never_answers_neither_blocks_the_start_nor_the_end(
    tmp_path: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", silent_server)
    # Left to itself it would wait 90 s at the start alone.
    writer = WandbWriter(tmp_path, TrackingSettings(wandb="online", wandb_timeout=1.0), {})
    writer.write({"a": 1.0}, {}, 5)
    writer.close()
    wandb.teardown()
    assert writer.mode == "offline"
    assert capsys.readouterr().err.count("cannot be reached") == 1
    assert Recorded(tmp_path).column("a") == [(5, 1.0)]


@pytest.mark.usefixtures("online")
def test_a_key_that_is_refused_makes_a_run_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(RefusingServer) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        writer = WandbWriter(tmp_path, TrackingSettings(wandb="online", wandb_timeout=250.0), {})
        writer.write({"a": 1.0}, {}, 5)
        writer.close()
    assert writer.mode == "offline"
    assert capsys.readouterr().err.count("could not go online") == 1
    read = Recorded(tmp_path)
    assert read.column("a") == [(5, 1.0)]
    assert read.all("run")[0].run_id == run_id(tmp_path)


class Impatient(wandb.Settings):
    """Waits a second at the end, whatever the time for the start."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "finish_timeout": 1.0})


@pytest.mark.usefixtures("online")
def test_a_network_that_fails_in_mid_run_costs_nothing_that_was_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path)
    run.best.write_bytes(b"weights")
    monkeypatch.setattr(wandb, "Settings", Impatient)
    with serving(Server) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        logger = make_logger(run, TrackingSettings(wandb="online", wandb_timeout=15.0), {})
    writer = logger.output_formats[-1]
    assert isinstance(writer, WandbWriter)
    assert writer.mode == "online"
    for step in range(1, 101):
        logger.record("a", float(step))
        logger.dump(step * 10)
    logger.close()
    wandb.teardown()
    said = capsys.readouterr().err
    assert said.count("Weights & Biases: ") == 1
    assert "not everything was sent (the server does not answer" in said
    assert Recorded(tmp_path, "run").column("a") == [(step * 10, float(step)) for step in range(1, 101)]
    assert len(rows_of(tmp_path / "metrics.csv")) == 100


@pytest.mark.usefixtures("no_account")
def test_a_run_that_ends_in_an_exception_is_marked_as_failed(tmp_path: Path) -> None:
    for name, exit_code in (("good", 0), ("bad", 1)):
        (tmp_path / name).mkdir()
        writer = WandbWriter(tmp_path / name, TrackingSettings(wandb="offline"), {})
        with suppress(ZeroDivisionError), closing(writer):
            writer.write({"a": 1 / (1 - exit_code)}, {}, 5)
        assert [each.exit_code for each in Recorded(tmp_path / name).all("exit")] == [exit_code]


@pytest.mark.usefixtures("no_account")
def test_a_failure_there_does_not_end_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = WandbWriter(tmp_path, TrackingSettings(wandb="offline"), {})
    writer._run.finish()  # as if the service had died: whatever is logged from now on raises
    writer.write({"a": 1.0}, {}, 5)
    writer.write({"a": 1.0}, {}, 6)
    writer.close()
    assert capsys.readouterr().err.count("no longer recording") == 1
