"""Pages of the site that are made while it is built, by ``mkdocs.yml``'s hook: none of them is written twice.

- the first page, from README.md, and those from CHANGELOG.md and CONTRIBUTING.md;
- a page for every registered memory and encoder: what ``memory_kinds.md`` or ``encoder_kinds.md`` says under its name,
  what it costs by ``results/costs.json``, and its docstring, which what is nowhere mentioned has too;
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

DOCS = Path(__file__).parent
ROOT = DOCS.parent
SECTION = re.compile(r"^## `(\w+)`: (.+)\n", re.M)
LINK = re.compile(r"(?<=\]\()(?!https?:|#|data:)([^)\s#]*)(#[^)\s]*)?(?=\))")
NAMED = re.compile(r"\[(?:docs/)?([\w/]+\.md)\]\(([^)\s]+)\)")
WIDE = re.compile(r"^\|(?:[^|\n]+\|){9,}$", re.M)
KINDS = {"memory": ("memories", "memory_kinds.md"), "encoder": ("encoders", "encoder_kinds.md")}
"""Folder on the site -> its part of results/costs.json, its text."""
FROM_ROOT = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""File in the checkout -> page."""
ELSEWHERE = {**FROM_ROOT, "memory_kinds.md": "memory/index.md", "encoder_kinds.md": "encoder/index.md"}
"""What a link in the checkout leads to -> page."""


@functools.cache
def generated() -> dict[str, str]:
    """Page -> its Markdown."""
    from agents.encoders import ENCODERS
    from agents.memory import MEMORIES
    from envs.wrappers.transforms import WRAPPERS

    pages = {page: _moved((ROOT / name).read_text(), "") for name, page in FROM_ROOT.items()}
    for folder, registry in (("memory", MEMORIES), ("encoder", ENCODERS)):
        pages.update(of_registry(folder, registry))
    pages["reference/tasks.md"] = of_names("Tasks", tasks())
    wrappers = {name: f"{cls.__module__}.{cls.__qualname__}" for name, cls in WRAPPERS.items()}
    pages["reference/wrappers.md"] = of_names("Wrappers", wrappers)
    for notebook in sorted(DOCS.glob("notebooks/*.ipynb")):
        pages[f"notebooks/{notebook.stem}.md"] = of_notebook(json.loads(notebook.read_text()))
    return pages


def of_registry(folder: str, registry: Mapping[str, type]) -> dict[str, str]:
    """The pages of all that is registered, and one that lists them with their costs."""
    part, text = KINDS[folder]
    introduction, *sections = SECTION.split((DOCS / text).read_text())
    said = {
        name: (title, body) for name, title, body in zip(sections[::3], sections[1::3], sections[2::3], strict=True)
    }
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
    acting, training = (_time(found[which]) for which in ("acting", "training"))
    what = f"for {found['reads']}" if lstm is None else f"and {found['state']:,} numbers of state"
    if lstm is not None and name != "lstm":
        acting, training = (
            f"{time} ({found[which] / lstm[which]:.2g} of an LSTM)"
            for time, which in ((acting, "acting"), (training, "training"))
        )
    of_what = "[what is measured](index.md)"
    return f"## Cost\n\n{found['parameters']:,} parameters {what}; acting {acting}, training {training}: {of_what}."


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
    """Its docstring, and those of the classes that it has arguments in common with."""
    options = {"heading_level": 3, "members": [], "docstring_style": "google", "show_signature": True}
    if not cls.__module__.startswith("agents."):
        options["docstring_style"] = "sphinx"
    own = f"## Class\n\n{_directive(cls, options)}"
    above = [
        base for base in cls.__mro__[1:] if base.__module__.startswith("agents.memory") and base.__name__ != "Memory"
    ]
    if not above:
        return own
    shared = [_directive(base, {**options, "show_signature": False, "skip_local_inventory": True}) for base in above]
    return "\n\n".join([own, "## Arguments in common with others", *shared])


def _directive(cls: type, options: Mapping[str, Any]) -> str:
    listed = "\n".join(f"      {key}: {json.dumps(value)}" for key, value in options.items())
    return f"::: {cls.__module__}.{cls.__qualname__}\n    options:\n{listed}"


def tasks() -> dict[str, str]:
    """The environments of this package that have a class of their own: id -> where it is."""
    import gymnasium

    entries = {spec.id: str(spec.vector_entry_point) for spec in gymnasium.registry.values()}
    return {id: entry.replace(":", ".") for id, entry in entries.items() if entry.startswith("envs.tasks.")}


def of_names(title: str, classes: Mapping[str, str]) -> str:
    """A page of docstrings under the names by which classes are chosen."""
    options = "\n    options: {members: false, show_bases: false, show_root_heading: false, show_root_toc_entry: false}"
    sections = [f"## `{name}`\n\n::: {where}{options}" for name, where in classes.items()]
    return "\n\n".join([f"# {title}", *sections]) + "\n"


def of_notebook(notebook: Mapping[str, Any]) -> str:
    """Its cells and what they printed and drew."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        shown = "\n\n".join(_output(output) for output in cell["outputs"])
        parts.append(re.sub(r"\n```\s+```text\n", "\n", shown).strip())  # what is printed in pieces is one text
    return "\n\n".join(part for part in parts if part) + "\n"


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
        target = target.removeprefix("docs/")
        target = ELSEWHERE.get(target.removeprefix("../"), target)
        target = re.sub(r"\.ipynb$", ".md", target)
        return (posixpath.relpath(target, folder or ".") if target else "") + anchor

    return LINK.sub(link, NAMED.sub(_by_title, text))


def _by_title(found: re.Match[str]) -> str:
    """A link that shows a file's name, as one that shows what the page is called."""
    page = DOCS / found[1]
    title = re.match(r"# (.+)", page.read_text()) if page.exists() else None
    return found[0] if title is None else f"[{title[1]}]({found[2]})"


def with_mathml(page: str) -> str:
    """HTML in which the formulas that ``pymdownx.arithmatex`` has marked are MathML."""
    from latex2mathml.converter import convert

    def formula(found: re.Match[str]) -> str:
        latex = html.unescape(found[2]).strip()
        display = "block" if latex.startswith("\\[") else "inline"
        return convert(latex[2:-2].strip(), display=display)

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
    """mkdocs: links of a page in docs, to README.md or a notebook too; a wide table gets the room of the contents."""
    if WIDE.search(markdown):
        page.meta["hide"] = ["toc"]
    return markdown if page.file.generated_by else _moved(markdown, "")


def on_page_content(content: str, **_: Any) -> str:
    """mkdocs: the page's HTML; roles of docstrings are for readers of the source, and an option is not split in two."""
    content = re.sub(r":(?:class|func|meth|mod):(?=<code>)", "", content)
    content = re.sub(r"<code>(?=[^<>]{1,28}</code>)", '<code class="short">', content)
    return with_mathml(re.sub(r"(?<=[> ])(--[\w.-]+)(?=[^<>]*</code>)", r'<span class="short">\1</span>', content))
