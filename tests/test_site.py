"""Pages of the site that are generated (``docs/pages.py``): each registered memory and encoder has one."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from agents.encoders import ENCODERS
from agents.memory import MEMORIES, Memory
from docs import pages

ROOT = Path(__file__).parents[1]


class Remembered(Memory):
    """A memory that nobody has written a page about."""


@pytest.mark.parametrize(("folder", "registry"), [("memory", MEMORIES), ("encoder", ENCODERS)])
def test_every_registered_name_has_a_page_with_formula_use_cost_and_class(
    folder: str, registry: dict[str, Any]
) -> None:
    found = pages.of_registry(folder, registry)
    assert set(found) == {f"{folder}/{name}.md" for name in registry} | {f"{folder}/index.md"}
    for name, cls in registry.items():
        page = found[f"{folder}/{name}.md"]
        assert page.startswith(f"# `{name}`: ")
        assert "$$" in page, f"{name} has no formula in {pages.KINDS[folder][1]}"
        assert "**Use it**" in page, f"{name} is not said when to use in {pages.KINDS[folder][1]}"
        assert "## Cost" in page, f"{name} is not measured: python benchmarks/costs.py"
        assert f"::: {cls.__module__}.{cls.__qualname__}\n" in page
        assert f"[`{name}`]({name}.md)" in found[f"{folder}/index.md"]


def test_a_memory_appears_by_being_registered() -> None:
    found = pages.of_registry("memory", {**MEMORIES, "remembered": Remembered})
    assert found["memory/remembered.md"].startswith("# `remembered`: Remembered\n\n## Class\n\n::: ")
    assert "| [`remembered`](remembered.md) | Remembered | " in found["memory/index.md"]


def test_every_task_of_the_package_is_specified() -> None:
    found = pages.tasks()
    assert found["TMaze-v0"] == "envs.tasks.recall.TMaze"
    assert len(found) >= 14
    assert "## `TMaze-v0`\n\n::: envs.tasks.recall.TMaze\n" in pages.of_names("Tasks", found)


def test_links_lead_where_a_page_has_come_to_lie() -> None:
    text = "[docs/speed.md](docs/speed.md) [x](../README.md#drop-in) [y](docs/notebooks/own_memory.ipynb) [z](#a)"
    moved = "[Speed](speed.md) [x](index.md#drop-in) [y](notebooks/own_memory.md) [z](#a)"
    assert pages._moved(text, "") == moved
    assert pages._moved("[memories.md](memories.md)", "memory") == "[Which memory learns what](../memories.md)"


def test_formulas_become_mathml() -> None:
    shown = pages.with_mathml('<p>of <span class="arithmatex">\\(a &lt; b\\)</span></p>')
    assert shown.startswith("<p>of <math ")
    assert "<mi>a</mi>" in shown
    block = pages.with_mathml(
        '<div class="arithmatex">\\[\\begin{split}a &amp;= 1 \\\\ b &amp;= 2\\end{split}\\]</div>'
    )
    assert 'display="block"' in block
    assert block.count("<mtr>") == 2


@pytest.mark.parametrize("kind", ["memory", "encoder"])
def test_every_formula_is_one_that_is_understood(kind: str) -> None:
    text = (ROOT / "docs" / pages.KINDS[kind][1]).read_text()
    formulas = re.findall(r"\$\$(.+?)\$\$", text, flags=re.S)
    assert len(formulas) >= 10
    for latex in formulas:
        shown = pages.with_mathml(f'<div class="arithmatex">\\[{latex}\\]</div>')
        assert "<mi>&</mi>" not in shown, latex
        assert "\\" not in shown, latex


def test_a_notebook_shows_what_it_printed_and_drew() -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Title"]},
        {
            "cell_type": "code",
            "source": ["print(1)\n", "f"],
            "outputs": [
                {"output_type": "stream", "text": ["1\n"]},
                {"output_type": "stream", "text": ["2\n"]},
                {"output_type": "display_data", "data": {"image/png": "QQ==\n", "text/plain": "Figure"}},
            ],
        },
    ]
    shown = pages.of_notebook({"cells": cells})
    expected = "# Title\n\n```python\nprint(1)\nf\n```\n\n```text\n1\n2\n```\n\n![](data:image/png;base64,QQ==)\n"
    assert shown == expected


@pytest.mark.parametrize("notebook", sorted(ROOT.glob("docs/notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_kept_as_they_were_executed(notebook: Path) -> None:
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            ast.parse("".join(cell["source"]))
            assert cell["execution_count"], "make notebooks executes them"
            assert not any(output["output_type"] == "error" for output in cell["outputs"])
