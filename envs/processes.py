"""Gymnasium environments stepped in worker processes, behind Stable-Baselines3's VecEnv.

Several environments a worker, observations in shared memory. A worker that dies, raises or hangs is an error that says
so, within a second, never a wait without end.

Axes: N environments.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import cloudpickle  # type: ignore[import-untyped]
import gymnasium
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from envs import worker
from envs.episodes import Episodes, note_ends, warn_of_restarts
from envs.errors import EnvError
from envs.group import Maker
from envs.observations import allocate, copied, leaves, take, write
from envs.state import Journal, lived_again


class _Lost(Exception):
    """A worker that died, raised or did not answer; the message says which and how."""


# Seconds between looks at whether the workers live, while none of them says anything.
_PATIENCE = 0.5


class SubprocessVecEnv(VecEnv):
    """N environments in worker processes, stepped at the same time.

    The infos are those of `SerialVecEnv`. Workers are started by forkserver, or spawn where there is none, so threads
    in this process are safe. They do not run the script that starts them: it needs no `if __name__ == "__main__":` for
    this, and what it imports costs them nothing. Each computes on one thread, lest they slow one another down.

    An environment that raises, a worker that dies and, with `timeout`, one that does not answer, ends all the workers
    with an `EnvError` that names the environment and the step and holds the worker's traceback; or, up to
    `max_restarts` times in all, is started anew, as with `SerialVecEnv`. With a worker go all its environments.
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
        """`workers`: processes, by default one a CPU, at most N. `timeout`: seconds a step may take (None: any).

        `resumable`, `max_restarts`: see `SerialVecEnv`.

        Each worker steps its share of the environments, N / workers, one after the other. More workers than CPUs serve
        environments that wait (for a simulator, a device, a network) instead of computing.
        """
        num_envs = len(makers)
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, or None for one a CPU, not {workers}")
        workers = min(num_envs, _cpus() if workers is None else workers)
        self._timeout = timeout
        self._max_restarts, self.restarts = max_restarts, 0
        self._steps = 0
        self._waiting = False
        self._closed = False
        self._connections: list[Connection] = []
        self._processes: list[Any] = []
        # Worker w has the environments from _bounds[w] to _bounds[w + 1] - 1.
        self._bounds = [num_envs * w // workers for w in range(workers + 1)]
        self._home = [(w, i) for w in range(workers) for i in range(self._bounds[w + 1] - self._bounds[w])]
        self._pickled = [
            cloudpickle.dumps(list(makers[first:last]))
            for first, last in zip(self._bounds, self._bounds[1:], strict=False)
        ]
        try:
            for w in range(workers):
                connection, process = self._started(w)
                self._connections.append(connection)
                self._processes.append(process)
            spaces = [self._receive(w, "starting") for w in range(workers)]
            _, observation_space, action_space = spaces[0]
            list(leaves(observation_space))  # an observation that is no array is refused here
            for w, (_, *other) in enumerate(spaces):
                if other != [observation_space, action_space]:
                    raise EnvError(
                        f"environment {self._bounds[w]} has the spaces {other}, environment 0 has "
                        f"{[observation_space, action_space]}: they have to be alike"
                    )
            self._arrays = self._share(observation_space, action_space, num_envs)
        except BaseException:
            self._end()
            raise
        super().__init__(num_envs, observation_space, action_space)
        self._episodes = Episodes(num_envs)
        self._journal = Journal(num_envs) if resumable else None
        self._last: Any = None

    def reset(self) -> VecEnvObs:
        if self._waiting:
            self.step_wait()
        seeds = self._seeds if self._journal is None else self._journal.start_all(self._seeds)
        for w, connection in enumerate(self._connections):
            part = self._part(w)
            self._send(w, connection, ("reset", seeds[part], self._options[part]))
        said = [self._receive(w, "reset") for w in range(len(self._connections))]
        self.reset_infos = [info for _, infos in said for info in infos]
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
        self._waiting = True
        if self._journal is not None:
            self._journal.add(self._arrays.actions)
        for w, connection in enumerate(self._connections):
            if self._max_restarts:
                with contextlib.suppress(OSError):  # a worker that is gone is missed when it should answer
                    connection.send(None)
            else:
                self._send(w, connection, None)

    def step_wait(self) -> VecEnvStepReturn:
        """Observations (N, ...), rewards (N,) float32, dones (N,) bool, infos."""
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        self._waiting = False
        replies = self._replies()
        rewards = self._arrays.rewards.copy()
        self._episodes.add(rewards)
        reset_infos: dict[int, dict[str, Any]] = {}
        for first, reply in zip(self._bounds, replies, strict=False):
            if reply is not None:
                _, said, resets = reply
                for i, info in said.items():
                    infos[first + i] = info
                reset_infos |= {first + i: info for i, info in resets.items()}
        if reset_infos:
            note_ends(infos, reset_infos, self._episodes, self.reset_infos)
            self.restarts += warn_of_restarts(infos, reset_infos, self.restarts, self._max_restarts)
            if self.restarts > self._max_restarts:
                self._fail(next(info["environment_failed"] for info in infos if "environment_failed" in info))
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
        """Let the workers close their environments; one that does not within seconds is ended."""
        if self._closed:
            return
        if self._waiting:
            with contextlib.suppress(EnvError):
                self.step_wait()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.send(("close",))
        for process in self._processes:
            process.join(timeout=5.0)
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
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if hasattr(context, "set_forkserver_preload"):
            context.set_forkserver_preload([worker.__name__])
        with _single_threaded_children(), _without_main():
            connection, far_end = context.Pipe()
            arguments = (far_end, self._pickled[w], self._bounds[w], self._max_restarts)
            process = context.Process(target=worker.work, args=arguments, daemon=True)  # type: ignore[attr-defined]
            process.start()
            # With this end closed here, a worker's death closes the pipe, and reading from it ends.
            far_end.close()
        return connection, process

    def _share(self, observation_space: Any, action_space: Any, num_envs: int) -> worker.SharedArrays:
        _, size = worker.lay_out(observation_space, action_space, num_envs, None)
        path = _shared_file(size)
        try:
            memory = np.asarray(np.memmap(path, dtype=np.uint8, mode="r+"))
            for w, connection in enumerate(self._connections):
                self._send(w, connection, ("share", path, num_envs))
            for w in range(len(self._connections)):
                self._receive(w, "starting")
        finally:
            # Those who have it open keep it. Where an open file cannot be removed, it is left to the system's cleaning.
            with contextlib.suppress(OSError):
                os.unlink(path)
        return worker.lay_out(observation_space, action_space, num_envs, memory)[0]

    def _replies(self) -> list[Any]:
        """What the workers say of a step; those who fail in it are started anew, as long as that is allowed."""
        moment, workers = f"step {self._steps}", range(len(self._connections))
        if not self._max_restarts:
            return [self._receive(w, moment) for w in workers]
        replies: list[Any] = []
        lost: dict[int, str] = {}
        for w in workers:
            try:
                replies.append(self._answer(w, moment, alone=True))
            except _Lost as loss:
                replies.append(None)
                lost[w] = str(loss)
        for w, failure in lost.items():
            if self.restarts + len(lost) > self._max_restarts:
                self._fail(f"{failure}\n\nStarted anew {self.restarts} times before, of at most {self._max_restarts}")
            replies[w] = self._start_anew(w, failure)
        return replies

    def _start_anew(self, w: int, failure: str) -> Any:
        """A new process for worker `w`: its environments' episodes end where they were last seen, and others begin."""
        process = self._processes[w]
        process.kill()
        process.join(timeout=1.0)
        self._connections[w].close()
        self._connections[w], self._processes[w] = self._started(w)
        self._receive(w, "starting anew")
        before = self._arrays
        self._arrays = self._share(self.observation_space, self.action_space, self.num_envs)
        write(self._arrays.observations, slice(None), before.observations)
        for name in ("actions", "rewards", "dones"):
            getattr(self._arrays, name)[...] = getattr(before, name)
        part = self._part(w)
        seeds: list[Any] = [None] * (part.stop - part.start)
        if self._journal is not None:
            seeds = [seed.next() for seed in self._journal.seeds[part]]
        self._send(w, self._connections[w], ("reset", seeds, [{} for _ in seeds]))
        _, said = self._receive(w, "reset")
        self._arrays.rewards[part], self._arrays.dones[part] = 0.0, True
        infos = {
            i: {"terminal_observation": take(self._last, part.start + i), "TimeLimit.truncated": True}
            for i in range(len(said))
        }
        infos[0]["environment_failed"] = failure
        return "stepped", infos, dict(enumerate(said))

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
        for w, positions in asked.items():
            self._send(w, self._connections[w], ("call", cloudpickle.dumps((call, positions, argument))))
        replies = {w: self._receive(w, "a call") for w in asked}
        for kind, content, *said in replies.values():
            if kind == "raised":
                raise content from EnvError(f"in a worker:\n{said[0]}")
        answers = {w: iter(content) for w, (_, content) in replies.items()}
        return [next(answers[self._home[number][0]]) for number in numbers]

    def _send(self, w: int, connection: Connection, message: Any) -> None:
        try:
            connection.send(message)
        except (BrokenPipeError, ConnectionResetError, OSError):
            # It may have said why before it went.
            self._receive(w, f"step {self._steps}")

    def _receive(self, w: int, moment: str) -> Any:
        """What worker `w` says next. If it, or another, has failed instead: an error, and the end of all workers."""
        try:
            return self._answer(w, moment)
        except _Lost as failure:
            self._fail(str(failure))

    def _answer(self, w: int, moment: str, alone: bool = False) -> Any:
        """What worker `w` says next. Raises `_Lost` if it has failed, or another has; `alone`: if it has."""
        self._check_open()
        connection = self._connections[w]
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        try:
            while not connection.poll(_PATIENCE if self._timeout is None else min(_PATIENCE, self._timeout)):
                for other, process in enumerate(self._processes):
                    if other != w and not alone and process.exitcode is not None:
                        self._answer(other, moment)
                if deadline is not None and time.monotonic() > deadline:
                    raise _Lost(f"{self._who(w)} did not answer within {self._timeout:g} seconds in {moment}")
            message = connection.recv()
        except (EOFError, ConnectionResetError):
            self._processes[w].join(timeout=1.0)
            raise _Lost(f"{self._who(w)} died in {moment} {_cause(self._processes[w])}") from None
        if isinstance(message, tuple) and message[0] == "error":
            _, text, said = message
            raise _Lost(f"{text}\n\nIn the worker:\n{said}")
        return message

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
        self._closed = True
        for process in self._processes:
            if process.is_alive():
                process.terminate()
        for process in self._processes:
            process.join(timeout=1.0)
            if process.is_alive():
                process.kill()
        for connection in self._connections:
            connection.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self._end()


def _cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
