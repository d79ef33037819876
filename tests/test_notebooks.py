"""Every notebook of the site is executed from its first cell to its last, in a kernel and a folder of its own."""

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("docs/notebooks/*.ipynb"))


def executed(path: Path, folder: Path, steps: int | None) -> str:
    """All that its cells print, with so many ``STEPS`` of training; None: as many as it says."""
    notebook = nbformat.read(path, as_version=4)
    assert any(re.search(r"^STEPS = ", cell.source, flags=re.M) for cell in notebook.cells)
    for cell in notebook.cells:
        if steps is not None:
            cell.source = re.sub(r"^STEPS = [\d_]+$", f"STEPS = {steps}", cell.source, flags=re.M)
    nbclient.NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_with_fewer_steps(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert executed(path, tmp_path, steps=256)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_agents_learn_with_the_steps_it_says(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    returns = re.findall(r"(\S+): mean return ([\d.]+)", executed(path, tmp_path, steps=None))
    assert len(returns) >= 2
    for name, value in returns:
        assert (float(value) < 0.6) if name == "none" else (float(value) > 0.9), returns
