"""A worker process: steps its environments on request, and reports what happened, failures included.

Observations, actions, rewards and dones are in memory shared with the parent; all else goes through the pipe. Every
request has a number, and its answer the same, so late answers are recognized.
Importing this module imports neither torch nor Stable-Baselines3: a worker starts fast and stays small.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
from gymnasium.vector.utils import create_empty_array
from numpy.typing import NDArray

from envs.tasks.observations import Tree, tree_map
from envs.vector.errors import EnvError
from envs.vector.group import Group

# What libraries read when they are loaded to decide how many threads they start.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class SharedArrays(NamedTuple):
    """What parent and workers share, (N, ...)."""

    observations: Tree
    actions: Any
    rewards: NDArray[np.float32]
    dones: NDArray[np.bool_]


def lay_out(
    spaces: Mapping[str, Any], num_envs: int, memory: NDArray[np.uint8] | None = None
) -> tuple[SharedArrays, int]:
    """The shared arrays in `memory`, (bytes,), and how many bytes they take. Without memory, only the latter counts."""
    used = 0

    def array(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        nonlocal used
        start, size = used, math.prod(shape) * np.dtype(dtype).itemsize
        used = -(-(start + size) // 64) * 64  # each array on its own cache line
        if memory is None:
            return np.empty(0)
        part: NDArray[Any] = memory[start : start + size].view(dtype).reshape(shape)
        return part

    arrays = SharedArrays(
        observations=create_empty_array(spaces["observation_space"], num_envs, array),
        actions=create_empty_array(spaces["action_space"], num_envs, array),
        rewards=array((num_envs,), np.float32),
        dones=array((num_envs,), np.bool_),
    )
    return arrays, used


def work(connection: Connection, pickled_makers: bytes, first: int, max_restarts: int, request: int) -> None:
    """What a worker process does from start to end; see :func:`serve`."""
    _end_with_parent()
    _leave_signals_to_parent()
    serve(connection, pickled_makers, first, max_restarts, request)


def serve(connection: Connection, pickled_makers: bytes, first: int, max_restarts: int, request: int) -> None:
    """Makes environments and does what is requested of them, to the end of the connection.

    `first`: the number of the first of them among all. `request`: that of being started.
    """
    for name in THREAD_VARIABLES:
        os.environ[name] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    group = None
    try:
        group = Group(pickle.loads(pickled_makers), first, max_restarts)
        group.alive = _heartbeat(connection)
        _send(connection, (request, "spaces", group.spaces))
        _serve(connection, group)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone
    except BaseException as error:  # sys.exit() too
        message = str(error)
        if not isinstance(error, EnvError):
            message = f"the worker with the environments from {first} on failed: {type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            connection.send((request, "error", message, traceback.format_exc()))
    finally:
        if group is not None:
            group.close()
        connection.close()


def _end_with_parent() -> None:
    """From here on this process ends when the one that started it does, whatever both are doing by then.

    Not by `prctl(PR_SET_PDEATHSIG)`: that follows the process which forked this one, the fork server, and that one
    stays for as long as one of its children does.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    if sys.platform == "linux":
        import fcntl

        # The kernel itself sends the signal when the pipe that ends with the parent does: no thread could while some
        # environment's compiled code keeps the interpreter to itself.
        fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(parent.sentinel, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, fcntl.fcntl(parent.sentinel, fcntl.F_GETFL) | os.O_ASYNC)
        if not parent.is_alive():  # it ended before
            os._exit(1)
    else:

        def follow() -> None:
            wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


def _leave_signals_to_parent() -> None:
    """Ctrl-C reaches every process of the terminal, SIGTERM often every one of a job: the parent decides what then.

    SIGTERM has a handler that does nothing, in place of being ignored: the processes that an environment starts inherit
    what is ignored, and could no longer be ended by it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _heartbeat(connection: Connection, seconds: float = 0.05) -> Callable[[], None]:
    """Called often, it tells the parent now and then that a long request is being worked on."""
    last = 0.0

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            connection.send((0, "alive"))

    return beat


def _serve(connection: Connection, group: Group) -> None:
    """A number requests a step, (number, what, ...) something else, None the end.

    Who shares no memory sends the actions with the request, and is sent the arrays with the answer.
    """
    arrays: Any = None  # they come before the first reset
    shared = True
    while (request := connection.recv()) is not None:
        if type(request) is int:
            # The action is copied: an environment may keep it, and the shared memory moves on.
            infos, resets = group.step(arrays.actions.copy(), arrays.observations, arrays.rewards, arrays.dones)
            some = {i: info for i, info in enumerate(infos) if info}
            if some or resets:
                _send(connection, (request, "stepped", some, resets))
            else:
                connection.send(request)
            continue
        number, kind, *content = request
        if kind == "share":
            arrays, shared = _share(group, *content), content[0] is not None
            answer: tuple[Any, ...] = ("shared",)
        elif kind == "step":
            (actions,) = content
            infos, resets = group.step(actions, arrays.observations, arrays.rewards, arrays.dones)
            some = {i: info for i, info in enumerate(infos) if info}
            answer = ("stepped", some, resets, arrays.observations, arrays.rewards, arrays.dones)
        elif kind == "reset":
            seeds, options = content
            answer = ("reset", group.reset(seeds, options, arrays.observations))
            answer = answer if shared else (*answer, arrays.observations)
        else:
            answer = _called(group, *content)
        _send(connection, (number, *answer))


def _share(group: Group, path: str | None, num_envs: int) -> SharedArrays:
    """The worker's part of the arrays in a file; without one, in memory of its own."""
    if path is None:
        memory = np.zeros(lay_out(group.spaces, num_envs)[1], np.uint8)
    else:
        memory = np.asarray(np.memmap(path, dtype=np.uint8, mode="r+"))
    arrays, _ = lay_out(group.spaces, num_envs, memory)
    own = slice(group.first, group.first + len(group.envs))
    return SharedArrays(*tree_map(lambda array: array[own], arrays))


def _called(group: Group, pickled_call: bytes) -> tuple[Any, ...]:
    """`call(group, position)` for several environments. An exception is the caller's: the worker goes on."""
    call, positions = pickle.loads(pickled_call)
    try:
        return ("answer", [call(group, i) for i in positions])
    except Exception as error:
        return ("raised", error, traceback.format_exc())
    except SystemExit as error:
        return ("raised", EnvError(f"an environment called sys.exit({error.code!r})"), traceback.format_exc())


def _send(connection: Connection, message: Any) -> None:
    """As `Connection.send`, and able to carry what was defined in the user's script."""
    connection.send_bytes(cloudpickle.dumps(message))
