"""A run's directory is its own, is never overwritten, and says what is missing."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agents.analysis.report.history import RunError
from agents.runs.directory import RunDirectory, run_name, versions


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory.create(tmp_path / "runs", "a")
    run.settings.write_text("seed: 1\n")
    return run


def with_files(run: RunDirectory, *names: str) -> RunDirectory:
    for name in names:
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_text(name)
    return run


def test_runs_that_start_at_once_get_directories_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: RunDirectory.create(tmp_path / "runs", "same", numbered=True), range(24)))
    assert len({run.path for run in runs}) == 24
    assert {run.path.name for run in runs} == {"same", *(f"same-{i}" for i in range(2, 25))}


def test_a_run_that_exists_and_a_place_where_none_can_be_made_are_refused(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="exists and a run is never overwritten"):
        RunDirectory.create(tmp_path / "runs", "a")
    (tmp_path / "file").write_text("")
    for numbered in (False, True):
        with pytest.raises(RunError, match="cannot make the run's directory"):
            RunDirectory.create(tmp_path / "file", "a", numbered=numbered)


def test_what_is_no_run_cannot_be_opened(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "nothing", "is no directory"), (tmp_path, r"holds no settings\.yaml")):
        with pytest.raises(RunError, match=message):
            RunDirectory.open(path)


def test_names_hold_environment_memory_seed_and_time_and_nothing_a_file_name_cannot() -> None:
    assert re.fullmatch(r"CartPole-v1-lstm-3-\d{8}-\d{6}", run_name("CartPole-v1", "lstm", 3))
    assert re.fullmatch(r"ALE_Pong-v5-Memory-0-\d{8}-\d{6}", run_name("ALE/Pong-v5", "my.module:Memory", 0))
    assert run_name("my.module:Env-v0", "gru", 0).startswith("Env-v0-gru-0-")


def test_checkpoints_are_found_by_name_step_and_path(run: RunDirectory, tmp_path: Path) -> None:
    with_files(run, "checkpoints/step_000000000900.zip", "checkpoints/step_000000001000.zip", "best.zip")
    assert [step for step, _ in run.checkpoints()] == [900, 1000]
    assert run.find("best") == run.best
    assert run.find("last") == run.checkpoint(1000)
    assert run.find("900") == run.checkpoint(900)
    assert run.find("checkpoints/step_000000000900.zip") == run.checkpoint(900)
    assert run.find(str(run.best)) == run.best
    run.best.unlink()
    assert run.find("best") == run.checkpoint(1000)


def test_the_error_for_a_missing_checkpoint_lists_what_there_is(run: RunDirectory) -> None:
    for name in ("best", "last", "3"):
        with pytest.raises(RunError, match="holds no saved agent"):
            run.find(name)
    with_files(run, "checkpoints/step_000000000900.zip", "best.zip")
    for name in ("800", "better", "", "nowhere.zip"):
        with pytest.raises(RunError, match=re.escape(f"has no checkpoint {name!r}; there are best, last, 900")):
            run.find(name)


def test_evaluations_are_never_overwritten(run: RunDirectory) -> None:
    paths = [run.write_result("evaluations", "best-100", {"mean": mean}) for mean in (1.0, 2.0, 3.0)]
    assert [path.name for path in paths] == ["best-100.json", "best-100-2.json", "best-100-3.json"]
    assert [json.loads(path.read_text())["mean"] for path in paths] == [1.0, 2.0, 3.0]


def test_versions_name_python_and_the_packages_that_decide_results() -> None:
    found = json.loads(json.dumps(versions()))
    assert found["python"].count(".") == 2
    assert {"torch", "numpy", "gymnasium"} <= {name.lower() for name in found["packages"]}
    assert isinstance(found["command"], list)
    is_repository = (Path(__file__).parents[3] / ".git").exists()
    assert (found["commit"] is not None) == is_repository


def test_a_run_that_is_locked_is_locked_once(run: RunDirectory) -> None:
    with run.locked(), pytest.raises(RunError, match="another process is training"), run.locked():
        pass


def test_what_a_killed_writer_left_is_removed_on_going_on(run: RunDirectory) -> None:
    with_files(run, ".best.zip.0123456789abcdef.tmp", "checkpoints/.step_000000000900.zip.0123456789abcdef.tmp")
    run.forget_after(0)
    assert not list(run.path.rglob("*.tmp"))


@pytest.mark.parametrize("file", ["metrics.csv", "evaluations.csv"])
def test_a_table_that_is_no_text_is_refused_with_its_line_and_left_as_it_is(run: RunDirectory, file: str) -> None:
    content = b"step,a\n10,1\n20,\xff\n"
    (run.path / file).write_bytes(content)
    with pytest.raises(RunError, match=rf"line 3 of .*{file} is not UTF-8 \(byte 15 is 0xff\): repair it, or move"):
        run.forget_after(100)
    assert (run.path / file).read_bytes() == content


def test_a_directory_that_is_another_now_is_reported(run: RunDirectory) -> None:
    run.check_there()
    run.path.rename(run.path.with_name("elsewhere"))
    for make_another in (lambda: None, run.path.mkdir):
        make_another()
        with pytest.raises(FileNotFoundError, match="was removed or moved away"):
            run.check_there()
