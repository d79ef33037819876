"""Memories: what an agent carries from one step to the next. Each is chosen by name, all else has a default.

``MEMORIES`` is the list of what there is; a memory of your own is given as its class or as ``"module:Class"``.
"""

import difflib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from agents.checks.arguments import did_you_mean, imported
from agents.memory.attention import AttentionMemory
from agents.memory.core import Memory, NoMemory, NumpyState, NumpyStep, State
from agents.memory.delta import GatedDeltaNet
from agents.memory.ffm import FastForgetful
from agents.memory.hybrid import Hybrid
from agents.memory.linear import LRU, MinGRU
from agents.memory.recurrent import GRU, LSTM, RNN
from agents.memory.transformer import GTrXL

__all__ = [
    "GRU",
    "LRU",
    "LSTM",
    "MEMORIES",
    "RNN",
    "AttentionMemory",
    "FastForgetful",
    "GTrXL",
    "GatedDeltaNet",
    "Hybrid",
    "Memory",
    "MinGRU",
    "NoMemory",
    "NumpyState",
    "NumpyStep",
    "State",
    "make_memory",
    "memory_class",
    "registered_only",
]

MEMORIES: dict[str, type[Memory]] = {
    "rnn": RNN,
    "lstm": LSTM,
    "gru": GRU,
    "mingru": MinGRU,
    "lru": LRU,
    "deltanet": GatedDeltaNet,
    "ffm": FastForgetful,
    "hybrid": Hybrid,
    "gtrxl": GTrXL,
    "attention": AttentionMemory,
    "none": NoMemory,
}


_REGISTERED_ONLY = ContextVar("registered only", default=False)


@contextmanager
def registered_only() -> Iterator[None]:
    """Inside, a name stands for what is registered under it and for nothing else: what is built comes from a file."""
    token = _REGISTERED_ONLY.set(True)
    try:
        yield
    finally:
        _REGISTERED_ONLY.reset(token)


def make_memory(memory: str | type[Memory], input_size: int, kwargs: Mapping[str, Any] | None = None) -> Memory:
    """Builds a memory over features of ``input_size`` from a name, ``"module:Class"`` or a class.

    Args:
        kwargs: further arguments of its constructor; checked, so that a misspelt one says what there is.

    Raises:
        ValueError: no memory of that name, or an argument's value is out of range.
        TypeError: not a memory, or it takes no argument of that name.
    """
    cls = memory_class(memory)
    kwargs = dict(kwargs or {})
    _check_arguments(cls, kwargs)
    return cls(input_size, **kwargs)


def memory_class(memory: str | type[Memory]) -> type[Memory]:
    """The class a name of ``MEMORIES``, ``"module:Class"`` or a class stands for.

    ``"module:Class"`` imports and so runs that module: only for strings from a user's own code or settings, and never
    within :func:`registered_only`, as for one read from a saved file.
    """
    cls: Any = memory
    if isinstance(memory, str):
        imports = ":" in memory and memory not in MEMORIES and not _REGISTERED_ONLY.get()
        cls = imported("memory", memory) if imports else _registered(memory)
    if not (inspect.isclass(cls) and issubclass(cls, Memory)):
        raise TypeError(f"memory must be a name, 'module:Class' or a subclass of agents.memory.Memory; got {memory!r}")
    found: type[Memory] = cls
    return found


def _registered(name: str) -> type[Memory]:
    if name in MEMORIES:
        return MEMORIES[name]
    near = difflib.get_close_matches(name.lower(), MEMORIES, n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(f"no memory is called {name!r}; {hint}there are {', '.join(MEMORIES)}, or give 'module:Class'")


def _check_arguments(cls: type[Memory], kwargs: Mapping[str, Any]) -> None:
    parameters = list(inspect.signature(cls).parameters.values())[1:]
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_POSITIONAL]
    for name in kwargs:
        if name not in known:
            hint = did_you_mean(name, known)
            raise TypeError(f"{cls.__name__} takes no {name!r}{hint} (it takes {', '.join(known) or 'nothing more'})")
