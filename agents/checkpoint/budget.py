"""What reading a file may cost: everything is counted before it is allocated, against one constant.

A file of some kilobytes can ask for a space, a window or a rollout of a billion steps. An honest one asks for little
besides its weights.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import UninitializedParameter
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from agents.checkpoint.container import BUDGET, CheckpointError, refused
from agents.memory import registered_only

BYTES_A_NUMBER_OF_A_SPACE = 256  # bounds and their checks, comparisons, copies: 2**22 numbers take half a second


class Budget:
    """Adds up the bytes that a file asks for.

    Raises (from :meth:`take`):
        CheckpointError: it is more than it may.
    """

    def __init__(self, file: str, limit: float = BUDGET) -> None:
        self._file, self._left = file, limit

    def take(self, n_bytes: float, what: str) -> None:
        self.check(n_bytes, what)
        self._left -= n_bytes

    def check(self, n_bytes: float, what: str) -> None:
        if n_bytes > self._left:
            raise CheckpointError(
                f"{self._file}: {what} has more than a file may ask for ({BUDGET // 2**20} MiB); it is refused"
            )

    def take_space(self, shape: Any, where: str) -> None:
        """Counts a space of this shape before it is built."""
        sizes = [int(size) for size in shape]
        if any(size < 0 for size in sizes):
            raise ValueError(f"{tuple(sizes)} is no shape")
        self.take(BYTES_A_NUMBER_OF_A_SPACE * max(math.prod(sizes), 1), f"{where} of shape {tuple(sizes)}")


@contextmanager
def building(what: str, file: str, n_weights: int, *, bounded: bool = True) -> Iterator[None]:
    """Builds an agent from a file: names are registered ones, and it has no more than the file has weights for.

    Networks are counted as their parameters are registered, before they are initialized. Buffers, states and windows
    are counted as torch is asked for them.

    Args:
        n_weights: how many numbers the file has for the networks.
        bounded: False where the caller has said how large the rollout is.

    Raises:
        CheckpointError: it asks for more, or for what makes no sense.
    """
    most_weights, counted = 2 * n_weights + 2**16, 0

    def count(module: Any, name: str, parameter: Any) -> None:
        nonlocal counted
        if parameter is None or isinstance(parameter, UninitializedParameter) or not _Allocations.is_active():
            return
        counted += parameter.numel()
        if counted > most_weights:
            raise CheckpointError(f"{file}: the settings ask for larger networks than there are weights; it is refused")

    nonsense = refused(f"{file}: no {what} can be built from its settings", "change them or use another copy")
    budget = Budget(file, BUDGET + 64 * n_weights if bounded else math.inf)
    handle = register_module_parameter_registration_hook(count)
    try:
        with nonsense, registered_only(), _Allocations(budget):
            yield
    finally:
        handle.remove()


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the tensors that this thread makes, before they are made where their size is an argument."""

    def __init__(self, budget: Budget) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._budget = budget

    @staticmethod
    def is_active() -> bool:
        """Whether this thread is inside: the registration hook is the whole process's."""
        return any(isinstance(mode, _Allocations) for mode in _get_current_dispatch_mode_stack())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(result.alias_info is not None for result in func._schema.returns):  # a view, or in place
            return func(*args, **kwargs)
        named = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        what = "what its settings make the agent keep (a rollout, say: give n_steps=... yourself)"
        self._budget.check(_asked(named), what)
        made = func(*args, **kwargs)
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self._budget.take(tensor.numel() * tensor.element_size(), what)
        return made


def _asked(named: Mapping[str, Any]) -> int:
    """The bytes of a new tensor as far as an operation's arguments tell."""
    dtype = named.get("dtype")
    width = dtype.itemsize if isinstance(dtype, torch.dtype) else 4
    if "size" in named:
        return width * math.prod(int(size) for size in named["size"])
    if "repeats" in named and isinstance(named["repeats"], list | tuple):
        return width * int(named["self"].numel()) * math.prod(int(times) for times in named["repeats"])
    if "end" in named:
        return width * max(int(named["end"]) - int(named.get("start", 0)), 0)
    if "n" in named and isinstance(named["n"], int):
        return width * named["n"] * int(named.get("m", named["n"]))
    return 0
