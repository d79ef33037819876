"""What three processes exchange, the last of which is killed: run by ``test_memory.py``.

RANK=0 WORLD_SIZE=3 ... python in_processes.py FOLDER
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from agents.distributed import group

SIZES = (1, 2, 1000, 100_003, 17)  # a second block, and one that is not filled


def sums(dtype: torch.dtype) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
    """Sums of all processes, and the parts of each."""
    random = torch.Generator().manual_seed(group.rank())
    tensors = [torch.randn(1, size, dtype=dtype, generator=random) for size in SIZES]
    parts = [group.gathered(tensor.clone()) for tensor in tensors]
    return [(group.summed(tensor), each) for tensor, each in zip(tensors, parts, strict=True)]


def alarmed(folder: Path) -> list[float]:
    """The others come only when process 0 has handled a signal, in its wait for them."""
    if group.is_first():
        signal.signal(signal.SIGALRM, lambda *_: (folder / "alarmed").touch())
        signal.setitimer(signal.ITIMER_REAL, 0.1)
    else:
        wait_for(folder / "alarmed")
    return group.summed(torch.ones(2)).tolist()


def ending(folder: Path) -> str:
    """Ctrl-C ends the wait of process 0, the death of process 2 that of process 1."""
    if group.rank() == 2:
        wait_for(folder / "interrupted")
        os.kill(os.getpid(), signal.SIGKILL)
    if group.is_first():
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        group.summed(torch.ones(2))
    except KeyboardInterrupt:
        (folder / "interrupted").touch()
        return "interrupted"
    except group.PeerLost as error:
        return str(error)
    return "nothing"


def wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.01)


def main(folder: Path) -> None:
    found: dict[str, Any] = {
        "sums": {dtype: sums(dtype) for dtype in (torch.float32, torch.float64)},
        "alarmed": alarmed(folder),
        "shares memory": group._memory is not None,
    }
    torch.save(found, folder / f"{group.rank()}.pt")
    found["ending"] = ending(folder)
    torch.save(found, folder / f"{group.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
