"""What recorded episodes show of an agent: its values against the returns, its actions, its memory, as charts.

Axes: T steps, U units, D layers, N choices, K numbers of an action.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from agents.analysis.inside import Attention, Components, Gates
from agents.analysis.recording import Recording
from agents.analysis.report import data
from agents.analysis.report.blocks import Block, Chart, chart

Array = NDArray[np.float64]

MOST_DOTS = 2000  # of a scatter
MOST_AXES = 6  # of an action, a chart each
MOST_HEADS = 8  # of attention, a picture each
BINS = 30
SHARE = 0.05  # of a return that may lie beyond a time limit


def discounted_returns(rewards: Array, gamma: float) -> Array:
    """(T,) -> (T,): sum over k of gamma^k r_(t + k), from every step to the episode's end."""
    found, total = np.zeros(len(rewards)), 0.0
    for t in range(len(rewards) - 1, -1, -1):
        total = float(rewards[t]) + gamma * total
        found[t] = total
    return found


def value_against_return(recordings: Sequence[Recording], gamma: float) -> Chart | None:
    """The value before every step against the discounted return from there, both in the environment's units.

    Of an episode that a time limit truncated the last steps are left out: what would have come after counts in the
    value and not in the return.
    """
    returns, values = [], []
    for each in recordings:
        limited = each.truncated or not each.ended
        complete = gamma ** np.arange(len(each), 0, -1.0) <= SHARE if limited else np.ones(len(each), bool)
        returns.append(discounted_returns(each.rewards, gamma)[complete])
        values.append(np.asarray(each.values, np.float64)[complete])
    x, y = np.concatenate(returns), np.concatenate(values)
    if not len(x):
        return None
    keep = data.evenly_spaced(len(x), MOST_DOTS)
    series = [{"name": "steps", "x": data.numbers(x[keep]), "y": data.numbers(y[keep])}]
    x_label = f"discounted return from the step on (gamma {gamma:g})"
    return chart("Value against return", series, "value", x_label, kind="points", diagonal=True)


def actions(recordings: Sequence[Recording], space: spaces.Space[Any]) -> list[Chart]:
    """How often which action was taken: shares of choices, histograms of numbers."""
    taken = np.concatenate([np.asarray(each.actions).reshape(len(each), -1) for each in recordings])
    if isinstance(space, spaces.Discrete):
        shares = {"taken": np.bincount(taken[:, 0] - int(space.start), minlength=int(space.n)) / len(taken)}
        if all(each.probabilities is not None for each in recordings):
            chances = np.concatenate([np.asarray(each.probabilities) for each in recordings])
            shares["mean probability"] = chances.mean(axis=0)
        return [_choices("Actions", shares, int(space.start))]
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        sizes = space.nvec.reshape(-1) if isinstance(space, spaces.MultiDiscrete) else np.full(taken.shape[1], 2)
        firsts = np.reshape(getattr(space, "start", np.zeros(len(sizes), np.int64)), -1)
        axes = list(zip(taken.T, sizes, firsts, strict=True))[:MOST_AXES]
        return [
            _choices(f"Action, axis {i}", {"taken": np.bincount(column - first, minlength=size) / len(column)}, first)
            for i, (column, size, first) in enumerate(axes, 1)
        ]
    return [_histogram(_axis(i, taken.shape[1]), column) for i, column in enumerate(taken.T[:MOST_AXES], 1)]


def _axis(i: int, count: int) -> str:
    return "Actions" if count == 1 else f"Action, axis {i} of {count}"


def _choices(caption: str, shares: dict[str, Array], first: int) -> Chart:
    size = len(next(iter(shares.values())))
    series = [{"name": name, "x": list(range(size)), "y": data.numbers(share)} for name, share in shares.items()]
    ticks = [str(first + i) for i in range(size)]
    return chart(caption, series, "share of steps", "action", kind="bars", ticks=ticks)


def _histogram(caption: str, values: Array) -> Chart:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    counts, edges = np.histogram(finite, BINS, (low, high) if high > low else (low - 0.5, low + 0.5))
    middles, shares = (edges[1:] + edges[:-1]) / 2, counts / max(1, len(values))
    series = [{"name": "taken", "x": data.numbers(middles), "y": data.numbers(shares)}]
    return chart(caption, series, "share of steps", "action", kind="bars")


# The memory over one episode


def remembered(components: Components | None, gates: Gates | None, attention: dict[str, Attention]) -> list[Block]:
    """The blocks of what goes on in a memory over an episode; none where there is nothing to see."""
    blocks: list[Block] = []
    if components is not None:
        blocks += list(_components(components))
    if gates is not None:
        blocks += list(_gates(gates))
    if attention:
        pictures = [_attention(name, each) for name, each in list(attention.items())[:MOST_HEADS]]
        note = "Weights that a step gives to earlier ones, or to the parts of its observation; they sum to 1."
        blocks += [("heading", "What it attends to"), ("quiet", note), ("heats", pictures)]
    return blocks


def _components(found: Components) -> Iterator[Block]:
    shares = ", ".join(f"{share:.0%}".replace("%", " %") for share in found.explained)
    yield "heading", "What it remembers: principal components"
    yield "plain", f"Explained variance: {shares}. A dot is the memory after a step, along its two main directions."
    first, second = found.scores.T[:2]
    keep = data.evenly_spaced(len(first), MOST_DOTS)
    series = [{"name": "memory", "x": data.numbers(first[keep]), "y": data.numbers(second[keep])}]
    labels = ("second component", "first component")
    yield "charts", [chart("Path of the memory through the episode", series, *labels, kind="points", path=True)]


def _gates(found: Gates) -> Iterator[Block]:
    yield "heading", "How far its gates open"
    yield "plain", "0 is shut, 1 is open. A unit is saturated where its gate is below 0.1 or above 0.9."
    measured = {
        "Mean openness of the gates": found.mean_over_time(),
        "Saturated share of the gates": found.saturation_over_time(),
    }
    charts = []
    for caption, gates in measured.items():
        series = [curve for name, layers in gates.items() for curve in _by_layer(f"{name} gate", layers)]
        charts.append(chart(caption, series, "share", "step"))
    yield "charts", charts
    yield (
        "heats",
        [
            _heat(f"{name.capitalize()} gate of every unit", gate.reshape(len(gate), -1), "a unit a row")
            for name, gate in found.openness.items()
        ],
    )


def _by_layer(name: str, values: Array) -> Iterator[dict[str, Any]]:
    """(T, D) -> a curve for every layer."""
    steps = data.evenly_spaced(len(values), data.MOST_POINTS)
    for i, layer in enumerate(values.T, 1):
        label = name if values.shape[1] == 1 else f"{name}, layer {i}"
        yield {"name": label, "x": (steps + 1).tolist(), "y": data.numbers(layer[steps])}


def _attention(name: str, found: Attention) -> dict[str, Any]:
    rows = "a row a step further back, the step itself at the top" if found.by_lag else "a token a row"
    return _heat(f"Attention of the {name}", found.weights, rows)


def _heat(caption: str, cells: NDArray[Any], rows: str) -> dict[str, Any]:
    """A picture of (T, U) numbers of at least 0."""
    return {"caption": caption, "rows": rows, "low": 0, **data.cells(cells)}
