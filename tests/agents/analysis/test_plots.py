"""Every plot is a figure that can be written, for short and long episodes alike."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest

from agents.analysis import Attention, Components, Gates, Horizon, ablate, plots
from tests.agents.analysis.echo import delaying, echo

pytest.importorskip("matplotlib")
RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("n_steps", "n_heads"), [(1, 1), (80, 17)])
def test_every_plot_can_be_drawn(n_steps: int, n_heads: int, tmp_path: Path) -> None:
    gate = RNG.random((n_steps, 2, 5), dtype=np.float32)
    heads = {f"head {i}": Attention(RNG.random((n_steps, 4)), i % 2 == 0) for i in range(n_heads)}
    plots.horizon(Horizon(RNG.random(n_steps), np.ones(n_steps, dtype=np.int64))).savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    attention = plots.attention(heads)
    assert len([axis for axis in attention.axes if axis.get_title(loc="left")]) == min(n_heads, 16)
    for figure in (
        plots.horizon(Horizon(np.zeros(n_steps), np.ones(n_steps, dtype=np.int64))),
        plots.state({"hidden": RNG.normal(size=(n_steps, 7)), "cell": np.zeros((n_steps, 1))}),
        plots.components(Components(RNG.normal(size=(n_steps, 2)), np.array([0.7, 0.2])), np.zeros(n_steps), "reward"),
        plots.gates(Gates({"reset": gate, "update": gate})),
        attention,
    ):
        figure.set_layout_engine("none")  # laying out takes nearly all of the time
        figure.savefig(io.BytesIO(), dpi=20)


def test_the_horizon_is_marked_where_it_lies() -> None:
    axis = plots.horizon(Horizon(np.array([0.0, 0.0, 1.0, 0.0]), np.ones(4, dtype=np.int64))).axes[0]
    assert [line.get_xdata()[0] for line in axis.lines[1:]] == [2]
    assert axis.texts[0].get_text() == "horizon 2 steps"


def test_every_condition_of_an_ablation_has_a_row() -> None:
    found = ablate(delaying(2), echo(2), 2, seed=1)
    figure = plots.ablation(found)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [each.name for each in found.conditions]
    figure.savefig(io.BytesIO(), dpi=20)


def test_without_matplotlib_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # so Python says it is not there
    with pytest.raises(ImportError, match=r'pip install .*\[plots\]"'):
        plots.horizon(Horizon(np.ones(2), np.ones(2, dtype=np.int64)))
