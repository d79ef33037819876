"""Whether what is to be computed on is there: Stable-Baselines3 falls back to the CPU without a word."""

import warnings

import torch


def check_device(name: str) -> None:
    """Raises ValueError unless ``name`` is ``auto`` or a device that torch can compute on here."""
    if (fault := _fault(name)) is not None:
        raise ValueError(fault)


def warn_of_fallback(name: torch.device | str, used: torch.device) -> None:
    """Warns where ``cuda`` was requested and the CPU is used, as Stable-Baselines3 does."""
    if used.type == "cpu" and str(name).startswith("cuda") and (fault := _fault(str(name))) is not None:
        warnings.warn(f"{fault}; computing on the CPU", stacklevel=4)


def _fault(name: str) -> str | None:
    """Why a device cannot be used; None if it can, or if torch does not say beforehand."""
    if name == "auto":
        return None
    try:
        device = torch.device(name)
    except RuntimeError:
        return f"device {name!r}: expected auto, cpu, cuda, cuda:1, ... or another device of torch"
    if device.type == "cuda" and not torch.cuda.is_available():
        return f"device {name!r}: torch {torch.__version__} finds no CUDA device on this machine; use auto or cpu"
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        return f"device {name!r}: there are {torch.cuda.device_count()} CUDA devices, numbered from 0"
    if device.type == "mps" and not torch.backends.mps.is_available():
        return f"device {name!r}: torch finds no Metal device on this machine; use auto or cpu"
    return None
