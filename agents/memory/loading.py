"""Finds the compiled parts of the package, if they were built at installation."""

import ctypes
import importlib.machinery
import os
import warnings
from pathlib import Path

import torch

WHICH = "RECURL_KERNELS"


def load(folder: Path, name: str, version: int) -> ctypes.CDLL | None:
    """The library ``name`` in ``folder`` built for this processor, or None where there is none.

    The environment variable ``RECURL_KERNELS`` says which: ``auto`` (the default) the fastest that the processor runs,
    ``generic`` the one for every processor, ``off`` none, so that torch computes everything.

    Args:
        version: of its functions' arguments; a library of another one, built from an older checkout say, would misread
            them, and is left alone with a warning. So is one that this system cannot load.
    """
    for kind in _kinds(os.environ.get(WHICH, "auto")):
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            if not (path := folder / f"_{name}{kind}{suffix}").exists():
                continue
            try:
                library = ctypes.CDLL(str(path))
            except OSError as error:  # built against another system's C library, say
                warnings.warn(f"{path.name} cannot be loaded and is not used: {error}", stacklevel=2)
                continue
            if _version_of(library, name) == version:
                return library
            warnings.warn(f"{path.name} was built from other sources and is not used: install again", stacklevel=2)
    return None


def _kinds(which: str) -> list[str]:
    if which not in ("auto", "generic", "off"):
        raise ValueError(f"{WHICH} is {which!r}; set it to auto, generic or off")
    if which == "off":
        return []
    return ["_avx2", ""] if which == "auto" and torch.backends.cpu.get_cpu_capability() != "DEFAULT" else [""]


def _version_of(library: ctypes.CDLL, name: str) -> int:
    function = f"{name}_version"
    return int(getattr(library, function)()) if hasattr(library, function) else 1
