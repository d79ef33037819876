"""The processes that train an agent together: how many there are, which one this is, and what they exchange.

    torchrun --nproc-per-node 4 train.py --config cartpole_novel

They find each other by the variables that torchrun sets, at the first exchange; without them a process is alone, and
nothing here costs anything or is called. Tensors on a GPU go by nccl where every process of a machine has one of its
own; gradients on the CPUs of one machine through memory that its processes share; all else by gloo.

A process that ends closes its connections, and whoever exchanges with it gets :class:`PeerLost` at once. So the
timeout of an exchange only guards against a peer that hangs for ever, and it is long: processes wait here for as long
as process 0 evaluates. A machine that vanishes without closing anything is missed by torchrun, which ends the others.
"""

import atexit
import importlib
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from agents.distributed.memory import SharedMemory, is_available

Result = TypeVar("Result")

TIMEOUT = timedelta(days=7)
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SHORTEST, _LONGEST = 2e-5, 2e-2  # seconds between two looks at an exchange that waits for others

_ended = False
_memory: SharedMemory | None = None
_awaited: Any = None


class PeerLost(RuntimeError):
    """Another process is gone: it was killed, ran out of memory, or failed where it could tell nobody."""

    is_reported = False
    """Whether another process says so to the user."""


class PeerFailed(RuntimeError):
    """Another process failed, and has reported why."""

    is_reported = False
    """Whether another process says so to the user."""


def size() -> int:
    """How many processes train together; 1 without torchrun."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in VARIABLES) else 1


def rank() -> int:
    """The number of this process, from 0."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ["RANK"]) if size() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that evaluates, writes and prints."""
    return rank() == 0


def on_this_machine() -> int:
    """How many of the processes run on this machine."""
    return min(size(), int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def device(name: Any) -> Any:
    """The GPU of this process where "cuda" or "auto" leaves it open and a machine's processes have one each."""
    if size() == 1 or str(name) not in ("auto", "cuda") or not _has_gpus():
        return name
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"


def share(n: int, what: str = "n_envs") -> int:
    """This process's part of ``n``, which is everyone's.

    Raises:
        ValueError: it cannot be divided by the number of processes.
    """
    if n % size():
        below = n // size() * size()
        use = f"{below} or {below + size()}" if below else str(size())
        raise ValueError(f"{what} ({n}) must be a multiple of the {size()} processes that share it; use {use}")
    return n // size()


def room(n_numbers: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Where to write numbers (N,) that are to be summed."""
    if is_available and on_this_machine() == size() and device.type == "cpu":
        with _among_peers():
            return _shared_memory().room(n_numbers, dtype)
    return torch.empty(n_numbers, dtype=dtype, device=device)


def summed(tensor: Tensor) -> Tensor:
    """The sum of all processes' numbers (N,), written into :func:`room`; to the last bit the same everywhere.

    It is there until this process sums again.
    """
    with _among_peers():
        if _memory is not None and _memory.holds(tensor):
            return _memory.sum()
        dist.all_reduce(tensor)
    return tensor


def numbers(*values: float) -> list[list[float]]:
    """These numbers of every process, by rank."""
    with _among_peers():
        rows = [torch.empty(len(values), dtype=torch.float64) for _ in range(size())]
        dist.all_gather(rows, torch.tensor(values, dtype=torch.float64))
    return [row.tolist() for row in rows]


def gathered(value: Any) -> list[Any]:
    """Any value of every process, by rank. A signal is handled while this waits for the others."""
    global _awaited
    with _among_peers():
        _awaited = dist.all_reduce(torch.zeros(1), async_op=True)
        pause = _SHORTEST
        while not _awaited.is_completed():
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST)
        _awaited.wait()
        values: list[Any] = [None] * size()
        dist.all_gather_object(values, value)
    return values


def from_first(make: Callable[[], Result]) -> Result:
    """What process 0 makes, in all of them.

    Raises:
        PeerFailed: in the others, where it failed.
    """
    if size() == 1:
        return make()
    if not is_first():
        made, failure = gathered(None)[0]
        if failure is not None:
            raise PeerFailed(failure)
        return made  # type: ignore[no-any-return]
    try:
        result = make()
    except BaseException as error:
        with suppress(PeerLost):
            gathered((None, failure_of(error)))
        raise
    gathered((result, None))
    return result


def failure_of(error: BaseException) -> str:
    """What other processes report of an error here."""
    return f"process {rank()} of {size()}: {type(error).__name__}: {error}"


def leave() -> None:
    """Closes the connections, so that whoever still waits for this process knows at once that it has gone."""
    global _ended
    if dist.is_available() and dist.is_initialized():
        _ended = True
        if _memory is not None:
            _memory.close()
        # This ends gloo's threads, which would abort a process that ends while one waits for the interpreter's lock;
        # but it waits for an exchange that Ctrl-C has left.
        if _awaited is None or _awaited.is_completed():
            with suppress(Exception):
                dist.destroy_process_group()


def _has_gpus() -> bool:
    return torch.cuda.is_available() and torch.cuda.device_count() >= on_this_machine()


def _shared_memory() -> SharedMemory:
    global _memory
    if _memory is None:
        _memory = SharedMemory(rank(), size(), from_first)
    return _memory


@contextmanager
def _among_peers() -> Iterator[None]:
    if _ended:
        raise PeerLost("this process has left the others")
    try:
        if not dist.is_initialized():
            importlib.import_module("torch.distributed.nn.functional")  # later, its defaults would keep the group
            dist.init_process_group("cpu:gloo,cuda:nccl" if _has_gpus() else "gloo", timeout=TIMEOUT)
            atexit.register(leave)
        yield
    except (RuntimeError, ConnectionError, TimeoutError) as error:
        traceback.clear_frames(error.__traceback__)  # they would keep the group
        raise PeerLost(
            f"another of the {size()} processes that train together is gone: it was killed, ran out of memory, or "
            "failed and says so itself"
        ) from error
