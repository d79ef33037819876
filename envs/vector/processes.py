"""Gymnasium environments stepped in worker processes, behind Stable-Baselines3's VecEnv.

Several environments a worker, observations in shared memory. A worker that dies, raises or hangs is an error that says
so, within a second, never a wait without end; and it ends with this process, however that ends.

Axes: N environments.
"""

from __future__ import annotations

import atexit
import contextlib
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
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import cloudpickle  # type: ignore[import-untyped]
import gymnasium
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from envs.tasks.observations import allocate, copied, leaves, take, write
from envs.vector import worker
from envs.vector.cpus import available_cpus
from envs.vector.episodes import Episodes, note_ends, warn_of_restarts
from envs.vector.errors import EnvError
from envs.vector.group import Maker
from envs.vector.infos import FAILED
from envs.vector.state import Journal, lived_again


class _Lost(Exception):
    """A worker that died, raised or did not answer; the message says which and how."""


_PATIENCE = 0.5  # seconds between looks at whether the workers live, while none of them says anything
_CLOSING = 5.0  # seconds that environments have to close, all of them together
_START = 120.0  # seconds, at least, that one has to be made, or to begin its first episode, where steps have a timeout
_STARTS = 10  # how many times a step's timeout it has, where that is longer


class SubprocessVecEnv(VecEnv):
    """N environments in worker processes, stepped at the same time.

    The infos are those of `SerialVecEnv`. Workers are started by forkserver, or by spawn where there is none for this
    process, so threads in it are safe. They do not run the script that starts them: it needs no
    `if __name__ == "__main__":` for this, and what it imports costs them nothing. Each computes on one thread, lest
    they slow one another down.

    An environment that raises, a worker that dies and, with `timeout`, one that does not answer, ends all the workers
    with an `EnvError` that names the environment and the step and holds the worker's traceback; or, up to
    `max_restarts` times in all, is started anew, as with `SerialVecEnv`. With a worker go all its environments.

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
        two minutes where that is longer; an episode that is lived again on resuming, the timeout for each of its steps.

        `resumable`, `max_restarts`: see `SerialVecEnv`.

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
        # Worker w has the environments from _bounds[w] to _bounds[w + 1] - 1.
        self._bounds = [num_envs * w // workers for w in range(workers + 1)]
        self._home = [(w, i) for w in range(workers) for i in range(self._bounds[w + 1] - self._bounds[w])]
        self._pickled = [
            cloudpickle.dumps(list(makers[first:last]))
            for first, last in zip(self._bounds, self._bounds[1:], strict=False)
        ]
        _LIVING.add(self)
        try:
            for w in range(workers):
                connection, process = self._started(w)
                self._connections.append(connection)
                self._processes.append(process)
            spaces = [self._receive(w, "starting", self._start_seconds(w)) for w in range(workers)]
            _, _, observation_space, action_space = spaces[0]
            list(leaves(observation_space))  # an observation that is no array is refused here
            for w, (_, _, *other) in enumerate(spaces):
                if other != [observation_space, action_space]:
                    raise EnvError(
                        f"environment {self._bounds[w]} has the spaces {other}, environment 0 has "
                        f"{[observation_space, action_space]}: they have to be alike"
                    )
            self._arrays, lost = self._share(observation_space, action_space, num_envs)
            for failure in lost.values():
                raise EnvError(failure)
        except BaseException:
            self._end()
            raise
        super().__init__(num_envs, observation_space, action_space)
        self._episodes = Episodes(num_envs)
        self._journal = Journal(num_envs) if resumable else None
        self._last: Any = None

    def reset(self) -> VecEnvObs:
        self._check_open()
        self._waiting = False
        seeds = self._seeds if self._journal is None else self._journal.start_all(self._seeds)
        said, lost = self._begin(range(len(self._connections)), seeds, self._options)
        self._give_up_on(lost)
        said |= self._start_anew(lost, seeds, self._options)
        self.reset_infos = [info for w in range(len(self._connections)) for info in said[w]]
        for w, failure in lost.items():
            self.reset_infos[self._bounds[w]][FAILED] = failure
        self._note_restarts(self.reset_infos, range(self.num_envs))
        self._reset_seeds()
        self._reset_options()
        self._episodes.start_all()
        self._last = copied(self._arrays.observations)
        return self._last  # type: ignore[no-any-return]

    def step_async(self, actions: NDArray[Any]) -> None:
        """Start the step; what is done before `step_wait` is done at the same time."""
        self._check_open()
        self._arrays.actions[...] = actions
        self._steps += 1
        if self._journal is not None:
            self._journal.add(self._arrays.actions)
        self._request += 1
        for w in range(len(self._connections)):
            self._send(w, self._request)
        self._waiting = True

    def step_wait(self) -> VecEnvStepReturn:
        """Observations (N, ...), rewards (N,) float32, dones (N,) bool, infos."""
        self._check_open()
        if not self._waiting:
            raise EnvError("no step was begun, or it was interrupted: call step_async() first")
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        self._waiting = False
        replies = self._replies()
        rewards = self._arrays.rewards.copy()
        self._episodes.add(rewards)
        reset_infos: dict[int, dict[str, Any]] = {}
        for w, reply in replies.items():
            if type(reply) is not int:
                first, (_, _, said, resets) = self._bounds[w], reply
                for i, info in said.items():
                    infos[first + i] = info
                reset_infos |= {first + i: info for i, info in resets.items()}
        if reset_infos:
            note_ends(infos, reset_infos, self._episodes, self.reset_infos)
            self._note_restarts(infos, reset_infos)
            if self._journal is not None:
                for i in reset_infos:
                    self._journal.end(i)
        self._last = copied(self._arrays.observations)
        return self._last, rewards, self._arrays.dones.copy(), infos

    def snapshot(self) -> dict[str, Any] | None:
        """Where the environments stand, as plain data; None before a reset, and if they were not made resumable."""
        if self._journal is None or self._last is None:
            return None
        kept = {"observations": copied(self._last), "episodes": self._episodes.state()}
        return {"kind": "episodes", **self._journal.state(), **kept}

    def restore(self, state: Mapping[str, Any]) -> bool:
        """Lives the episodes of a snapshot again. False where they did not end where they were: reset then."""
        if self._journal is None or state["kind"] != "episodes" or len(state["seeds"]) != self.num_envs:
            return False
        self._reset_seeds()
        blank = partial(allocate, self.observation_space, self.num_envs, np.empty)
        if not lived_again(state, self._journal, blank, partial(self._call, worker.replay, None)):
            return False
        self._last = state["observations"]
        self._episodes.set_state(state["episodes"])
        return True

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
                # A worker with something to say from before would wait for a reader.
                connection.close()
            deadline = time.monotonic() + _CLOSING
            for process in self._processes:
                process.join(timeout=max(0.0, deadline - time.monotonic()))
        finally:
            self._end()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        return self.env_method("render")

    def has_attr(self, attr_name: str) -> bool:
        try:
            self.get_attr(attr_name)
        except AttributeError:
            return False
        return True

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return self._call(worker.get_attribute, indices, attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set the attribute where it is: on the wrapper or environment that has it, else on the outermost."""
        self._call(worker.set_attribute, indices, (attr_name, value))

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        return self._call(worker.call_method, indices, (method_name, method_args, method_kwargs))

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        if wrapper_class is Monitor:
            return [True for _ in self._get_indices(indices)]
        return self._call(worker.is_wrapped_in, indices, wrapper_class)

    def _started(self, w: int) -> tuple[Connection, Any]:
        """A process for worker `w`, and the pipe to it."""
        methods = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if hasattr(context, "set_forkserver_preload"):
            context.set_forkserver_preload([worker.__name__])
        with _single_threaded_children(), _without_main():
            connection, far_end = context.Pipe()
            arguments = (far_end, self._pickled[w], self._bounds[w], self._max_restarts, self._request)
            try:
                process = context.Process(target=worker.work, args=arguments, daemon=True)
                process.start()
            except ChildProcessError:  # the fork server is not its child, but of the process it was forked from
                process = multiprocessing.get_context("spawn").Process(target=worker.work, args=arguments, daemon=True)
                process.start()
            # With this end closed here, a worker's death closes the pipe, and reading from it ends.
            far_end.close()
        return connection, process

    def _share(
        self, observation_space: Any, action_space: Any, num_envs: int
    ) -> tuple[worker.SharedArrays, dict[int, str]]:
        """Arrays that all workers have too, and those that were lost over it."""
        workers = range(len(self._connections))
        _, size = worker.lay_out(observation_space, action_space, num_envs, None)
        path = _shared_file(size)
        try:
            memory = np.asarray(np.memmap(path, dtype=np.uint8, mode="r+"))
            self._request += 1
            for w in workers:
                self._send(w, (self._request, "share", path, num_envs))
            _, lost = self._gather(workers, "starting")
        finally:
            # Those who have it open keep it. Where an open file cannot be removed, it is left to the system's cleaning.
            with contextlib.suppress(OSError):
                os.unlink(path)
        return worker.lay_out(observation_space, action_space, num_envs, memory)[0], lost

    def _begin(
        self, workers: Iterable[int], seeds: Sequence[Any], options: Sequence[dict[str, Any]]
    ) -> tuple[dict[int, list[dict[str, Any]]], dict[int, str]]:
        """Episodes begin in these workers: what was said of them by worker, and the workers that were lost over it."""
        self._request += 1
        for w in workers:
            self._send(w, (self._request, "reset", seeds[self._part(w)], options[self._part(w)]))
        replies, lost = self._gather(workers, "reset")
        return {w: infos for w, (_, _, infos) in replies.items()}, lost

    def _replies(self) -> dict[int, Any]:
        """What the workers say of a step; those who fail in it are started anew, as long as that is allowed."""
        moment, workers = f"step {self._steps}", range(len(self._connections))
        replies, lost = self._gather(workers, moment, stepping=True)
        if not lost:
            return replies
        self._give_up_on(lost)
        seeds: list[Any] = [None] * self.num_envs if self._journal is None else [s.next() for s in self._journal.seeds]
        said = self._start_anew(lost, seeds, [{}] * self.num_envs)
        for w, failure in lost.items():
            part = self._part(w)
            self._arrays.rewards[part], self._arrays.dones[part] = 0.0, True
            infos = {
                i: {"terminal_observation": take(self._last, part.start + i), "TimeLimit.truncated": True}
                for i in range(len(said[w]))
            }
            infos[0][FAILED] = failure
            replies[w] = self._request, "stepped", infos, dict(enumerate(said[w]))
        return replies

    def _start_anew(
        self, lost: dict[int, str], seeds: Sequence[Any], options: Sequence[dict[str, Any]]
    ) -> dict[int, list[dict[str, Any]]]:
        """New processes for lost workers, with episodes of these seeds: what was said of these, by worker.

        Those that are lost meanwhile are started anew as well, and added to `lost`.
        """
        said: dict[int, list[dict[str, Any]]] = {}
        failed, before = dict(lost), self._arrays
        while failed:
            for w in failed:
                if self._processes[w].is_alive():
                    self._processes[w].kill()
            for w in failed:
                self._processes[w].join(timeout=1.0)
                self._connections[w].close()
                self._connections[w], self._processes[w] = self._started(w)
            _, failed = self._gather(list(failed), "starting anew")
            if not failed:
                self._arrays, failed = self._share(self.observation_space, self.action_space, self.num_envs)
            if not failed:
                write(self._arrays.observations, slice(None), before.observations)
                for name in ("actions", "rewards", "dones"):
                    getattr(self._arrays, name)[...] = getattr(before, name)
                said, failed = self._begin(list(lost), seeds, options)
            for w in failed.keys() & lost.keys():
                # It has failed twice in one step, whose infos have room for one of them.
                self._note_restarts([{FAILED: failed[w]}], [0])
            lost |= {w: failure for w, failure in failed.items() if w not in lost}
            self._give_up_on(lost)
        return said

    def _note_restarts(self, infos: list[dict[str, Any]], rows: Iterable[int]) -> None:
        rows = list(rows)
        self.restarts += warn_of_restarts(infos, rows, self.restarts, self._max_restarts)
        if self.restarts > self._max_restarts:
            self._fail(next(infos[i][FAILED] for i in rows if FAILED in infos[i]))

    def _give_up_on(self, lost: Mapping[int, str]) -> None:
        """An error where more workers are lost than may be started anew."""
        if lost and self.restarts + len(lost) > self._max_restarts:
            before = f"\n\nStarted anew {self.restarts} times before, of at most {self._max_restarts}"
            self._fail(next(iter(lost.values())) + (before if self._max_restarts else ""))

    def _part(self, w: int) -> slice:
        """The environments of worker `w`."""
        return slice(self._bounds[w], self._bounds[w + 1])

    def _call(self, call: worker.Call, indices: VecEnvIndices, argument: Any) -> list[Any]:
        """`call(group, position, argument)` for each environment, in its worker; what it raises is raised here."""
        self._check_open()
        if self._waiting:
            raise EnvError("the environments are in the middle of a step: call step_wait() first")
        every = range(len(self._home))
        numbers = every if indices is None else [every[i] for i in self._get_indices(indices)]
        asked: dict[int, list[int]] = {}
        for number in numbers:
            w, position = self._home[number]
            asked.setdefault(w, []).append(position)
        self._request += 1
        for w, positions in asked.items():
            self._send(w, (self._request, "call", cloudpickle.dumps((call, positions, argument))))
        replies = {w: self._receive(w, "a call", self._start_seconds(w)) for w in asked}
        for _, kind, content, *said in replies.values():
            if kind == "raised":
                raise content from EnvError(f"in a worker:\n{said[0]}")
        answers = {w: iter(content) for w, (_, _, content) in replies.items()}
        return [next(answers[self._home[number][0]]) for number in numbers]

    def _send(self, w: int, message: Any) -> None:
        with contextlib.suppress(OSError):  # a worker that is gone is missed when it should answer
            self._connections[w].send(message)

    def _receive(self, w: int, moment: str, seconds: float | None, since: float | None = None) -> Any:
        """What worker `w` answers. If it, or another, has failed instead: an error, and the end of all workers."""
        try:
            return self._answer(w, moment, seconds, since)
        except _Lost as failure:
            self._fail(str(failure))

    def _gather(
        self, workers: Iterable[int], moment: str, *, stepping: bool = False
    ) -> tuple[dict[int, Any], dict[int, str]]:
        """What these workers answer, and why others did not; where none may be started anew, that is an error."""
        replies, lost = {}, {}
        since = time.monotonic()
        for w in workers:
            seconds = self._timeout if stepping else self._start_seconds(w)
            if not self._max_restarts:
                replies[w] = self._receive(w, moment, seconds, since)
                continue
            try:
                replies[w] = self._answer(w, moment, seconds, since, alone=True)
            except _Lost as loss:
                lost[w] = str(loss)
        return replies, lost

    def _answer(
        self, w: int, moment: str, seconds: float | None, since: float | None = None, *, alone: bool = False
    ) -> Any:
        """What worker `w` answers. Raises `_Lost` if it has failed, or another has; `alone`: if it has.

        `seconds`: it may take so long `since` then, or from now on; None: any time.
        """
        self._check_open()
        connection, since = self._connections[w], time.monotonic() if since is None else since
        try:
            while True:
                while not connection.poll(_PATIENCE if seconds is None else _left(since + seconds, _PATIENCE)):
                    for other, process in enumerate(self._processes):
                        if other != w and not alone and process.exitcode is not None:
                            self._answer(other, moment, seconds, since)
                    if seconds is not None and time.monotonic() > since + seconds:
                        raise _Lost(f"{self._who(w)} did not answer within {seconds:g} seconds in {moment}")
                message = connection.recv()
                number, kind = (message, None) if type(message) is int else message[:2]
                if kind == "error":
                    _, _, text, said = message
                    raise _Lost(f"{text}\n\nIn the worker:\n{said}")
                if number == self._request:
                    return message
                # Else it answers a request whose sender was interrupted, or lives an episode again, step by step.
                if kind == "alive" and self._timeout is not None and seconds is not None:
                    seconds = max(seconds, time.monotonic() - since + self._timeout + 1.0)
        except (EOFError, ConnectionResetError):
            self._processes[w].join(timeout=1.0)
            raise _Lost(f"{self._who(w)} died in {moment} {_cause(self._processes[w])}") from None

    def _start_seconds(self, w: int) -> float | None:
        """How long whatever is no step may take in worker `w`."""
        if self._timeout is None:
            return None
        return max(_START, _STARTS * self._timeout) * (self._bounds[w + 1] - self._bounds[w])

    def _who(self, w: int) -> str:
        first, last = self._bounds[w], self._bounds[w + 1] - 1
        which = f"environment {first}" if first == last else f"environments {first} to {last}"
        return f"the worker process with {which}"

    def _fail(self, message: str) -> NoReturn:
        self._end()
        raise EnvError(message)

    def _check_open(self) -> None:
        if self._closed:
            raise EnvError("the worker processes have ended: make the environments anew")

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


def _left(deadline: float, most: float) -> float:
    return min(most, max(0.0, deadline - time.monotonic()))


def _cause(process: Any) -> str:
    code = process.exitcode
    if code is not None and code < 0:
        return f"(signal {-code}; signal 9 is often the system, out of memory)"
    return f"(exit code {code})"


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
def _without_main() -> Iterator[None]:
    """Processes started meanwhile do not import the main script: what they need of it is pickled by value."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Processes started meanwhile compute on one thread: libraries read this when they are loaded."""
    before = {name: os.environ.get(name) for name in worker.THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(worker.THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
