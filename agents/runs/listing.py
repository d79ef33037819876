"""What there is to choose from, for ``train.py --list``, ``--list-envs`` and ``--version``."""

import contextlib
import inspect
import io
import platform
import shutil
import textwrap
import warnings
from collections.abc import Iterator, Mapping

import torch
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN

import agents
import configs
from agents.checks.extras import EXTRAS, install_command, is_installed
from agents.encoders import ENCODERS
from agents.kernels.plan import missing
from agents.memory import MEMORIES
from configs.command_line import files
from configs.settings import WRAPPERS
from envs.vector.families import FAMILIES, listed

# Stable-Baselines3's own say less.
OTHERS = {
    FlattenExtractor: "All numbers in a row, as they are.",
    NatureCNN: "The convolutional network of Mnih et al. 2015.",
}
NAMES = 20
"""Width of the column of names."""


def print_asked(*, version: bool, choices: bool, environments: bool) -> None:
    """Prints what the words of the command line ask for."""
    if version:
        configs.say(version_line())
    if choices:
        width = max(60, min(shutil.get_terminal_size().columns, 120))
        for line in choice_lines(width):
            configs.say(line)
    if environments:
        print_environments()


def version_line() -> str:
    compiled = "torch alone" if missing() else "compiled parts"
    return f"recurl {agents.__version__}, Python {platform.python_version()}, torch {torch.__version__}, {compiled}"


def choice_lines(width: int) -> Iterator[str]:
    """Every registry by the option that chooses from it, a line or two a name."""
    yield from _section("settings files, --config NAME", {name: _first_comment(name) for name in files()}, width)
    for title, registry in (("memories, --policy.memory", MEMORIES), ("encoders, --policy.encoder", ENCODERS)):
        described = {name: OTHERS.get(kind) or _first_line(kind) for name, kind in registry.items()}
        yield from _section(f"{title} NAME, or module:Class", described, width)
    yield "wrappers, --env.wrappers NAME ..., or module:Class"
    yield from textwrap.wrap(", ".join(WRAPPERS), width, initial_indent="  ", subsequent_indent="  ")
    yield ""
    states = {each.name: "installed" if each.is_installed else each.command for each in FAMILIES}
    title = "environments, --env.id ID: ours, gymnasium's, and of (ids: --list-envs)"
    yield from _section(title, states, width)
    yield from _section(
        "extras", {name: "installed" if is_installed(name) else install_command(name) for name in EXTRAS}, width
    )


def print_environments() -> None:
    """A line a family; what its package prints as it is imported is left out."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lines = list(listed())
    for line in lines:
        configs.say(line)


def _section(title: str, described: Mapping[str, str], width: int) -> Iterator[str]:
    yield title
    for name, what in described.items():
        yield from textwrap.wrap(what, width, initial_indent=f"  {name:{NAMES}}", subsequent_indent=" " * (NAMES + 2))
    yield ""


def _first_line(kind: type) -> str:
    """The first line of a docstring, up to its equation."""
    line = (inspect.getdoc(kind) or kind.__name__).partition("\n")[0]
    return line.partition(": ``")[0].replace("``", "").rstrip(" ,")


def _first_comment(name: str) -> str:
    """The first sentences of a settings file, up to what is to be installed."""
    lines = files()[name].read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    return comment.partition(" `pip")[0]
