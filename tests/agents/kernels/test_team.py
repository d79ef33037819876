"""Functions that run at the same time: each once, whatever the number of threads, and no error is lost."""

import os
import subprocess
import sys
import threading

import pytest

from agents.kernels import team


@pytest.fixture(params=["openmp", "python"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's threads, and as on a machine whose OpenMP has no such entry."""
    if request.param == "python":
        monkeypatch.setattr(team, "_library", None)
    elif team._library is None:
        pytest.skip("no OpenMP library with GCC's entry points")


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("n_functions", [0, 1, 2, 5])
def test_each_function_runs_once(n_functions: int) -> None:
    done: list[int] = []
    team.run_together([lambda number=number: done.append(number) for number in range(n_functions)])  # type: ignore[misc]
    assert sorted(done) == list(range(n_functions))


@pytest.mark.usefixtures("kind")
def test_functions_run_at_the_same_time() -> None:
    meeting = threading.Barrier(2)
    team.run_together([lambda: void(meeting.wait(timeout=250))] * 2)  # one after the other would break the barrier


@pytest.mark.usefixtures("kind")
def test_an_error_comes_out_when_all_have_ended() -> None:
    done: list[str] = []

    def fail() -> None:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        team.run_together([fail, lambda: done.append("other")])
    assert done == ["other"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_before_a_function_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    openmp = team._library
    if openmp is None:
        pytest.skip("no OpenMP library with GCC's entry points")
    parallel, number = openmp.GOMP_parallel, openmp.omp_get_num_threads

    class Interrupted:
        """OpenMP as it is, but Ctrl-C comes as a thread asks for its number."""

        GOMP_parallel, omp_get_num_threads = parallel, number

        def omp_get_thread_num(self) -> int:
            raise KeyboardInterrupt

    monkeypatch.setattr(team, "_library", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        team.run_together([lambda: None] * 2)


def test_fewer_threads_than_functions_do_them_all() -> None:
    script = "from agents.kernels import team; team.run_together([lambda: print('done', flush=True)] * 3)"
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "OMP_THREAD_LIMIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == ["done"] * 3


def void(_: object) -> None:
    """Gives nothing."""
