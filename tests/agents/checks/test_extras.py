"""What is advised where an extra is missing can be typed where the user is."""

import importlib.metadata
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from agents.checks import extras
from agents.checks.extras import EXTRAS, install_command

ROOT = Path(__file__).parents[3]


def test_every_extra_is_one_of_pyproject() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert EXTRAS.keys() <= declared.keys()


def test_a_checkout_installs_its_own_extra_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    python, *words = shlex.split(install_command("plots"))
    assert Path(python).name.startswith("python")
    assert words == ["-m", "pip", "install", "-c", "constraints.txt", "-e", ".[plots]"]
    monkeypatch.setattr(sys, "executable", str(ROOT / ".venv" / "bin" / "python"))
    assert install_command("plots").startswith(".venv/bin/python -m pip")
    monkeypatch.chdir(tmp_path)
    assert shlex.split(install_command("plots"))[-1] == f"{ROOT}[plots]"


def test_an_installed_package_names_what_the_extra_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "_ROOT", tmp_path)
    needed = ["numpy>=1.26", 'matplotlib>=3.8; extra == "plots"', "onnx>=1.16; extra == 'onnx'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: needed)
    assert shlex.split(install_command("plots"))[1:] == ["-m", "pip", "install", "matplotlib>=3.8"]
    assert shlex.split(install_command("onnx"))[-1] == "onnx>=1.16"
