"""What an environment returns is taken as it is or refused with its name, the step and the value; never bent to fit."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import envs
from envs.vector.errors import EnvError

NAN = float("nan")
BYTES = spaces.Box(0, 255, (2,), np.uint8)
FLOATS = spaces.Box(-1, 1, (2,), np.float32)


class Saying(gym.Env[Any, Any]):
    """Returns one thing at reset and another at its second step."""

    def __init__(self, space: spaces.Space[Any], first: Any, second: Any, terminated: Any = False) -> None:
        self.observation_space, self.action_space = space, spaces.Discrete(2)
        self._first, self._second, self._terminated = first, second, terminated

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._t = 0
        return self._first, {}

    def step(self, action: Any) -> Any:
        self._t += 1
        return (
            (self._second, 0.0, self._terminated, False, {}) if self._t == 2 else (self._first, 0.0, False, False, {})
        )


def second_step(space: spaces.Space[Any], first: Any, second: Any, terminated: Any = False) -> Any:
    venv = envs.make(lambda: Saying(space, first, second, terminated), 1, backend="serial")
    venv.reset()
    venv.step(np.zeros(1, np.int64))
    observations, _, dones, infos = venv.step(np.zeros(1, np.int64))
    return infos[0]["terminal_observation"] if dones[0] else observations


GOOD_BYTES, GOOD_FLOATS = np.zeros(2, np.uint8), np.zeros(2, np.float32)
REFUSED: dict[str, tuple[spaces.Space[Any], Any, Any, str]] = {
    "a scalar": (FLOATS, GOOD_FLOATS, np.float32(1), r"the shape \(2,\), got \(\)"),
    "a batch of one": (FLOATS, GOOD_FLOATS, np.zeros((1, 2), np.float32), r"the shape \(2,\), got \(1, 2\)"),
    "one number for two": (FLOATS, GOOD_FLOATS, np.zeros(1, np.float32), r"got \(1,\)"),
    "300 as a byte": (BYTES, GOOD_BYTES, np.array([1, 300]), "from 0 to 255, which uint8 holds, got 300"),
    "-1 as a byte": (BYTES, GOOD_BYTES, [-1, 1], "got -1"),
    "NaN as a byte": (BYTES, GOOD_BYTES, np.array([NAN, 1]), "got nan"),
    "a half as a byte": (BYTES, GOOD_BYTES, np.array([0.5, 1]), r"got 0\.5"),
    "2.7 as a choice": (spaces.Discrete(4), 0, 2.7, r"Discrete\(4\) holds, got 2\.7"),
    "a choice too many": (spaces.Discrete(4), 0, 4, "got 4"),
    "a choice before the first": (spaces.Discrete(4, start=1), 1, 0, "got 0"),
    "a second choice too many": (spaces.MultiDiscrete([2, 3]), np.zeros(2, int), np.array([1, 3]), "got 3"),
    "2 as a bit": (spaces.MultiBinary(2), np.zeros(2, np.int8), np.array([0, 2], np.int8), "got 2"),
    "text": (FLOATS, GOOD_FLOATS, np.array(["a", "b"]), "must hold numbers"),
    "nothing": (FLOATS, GOOD_FLOATS, None, "must hold numbers, got None"),
    "ragged rows": (FLOATS, GOOD_FLOATS, [[1], [1, 2]], "no array of numbers"),
    "a dict without a key": (
        spaces.Dict(a=FLOATS, b=BYTES),
        {"a": GOOD_FLOATS, "b": GOOD_BYTES},
        {"a": GOOD_FLOATS},
        "a dict of a, b",
    ),
    "a wrong part": (
        spaces.Dict(a=FLOATS, b=BYTES),
        {"a": GOOD_FLOATS, "b": GOOD_BYTES},
        {"a": GOOD_FLOATS, "b": [0, 256]},
        r"the observation\['b'\] must .*got 256",
    ),
}


@pytest.mark.parametrize("terminated", [False, True])
@pytest.mark.parametrize("kind", REFUSED)
def test_an_observation_that_does_not_fit_is_refused_in_every_step(kind: str, terminated: bool) -> None:
    space, good, bad, message = REFUSED[kind]
    with pytest.raises(EnvError, match=rf"environment 0 \(Saying\) failed in step 2: ValueError: .*{message}"):
        second_step(space, good, bad, terminated)
    with pytest.raises(EnvError, match=rf"environment 0 \(Saying\) failed in reset: ValueError: .*{message}"):
        second_step(space, bad, good)


TAKEN: dict[str, tuple[spaces.Space[Any], Any, Any]] = {
    "a list": (FLOATS, [0.25, 0.5], np.array([0.25, 0.5], np.float32)),
    "another precision": (FLOATS, np.array([0.25, 0.5]), np.array([0.25, 0.5], np.float32)),
    "beyond the bounds": (FLOATS, np.array([7, -7], np.float32), np.array([7, -7], np.float32)),
    "integers as bytes": (BYTES, np.array([0, 255]), np.array([0, 255], np.uint8)),
    "whole floats as bytes": (BYTES, np.array([0.0, 255.0]), np.array([0, 255], np.uint8)),
    "a Python number as a choice": (spaces.Discrete(4), 3, 3),
    "a whole float as a choice": (spaces.Discrete(4), 3.0, 3),
    "truths as bits": (spaces.MultiBinary(2), [True, False], np.array([1, 0], np.int8)),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_an_observation_that_loses_nothing_is_taken(kind: str) -> None:
    space, observation, expected = TAKEN[kind]
    taken = second_step(space, observation, observation)
    np.testing.assert_array_equal(taken[0], expected)
    assert taken.dtype == space.dtype


@pytest.mark.parametrize("end", [NAN, 2, "no", None, np.array([True, False])])
def test_an_end_that_is_neither_true_nor_false_is_refused(end: Any) -> None:
    with pytest.raises(EnvError, match=r"failed in step 2: ValueError: terminated must be True or False"):
        second_step(FLOATS, GOOD_FLOATS, GOOD_FLOATS, end)


@pytest.mark.parametrize("end", [1, np.True_, np.array(True), 1.0])
def test_an_end_in_other_words_is_an_end(end: Any) -> None:
    np.testing.assert_array_equal(second_step(FLOATS, GOOD_FLOATS, GOOD_FLOATS + 1, end), GOOD_FLOATS + 1)
