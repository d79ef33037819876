"""Builds the package. Settings are in pyproject.toml; here is what they cannot say: how a checkout becomes a wheel.

A checkout has ``agents``, ``envs``, ``configs``, ``train.py`` and ``evaluate.py`` at its top, names that other
distributions install too. A wheel puts them all below ``recurl``, and its imports say so; an editable installation
and ``build_ext --inplace`` leave the checkout as it is.
"""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

PACKAGE = "recurl"
PLACES = {
    "agents": f"{PACKAGE}.agents",
    "envs": f"{PACKAGE}.envs",
    "configs": f"{PACKAGE}.configs",
    "train": f"{PACKAGE}.scripts.train",
    "evaluate": f"{PACKAGE}.scripts.evaluate",
}


def placed(source: str, file: str) -> str:
    """The source with its imports of what is in PLACES leading there; nothing else changes, nor a line's number.

    Raises:
        ValueError: an import is written in a way that would bind the old name.
    """
    lines = source.splitlines(keepends=True)
    for node, name in _imports(ast.parse(source)):
        first, dot, rest = name.partition(".")
        if first not in PLACES:
            continue
        place = PLACES[first] + dot + rest
        line = lines[node.lineno - 1]
        before, statement = line[: node.col_offset], line[node.col_offset :]
        if isinstance(node, ast.ImportFrom):
            statement = statement.replace(f"from {name} ", f"from {place} ", 1)
        elif len(node.names) == 1 and node.names[0].asname:
            statement = statement.replace(f"import {name} ", f"import {place} ", 1)
        elif len(node.names) == 1 and not rest:
            folder, _, last = place.rpartition(".")
            statement = statement.replace(f"import {name}", f"from {folder} import {last}", 1)
        else:
            raise ValueError(f"{file}:{node.lineno}: write this import as 'from {name} import ...', one a line")
        lines[node.lineno - 1] = before + statement
    return "".join(lines)


def _imports(tree: ast.AST) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node, node.module
        elif isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)


def place(build_lib: Path) -> None:
    """Moves what was built at the top of a folder to its place below ``recurl``."""
    for name, place in PLACES.items():
        for built in (build_lib / name, build_lib / f"{name}.py"):
            target = build_lib.joinpath(*place.split(".")).with_suffix(built.suffix)
            if built.is_dir():
                shutil.copytree(built, target, dirs_exist_ok=True)
                shutil.rmtree(built)
            elif built.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(built, target)
    scripts = build_lib / PACKAGE / "scripts"
    if scripts.exists():
        (scripts / "__init__.py").write_text('"""What the console commands run."""\n', encoding="utf-8")
    for file in (build_lib / PACKAGE).rglob("*.py"):
        file.write_text(placed(file.read_text(encoding="utf-8"), str(file)), encoding="utf-8")


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            place(Path(self.build_lib))


class BuildExt(build_ext):
    def run(self) -> None:
        super().run()
        if not (self.editable_mode or self.inplace):
            place(Path(self.build_lib))


class Placed(Distribution):
    def iter_distribution_names(self) -> Iterator[str]:
        """The top-level names, as ``top_level.txt`` lists them for other tools."""
        return iter([PACKAGE])


setup(cmdclass={"build_py": BuildPy, "build_ext": BuildExt}, distclass=Placed)
