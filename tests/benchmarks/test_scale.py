"""The benchmark of several processes: its model of costs, and that a measurement runs."""

import json

import pytest
from scale import JOBS, Link, fitted, measured_here, ring, tables


def test_a_ring_sends_every_part_around_twice() -> None:
    link = Link("", latency=1.0, bandwidth=10.0)
    assert ring(link, 1, 100.0) == 0.0
    assert ring(link, 4, 80.0) == pytest.approx(6 * (1.0 + 2.0))


def test_the_fit_finds_what_divides_and_what_does_not() -> None:
    assert fitted([(1, 5.0), (2, 3.0), (4, 2.0)]) == pytest.approx((1.0, 4.0))
    assert fitted([(1, 4.0), (2, 1.0)])[0] == 0.0
    assert fitted([(1, 2.0), (2, 4.0)]) == (3.0, 0.0)


def test_a_measurement_becomes_a_row_of_each_table() -> None:
    point = measured_here(JOBS[0], seconds=0.0)
    more = {"bytes": 400, "exchanges": 16, "exchange": 0.001, "waited": 0.01}
    by_size = dict.fromkeys(("4096", "65536", "1048576", "4194304", "16777216"), 0.001)
    several = {"1": [point], "2": [{**point, **more, "by_size": by_size}]}
    measured = {"day": "2026-01-01", "processor": "2 x a processor", "threads": "1"}
    text = tables(json.loads(json.dumps({"measured": measured, "jobs": {job.name: several for job in JOBS}})))
    assert text.count(JOBS[0].name) == 4
    assert "1.00 (1.00 to 1.00)" in text
