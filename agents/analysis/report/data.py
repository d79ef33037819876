"""Numbers as a page carries them: few digits, and bytes where there are many.

Axes: T steps, U numbers of one observation or state.
"""

import base64
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from agents.analysis.recording import Recording, parts
from agents.analysis.report.pictures import channels_last, is_image, smaller
from agents.analysis.report.records import Curve

MOST_STEPS = 1000  # of an episode, which need not end; a page must stay small
MOST_POINTS = 400  # of a curve; a screen shows no more
MOST_NUMBERS = 48  # of an observation or action, in a list
MOST_UNITS = 256  # of a state's part, as rows of a picture
MOST_PIXELS = 3_000_000  # of an episode's pictures, bytes


def rounded(value: Any, digits: int = 5) -> float | None:
    """A number in so many digits; None where it is not finite, which JSON cannot say."""
    number = float(value)
    return float(f"{number:.{digits}g}") if math.isfinite(number) else None


def numbers(values: Any) -> list[float | None]:
    """(T,) -> a list"""
    return [rounded(value) for value in values]


def curve(name: str, found: Curve, low: Any = None, high: Any = None) -> dict[str, Any]:
    """A curve for a plot, thinned out where it has more points than can be seen."""
    keep = np.unique(np.linspace(0, len(found.steps) - 1, min(MOST_POINTS, len(found.steps))).round().astype(int))
    drawn = {"name": name, "x": numbers(found.steps[keep]), "y": numbers(found.values[keep])}
    if low is not None:
        drawn |= {"low": numbers(np.asarray(low)[keep]), "high": numbers(np.asarray(high)[keep])}
    return drawn


def episode(
    recording: Recording,
    memory: Mapping[str, NDArray[Any]],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
) -> dict[str, Any]:
    """An episode to step through; ``memory`` is what was carried, by name, (T, U) each."""
    of = dict(_spaces(observation_space))
    seen = parts(recording.observations)
    return {
        "steps": len(recording),
        "ended": recording.ended,
        "total": rounded(recording.total),
        "rewards": numbers(recording.rewards),
        "values": numbers(recording.values),
        "log_probabilities": numbers(recording.log_probabilities),
        "observations": [_part(name or "observation", of.get(name), values) for name, values in seen],
        "action": {
            **_part("action", action_space, recording.actions),
            "probabilities": _probabilities(recording.probabilities),
        },
        "memory": [_units(name, states) for name, states in memory.items()],
    }


def as_script(content: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can close the element or open a comment."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _spaces(space: spaces.Space[Any], name: str = "") -> Iterator[tuple[str, spaces.Space[Any]]]:
    """(key, space) of every part of a (nested) Dict space; of a plain one, with no key."""
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _spaces(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, space


def _part(name: str, space: spaces.Space[Any] | None, array: NDArray[Any]) -> dict[str, Any]:
    """One part of an observation, or the actions, over T steps."""
    if isinstance(space, spaces.Box) and is_image(space):
        return _picture(name, channels_last(array, space))
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


def _picture(name: str, pictures: NDArray[Any]) -> dict[str, Any]:
    # A stack of frames shows its last, which is the newest.
    channels = pictures if pictures.shape[-1] == 3 else pictures[..., -1:]
    small = smaller(channels, MOST_PIXELS)
    _, height, width, depth = small.shape
    return {"kind": "picture", "name": name, "height": height, "width": width, "depth": depth, "data": _base64(small)}


def _probabilities(chances: NDArray[Any] | None) -> list[list[float | None]] | None:
    if chances is None or chances.shape[1] > MOST_NUMBERS:
        return None
    return [[rounded(p, 3) for p in row] for row in chances]


def _units(name: str, states: NDArray[Any]) -> dict[str, Any]:
    """(T, U) as signed bytes of the largest magnitude; of many units some, evenly spaced."""
    total = states.shape[1]
    shown = np.unique(np.linspace(0, total - 1, min(total, MOST_UNITS)).round().astype(int))
    flat = np.nan_to_num(states[:, shown], posinf=0.0, neginf=0.0)
    largest = float(np.abs(flat).max()) or 1.0
    data = _base64((flat / largest * 127).round().astype(np.int8))
    return {"name": name, "total": total, "shown": len(shown), "largest": rounded(largest), "data": data}


def _base64(array: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
