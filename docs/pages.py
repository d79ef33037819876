"""Pages of the site that are made while it is built, by ``mkdocs.yml``'s hook: none of them is written twice.

- the first page, from README.md, and those from CHANGELOG.md and CONTRIBUTING.md;
- a page for every registered memory and encoder: what ``memory_kinds.md`` or ``encoder_kinds.md`` says under its name,
  what it costs by ``results/costs.json``, and its docstring. What is registered and nowhere mentioned has its docstring;
- the notebooks as they were last executed.

Formulas become MathML, which browsers show without a script.
"""

import functools
import html
import json
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import latex2mathml.converter

DOCS = Path(__file__).parent
ROOT = DOCS.parent
SECTION = re.compile(r"^## `(\w+)`: (.+)\n", re.M)
LINK = re.compile(r"(?<=\]\()(?!https?:|#|data:)([^)\s#]*)(#[^)\s]*)?(?=\))")
KINDS = {"memory": ("memories", "memory_kinds.md"), "encoder": ("encoders", "encoder_kinds.md")}
"""Folder on the site -> its part of results/costs.json, its text."""
FROM_ROOT = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""File in the checkout -> page."""


@functools.cache
def generated() -> dict[str, str]:
    """Page -> its Markdown."""
    from agents.encoders import ENCODERS
    from agents.memory import MEMORIES

    pages = {page: _moved((ROOT / name).read_text(), "") for name, page in FROM_ROOT.items()}
    for folder, registry in (("memory", MEMORIES), ("encoder", ENCODERS)):
        pages.update(of_registry(folder, registry))
    for notebook in sorted(DOCS.glob("notebooks/*.ipynb")):
        pages[f"notebooks/{notebook.stem}.md"] = of_notebook(json.loads(notebook.read_text()))
    return pages


def of_registry(folder: str, registry: Mapping[str, type]) -> dict[str, str]:
    """The pages of all that is registered, and one that lists them with their costs."""
    part, text = KINDS[folder]
    introduction, *sections = SECTION.split((DOCS / text).read_text())
    said = {name: (title, body) for name, title, body in zip(sections[::3], sections[1::3], sections[2::3], strict=True)}
    costs = json.loads((DOCS / "results/costs.json").read_text())
    pages = {f"{folder}/index.md": ""}
    for name, cls in registry.items():
        title, body = said.get(name, (cls.__name__, ""))
        lines = [f"# `{name}`: {title}", _moved(body, folder).strip(), _cost(costs[part], name), _reference(cls)]
        pages[f"{folder}/{name}.md"] = "\n\n".join(line for line in lines if line) + "\n"
    titles = {name: said[name][0] if name in said else cls.__name__ for name, cls in registry.items()}
    table = _table(costs[part], titles)
    where = f"Measured on {costs['measured']['processor']}, one thread: compare them with each other."
    pages[f"{folder}/index.md"] = "\n\n".join([_moved(introduction, folder).strip(), table, HOW[folder], where]) + "\n"
    return pages


HOW = {
    "memory": """64 units on 64 features, windows of 64 steps, two layers where that is the default. *State*: numbers
carried for each environment. *Acting*: a step of 8 environments. *Training*: 8 sequences of 128 steps, forward and
backward. Both as multiples of an LSTM's.""",
    "encoder": """*Acting*: 8 observations. *Training*: 1024 of them (8 images), forward and backward.""",
}


def _cost(costs: Mapping[str, Any], name: str) -> str:
    """A section, or nothing where it has not been measured."""
    if name not in costs:
        return ""
    found, lstm = costs[name], costs.get("lstm")
    if lstm is not None:
        times = [f"{found[which] / lstm[which]:.2g} times an LSTM's" for which in ("acting", "training")]
        what = f"and {found['state']:,} numbers of state, with 64 units on 64 features."
        rest = f"Acting takes {times[0]} time, training {times[1]} ([all of them](index.md))."
    else:
        what = f"on {found['reads']}."
        rest = f"Acting takes {_time(found['acting'])}, training {_time(found['training'])} ([what of](index.md))."
    return f"## Cost\n\n{found['parameters']:,} parameters {what} {rest}"


def _table(costs: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    lstm = costs.get("lstm")
    head = ["name", "", *(["state"] if lstm else ["here on"]), "parameters", "acting", "training"]
    rows = [head, ["---"] * 2 + ["---:" if lstm else "---"] + ["---:"] * 3]
    for name, title in titles.items():
        row = [f"[`{name}`]({name}.md)", title]
        found = costs.get(name)
        if found is None:
            rows.append([*row, "", "", "not measured", ""])
        elif lstm:
            times = [f"{found[which] / lstm[which]:.2g}" for which in ("acting", "training")]
            rows.append([*row, f"{found['state']:,}", f"{found['parameters']:,}", *times])
        else:
            times = [_time(found[which]) for which in ("acting", "training")]
            rows.append([*row, found["reads"], f"{found['parameters']:,}", *times])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _time(microseconds: float) -> str:
    return f"{microseconds:.0f} µs" if microseconds < 1000 else f"{microseconds / 1000:.3g} ms"


def _reference(cls: type) -> str:
    style = "google" if cls.__module__.startswith("agents.") else "sphinx"
    options = {"heading_level": 3, "docstring_style": style, "members": [], "show_root_full_path": False}
    listed = "\n".join(f"      {key}: {json.dumps(value)}" for key, value in options.items())
    return f"## Class\n\n::: {cls.__module__}.{cls.__qualname__}\n    options:\n{listed}"


def of_notebook(notebook: Mapping[str, Any]) -> str:
    """Its cells and what they printed and drew."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [shown for output in cell["outputs"] if (shown := _output(output))]
    return "\n\n".join(parts) + "\n"


def _output(output: Mapping[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f"![]({'data:image/png;base64,' + ''.join(data['image/png']).strip()})"
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""


def _moved(text: str, folder: str) -> str:
    """Links of a file in the checkout (of README.md, or of a page in docs), as of a page in a folder of the site."""

    def link(found: re.Match[str]) -> str:
        target, anchor = found[1], found[2] or ""
        target = FROM_ROOT.get(target.removeprefix("../"), target.removeprefix("docs/"))
        target = re.sub(r"\.ipynb$", ".md", target)
        return (posixpath.relpath(target, folder or ".") if target else "") + anchor

    return LINK.sub(link, text)


def with_mathml(page: str) -> str:
    """HTML in which the formulas that ``pymdownx.arithmatex`` has marked are MathML."""

    def formula(found: re.Match[str]) -> str:
        latex = html.unescape(found[2]).strip()
        display = "block" if latex.startswith("\\[") else "inline"
        return latex2mathml.converter.convert(latex[2:-2].strip(), display=display)

    return re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', formula, page, flags=re.S)


def on_config(config: Any) -> Any:
    """mkdocs: the pages of a registry go where its folder stands in the navigation."""
    for entry in config["nav"]:
        for title, folder in entry.items():
            if isinstance(folder, str) and folder in KINDS:
                entry[title] = [page for page in generated() if page.startswith(f"{folder}/")]
    return config


def on_files(files: Any, config: Any) -> Any:
    """mkdocs: adds the pages."""
    from mkdocs.structure.files import File

    for page, text in generated().items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """mkdocs: links of a page in docs, to README.md or a notebook too."""
    return markdown if page.file.generated_by else _moved(markdown, "")


def on_page_content(content: str, **_: Any) -> str:
    """mkdocs: the page's HTML; roles of docstrings are for readers of the source."""
    return with_mathml(re.sub(r":(?:class|func|meth|mod):(?=<code>)", "", content))
