"""Workers end with their parent, all at once, and never keep it waiting; those that fail are restarted together."""

from __future__ import annotations

import multiprocessing.connection
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counting import Counting, Faulty, Slow, Waiting

from envs.vector import processes
from envs.vector.errors import EnvError
from envs.vector.group import Group
from envs.vector.infos import FAILED
from envs.vector.processes import SubprocessVecEnv
from envs.vector.serial import SerialVecEnv
from envs.vector.state import EpisodeSeed

HERE = Path(__file__).parent


def faulty(how: str, folder: Path, n: int, due: dict[int, int], **settings: Any) -> SubprocessVecEnv:
    """One worker for each of n environments; `due`: how many faults each has before it."""
    for number, times in due.items():
        for k in range(times):
            (folder / f"fault {number} {k}").touch()
    return SubprocessVecEnv([partial(Faulty, i, how, folder) for i in range(n)], workers=n, **settings)


def step_once_all_but(venv: SubprocessVecEnv, hanging: set[int]) -> Any:
    """A step in which these workers hang: only when all others have answered does their timeout begin."""
    venv.step_async(np.full(venv.num_envs, 5))
    for w, connection in enumerate(venv._connections):
        while w not in hanging and not connection.poll(None):
            pass
    venv._timeout = 0.05 if hanging else None
    try:
        return venv.step_wait()
    finally:
        venv._timeout = None


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


# Restarts


@pytest.mark.parametrize("how", ["raise", "exit", "die", "hang"])
def test_all_workers_that_fail_in_the_same_step_are_restarted(how: str, tmp_path: Path) -> None:
    venv = faulty(how, tmp_path, 4, {1: 1, 3: 1}, max_restarts=2, resumable=True)
    try:
        venv.seed(10)
        venv.reset()
        for _ in range(2):
            seen, *_ = venv.step(np.full(4, 5))
        with pytest.warns(RuntimeWarning, match="restarted and its episode truncated"):
            following, rewards, dones, infos = step_once_all_but(venv, {1, 3} if how == "hang" else set())
        assert dones.tolist() == [False, True, False, True]
        np.testing.assert_array_equal(rewards, [13, 0, 213, 0])
        np.testing.assert_array_equal(following, [[0, 1, 3], [1, 1, 0], [2, 1, 3], [3, 1, 0]])
        for i in (1, 3):
            np.testing.assert_array_equal(infos[i]["terminal_observation"], seen[i])
            assert infos[i]["TimeLimit.truncated"]
            assert infos[i][FAILED]
        assert venv.restarts == 2
        following, _, dones, _ = venv.step(np.full(4, 5))
        np.testing.assert_array_equal(following[:, 2], [4, 1, 4, 1])
        assert not dones.any()
        assert [len(taken) for taken in venv.snapshot()["actions"]] == [4, 1, 4, 1]  # type: ignore[index]
    finally:
        venv.close()


def test_a_worker_that_fails_again_while_it_restarts_counts_twice(tmp_path: Path) -> None:
    venv = SubprocessVecEnv([partial(Faulty, i, "die", tmp_path, "start") for i in range(2)], workers=2, max_restarts=4)
    try:
        venv.reset()
        for number in (0, 1):
            (tmp_path / f"fault {number} a").touch()
        for process in venv._processes:
            os.kill(process.pid, signal.SIGKILL)
        with pytest.warns(RuntimeWarning, match="died in restarting"):
            _, _, dones, _ = venv.step(np.full(2, 5))
        assert dones.all()
        assert venv.restarts == 4
        np.testing.assert_array_equal(venv.step(np.full(2, 5))[0], [[0, 1, 1], [1, 1, 1]])
        os.kill(venv._processes[0].pid, signal.SIGKILL)
        with pytest.raises(EnvError, match=r"died in step 3(.|\n)*Restarted 4 times before, of at most 4"):
            venv.step(np.full(2, 5))
    finally:
        venv.close()


@pytest.mark.parametrize("backend", ["serial", "subprocess"])
def test_an_environment_that_fails_in_a_reset_is_restarted_too(backend: str, tmp_path: Path) -> None:
    (tmp_path / "fault 1").touch()
    how = "die" if backend == "subprocess" else "raise"
    makers = [partial(Faulty, i, how, tmp_path, "reset") for i in range(3)]
    venv: Any = SerialVecEnv(makers, max_restarts=1)
    if backend == "subprocess":
        venv = SubprocessVecEnv(makers, workers=3, max_restarts=1)
    try:
        with pytest.warns(RuntimeWarning, match="restarted and its episode truncated"):
            np.testing.assert_array_equal(venv.reset(), [[0, 1, 0], [1, 1, 0], [2, 1, 0]])
        assert venv.restarts == 1
        assert [FAILED in info for info in venv.reset_infos] == [False, True, False]
        (tmp_path / "fault 2").touch()
        with pytest.raises(EnvError):
            venv.reset()
    finally:
        venv.close()


@pytest.mark.parametrize("backend", ["serial", "subprocess"])
def test_an_environment_that_calls_exit_has_failed(backend: str, tmp_path: Path) -> None:
    (tmp_path / "fault 0").touch()
    makers = [partial(Faulty, 0, "exit", tmp_path)]
    venv: Any = SerialVecEnv(makers) if backend == "serial" else SubprocessVecEnv(makers)
    venv.reset()
    for _ in range(2):
        venv.step(np.full(1, 5))
    with pytest.raises(EnvError, match=r"environment 0 \(Faulty\) failed in step 3: it called sys.exit\(0\)"):
        venv.step(np.full(1, 5))
    venv.close()

    class Leaving(Counting):
        def __init__(self) -> None:
            sys.exit("no licence")

    with pytest.raises(EnvError, match=r"environment 0 could not be made: it called sys.exit\('no licence'\)"):
        SerialVecEnv([Leaving]) if backend == "serial" else SubprocessVecEnv([Leaving])


# What may take how long


def test_the_timeout_of_a_step_limits_neither_start_nor_reset() -> None:
    venv = SubprocessVecEnv([partial(Slow, 0, 0.5)], timeout=0.2, max_restarts=0)
    np.testing.assert_array_equal(venv.reset(), [[0, 1, 0]])
    venv.close()


def test_an_episode_may_replay_for_longer_than_the_timeout_of_a_step() -> None:
    class Steady(Counting):
        def step(self, action: Any) -> Any:
            time.sleep(0.02)
            return super().step(action)

    makers = [partial(Steady, i, 1000) for i in range(2)]
    first, second = (SubprocessVecEnv(makers, workers=1, timeout=limit, resumable=True) for limit in (None, 0.5))
    first.seed(3)
    first.reset()
    for _ in range(40):  # 1.6 s of the one worker
        first.step(np.full(2, 5))
    state = first.snapshot()
    assert state is not None
    assert second.restore(state)
    second._timeout = None
    for one, other in zip(first.step(np.full(2, 5))[:3], second.step(np.full(2, 5))[:3], strict=True):
        np.testing.assert_array_equal(one, other)
    first.close()
    second.close()


def test_a_replay_reports_every_step() -> None:
    group, beats = Group([partial(Counting, 0, 100)]), []
    group.alive = lambda: beats.append(group.envs[0].t)
    group.replay(0, EpisodeSeed(3, 0, 0), np.full(5, 5))
    assert beats == [1, 2, 3, 4, 5]


# Interruptions


class Stopped(KeyboardInterrupt):
    """As a signal's handler raises it."""


def interrupt_at(line: int, act: Callable[[], Any]) -> bool:
    """Runs `act` and raises at the line-th line of processes.py that it comes to; whether it came so far."""
    seen = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal seen
        if frame.f_code.co_filename != processes.__file__:
            return None
        if event == "line":
            seen += 1
            if seen == line:
                sys.settrace(None)
                raise Stopped
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except Stopped:
        return True
    finally:
        sys.settrace(before)
    return False


def test_wherever_a_step_is_interrupted_what_follows_neither_hangs_nor_mixes_answers() -> None:
    makers = [partial(Counting, i, length=10_000) for i in range(3)]
    venv, line = SubprocessVecEnv(makers, workers=3), 0
    try:
        venv.reset()
        while interrupt_at(line := line + 1, lambda: venv.step(np.full(3, 5))):
            observations = venv.reset()
            assert venv.env_method("process") == [process.pid for process in venv._processes]
            assert observations[:, 2].tolist() == [0, 0, 0]
            observations, *_ = venv.step(np.full(3, 6))
            assert observations[:, 2].tolist() == [1, 1, 1]
        assert line > 30
    finally:
        venv.close()


def test_wherever_a_step_is_interrupted_it_can_be_closed_and_closing_can_be_interrupted(tmp_path: Path) -> None:
    for line in random.Random(0).sample(range(1, 60), 6):
        venv = SubprocessVecEnv([partial(Counting, i) for i in range(2)], workers=2)
        venv.reset()
        interrupt_at(line, lambda venv=venv: venv.step(np.full(2, 5)))  # type: ignore[misc]
        interrupt_at(line // 3 + 1, venv.close)
        venv.close()
        del venv
    wait_until(lambda: not multiprocessing.active_children())


def test_workers_in_the_middle_of_a_step_are_closed_without_waiting_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_CLOSING", 0.5)
    venv = SubprocessVecEnv([partial(Waiting, i, tmp_path) for i in range(2)], workers=2)
    venv.reset()
    venv.step_async(np.full(2, 5))
    wait_until(lambda: len(list(tmp_path.glob("inside *"))) == 2)
    venv.close()
    assert not any(process.is_alive() for process in venv._processes)


def test_workers_that_hang_as_they_close_share_one_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_CLOSING", 0.5)
    venv = SubprocessVecEnv([partial(Faulty, i, "none", tmp_path, "close") for i in range(8)], workers=8)
    venv.reset()
    waits = []
    for process in venv._processes:
        join = process.join

        def counted(timeout: float | None = None, join: Any = join) -> None:
            waits.append(timeout)
            # Whoever is waited for first, all are closing by the time it is over.
            wait_until(lambda: len(list(tmp_path.glob("closing *"))) == 8)
            join(timeout)

        monkeypatch.setattr(process, "join", counted)
    venv.close()
    assert sum(wait for wait in waits[1:8] if wait is not None) < 0.5  # one limit for all
    assert not any(process.is_alive() for process in venv._processes)


# The parent's end


PARENT = """
import sys
sys.path[:0] = [{here!r}, {root!r}]
from functools import partial
from pathlib import Path
import numpy as np
from counting import Faulty
from envs.vector.processes import SubprocessVecEnv

folder = Path({folder!r})
venv = SubprocessVecEnv([partial(Faulty, i, {how!r}, folder) for i in range(2)], workers=2)
venv.reset()
print(*(process.pid for process in venv._processes), flush=True)
{then}
"""


def parent(tmp_path: Path, how: str, then: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A script with two workers, in a session of its own, and their process ids."""
    script = PARENT.format(here=str(HERE), root=str(HERE.parents[1]), folder=str(tmp_path), how=how, then=then)
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stdout is not None
    return child, [int(word) for word in child.stdout.readline().split()]


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with_state = Path(f"/proc/{pid}/stat")
    try:
        return with_state.read_text().rpartition(")")[2].split()[0] == "Z"  # ended, with nobody to take note of it
    except OSError:
        return not with_state.parent.parent.joinpath("self").exists() or is_gone(pid)


STEPS = """
for _ in range(2): venv.step(np.full(2, 5))
venv.step_async(np.full(2, 5))
print("stepping", flush=True)
import time; time.sleep(600)
"""


@pytest.mark.parametrize("how", ["hang", "compute"])
def test_workers_end_with_a_parent_that_is_killed_whatever_they_are_doing(how: str, tmp_path: Path) -> None:
    for number in (0, 1):
        (tmp_path / f"fault {number}").touch()
    child, workers = parent(tmp_path, how, STEPS)
    assert child.stdout is not None
    assert child.stdout.readline() == "stepping\n"
    wait_until(lambda: not list(tmp_path.iterdir()))
    assert len(workers) == 2
    child.kill()
    child.wait()
    wait_until(lambda: all(map(is_gone, workers)))


def test_a_script_that_closes_nothing_ends_and_so_do_its_workers(tmp_path: Path) -> None:
    child, workers = parent(tmp_path, "none", "keep = venv")
    child.wait()
    assert child.returncode == 0
    wait_until(lambda: all(map(is_gone, workers)))


def test_workers_leave_a_signal_to_their_parent_and_what_they_start_does_not_inherit_that() -> None:
    class Starting(Counting):
        def ends_by_sigterm(self) -> list[int]:
            started = subprocess.Popen(["sleep", "600"])
            started.terminate()
            forked = os.fork()
            if not forked:
                os.kill(os.getpid(), signal.SIGTERM)
                os._exit(0)
            return [started.wait(), os.WTERMSIG(os.waitpid(forked, 0)[1])]

    venv = SubprocessVecEnv([Starting], workers=1)
    venv.reset()
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(venv._processes[0].pid, number)
    np.testing.assert_array_equal(venv.step(np.full(1, 5))[0], [[0, 1, 1]])
    assert venv.env_method("ends_by_sigterm") == [[-signal.SIGTERM, signal.SIGTERM]]
    venv.close()


def test_a_forked_process_has_workers_of_its_own() -> None:
    venv = SubprocessVecEnv([Counting])
    venv.reset()

    def child() -> None:
        other = SubprocessVecEnv([Counting])
        other.reset()
        other.step(np.full(1, 5))
        other.close()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
    np.testing.assert_array_equal(venv.step(np.full(1, 5))[0], [[0, 1, 1]])
    venv.close()


# Loops


@pytest.mark.slow
def test_pairs_that_fail_at_random_moments_are_all_restarted(tmp_path: Path) -> None:
    moments = random.Random(0)
    venv = SubprocessVecEnv([partial(Counting, i, 30) for i in range(4)], workers=4, max_restarts=1000, resumable=True)
    venv.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(60):
            for w in moments.sample(range(4), 2):
                os.kill(venv._processes[w].pid, signal.SIGKILL)
            for _ in range(moments.randrange(1, 5)):
                venv.step(np.full(4, 5))
    assert venv.restarts >= 120
    venv.close()


@pytest.mark.slow
def test_fifty_parents_killed_at_random_moments_leave_no_worker(tmp_path: Path) -> None:
    moments = random.Random(0)
    for _ in range(50):
        child, workers = parent(tmp_path, "none", "while True: venv.step(np.full(2, 5))")
        time.sleep(moments.uniform(0.0, 0.3))
        child.kill()
        child.wait()
        wait_until(lambda workers=workers: all(map(is_gone, workers)))  # type: ignore[misc]
