"""README.md is typed from its top to its end: every block, in order, in a copy of the checkout.

A Python block that begins with ``# NAME.py`` is that file; any other is run as a script. A block that cannot be run
where the tests are stands below ``<!-- not run: REASON -->``, and its syntax is checked.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>]+) -->\n+)?^```(?P<language>python|sh)\n(?P<code>.*?)^```$", re.M | re.S
)
SHORTER = (
    (r" --total-timesteps \d+", ""),
    (r"--name \w+", r"\g<0> --total-timesteps 256 --evaluation.final-episodes 4 --threads 1"),
    (r"--insight", r"\g<0> --episodes 4"),
    (r"learn\(\d+\)", "learn(128)"),
)


class Block(NamedTuple):
    line: int
    language: str
    code: str
    reason: str | None
    """Why it is not run."""


def blocks(text: str) -> list[Block]:
    return [
        Block(text[: found.start("code")].count("\n") + 1, found["language"], found["code"], found["reason"])
        for found in BLOCK.finditer(text)
    ]


def shortened(code: str) -> str:
    for long, short in SHORTER:
        code = re.sub(long, short, code)
    return code


def checkout(folder: Path) -> Path:
    """A copy of what git would commit, with the compiled code that is there."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    kept = [name for name in listed.stdout.splitlines() if not name.startswith(("docs/", "tests/", "benchmarks/"))]
    for file in [*kept, *(path.relative_to(ROOT) for path in ROOT.glob("agents/kernels/*.so"))]:
        if (ROOT / file).exists():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes((ROOT / file).read_bytes())
    return folder


def lend_environment(folder: Path) -> None:
    """A ``.venv`` that is this one, so that ``make`` finds everything installed."""
    (folder / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        if (Path(sys.prefix) / name).exists():
            (folder / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (folder / ".venv" / ".installed").touch()


def typed(block: Block, folder: Path) -> None:
    """Does what a reader does with a block. A failure shows where it stands and all of its output."""
    if block.language == "python":
        named = re.match(r"# (\w+\.py)\n", block.code)
        file = folder / (named[1] if named else "block.py")
        file.write_text(block.code)
        words = [sys.executable, "-m", "ast"] if block.reason else [str(folder / ".venv" / "bin" / "python")]
        words.append(str(file))
    else:
        words = ["bash", "-euo", "pipefail", *(["-n"] if block.reason else []), "-c", block.code]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(words, cwd=folder, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, f"README.md, line {block.line}:\n{block.code}\n{done.stdout}\n{done.stderr}"


def test_every_block_runs_in_order_with_fewer_steps(tmp_path: Path) -> None:
    folder = checkout(tmp_path)
    lend_environment(folder)
    found = blocks(README.read_text())
    assert {block.language for block in found} == {"python", "sh"}
    for block in found:
        typed(block._replace(code=shortened(block.code)), folder)
    assert (folder / "runs/pole/report.html").exists()
    assert (folder / "runs/signal/best.zip").exists()


@pytest.mark.slow
def test_every_block_runs_as_it_stands_on_a_fresh_clone(tmp_path: Path) -> None:
    folder = checkout(tmp_path)
    for block in blocks(README.read_text()):
        typed(block, folder)
    assert (folder / "runs/pole/report.html").exists()
    for name, least in (("pole", 475.0), ("signal", 0.9)):
        rows = (folder / "runs" / name / "evaluations.csv").read_text().splitlines()
        last = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
        assert float(last["mean_reward"]) >= least, (name, last)


def test_it_is_short_and_its_links_lead_somewhere() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/*.md")), ids=lambda page: page.name)
def test_python_in_the_documentation_is_python(page: Path) -> None:
    for code in re.findall(r"^ *```python\n(.*?)^ *```$", page.read_text(), flags=re.M | re.S):
        indent = re.match(r" *", code)
        assert indent is not None
        ast.parse(re.sub(rf"^{indent[0]}", "", code, flags=re.M))


def test_a_block_that_is_not_run_says_why_and_a_shortened_one_trains_less() -> None:
    (block,) = blocks("# Title\n\n<!-- not run: needs a GPU -->\n```sh\ntrue\n```\n")
    assert block == Block(5, "sh", "true\n", "needs a GPU")
    assert " --total-timesteps 256 " in shortened("train.py --name a --total-timesteps 100000")
    assert "100000" not in shortened("train.py --name a --total-timesteps 100000")
    assert shortened("model.learn(5000)") == "model.learn(128)"
