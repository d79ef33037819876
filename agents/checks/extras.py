"""Packages that only some of what there is needs: the extras of pyproject.toml, and the command that installs one."""

import importlib
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

EXTRAS = {
    "plots": "matplotlib",
    "video": "moviepy",
    "onnx": "onnxruntime",
    "hub": "huggingface_hub",
    "sweep": "optuna",
    "ray": "ray",
}
"""Extra -> a module that comes with it."""

_ROOT = Path(__file__).parents[2]


def is_installed(extra: str) -> bool:
    return importlib.util.find_spec(EXTRAS[extra]) is not None


def require(extra: str, module: str | None = None) -> Any:
    """The extra's module, or another that comes with it. Raises ImportError that says how it is installed, where it
    cannot be imported."""
    name = module or EXTRAS[extra]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is needed ({error}); install it with: {install_command(extra)}") from error


def install_command(extra: str) -> str:
    """What to type here: of a checkout its own extra, of an installed package the distributions that it names."""
    pip = [_python(), "-m", "pip", "install"]
    if (_ROOT / "pyproject.toml").is_file():
        here = Path.cwd() == _ROOT
        constraints, source = ("constraints.txt", ".") if here else (str(_ROOT / "constraints.txt"), str(_ROOT))
        return f'{shlex.join([*pip, "-c", constraints, "-e"])} "{source}[{extra}]"'
    needed = [each.partition(";") for each in importlib.metadata.requires("recurl") or ()]
    chosen = [name.strip() for name, _, marker in needed if re.search(rf"extra == ['\"]{extra}['\"]", marker)]
    return shlex.join([*pip, *chosen])


def _python() -> str:
    """This Python, as short as it can be typed."""
    if shutil.which("python") == sys.executable:
        return "python"
    executable = Path(sys.executable)
    below = executable.is_relative_to(Path.cwd())
    return os.fspath(executable.relative_to(Path.cwd()) if below else executable)
