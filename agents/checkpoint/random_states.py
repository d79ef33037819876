"""The random states of the process and of an agent."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def process_states() -> dict[str, Any]:
    """Those of Python, NumPy and torch, as data."""
    version, numbers, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002  (what Stable-Baselines3 seeds)
    numpy["state"]["key"] = numpy["state"]["key"].astype(np.int64)  # older safetensors know no uint32
    used = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "python": [version, np.array(numbers, np.int64), gauss],
        "numpy": numpy,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if used else [],
    }


def set_process_states(states: Mapping[str, Any]) -> None:
    """The inverse."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(int(number) for number in numbers), gauss))
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leaves the process's random states as they were: loading an agent does not change what others draw."""
    states = process_states()
    try:
        yield
    finally:
        set_process_states(states)
