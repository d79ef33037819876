"""Numbers as a page carries them: few digits, and bytes where there are many.

Axes: T steps, U numbers of one observation or state.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first

from agents.analysis.inside import GraphWeights
from agents.analysis.recording import Recording, parts
from agents.analysis.report.history import Curve

MOST_STEPS = 1000  # of an episode, which need not end; a page must stay small
MOST_POINTS = 400  # of a curve; a screen shows no more
MOST_NUMBERS = 48  # of an observation or action, in a list
MOST_UNITS = 256  # of a state's part, as rows of a picture
MOST_NODES, MOST_LINKS = 48, 24  # of a graph that is drawn: the first nodes, the links of most weight
MOST_PIXELS = 3_000_000  # of an episode's pictures, bytes


def rounded(value: Any, digits: int = 5) -> float | None:
    """A number in so many digits; None where it is not finite, which JSON cannot say."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def numbers(values: Any, digits: int = 5) -> list[float | None]:
    """(T,) -> a list"""
    return [rounded(value, digits) for value in values]


def curve(
    name: str, found: Curve, low: Any = None, high: Any = None, *, elapsed: Curve | None = None, of: str | None = None
) -> dict[str, Any]:
    """A series of a chart, thinned out where it has more points than can be seen.

    Args:
        low: (P,) edges of a band.
        elapsed: seconds of training by step: the chart can then be drawn over time.
        of: the series that this is a single seed of.
    """
    keep = evenly_spaced(len(found.steps), MOST_POINTS)
    drawn = {"name": name, "x": numbers(found.steps[keep], 12), "y": numbers(found.values[keep])}
    if low is not None:
        drawn |= {"low": numbers(np.asarray(low)[keep]), "high": numbers(np.asarray(high)[keep])}
    if elapsed is not None:
        drawn["t"] = numbers(np.interp(found.steps[keep], *elapsed), 7)
    return drawn if of is None else {**drawn, "of": of}


def evenly_spaced(total: int, most: int) -> NDArray[np.int64]:
    """The places of at most so many of ``total``, the first and the last among them."""
    return np.unique(np.linspace(0, total - 1, min(total, most)).round().astype(np.int64))


def episode(
    recording: Recording,
    memory: Mapping[str, NDArray[Any]],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    graphs: Sequence[GraphWeights] = (),
) -> dict[str, Any]:
    """An episode to step through; ``memory`` is what was carried, by name, (T, U) each; ``graphs`` were encoded."""
    space_of = dict(parts(observation_space))
    chances = recording.probabilities
    rows = chances if chances is not None and chances.shape[1] <= MOST_NUMBERS else None
    seen = ((name, space_of.get(name), np.asarray(part)) for name, part in parts(recording.observations))
    return {
        "steps": len(recording),
        "ended": recording.ended,
        "total": rounded(recording.total),
        "rewards": numbers(recording.rewards),
        "values": numbers(recording.values),
        "log_probabilities": numbers(recording.log_probabilities),
        "observations": [_part(name or "observation", space, part) for name, space, part in seen],
        "action": {
            **_part("action", action_space, recording.actions),
            "probabilities": None if rows is None else [[rounded(p, 3) for p in row] for row in rows],
        },
        "memory": [_units(name, states) for name, states in memory.items()],
        "graphs": [_graph(each) for each in graphs],
    }


def _part(name: str, space: spaces.Space[Any] | None, array: NDArray[Any]) -> dict[str, Any]:
    """One part of an observation, or the actions, over T steps."""
    if isinstance(space, spaces.Box) and is_image_space(space):
        return _picture(name, np.moveaxis(array, 1, -1) if is_image_space_channels_first(space) else array)
    if isinstance(space, spaces.Discrete):
        n, start = int(space.n), int(space.start)
        return {"kind": "choice", "name": name, "n": n, "start": start, "values": array.reshape(-1).tolist()}
    flat = array.reshape(len(array), -1).astype(np.float64)
    return {
        "kind": "numbers",
        "name": name,
        "shape": list(array.shape[1:]),
        "total": flat.shape[1],
        "largest": rounded(np.abs(flat[:, :MOST_NUMBERS]).max(initial=0.0)),
        "values": [numbers(row) for row in flat[:, :MOST_NUMBERS]],
    }


def _graph(weights: GraphWeights) -> dict[str, Any]:
    """Of every step the nodes' weights, and [from, to, weight] of links, the heaviest first."""
    links = []
    for index, shares in zip(weights.edge_index, weights.edges, strict=True):
        heaviest = np.argsort(-shares, kind="stable")[:MOST_LINKS]
        drawn = (i for i in heaviest if shares[i] > 0 and index[i].max() < MOST_NODES)
        links.append([[*index[i].tolist(), rounded(shares[i], 3)] for i in drawn])
    nodes = weights.nodes[:, :MOST_NODES]
    return {"nodes": [[rounded(weight, 3) for weight in row] for row in nodes], "links": links}


def _picture(name: str, pictures: NDArray[Any]) -> dict[str, Any]:
    """(T, height, width, channels), with pixels left out where there are too many."""
    # A stack of frames shows its last, which is the newest.
    pictures = pictures if pictures.shape[-1] == 3 else pictures[..., -1:]
    skip = max(1, math.ceil(math.sqrt(pictures.size / MOST_PIXELS)))
    small = pictures[:, ::skip, ::skip]
    _, height, width, depth = small.shape
    return {"kind": "picture", "name": name, "height": height, "width": width, "depth": depth, "data": _base64(small)}


def _units(name: str, states: NDArray[Any]) -> dict[str, Any]:
    return {"name": name, **cells(states)}


def cells(states: NDArray[Any]) -> dict[str, Any]:
    """(T, U) as signed bytes of the largest magnitude; of many units some, evenly spaced."""
    shown = evenly_spaced(states.shape[1], MOST_UNITS)
    flat = np.nan_to_num(states[:, shown], posinf=0.0, neginf=0.0)
    largest = float(np.abs(flat).max(initial=0.0)) or 1.0
    data = _base64((flat / largest * 127).round().astype(np.int8))
    return {"total": states.shape[1], "shown": len(shown), "largest": rounded(largest), "data": data}


def _base64(array: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
