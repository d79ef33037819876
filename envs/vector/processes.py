"""Gymnasium environments stepped in worker processes, behind Stable-Baselines3's VecEnv.

Several environments a worker, observations in shared memory. A worker that dies, raises or hangs is an error that says
so, within a second, never a wait without end; and it ends with this process, however that ends.

Axes: N environments.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import multiprocessing
import multiprocessing.util
import os
import shutil
import sys
import tempfile
import time
import types
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from envs.tasks.observations import Tree, copied, leaves, take, tree_map
from envs.vector import worker
from envs.vector.cpus import available_cpus
from envs.vector.errors import EnvError
from envs.vector.group import Info, Maker, check_alike
from envs.vector.infos import FAILED
from envs.vector.serial import Call, GroupedVecEnv

_PATIENCE = 0.5  # seconds between looks at whether the workers live, while none of them answers
_CLOSING = 5.0  # seconds that environments have to close, all of them together
_START = 120.0  # seconds, at least, that one has to be made, or to begin its first episode, where steps have a timeout
_STARTS = 10  # how many times a step's timeout it has, where that is longer

Losses = dict[int, str]
"""Workers that died, raised or did not answer, and how."""


class Lost(Exception):
    """A worker died, raised or did not answer."""


class SubprocessVecEnv(GroupedVecEnv):
    """N environments in worker processes, stepped at the same time.

    Workers are started by forkserver, or by spawn where there is none for this process, so threads in it are safe. They
    do not run the script that starts them: it needs no `if __name__ == "__main__":` for this, and what it imports costs
    them nothing. Each computes on one thread, lest they slow one another down.

    An environment that raises, a worker that dies and, with `timeout`, one that does not answer, ends all the workers
    with an `EnvError` that names the environment and the step and has the worker's traceback; or, up to `max_restarts`
    times in all, is restarted. With a worker go all its environments.

    After an exception from outside, such as Ctrl-C's, in the middle of a step, `reset` and `close` work as ever.
    """

    def __init__(
        self,
        makers: Sequence[Maker],
        *,
        workers: int | None = None,
        timeout: float | None = None,
        resumable: bool = False,
        max_restarts: int = 0,
    ) -> None:
        """`workers`: processes, by default one a CPU, at most N.

        `timeout`: seconds a step may take, that of all environments of a worker (None: any). With it, whatever is no
        step (making an environment, a reset, a call) may take ten times as long for each environment of the worker, or
        two minutes where that is longer; an episode that is replayed on resuming, the timeout for each of its steps.

        Each worker steps its share of the environments, N / workers, one after the other. More workers than CPUs serve
        environments that wait (for a simulator, a device, a network) instead of computing.
        """
        num_envs = len(makers)
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, or None for one a CPU, not {workers}")
        workers = min(num_envs, available_cpus() if workers is None else workers)
        self._timeout = timeout
        self._max_restarts, self.restarts = max_restarts, 0
        self._steps = 0
        self._request = 0  # the number of the last one; what answers another comes too late
        self._waiting = False
        self._closed = self._ended = False
        self._owner = os.getpid()
        self._connections: list[Connection] = []
        self._processes: list[Any] = []
        self._parts = [slice(num_envs * w // workers, num_envs * (w + 1) // workers) for w in range(workers)]
        self._homes = [w for w, part in enumerate(self._parts) for _ in range(part.start, part.stop)]
        self._pickled = [cloudpickle.dumps(list(makers[part])) for part in self._parts]
        self._arrays: worker.SharedArrays | None = None
        _LIVING.add(self)
        try:
            self._start(range(workers))
            replies, lost = self._gather(range(workers), "starting")
            if not lost:
                spaces = replies[0][2]
                list(leaves(spaces["observation_space"]))  # an observation that is no array is refused here
                for w, (_, _, other) in replies.items():
                    check_alike(other, self._parts[w].start, spaces, 0)
                lost = self._share(spaces, num_envs)
            for failure in lost.values():
                raise EnvError(failure)
            super().__init__(num_envs, spaces, resumable=resumable, max_restarts=max_restarts)
        except BaseException:
            self._end()
            raise

    def step_async(self, actions: NDArray[Any]) -> None:
        """Start the step; what is done before `step_wait` is done at the same time."""
        self._check_open()
        self._shared.actions[...] = actions
        self._steps += 1
        if self._journal is not None:
            self._journal.add(self._shared.actions)
        self._request += 1
        for w in range(len(self._parts)):
            self._send(w, self._step_request(w))
        self._waiting = True

    def step_wait(self) -> VecEnvStepReturn:
        """Observations (N, ...), rewards (N,) float32, dones (N,) bool, infos."""
        self._check_open()
        if not self._waiting:
            raise EnvError("no step was begun, or it was interrupted: call step_async() first")
        self._waiting = False
        replies, lost = self._gather(range(len(self._parts)), f"step {self._steps}", stepping=True)
        if lost:
            replies |= self._replace(lost)
        infos: list[Info] = [{} for _ in range(self.num_envs)]
        resets: dict[int, Info] = {}
        for w, reply in replies.items():
            if type(reply) is not int:
                first, (_, _, some, new) = self._parts[w].start, reply
                for i, info in some.items():
                    infos[first + i] = info
                resets |= {first + i: info for i, info in new.items()}
        arrays = self._shared
        return self._stepped(copied(arrays.observations), arrays.rewards.copy(), arrays.dones.copy(), infos, resets)

    def close(self) -> None:
        """Let all workers close their environments at the same time; those that have not within seconds are ended."""
        if self._closed:
            return
        self._closed = True
        try:
            for connection in self._connections:
                with contextlib.suppress(OSError):  # it is gone; or has read nothing for long, and the pipe is full
                    os.set_blocking(connection.fileno(), False)
                    connection.send(None)
                # A worker that still has something to send would wait for a reader.
                connection.close()
            deadline = time.monotonic() + _CLOSING
            for process in self._processes:
                process.join(timeout=max(0.0, deadline - time.monotonic()))
        finally:
            self._end()

    @property
    def _shared(self) -> worker.SharedArrays:
        assert self._arrays is not None
        return self._arrays

    def _begin(self, seeds: Sequence[Any], options: Sequence[dict[str, Any]]) -> tuple[Tree, list[Info]]:
        self._check_open()
        self._waiting = False
        every = range(len(self._parts))
        replies, lost = self._begin_in(every, seeds, options)
        if lost:
            replies |= self._restart(lost, seeds, options)
        infos = [info for w in every for info in replies[w]]
        for w, failure in lost.items():
            infos[self._parts[w].start][FAILED] = failure
        return copied(self._shared.observations), infos

    def _call(self, call: Call, indices: VecEnvIndices = None) -> list[Any]:
        """In the environments' workers; what it raises is raised here."""
        self._check_open()
        if self._waiting:
            raise EnvError("the environments are in the middle of a step: call step_wait() first")
        every = range(self.num_envs)
        numbers = [every[i] for i in self._get_indices(indices)]
        chosen: dict[int, list[int]] = {}
        for number in numbers:
            w = self._homes[number]
            chosen.setdefault(w, []).append(number - self._parts[w].start)
        calls = {w: ("call", cloudpickle.dumps((call, positions))) for w, positions in chosen.items()}
        replies, lost = self._ask(calls, "a call")
        for failure in lost.values():
            self._fail(failure)
        for _, kind, content, *trace in replies.values():
            if kind == "raised":
                raise content from EnvError(f"in a worker:\n{trace[0]}")
        answers = {w: iter(content) for w, (_, _, content) in replies.items()}
        return [next(answers[self._homes[number]]) for number in numbers]

    def _start(self, workers: Iterable[int]) -> None:
        """A process for each of these workers, and the pipe to it."""
        for w in workers:
            self._keep(w, *self._started(w))

    def _keep(self, w: int, connection: Connection, process: Any) -> None:
        """In place of those that worker `w` had before, if any."""
        self._connections[w : w + 1], self._processes[w : w + 1] = [connection], [process]

    def _step_request(self, w: int) -> Any:
        """What requests a step of worker `w`, which has the actions."""
        return self._request

    def _unpacked(self, w: int, reply: Any) -> Any:
        """A reply of worker `w`, without the arrays that came with it: here they are shared, and none do."""
        return reply

    def _memory_of(self, w: int, path: str) -> str | None:
        """The file of the arrays, for a worker that can open it."""
        return path

    def _started(self, w: int) -> tuple[Connection, Any]:
        methods = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if hasattr(context, "set_forkserver_preload"):
            context.set_forkserver_preload([worker.__name__])
        with as_a_worker_starts():
            connection, far_end = context.Pipe()
            arguments = (far_end, self._pickled[w], self._parts[w].start, self._max_restarts, self._request)
            process = context.Process(target=worker.work, args=arguments, daemon=True)
            try:
                process.start()
            except ChildProcessError:  # the fork server is not its child, but of the process it was forked from
                process = multiprocessing.get_context("spawn").Process(target=worker.work, args=arguments, daemon=True)
                process.start()
            # With this end closed here, a worker's death closes the pipe, and reading from it ends.
            far_end.close()
        return connection, process

    def _share(self, spaces: Mapping[str, Any], num_envs: int) -> Losses:
        """New arrays that all workers have too, with what the ones before held."""
        _, size = worker.lay_out(spaces, num_envs)
        path = _shared_file(size)
        try:
            arrays, _ = worker.lay_out(spaces, num_envs, np.asarray(np.memmap(path, dtype=np.uint8, mode="r+")))
            shares = {w: ("share", self._memory_of(w, path), num_envs) for w in range(len(self._parts))}
            _, lost = self._ask(shares, "starting")
        finally:
            # Those who have it open keep it. Where an open file cannot be removed, it is left to the system's cleaning.
            with contextlib.suppress(OSError):
                os.unlink(path)
        if self._arrays is not None:
            tree_map(np.copyto, arrays, self._arrays)
        self._arrays = arrays
        return lost

    def _begin_in(
        self, workers: Iterable[int], seeds: Sequence[Any], options: Sequence[dict[str, Any]]
    ) -> tuple[dict[int, list[Info]], Losses]:
        """Episodes begin in these workers: infos by worker."""
        resets = {w: ("reset", seeds[self._parts[w]], options[self._parts[w]]) for w in workers}
        replies, lost = self._ask(resets, "reset")
        return {w: infos for w, (_, _, infos) in replies.items()}, lost

    def _replace(self, lost: Losses) -> dict[int, Any]:
        """Restarts workers that were lost in a step: their replies to it, by which all their episodes are truncated."""
        seeds: list[Any] = [None] * self.num_envs if self._journal is None else [s.next() for s in self._journal.seeds]
        infos = self._restart(lost, seeds, [{}] * self.num_envs)
        replies = {}
        for w, failure in lost.items():
            part = self._parts[w]
            self._shared.rewards[part], self._shared.dones[part] = 0.0, True
            ends: dict[int, Info] = {
                i: {"terminal_observation": take(self._last, part.start + i), "TimeLimit.truncated": True}
                for i in range(len(infos[w]))
            }
            ends[0][FAILED] = failure
            replies[w] = self._request, "stepped", ends, dict(enumerate(infos[w]))
        return replies

    def _restart(self, lost: Losses, seeds: Sequence[Any], options: Sequence[dict[str, Any]]) -> dict[int, list[Info]]:
        """New processes for lost workers, with episodes of these seeds: infos of the resets by worker.

        Those that are lost meanwhile are restarted as well, and added to `lost`.
        """
        infos: dict[int, list[Info]] = {}
        failed = dict(lost)
        while failed:
            if self.restarts + len(lost) > self._max_restarts:
                before = f"\n\nRestarted {self.restarts} times before, of at most {self._max_restarts}"
                self._fail(next(iter(lost.values())) + before)
            for w in failed:
                if self._processes[w].is_alive():
                    self._processes[w].kill()
            for w in failed:
                self._processes[w].join(timeout=1.0)
                self._connections[w].close()
            self._start(list(failed))
            _, failed = self._gather(list(failed), "restarting")
            if not failed:
                spaces = {"observation_space": self.observation_space, "action_space": self.action_space}
                failed = self._share(spaces, self.num_envs)
            if not failed:
                infos, failed = self._begin_in(list(lost), seeds, options)
            # One that has failed twice in one step, whose infos have room for one of them.
            self._note_restarts({FAILED: failed[w]} for w in failed.keys() & lost.keys())
            lost |= {w: failure for w, failure in failed.items() if w not in lost}
        return infos

    def _send(self, w: int, message: Any) -> None:
        with contextlib.suppress(OSError):  # a worker that is gone is missed when it should answer
            self._connections[w].send(message)

    def _ask(self, requests: Mapping[int, tuple[Any, ...]], moment: str) -> tuple[dict[int, Any], Losses]:
        """Answers of workers to a request each."""
        self._request += 1
        for w, request in requests.items():
            self._send(w, (self._request, *request))
        return self._gather(requests, moment)

    def _gather(self, workers: Iterable[int], moment: str, stepping: bool = False) -> tuple[dict[int, Any], Losses]:
        """What these workers answer to the last request. Where none may be restarted, the first loss is an error."""
        replies: dict[int, Any] = {}
        lost: Losses = {}
        waiting = {self._connections[w]: w for w in workers}
        since = time.monotonic()
        deadlines = {w: since + self._seconds(w, stepping) for w in waiting.values()}
        while waiting:
            left = min(deadlines[w] for w in waiting.values()) - time.monotonic()
            ready: Any = wait(list(waiting), min(_PATIENCE, max(0.0, left)))
            for connection in ready or list(waiting):
                w = waiting[connection]
                try:
                    if not ready:
                        self._check_alive(w, moment, since, deadlines[w])
                        continue
                    reply = self._receive(w, moment)
                except Lost as loss:
                    if not self._max_restarts:
                        self._fail(str(loss))
                    lost[w] = str(loss)
                else:
                    number, kind = (reply, "") if type(reply) is int else reply[:2]
                    if kind == "alive" and self._timeout is not None:
                        deadlines[w] = max(deadlines[w], time.monotonic() + self._timeout + 1.0)
                    if number != self._request:
                        continue  # it answers a request whose sender was interrupted, or replays an episode
                    replies[w] = self._unpacked(w, reply)
                del waiting[connection]
        return replies, lost

    def _seconds(self, w: int, stepping: bool) -> float:
        """How long worker `w` may take."""
        if self._timeout is None:
            return math.inf
        part = self._parts[w]
        return self._timeout if stepping else max(_START, _STARTS * self._timeout) * (part.stop - part.start)

    def _receive(self, w: int, moment: str) -> Any:
        try:
            message = self._connections[w].recv()
        except (EOFError, ConnectionResetError):
            raise self._death(w, moment) from None
        if type(message) is not int and message[1] == "error":
            raise Lost(f"{message[2]}\n\nIn the worker:\n{message[3]}")
        return message

    def _check_alive(self, w: int, moment: str, since: float, deadline: float) -> None:
        if self._processes[w].exitcode is not None and not self._connections[w].poll():
            raise self._death(w, moment)
        if time.monotonic() > deadline:
            raise Lost(f"{self._who(w)} did not answer within {deadline - since:g} seconds in {moment}")

    def _death(self, w: int, moment: str) -> Lost:
        process = self._processes[w]
        process.join(timeout=1.0)
        code = process.exitcode
        cause = f"exit code {code}"
        if code is not None and code < 0:
            cause = f"signal {-code}; signal 9 is often the system, out of memory"
        return Lost(f"{self._who(w)} died in {moment} ({cause})")

    def _who(self, w: int) -> str:
        first, last = self._parts[w].start, self._parts[w].stop - 1
        which = f"environment {first}" if first == last else f"environments {first} to {last}"
        return f"the worker process with {which}"

    def _fail(self, message: str) -> NoReturn:
        self._end()
        raise EnvError(message)

    def _check_open(self) -> None:
        if self._closed:
            raise EnvError("the worker processes have ended: make new environments")

    def _end(self) -> None:
        """Ends the workers at once."""
        self._closed = True
        if os.getpid() != self._owner:  # a process forked from this one
            return
        for process in self._processes:
            if process.is_alive():
                process.kill()
        for process in self._processes:
            process.join(timeout=1.0)
        for connection in self._connections:
            connection.close()
        self._ended = True

    def __del__(self) -> None:
        if not getattr(self, "_ended", True):
            self._end()


_LIVING: weakref.WeakSet[SubprocessVecEnv] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """Before multiprocessing, which asks its processes to end and waits for it; what is registered last comes first."""
    for venv in list(_LIVING):
        venv.__del__()


def _shared_file(size: int) -> str:
    """A file of `size` bytes for processes to share: in memory where there is room, else in the temporary directory."""
    folder = "/dev/shm"
    roomy = os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > 2 * size
    descriptor, path = tempfile.mkstemp(prefix="recurl-", dir=folder if roomy else None)
    with os.fdopen(descriptor, "wb") as file:
        # Written, not only reserved: a file system without room must say so here, not kill a process later.
        for _ in range(0, size, 1 << 20):
            file.write(b"\0" * min(1 << 20, size - file.tell()))
    return path


@contextlib.contextmanager
def as_a_worker_starts() -> Iterator[None]:
    """Processes started meanwhile do not import the main script: what they need of it is pickled by value.

    And they compute on one thread: libraries read these variables when they are loaded.
    """
    main = sys.modules["__main__"]
    before = {name: os.environ.pop(name, None) for name in worker.THREAD_VARIABLES}
    sys.modules["__main__"] = types.ModuleType("__main__")
    os.environ.update(dict.fromkeys(before, "1"))
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value
