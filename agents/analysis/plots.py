"""Pictures of what ``agents.analysis`` finds: each function takes the data and returns a matplotlib ``Figure``.

matplotlib comes with the extra ``plots``; only this module needs it, and only when a figure is made. No
window is opened and nothing of pyplot's is touched.

Axes: T steps, U units, D layers.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agents.analysis.ablation import Ablation
from agents.analysis.horizon import Horizon
from agents.analysis.inside import Attention, Components, Gates
from agents.analysis.report.groups import plain
from agents.analysis.statistics import number
from agents.checks.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from agents.analysis.report.search import Tried

BLUE, RED, ORANGE, GRAY = "#2f6db3", "#c44e52", "#dd8452", "#8c96a3"
_LAYER_STYLES = ("-", "--", ":", "-.")
_MOST_PANELS = 16


def ablation(data: Ablation) -> "Figure":
    """Mean return of every condition with its interval, the intact one's as a band behind them."""
    conditions = data.conditions
    figure, axes = _panels(1, 1, 7.5, 1.1 + 0.32 * len(conditions))
    axis = axes[0, 0]
    axis.axvspan(*data.intact.interval, color=BLUE, alpha=0.15, linewidth=0)
    axis.axvline(data.intact.mean, color=BLUE, linewidth=1)
    for row, each in enumerate(conditions):
        color = RED if each.falls else ORANGE if each.rises else BLUE
        axis.plot(list(each.interval), [row, row], color=color, linewidth=2.5, solid_capstyle="butt")
        axis.plot(each.mean, row, "o", color=color, markersize=6)
        box = dict(boxstyle="square,pad=0.1", facecolor="white", edgecolor="none")
        _note(axis, number(each.mean, 2), (each.mean, row), (0, 6), ha="center", fontsize=8, bbox=box)
    axis.margins(x=0.1)
    axis.set_yticks(range(len(conditions)), [each.name for each in conditions])
    axis.set_ylim(len(conditions) - 0.4, -0.7)
    legend = "red: lower than with the memory intact, orange: higher, so that the memory hurts"
    axis.set_xlabel(f"mean return, 95 % interval ({legend})")
    axis.grid(axis="x", alpha=0.3)
    return figure


def horizon(data: Horizon) -> "Figure":
    """Sensitivity by lag, with the horizon marked."""
    figure, axes = _panels(1, 1, 7.5, 3.4)
    axis, lags = axes[0, 0], np.arange(len(data.sensitivity))
    marker = "o" if len(lags) <= 60 else None
    axis.plot(lags, data.sensitivity, color=BLUE, marker=marker, markersize=4, clip_on=False, zorder=3)
    axis.fill_between(lags, data.sensitivity, color=BLUE, alpha=0.12, linewidth=0)
    if data.horizon is not None:
        unit = "step" if data.horizon == 1 else "steps"
        axis.axvline(data.horizon, color=RED, linestyle="--", linewidth=1.2)
        near_right = data.horizon > 0.6 * max(1, lags[-1])
        side: dict[str, Any] = {"ha": "right" if near_right else "left", "xycoords": ("data", "axes fraction")}
        place, away = (data.horizon, 0.96), (-6 if near_right else 6, 0)
        _note(axis, f"horizon {data.horizon} {unit}", place, away, va="top", color=RED, fontsize=9, **side)
    axis.set_xlim(0, max(1, lags[-1]))
    axis.set_ylim(0, 1.08 * float(data.sensitivity.max()) or 1.0)
    _integer_ticks(axis.xaxis)
    axis.set_xlabel("lag of the input, steps")
    axis.set_ylabel("how far it moves the action\n(norm of the gradient)")
    axis.grid(alpha=0.3)
    return figure


def state(units: Mapping[str, NDArray[Any]]) -> "Figure":
    """What was carried over an episode as heat maps, (T, U) by name (:func:`agents.analysis.units`).

    Colors run to the largest magnitude of each, white is 0.
    """
    heights = [max(1.5, min(4.0, 0.035 * part.shape[1] + 0.6)) for part in units.values()]
    figure, axes = _panels(len(units), 1, 8.5, sum(heights) + 0.5, heights)
    for axis, (name, part) in zip(axes[:, 0], units.items(), strict=True):
        largest = float(np.abs(part).max()) or 1.0
        image = _heat_map(axis, part, "RdBu_r", -largest, largest)
        axis.set_title(name, fontsize=10, loc="left")
        axis.set_ylabel("unit")
        figure.colorbar(image, ax=axis, pad=0.015, fraction=0.04)
    axes[-1, 0].set_xlabel("step")
    return figure


def components(data: Components, color: NDArray[Any], label: str = "time") -> "Figure":
    """The two principal components as a path through the episode, colored by (T,) time, reward, ..."""
    figure, axes = _panels(1, 1, 6.4, 5.0)
    axis, scores = axes[0, 0], data.scores
    axis.plot(scores[:, 0], scores[:, 1], color=GRAY, linewidth=0.8, alpha=0.7, zorder=1)
    size = 42 if len(scores) <= 60 else 16
    points = axis.scatter(scores[:, 0], scores[:, 1], c=color, cmap="viridis", s=size, zorder=2)
    for step, name in ((0, "first"), (len(scores) - 1, "last")):
        _note(axis, name, scores[step], (7, 7), fontsize=9, color=RED, fontweight="bold")
    axis.margins(0.12)
    figure.colorbar(points, ax=axis, label="step" if label == "time" else label, pad=0.02)
    axis.set_xlabel(f"first principal component ({data.explained[0]:.0%} of the variance)")
    axis.set_ylabel(f"second ({data.explained[1]:.0%})")
    axis.grid(alpha=0.3)
    return figure


def gates(data: Gates) -> "Figure":
    """Mean openness and saturated share of every gate over time; below, every unit's openness, sorted by its mean."""
    names, openness, saturated = list(data.openness), data.mean_over_time(), data.saturation_over_time()
    n_layers = data.openness[names[0]].shape[1]
    figure, axes = _panels(2, len(names), 3.6 * len(names), 6.2)
    for column, name in enumerate(names):
        above, below, gate = axes[0, column], axes[1, column], data.openness[name]
        for layer in range(n_layers):
            style, of_layer = _LAYER_STYLES[layer % 4], f", layer {layer + 1}" if n_layers > 1 else ""
            above.plot(openness[name][:, layer], color=BLUE, linestyle=style, label=f"mean openness{of_layer}")
            above.plot(saturated[name][:, layer], color=RED, linestyle=style, label=f"saturated{of_layer}")
        above.set_title(f"{name} gate", fontsize=10)
        above.set(xlim=(-0.5, len(gate) - 0.5), ylim=(-0.03, 1.03))
        above.grid(alpha=0.3)
        by_openness = [gate[:, layer, np.argsort(gate[:, layer].mean(axis=0))] for layer in range(n_layers)]
        image = _heat_map(below, np.concatenate(by_openness, axis=1), "viridis", 0, 1)
        for layer in range(1, n_layers):
            below.axhline(layer * gate.shape[2] - 0.5, color="white", linewidth=1.5)
        below.set_xlabel("step")
        _integer_ticks(above.xaxis)
    axes[0, 0].set_ylabel("share, over units")
    axes[1, 0].set_ylabel("unit, sorted" if n_layers == 1 else "unit, sorted; layer upon layer")
    figure.colorbar(image, ax=axes[1, -1], pad=0.02, fraction=0.05, label="openness")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)
    return figure


def attention(data: Mapping[str, Attention]) -> "Figure":
    """Weights over time as heat maps, one panel a head; the first 16 where there are more."""
    shown = dict(list(data.items())[:_MOST_PANELS])
    n_columns = min(len(shown), 2 if len(shown) <= 4 else 4)
    n_rows = -(-len(shown) // n_columns)
    width = 7.5 if n_columns == 1 else 4.6 * n_columns if n_columns == 2 else 3.3 * n_columns
    figure, axes = _panels(n_rows, n_columns, width, 0.5 + (3.2 if n_columns <= 2 else 2.5) * n_rows)
    largest = max(float(each.weights.max()) for each in shown.values())
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    for i, (axis, (name, each)) in enumerate(zip(axes.flat, shown.items(), strict=False)):
        image = _heat_map(axis, each.weights, "magma", 0, largest)
        axis.set_title(name, fontsize=9, loc="left")
        if i % n_columns == 0:
            axis.set_ylabel("steps back" if each.by_lag else "token")
        if i >= len(shown) - n_columns:
            axis.set_xlabel("step")
        _integer_ticks(axis.yaxis)
    figure.colorbar(image, ax=axes, pad=0.02, fraction=0.03, label="weight")
    return figure


def parallel_coordinates(tried: Sequence["Tried"], names: Sequence[str]) -> "Figure":
    """What every complete trial chose, an axis a parameter and the return as the last, colored by the return."""
    figure, axes = _panels(1, 1, 1.5 + 1.05 * (len(names) + 1), 3.8)
    axis = axes[0, 0]
    chosen = {each.number: [_number_or_name(each.chosen.get(name)) for name in names] for each in tried}
    scales = [_scale(list(column)) for column in zip(*chosen.values(), strict=True)]
    scales.append(_scale([each.value for each in tried], logarithmic=False))
    best = max(tried, key=lambda each: each.value or -np.inf)
    returns = _scale([each.value for each in tried], logarithmic=False)[0]
    colors = _color_map("viridis")
    for each in sorted(tried, key=lambda each: each.value or 0.0):
        values = [*chosen[each.number], each.value]
        heights = [place.get(value) for (place, _), value in zip(scales, values, strict=True)]
        points = [(x, height) for x, height in enumerate(heights) if height is not None]
        width = 2.6 if each is best else 1.2
        axis.plot(*zip(*points, strict=True), color=colors(0.95 * returns[each.value]), linewidth=width, alpha=0.85)
    for x, (_, ticks) in enumerate(scales):
        axis.axvline(x, color=GRAY, linewidth=0.8, zorder=0)
        for height, text in ticks.items():
            box = dict(boxstyle="square,pad=0.1", facecolor="white", edgecolor="none", alpha=0.75)
            _note(axis, text, (x, height), (4, 0), fontsize=8, va="center", bbox=box)
    labels = [name.rpartition(".")[2].replace("_", "\n") for name in names]
    axis.set_xticks(range(len(scales)), [*labels, "return"])
    axis.set(xlim=(-0.1, len(names) + 0.6), ylim=(-0.05, 1.05), yticks=[])
    axis.spines[["left", "bottom"]].set_visible(False)
    return figure


def importances(shares: Mapping[str, float]) -> "Figure":
    """Which parameter decides how much of the differences between trials, the most important one above."""
    ordered = sorted(shares.items(), key=lambda each: each[1])
    figure, axes = _panels(1, 1, 6.5, 0.9 + 0.36 * len(ordered))
    axis = axes[0, 0]
    axis.barh(range(len(ordered)), [share for _, share in ordered], color=BLUE, height=0.6)
    for row, (_, share) in enumerate(ordered):
        _note(axis, f"{share:.0%}", (share, row), (4, 0), fontsize=8, va="center")
    axis.set_yticks(range(len(ordered)), [name.rpartition(".")[2] for name, _ in ordered])
    axis.set_xlabel("share of the differences between trials (PED-ANOVA)")
    axis.margins(x=0.12)
    return figure


def _scale(values: Sequence[Any], logarithmic: bool | None = None) -> tuple[dict[Any, float], dict[float, str]]:
    """Where values stand on an axis from 0 to 1, and its ticks: numbers by their size, names in the order they come."""
    there = [value for value in values if value is not None]
    if not there or any(isinstance(value, str) for value in there):
        different = list(dict.fromkeys(there))
        at = {name: i / max(1, len(different) - 1) for i, name in enumerate(different)}
        return at, {height: str(name) for name, height in at.items()}
    low, high = min(there), max(there)
    if logarithmic is None:
        logarithmic = low > 0 and high / low >= 8
    if low == high:
        return dict.fromkeys(there, 0.5), {0.5: f"{low:.3g}"}
    numbers = np.log(there) if logarithmic else np.array(there, float)
    placed = (numbers - numbers.min()) / (numbers.max() - numbers.min())
    at = dict(sorted(zip(there, placed.tolist(), strict=True)))
    ticks = {0.0: f"{low:.3g}", 1.0: f"{high:.3g}"}
    for value, height in at.items():
        if len(at) <= 8 and all(abs(height - other) > 0.06 for other in ticks):
            ticks[height] = f"{value:.3g}"
    return at, ticks


def _number_or_name(value: Any) -> float | str | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if value is None or is_number else plain(value)


def _color_map(name: str) -> Any:
    import matplotlib

    return matplotlib.colormaps[name]


def _panels(
    n_rows: int, n_columns: int, width: float, height: float, heights: list[float] | None = None
) -> tuple["Figure", Any]:
    """A figure of so many inches and its axes (n_rows, n_columns)."""
    figure: Figure = require("plots", "matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    axes: Any = figure.subplots(n_rows, n_columns, squeeze=False, height_ratios=heights)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes


def _note(axis: Any, text: str, at: Any, away: tuple[float, float], **look: Any) -> None:
    """Text so many points away from a place."""
    axis.annotate(text, at, textcoords="offset points", xytext=away, **look)


def _heat_map(axis: Any, columns: NDArray[Any], colors: str, low: float, high: float) -> Any:
    """(T, rows) over time from left to right."""
    _integer_ticks(axis.xaxis)
    look = {"aspect": "auto", "interpolation": "nearest", "origin": "lower"}
    return axis.imshow(columns.T, cmap=colors, vmin=low, vmax=high, **look)


def _integer_ticks(axis: Any) -> None:
    axis.get_major_locator().set_params(integer=True)
