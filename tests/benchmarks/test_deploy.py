"""The benchmark of exported policies plays each over the same episodes."""

import numpy as np
from deploy import _compared, latency


def test_returns_that_differ_are_counted() -> None:
    assert _compared([1.0, 2.0], [1.0, 2.0]) == ", all the same"
    assert _compared([1.0, 3.0], [1.0, 2.0]) == ", 1 of 2 the same"


def test_a_latency_is_of_every_step_but_those_that_warm_up() -> None:
    calls: list[int] = []
    assert len(latency(calls.append, 20)) == 20
    assert np.array_equal(calls, range(22))
