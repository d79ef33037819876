"""A worker process: steps its environments when told to, and says what happened, failures included.

Observations, actions, rewards and dones lie in memory shared with the parent; the pipe carries what else there is to
say. Every request has a number, and its answer the same, so that one the parent no longer waits for can be told from
one it does. Importing this module imports neither torch nor Stable-Baselines3: a worker starts fast and stays small.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.tasks.observations import Tree, allocate
from envs.vector.errors import EnvError
from envs.vector.group import Group, is_wrapped

# What libraries read when they are loaded to decide how many threads they start.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")

Call = Callable[[Group, int, Any], Any]


class SharedArrays(NamedTuple):
    """What parent and workers share, (N, ...)."""

    observations: Tree
    actions: NDArray[Any]
    rewards: NDArray[np.float32]
    dones: NDArray[np.bool_]


def lay_out(
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    num_envs: int,
    memory: NDArray[np.uint8] | None,
) -> tuple[SharedArrays, int]:
    """The shared arrays in `memory`, (bytes,), and how many bytes they take. Without memory, only the latter counts."""
    used = 0

    def array(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        nonlocal used
        start, size = used, int(np.prod(shape)) * np.dtype(dtype).itemsize
        used = -(-(start + size) // 64) * 64  # each array on its own cache line
        if memory is None:
            return np.empty(0)
        part: NDArray[Any] = memory[start : start + size].view(dtype).reshape(shape)
        return part

    arrays = SharedArrays(
        observations=allocate(observation_space, num_envs, array),
        actions=allocate(action_space, num_envs, array),
        rewards=array((num_envs,), np.float32),
        dones=array((num_envs,), np.bool_),
    )
    return arrays, used


def rows(tree: Tree, first: int, last: int) -> Tree:
    """Rows first to last - 1 of a tree, as views."""
    if isinstance(tree, dict):
        return {key: rows(part, first, last) for key, part in tree.items()}
    if isinstance(tree, tuple):
        return tuple(rows(part, first, last) for part in tree)
    return tree[first:last]


def work(connection: Connection, pickled_makers: bytes, first: int, max_restarts: int, request: int) -> None:
    """The life of a worker. `first`: the number of its first environment among all. `request`: to be started."""
    _end_with_parent()
    _leave_signals_to_parent()
    for name in THREAD_VARIABLES:
        os.environ[name] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    group = None
    try:
        group = Group(pickle.loads(pickled_makers), first, max_restarts)
        group.alive = _Beat(connection)
        env = group.envs[0]
        _send(connection, (request, "spaces", env.observation_space, env.action_space))
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

    SIGTERM has a handler that does nothing, in place of being ignored, since what an environment starts would ignore it
    too, and could no longer be ended by it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


class _Beat:
    """Tells the parent now and then that a long request is being worked on."""

    def __init__(self, connection: Connection, seconds: float = 0.05) -> None:
        self._connection, self._seconds, self._last = connection, seconds, 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._last >= self._seconds:
            self._last = now
            self._connection.send((0, "alive"))


def _share(group: Group, path: str, num_envs: int) -> SharedArrays:
    env = group.envs[0]
    memory = np.asarray(np.memmap(path, dtype=np.uint8, mode="r+"))
    arrays, _ = lay_out(env.observation_space, env.action_space, num_envs, memory)
    last = group.first + len(group.envs)
    return SharedArrays(*(rows(tree, group.first, last) for tree in arrays))


def _serve(connection: Connection, group: Group) -> None:
    """A number asks for a step, (number, what, ...) for something else, None for the end."""
    arrays: Any = None  # they are told before the first reset
    while True:
        request = connection.recv()
        if type(request) is int:
            # The action is copied: an environment may keep it, and the shared memory moves on.
            said, resets = group.step(arrays.actions.copy(), arrays.observations, arrays.rewards, arrays.dones)
            worth_telling = {i: info for i, info in enumerate(said) if info}
            if worth_telling or resets:
                _send(connection, (request, "stepped", worth_telling, resets))
            else:
                connection.send(request)
        elif request is None:
            return
        elif request[1] == "share":
            arrays = _share(group, *request[2:])
            connection.send(request[0])
        elif request[1] == "reset":
            number, _, seeds, options = request
            _send(connection, (number, "reset", group.reset(seeds, options, arrays.observations)))
        else:
            number, _, pickled_call = request
            _send(connection, (number, *_answer(group, pickled_call)))


def _answer(group: Group, pickled_call: bytes) -> tuple[Any, ...]:
    """Do something with some environments. What that raises is the caller's: the worker lives on."""
    call, positions, argument = pickle.loads(pickled_call)
    try:
        return ("answer", [call(group, i, argument) for i in positions])
    except Exception as error:
        return ("raised", error, traceback.format_exc())
    except SystemExit as error:
        return ("raised", EnvError(f"an environment called sys.exit({error.code!r})"), traceback.format_exc())


def get_attribute(group: Group, position: int, name: str) -> Any:
    return group.envs[position].get_wrapper_attr(name)


def set_attribute(group: Group, position: int, argument: tuple[str, Any]) -> None:
    group.envs[position].set_wrapper_attr(*argument)


def call_method(group: Group, position: int, argument: tuple[str, tuple[Any, ...], dict[str, Any]]) -> Any:
    name, positional, named = argument
    return group.envs[position].get_wrapper_attr(name)(*positional, **named)


def replay(group: Group, position: int, lives: dict[int, tuple[Any, NDArray[Any]]]) -> Any:
    """`lives`: seed and actions by the environment's number among all."""
    return group.replay(position, *lives[group.first + position])


def is_wrapped_in(group: Group, position: int, wrapper_class: Any) -> bool:
    return is_wrapped(group.envs[position], wrapper_class)


def _send(connection: Connection, message: Any) -> None:
    """As `Connection.send`, and able to carry what was defined in the user's script."""
    connection.send_bytes(cloudpickle.dumps(message))
