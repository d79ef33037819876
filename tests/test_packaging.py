"""A wheel and a source distribution are built, installed and used from another folder, without the checkout."""

import ast
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import agents
import recurl

ROOT = Path(__file__).parents[1]
QUICK = [
    *("--config", "tmaze", "--env.n-envs", "2", "--algorithm.n-steps", "8", "--algorithm.batch-size", "8"),
    *("--evaluation.every", "0", "--evaluation.final-episodes", "4", "--total-timesteps", "32", "--threads", "1"),
    *("--no-progress", "--tracking.no-tensorboard", "--name", "run"),
]


def run(words: list[str | Path], folder: Path, **environment: str) -> str:
    """What a command prints, run in a folder without this checkout on its path. A failure shows all of its output."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, words)), cwd=folder, env={**kept, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def built(kind: str, folder: Path, source: Path = ROOT, **environment: str) -> Path:
    """A wheel or an sdist of a copy of the sources, so that nothing is left in the checkout."""
    if source == ROOT:
        source = folder / "source"
        files = run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], ROOT).splitlines()
        for file in files:
            if (ROOT / file).exists():
                (source / file).parent.mkdir(parents=True, exist_ok=True)
                (source / file).write_bytes((ROOT / file).read_bytes())
    code = f"import setuptools.build_meta as b; b.build_{kind}({str(folder)!r})"
    run([sys.executable, "-c", code], source, **environment)
    (found,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return found


def installed(wheel: Path, folder: Path) -> Path:
    run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, wheel], wheel.parent)
    (folder / "agents").mkdir()  # as another distribution installs it
    (folder / "agents" / "__init__.py").write_text("__all__ = ['Runner']\nRunner = 'another'\n")
    return folder


def use(folder: Path, **environment: str) -> None:
    """Trains and evaluates with the console commands, and imports what users import, next to another ``agents``."""
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    environment = {**environment, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    run([sys.executable, folder / "bin" / "recurl-train", *QUICK], elsewhere, **environment)
    imports = """
        import importlib.metadata, sys
        import agents, recurl
        from recurl import RecurrentPPO
        from recurl.agents.memory import MEMORIES
        import recurl.envs
        assert agents.Runner == "another"
        assert recurl.__version__ and "lstm" in MEMORIES
        model = RecurrentPPO.load("runs/run/checkpoints/step_000000000032.zip")
        assert type(model).__module__.startswith("recurl.agents.")
        (evaluate,) = importlib.metadata.entry_points(group="console_scripts", name="recurl-evaluate")
        sys.argv[1:] = ["runs/run", "--episodes", "2"]
        assert evaluate.load()() == 0
        assert not {"envs", "configs", "train"} & set(sys.modules)
    """
    code = "\n".join(line.strip() for line in imports.splitlines())
    assert "mean return" in run([sys.executable, "-c", code], elsewhere, **environment)


@pytest.fixture(scope="module")
def placed() -> Callable[[str, str], str]:
    """``setup.placed``, read without running the build."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    tree.body = [node for node in tree.body if not (isinstance(node, ast.Expr) and "setup(" in ast.unparse(node))]
    names: dict[str, Any] = {}
    exec(compile(tree, "setup.py", "exec"), names)
    function: Callable[[str, str], str] = names["placed"]
    return function


def test_every_import_of_ours_leads_below_recurl_in_a_wheel(placed: Callable[[str, str], str]) -> None:
    files = [ROOT / "train.py", ROOT / "evaluate.py"]
    for package in ("agents", "envs", "configs", "recurl"):
        files += sorted((ROOT / package).rglob("*.py"))
    for file in files:
        source = file.read_text()
        result = placed(source, str(file))
        assert len(result.splitlines()) == len(source.splitlines())
        assert placed(result, str(file)) == result, f"{file} has imports left to place"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from agents.memory import LSTM\n", "from recurl.agents.memory import LSTM\n"),
        ("    import envs  # why\n", "    from recurl import envs  # why\n"),
        ("import configs\n", "from recurl import configs\n"),
        ("import agents.memory as m\n", "import recurl.agents.memory as m\n"),
        ("from train import main\n", "from recurl.scripts.train import main\n"),
        (
            "import agents_of_others\nx = 'from agents import y'\n",
            "import agents_of_others\nx = 'from agents import y'\n",
        ),
    ],
)
def test_imports_are_rewritten_and_nothing_else(placed: Callable[[str, str], str], before: str, after: str) -> None:
    function = "def f():\n" if before.startswith(" ") else ""
    assert placed(function + before, "a.py") == function + after
    with pytest.raises(ValueError, match=r"a\.py:1: write this import as"):
        placed("import agents.memory\n", "a.py")


def test_recurl_gives_what_agents_gives() -> None:
    assert recurl.__all__ == agents.__all__
    assert {"ENCODERS", "MEMORIES", "Memory", "Player", "evaluate", "import_contrib"} <= set(agents.__all__)
    assert agents.checkpoint.import_contrib is agents.import_contrib
    assert all(getattr(recurl, name) is getattr(agents, name) for name in agents.__all__)


def test_another_package_called_agents_in_front_is_named(tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text("__all__ = []\n")
    code = "import sys; sys.path[:0] = sys.argv[1:]; from recurl import Player"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path, ROOT], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert f"the package agents is another distribution's, not RecuRL's ({tmp_path / 'agents.py'})" in done.stderr


@pytest.mark.slow
def test_a_wheel_built_without_a_compiler_trains_with_another_package_called_agents(tmp_path: Path) -> None:
    wheel = built("wheel", tmp_path, CC="/bin/false")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith(".so")]
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"recurl"}
    use(installed(wheel, tmp_path / "site"))


@pytest.mark.slow
def test_a_wheel_from_the_source_distribution_has_the_compiled_parts_and_trains(tmp_path: Path) -> None:
    sdist = built("sdist", tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    wheel = built("wheel", tmp_path, source)
    compiled = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith((".so", ".pyd"))]
    assert len(compiled) == (ROOT / "pyproject.toml").read_text().count("[[tool.setuptools.ext-modules]]")
    use(installed(wheel, tmp_path / "site"))


def test_the_source_distribution_holds_what_a_clone_holds(tmp_path: Path) -> None:
    with tarfile.open(built("sdist", tmp_path)) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    files = run(["git", "ls-files"], ROOT).splitlines()
    assert not {file for file in files if (ROOT / file).exists()} - packed - {".gitignore"}
