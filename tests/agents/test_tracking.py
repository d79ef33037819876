"""Metrics reach their files whole, and Weights & Biases can neither block nor end a run."""

import csv
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3.common.logger import Image, Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from agents.run_directory import RunDirectory
from agents.tracking import CsvWriter, WandbWriter, make_logger


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_row_is_on_disk_once_it_is_written(tmp_path: Path) -> None:
    writer = CsvWriter(tmp_path / "metrics.csv")
    for step in range(3):
        writer.write({"a": step * 10}, {}, step)
        assert rows_of(tmp_path / "metrics.csv")[-1] == {"step": str(step), "a": str(step * 10)}


def test_metrics_that_turn_up_later_get_a_column_and_earlier_rows_stay(tmp_path: Path) -> None:
    writer = CsvWriter(tmp_path / "metrics.csv")
    writer.write({"a": 1.5}, {}, 1)
    writer.write({"b": 'x,\n"y'}, {}, 2)
    writer.write({"a": np.float32(2.5), "c": np.array([7])}, {}, 3)
    writer.close()
    assert rows_of(tmp_path / "metrics.csv") == [
        {"step": "1", "a": "1.5", "b": "", "c": ""},
        {"step": "2", "a": "", "b": 'x,\n"y', "c": ""},
        {"step": "3", "a": "2.5", "b": "", "c": "7"},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_what_is_no_number_or_is_excluded_stays_out(tmp_path: Path) -> None:
    writer = CsvWriter(tmp_path / "metrics.csv")
    picture = Image(np.zeros((2, 2, 3)), "HWC")
    writer.write({"a": 1, "b": picture, "c": 3, "d": math.nan}, {"c": ("csv",), "a": ("tensorboard",)}, 0)
    assert rows_of(tmp_path / "metrics.csv") == [{"step": "0", "a": "1", "d": "nan"}]


def test_the_logger_writes_the_same_to_csv_and_tensorboard_at_the_environments_steps(tmp_path: Path) -> None:
    logger = make_logger(RunDirectory(tmp_path))
    assert isinstance(logger, Logger)
    for step in (1024, 2048):
        logger.record("rollout/ep_rew_mean", float(step))
        logger.dump(step)
    logger.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    read = EventAccumulator(str(events)).Reload().Scalars("rollout/ep_rew_mean")
    assert [(each.step, each.value) for each in read] == [(1024, 1024.0), (2048, 2048.0)]
    rows = rows_of(tmp_path / "metrics.csv")
    assert [(row["step"], row["rollout/ep_rew_mean"]) for row in rows] == [("1024", "1024.0"), ("2048", "2048.0")]


def test_tensorboard_can_be_left_out(tmp_path: Path) -> None:
    make_logger(RunDirectory(tmp_path), tensorboard=False).close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a key nor settings of the machine's user."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = []

        def take() -> None:
            while True:
                try:
                    taken.append(server.accept())
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def recorded(directory: Path, *words: bytes) -> bytes:
    """What is in the file of an offline run, once all the words are: its service writes a moment after the end."""
    (file,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    for _ in range(300):
        if all(word in file.read_bytes() for word in words):
            break
        time.sleep(0.1)
    return file.read_bytes()


@pytest.mark.usefixtures("no_account")
def test_offline_metrics_are_in_the_files_that_can_be_uploaded_later(tmp_path: Path) -> None:
    writer = WandbWriter(tmp_path, mode="offline", project="p", config={"algorithm": {"gamma": 0.5}})
    for step in range(3):
        writer.write({f"metric/{step}": float(step)}, {}, step * 1000)
    writer.close()
    words = [b"metric/0", b"metric/1", b"metric/2", b"global_step", b"gamma"]
    content = recorded(tmp_path, *words)
    assert all(word in content for word in words)


@pytest.mark.usefixtures("no_account")
def test_online_without_a_key_becomes_offline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = WandbWriter(tmp_path, mode="online", project="p", config={})
    writer.write({"a": 1.0}, {}, 5)
    writer.close()
    assert writer.mode == "offline"
    assert "there is no key" in capsys.readouterr().err
    assert b"global_step" in recorded(tmp_path, b"global_step")


BLOCKED = """
import sys
from pathlib import Path
from agents.tracking import WandbWriter
writer = WandbWriter(Path(sys.argv[1]), mode="online", project="p", config={}, timeout=1.0)
writer.write({"a": 1.0}, {}, 5)
writer.close()
print(writer.mode)
"""


@pytest.mark.usefixtures("no_account")
def test_a_server_that_never_answers_neither_blocks_the_start_nor_the_end(
    tmp_path: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", silent_server)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    # Left to itself it would wait 90 s at the start alone.
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(tmp_path)], capture_output=True, text=True, timeout=80, check=True
    )
    assert done.stdout.strip() == "offline"
    assert "cannot be reached" in done.stderr
    assert b"global_step" in recorded(tmp_path, b"global_step")


@pytest.mark.usefixtures("no_account")
def test_a_failure_there_does_not_end_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = WandbWriter(tmp_path, mode="offline", project="p", config={})
    writer._run.finish()  # as if the service had died: whatever is logged from now on raises
    writer.write({"a": 1.0}, {}, 5)
    writer.write({"a": 1.0}, {}, 6)
    writer.close()
    assert capsys.readouterr().err.count("no longer recording") == 1
