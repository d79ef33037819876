"""The folders are the architecture: which may import which, read from the source.

Imports inside functions and for type checkers alone count as any other.
"""

import ast
import inspect
from pathlib import Path

import gymnasium
import pytest
from gymnasium.envs.registration import load_env_creator

import envs  # noqa: F401  (registers ours)

ROOT = Path(__file__).parents[1]
PACKAGES = ("agents", "envs", "configs")

FLOORS: dict[str, dict[str, int]] = {
    "agents": {
        "kernels": 0,
        "checks": 0,
        "distributed": 0,
        "memory": 1,
        "encoders": 1,
        "policy": 2,
        "rollout": 2,
        "checkpoint": 2,
        "algorithms": 3,
        "deploy": 4,
        "analysis": 4,
        "runs": 5,
    },
    "envs": {"tasks": 0, "wrappers": 1, "vector": 2},
}
"""A folder imports from its own floor and those below, without circles. There is no default floor."""

MAY_IMPORT = {
    "agents": {"agents.runs": {"envs", "configs"}},
    "envs": {},
    "configs": {},
}
"""Packages that a folder may import besides its own: runs are where settings, environments and agents meet."""


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


class AtImport(ast.NodeTransformer):
    """Leaves out what is imported for type checkers alone, or only when a function is called."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        return None

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else self.generic_visit(node)


def imported(path: Path, at_import: bool = False) -> set[str]:
    """Full names of all that a file imports: at its top, within functions, for types alone; or when it is imported."""
    names: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(AtImport().visit(tree) if at_import else tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def folder_of(name: str) -> str:
    """``agents.memory.core.State`` -> ``memory``; empty for the package itself."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / parts[0] / parts[1]).is_dir() else ""


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_each_other_only_where_the_table_says(package: str) -> None:
    others = set(PACKAGES) - {package} | {"train", "evaluate", "benchmarks", "tests"}
    for path in sources(package):
        top_level = {name.split(".")[0] for name in imported(path)}
        allowed = MAY_IMPORT[package].get(f"{package}.{folder_of(module_name(path))}", set())
        assert not top_level & (others - allowed), path.relative_to(ROOT)


@pytest.mark.parametrize("package", FLOORS)
def test_every_file_has_a_folder_and_every_folder_a_floor(package: str) -> None:
    flat = {path.name for path in (ROOT / package).glob("*.py")} - {"__init__.py"}
    assert not flat, f"{package}: {', '.join(sorted(flat))} belong into a folder"
    folders = {
        path.parent.relative_to(ROOT / package).parts[0] for path in sources(package) if path.parent.name != package
    }
    assert folders == FLOORS[package].keys()


def test_agents_have_at_most_six_floors() -> None:
    assert len(set(FLOORS["agents"].values())) <= 6


@pytest.mark.parametrize("package", FLOORS)
def test_imports_go_downwards(package: str) -> None:
    for path in sources(package):
        importer = folder_of(module_name(path))
        for name in imported(path) if importer else ():
            if name.startswith(f"{package}."):
                below = folder_of(name)
                assert below, f"{path.relative_to(ROOT)} imports {name}: name the folder that it comes from"
                above = FLOORS[package][below] > FLOORS[package][importer]
                assert not above, f"{path.relative_to(ROOT)} imports {name}, which stands above it"


@pytest.mark.parametrize("package", FLOORS)
def test_folders_do_not_import_in_circles(package: str) -> None:
    graph: dict[str, set[str]] = {}
    for path in sources(package):
        importer = folder_of(module_name(path))
        below = {folder_of(name) for name in imported(path) if name.startswith(f"{package}.")}
        graph.setdefault(importer, set()).update(below - {importer, ""})

    def visit(folder: str, way: tuple[str, ...]) -> None:
        assert folder not in way, " -> ".join((*way, folder))
        for below in graph.get(folder, ()):
            visit(below, (*way, folder))

    for folder in graph:
        if folder:
            visit(folder, ())


def test_memories_import_no_reinforcement_learning() -> None:
    for path in sources("agents/memory"):
        top_level = {name.split(".")[0] for name in imported(path)}
        assert not top_level & {"gymnasium", "stable_baselines3", "sb3_contrib"}, path.relative_to(ROOT)


def test_settings_import_no_torch() -> None:
    slow = {"torch", "stable_baselines3", "sb3_contrib", "gymnasium"}
    for path in sources("configs"):
        top_level = {name.split(".")[0] for name in imported(path, at_import=True)}
        assert not top_level & slow, path.relative_to(ROOT)


def test_the_sources_were_found() -> None:
    names = {module_name(path) for package in PACKAGES for path in sources(package)}
    assert {"agents.memory.core", "agents.algorithms.ppo", "envs", "configs"} <= names
    imports = imported(ROOT / "agents" / "algorithms" / "on_policy.py")
    assert "agents.policy" in {".".join(name.split(".")[:2]) for name in imports}


@pytest.mark.parametrize(
    "id", [id for id, spec in gymnasium.registry.items() if str(spec.entry_point).startswith("envs.")]
)
def test_entry_points_name_classes_of_these_sources(id: str) -> None:
    """A module named as text would be found in another installed copy of the package, too."""
    spec = gymnasium.spec(id)
    for entry_point in (spec.entry_point, spec.vector_entry_point):
        assert isinstance(entry_point, str)
        creator = load_env_creator(entry_point)
        assert Path(inspect.getfile(creator)).is_relative_to(ROOT / "envs")
