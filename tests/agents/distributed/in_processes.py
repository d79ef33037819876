"""What processes exchange until they part: run by ``test_group.py``. Of three, the last is killed.

RANK=0 WORLD_SIZE=3 ... python in_processes.py FOLDER
"""

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from agents.distributed import group

SIZES = (1, 2, 1000, 100_003, 17)  # a second block, and one that is not filled


def summed(tensor: torch.Tensor) -> torch.Tensor:
    room = group.room(len(tensor), tensor.dtype, tensor.device)
    room.copy_(tensor)
    return group.summed(room).clone()


def sums(dtype: torch.dtype) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
    """Sums of all processes, and the parts of each."""
    random = torch.Generator().manual_seed(group.rank())
    tensors = [torch.randn(size, dtype=dtype, generator=random) for size in SIZES]
    parts = [group.gathered(tensor.clone()) for tensor in tensors]
    return [(summed(tensor), each) for tensor, each in zip(tensors, parts, strict=True)]


def alarmed(folder: Path) -> list[float]:
    """The others come only when process 0 has handled a signal, in its wait for them."""
    if group.is_first():
        signal.signal(signal.SIGALRM, lambda *_: (folder / "alarmed").touch())
        signal.setitimer(signal.ITIMER_REAL, 0.1)
    else:
        wait_for(folder / "alarmed")
    return summed(torch.ones(2)).tolist()


def interrupted(wait: Callable[[], Any]) -> bool:
    """Whether Ctrl-C ends a wait for the others."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        wait()
    except KeyboardInterrupt:
        return True
    return False


def lost(wait: Callable[[], Any]) -> group.PeerLost | None:
    """The error that says so."""
    try:
        wait()
    except group.PeerLost as error:
        return error
    return None


def ending(folder: Path) -> dict[str, Any]:
    """Ctrl-C ends the wait of process 0, the death of process 2 that of process 1."""
    if group.is_first():
        found: dict[str, Any] = {"interrupted": interrupted(lambda: summed(torch.ones(2)))}
        (folder / "interrupted").touch()
        wait_for(folder / "lost")
    elif group.rank() == 1:
        importlib.import_module("torch._dynamo")  # an optimizer does
        errors = [lost(lambda: summed(torch.ones(2))), lost(lambda: group.numbers(0.0))]
        group.leave()
        found = {"lost": [str(error) for error in errors], "threads": names_of_threads()}
        (folder / "lost").touch()
    else:
        wait_for(folder / "interrupted")
        os.kill(os.getpid(), signal.SIGKILL)
    return found


def leaving(folder: Path) -> dict[str, Any]:
    """Process 0 leaves an exchange, and the others, that come only then."""
    group.gathered(None)
    if not group.is_first():
        wait_for(folder / "left")
        return {}
    is_interrupted = interrupted(lambda: group.gathered(None))
    group.leave()
    (folder / "left").touch()
    return {"interrupted": is_interrupted}


def names_of_threads() -> set[str]:
    return {(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}


def wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.01)


def main(folder: Path) -> None:
    if group.size() == 2:
        found = leaving(folder)
    else:
        found = {
            "sums": {dtype: sums(dtype) for dtype in (torch.float32, torch.float64)},
            "alarmed": alarmed(folder),
            "shares memory": group._memory is not None,
        }
        torch.save(found, folder / f"{group.rank()}.pt")
        found |= ending(folder)
    torch.save(found, folder / f"{group.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
