"""Finds the compiled parts of the package, if they were built at installation."""

import ctypes
import importlib.machinery
import warnings
from pathlib import Path

import torch

BUILDS: dict[str, str] = {}
"""Which build of each library serves: avx2 or generic. One that is not here was not found."""


def load(folder: Path, name: str, version: int) -> ctypes.CDLL | None:
    """The library ``name`` in ``folder`` built for this processor, or None where there is none.

    Args:
        version: of its functions' arguments; a library of another one, built from an older checkout say, would misread
            them, and is left alone with a warning. So is one that this system cannot load.
    """
    kinds = ["_avx2", ""] if torch.backends.cpu.get_cpu_capability() != "DEFAULT" else [""]
    for kind in kinds:
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            if not (path := folder / f"_{name}{kind}{suffix}").exists():
                continue
            try:
                library = ctypes.CDLL(str(path))
            except OSError as error:  # built against another system's C library, say
                warnings.warn(f"{path.name} cannot be loaded and is not used: {error}", stacklevel=2)
                continue
            if _version_of(library, name) == version:
                BUILDS[name] = kind.lstrip("_") or "generic"
                return library
            warnings.warn(f"{path.name} was built from other sources and is not used: install again", stacklevel=2)
    return None


def _version_of(library: ctypes.CDLL, name: str) -> int:
    function = f"{name}_version"
    return int(getattr(library, function)()) if hasattr(library, function) else 1
