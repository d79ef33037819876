"""What a report shows of an episode is what happened in it."""

import base64
import json

import numpy as np
import pytest
from gymnasium import spaces

from agents.analysis.inside import GraphWeights
from agents.analysis.report import data
from tests.agents.analysis.report.runs import recording


def test_states_come_back_from_their_bytes() -> None:
    states = np.array([[1.0, -2.0], [0.5, 0.0]])  # two steps, two units
    shown = data.episode(recording(2), {"hidden state": states}, spaces.Box(-1, 1, (0,)), spaces.Discrete(2))
    (part,) = shown["memory"]
    assert (part["name"], part["total"], part["shown"]) == ("hidden state", 2, 2)
    quantized = np.frombuffer(base64.b64decode(part["data"]), np.int8).reshape(2, 2)
    assert quantized / 127 * part["largest"] == pytest.approx(states, abs=2 / 127)


def test_of_a_large_state_units_evenly_apart_are_shown() -> None:
    states = np.arange(1025.0)[None]
    (part,) = data.episode(recording(1), {"state": states}, spaces.Box(-1, 1, (0,)), spaces.Discrete(2))["memory"]
    quantized = np.frombuffer(base64.b64decode(part["data"]), np.int8)
    assert (part["total"], part["shown"], len(quantized), quantized[0], quantized[-1]) == (1025, 256, 256, 0, 127)


def test_every_kind_of_observation_and_action_has_a_form() -> None:
    picture = np.zeros((3, 36, 40), np.uint8)
    picture[1, 2, 5] = 77  # channel 1, row 2, column 5
    space = spaces.Dict(
        seen=spaces.Box(0, 255, (3, 36, 40), np.uint8),
        inner=spaces.Dict(card=spaces.Discrete(4), bits=spaces.MultiBinary(3)),
        many=spaces.Box(-1, 1, (10, 10)),
    )
    seen = {
        "seen": picture[None],
        "inner": {"card": np.array([3]), "bits": np.array([[1, 0, 1]], np.int8)},
        "many": np.arange(100.0).reshape(1, 10, 10),
    }
    played = recording(1, seen, actions=np.array([[0.5, -2.0]]))
    shown = data.episode(played, {}, space, spaces.Box(-2, 2, (2,)))
    parts = {part["name"]: part for part in shown["observations"]}
    assert {name: part["kind"] for name, part in parts.items()} == {
        "seen": "picture",
        "inner.card": "choice",
        "inner.bits": "numbers",
        "many": "numbers",
    }
    assert (parts["inner.card"]["values"], parts["inner.card"]["n"]) == ([3], 4)
    assert (parts["many"]["total"], len(parts["many"]["values"][0])) == (100, data.MOST_NUMBERS)
    assert shown["action"]["values"] == [[0.5, -2.0]]
    drawn = np.frombuffer(base64.b64decode(parts["seen"]["data"]), np.uint8).reshape(36, 40, 3)
    assert drawn[2, 5].tolist() == [0, 77, 0]
    json.dumps(shown, allow_nan=False)


def test_long_episodes_of_pictures_stay_small() -> None:
    played = recording(1000, np.zeros((1000, 84, 84, 3), np.uint8))
    shown = data.episode(played, {}, spaces.Box(0, 255, (84, 84, 3), np.uint8), spaces.Discrete(2))
    (part,) = shown["observations"]
    assert 1000 * part["width"] * part["height"] * 3 <= data.MOST_PIXELS
    assert part["width"] >= 20


def test_numbers_that_json_cannot_say_are_left_out() -> None:
    assert data.numbers([1.23456789, float("nan"), float("-inf")]) == [1.2346, None, None]


def test_of_a_graph_the_heaviest_links_come_first_and_what_carries_nothing_is_left_out() -> None:
    index = np.array([[[0, 1], [1, 2], [2, 0], [50, 0]]])
    weights = GraphWeights(index, np.array([[0.25, 0.75, 0.0]]), np.array([[0.1, 0.6, 0.0, 0.3]]))
    spaces_of = spaces.Box(-1, 1, (0,)), spaces.Discrete(2)
    (shown,) = data.episode(recording(1), {}, *spaces_of, [weights])["graphs"]
    assert shown == {"nodes": [[0.25, 0.75, 0.0]], "links": [[[1, 2, 0.6], [0, 1, 0.1]]]}
