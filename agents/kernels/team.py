"""Runs functions at the same time, on the threads that torch computes on where those can be had.

Between two products torch's OpenMP threads wait by spinning, for a millisecond or more: a thread of one's own beside
them gets half a core. So the functions are handed to the same OpenMP team.
"""

import ctypes
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _openmp() -> ctypes.CDLL | None:
    """The OpenMP library that this process computes with, if it has GCC's entry points; LLVM's and Intel's do too."""
    try:
        library = ctypes.CDLL(None)
        parallel, _ = library.GOMP_parallel, library.omp_get_thread_num
    except (AttributeError, OSError, TypeError):  # no such function; no such library; no such thing on Windows
        return None
    parallel.argtypes, parallel.restype = [_FUNCTION, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return library


_library = _openmp()


def run_together(functions: Sequence[Callable[[], None]]) -> None:
    """Calls each once, each on a thread of its own where there are as many. Functions should release the GIL.

    Raises:
        BaseException: what the first of them to fail raised, when all have ended.
        KeyboardInterrupt: an interruption kept one of them from running.
    """
    errors: list[BaseException] = []
    ended: list[None] = []

    def run(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:  # nothing may pass through OpenMP
            errors.append(error)
        ended.append(None)

    if len(functions) < 2:
        for function in functions:
            run(function)
    elif _library is not None:
        _run_in_team(_library, [partial(run, function) for function in functions])
    else:
        threads = [threading.Thread(target=run, args=[function]) for function in functions[1:]]
        for thread in threads:
            thread.start()
        run(functions[0])
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    if len(ended) < len(functions):  # Ctrl-C between two of them: ctypes drops what a callback raises
        raise KeyboardInterrupt


def _run_in_team(library: Any, functions: Sequence[Callable[[], None]]) -> None:
    def share(_: Any) -> None:
        # OpenMP may give fewer threads than asked.
        for function in functions[library.omp_get_thread_num() :: library.omp_get_num_threads()]:
            function()

    library.GOMP_parallel(_FUNCTION(share), None, len(functions), 0)
