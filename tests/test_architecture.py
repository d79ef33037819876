"""The folders are the architecture: who may import whom, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("agents", "envs", "configs")

# A part of ``agents`` imports from its own floor and those below. What is not named stands on the highest.
FLOORS = {
    "kernels": 0,
    "memory": 0,
    "encoders": 0,
    "layers": 0,
    "kernels": 0,
    "returns": 0,
    "losses": 0,
    "actions": 0,
    "checks": 0,
    "devices": 0,
    "buffer": 1,
    "state_layouts": 1,
    "policy": 1,
    "actor": 1,
    "capture": 1,
    "acting": 1,
}
HIGHEST = 2


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


def part_of(name: str) -> str:
    """``agents.memory.core.State`` -> ``memory``"""
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("package", PACKAGES)
def test_agents_environments_and_settings_do_not_know_each_other(package: str) -> None:
    others = set(PACKAGES) - {package} | {"train", "evaluate", "benchmarks", "tests"}
    for path in sources(package):
        top_level = {name.split(".")[0] for name in imported(path)}
        assert not top_level & others, path.relative_to(ROOT)


def test_parts_of_agents_import_downwards() -> None:
    for path in sources("agents"):
        importer = part_of(module_name(path))
        if not importer:
            continue
        for name in imported(path):
            if name.startswith("agents."):
                above = FLOORS.get(part_of(name), HIGHEST) > FLOORS.get(importer, HIGHEST)
                assert not above, f"{path.relative_to(ROOT)} imports {name}, which stands above it"


def test_parts_of_agents_do_not_import_in_circles() -> None:
    graph: dict[str, set[str]] = {}
    for path in sources("agents"):
        importer = part_of(module_name(path))
        below = {part_of(name) for name in imported(path, at_import=True) if name.startswith("agents.")}
        graph.setdefault(importer, set()).update(below - {importer, ""})

    def visit(part: str, way: tuple[str, ...]) -> None:
        assert part not in way, " -> ".join((*way, part))
        for below in graph.get(part, ()):
            visit(below, (*way, part))

    for part in graph:
        if part:
            visit(part, ())


def test_memories_know_nothing_of_reinforcement_learning() -> None:
    for path in sources("agents/memory"):
        top_level = {name.split(".")[0] for name in imported(path)}
        assert not top_level & {"gymnasium", "stable_baselines3", "sb3_contrib"}, path.relative_to(ROOT)


def test_settings_are_read_without_torch() -> None:
    slow = {"torch", "stable_baselines3", "sb3_contrib", "gymnasium"}
    for path in sources("configs"):
        top_level = {name.split(".")[0] for name in imported(path, at_import=True)}
        assert not top_level & slow, path.relative_to(ROOT)


def test_the_sources_were_found() -> None:
    names = {module_name(path) for package in PACKAGES for path in sources(package)}
    assert {"agents.policy", "agents.memory.core", "agents.ppo", "envs", "configs"} <= names
    assert "agents.policy" in {name.rsplit(".", 1)[0] for name in imported(ROOT / "agents" / "on_policy.py")}
