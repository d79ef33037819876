"""The growth benchmark turns up one factor at a time, and finds the cliffs there are."""

import json
import pathlib
from dataclasses import asdict, replace
from typing import Any

import growth
import numpy as np
import pytest
from cases import ENDLESS
from growth import FACTORS, OURS, SMALLEST, THEIRS

import envs

BY_NAME = {factor.name: factor for factor in FACTORS}


@pytest.mark.parametrize("factor", FACTORS, ids=lambda factor: factor.name)
def test_one_factor_moves_and_the_sizes_fit(factor: growth.Factor) -> None:
    points = [asdict(point) for point in factor.points.values()]
    moving = {name for name in points[0] if len({point[name] for point in points}) > 1}
    # With the number of environments, what is collected grows, and four minibatches are made of it throughout.
    assert moving - {"batch_size"} == {factor.name}
    assert (
        "batch_size" not in moving or len({point.rollout // point.batch_size for point in factor.points.values()}) == 1
    )
    assert all(getattr(point, factor.name) == value for value, point in factor.points.items())
    assert list(factor.points) == sorted(factor.points)
    assert set(factor.quick) < set(factor.points)
    for point in factor.points.values():
        assert point.n_steps % point.sequence_length == 0
        assert point.batch_size % point.sequence_length == 0
        assert point.rollout % point.batch_size == 0


@pytest.mark.parametrize("length", [1, 10, 7])
def test_an_endless_episode_has_exactly_the_length_asked_for(length: int) -> None:
    env = envs.make(ENDLESS, 4, seed=0, env_kwargs={"max_episode_steps": length})
    env.reset()
    ends: list[list[int]] = [[] for _ in range(4)]
    for step in range(1, 5 * length + 1):
        _, _, dones, infos = env.step(np.ones(4, dtype=np.int64))
        for i in np.flatnonzero(dones).tolist():
            ends[i].append(step)
            assert infos[i]["TimeLimit.truncated"]
    for i, steps in enumerate(ends):
        assert steps[0] == length - i * length // 4
        assert set(np.diff(steps).tolist()) == {length}


def rows_of(**figures: Any) -> list[dict[str, Any]]:
    names = list(figures)
    return [dict(zip(names, values, strict=True), contender=OURS) for values in zip(*figures.values(), strict=True)]


def test_slopes_are_those_of_straight_lines_on_logarithmic_axes() -> None:
    rows = rows_of(value=[32, 64, 256], collecting=[10.0, 10.0, 10.0], training=[3.0, 12.0, 192.0], memory=[0.1, 8, 64])
    factor = BY_NAME["hidden"]
    assert growth.steps(factor, rows, "collecting") == [None, (0.0, 0.25), (0.0, 0.0625)]
    assert growth.steps(factor, rows, "training") == [None, (2.0, 1.0), (2.0, 1.0)]
    # Differences under eight MiB are noise.
    assert growth.steps(factor, rows, "memory") == [None, (0.0, 0.25), (1.5, 0.5)]


def test_a_figure_that_should_be_flat_may_not_fall_either_and_others_may() -> None:
    figures = dict(collecting=[9.0, 3.0], training=[2.0, 2.0], memory=[30.0, 30.0])
    flat, free = (rows_of(value=[10, 30], **figures) for _ in range(2))
    for name, rows, worse in (("episode", flat, 3.0), ("n_envs", free, 1 / 3)):
        _, step = growth.steps(BY_NAME[name], rows, "collecting")
        assert step is not None
        assert tuple(step) == pytest.approx((-1.0, worse))


RESULTS: dict[str, Any] = {
    "n_envs": {
        "rows": [
            dict(contender=OURS, value=8, collecting=10.0, training=20.0, memory=10.0),
            dict(contender=OURS, value=32, collecting=5.0, training=31.0, memory=40.0),
            dict(contender=OURS, value=128, error="exit code 1: MemoryError"),
            dict(contender=OURS, value=512, collecting=5.0, training=99.0, memory=9999.0),
        ],
        "measured": dict(day="2026-11-21", processor="2 x test", threads="1", torch="2.13.0"),
    },
    "n_steps": {
        "rows": [
            dict(contender=name, value=steps, collecting=10.0, training=20.0, memory=memory)
            for name, memory in ((OURS, 10.0), (THEIRS, 30.0))
            for steps in (128, 512)
        ],
        "measured": dict(day="2026-11-21", processor="2 x test", threads="1", torch="2.13.0"),
    },
}


def test_cliffs_and_what_could_not_be_measured_are_named() -> None:
    assert growth.cliffs(RESULTS) == [
        "Cliff: RecuRL, training, number of environments 8 to 32: 20 to 31, 1.6 times worse per unit.",
        "RecuRL, number of environments 128: not measured, exit code 1: MemoryError",
    ]
    (nothing,) = growth.cliffs({"n_steps": RESULTS["n_steps"]})
    assert nothing.startswith("No cliff")


def test_the_page_has_slopes_cliffs_and_every_contender(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    growth.write_docs(RESULTS, tmp_path)
    page = (tmp_path / "growth.md").read_text()
    assert "| 32 | 5.0 | -0.50 | **31.0** | 0.32 | 40.0 | 1.00 |" in page
    assert "| 128 | not measured: exit code 1: MemoryError |" in page
    assert "| sb3-contrib, steps of a rollout |" in page
    assert list(json.loads((tmp_path / "results" / "growth.json").read_text())) == ["n_envs", "n_steps"]
    assert (tmp_path / "growth.png").stat().st_size > 1000


@pytest.mark.parametrize("contender", [OURS, THEIRS])
def test_a_point_is_measured(contender: str) -> None:
    figures = growth.measure(replace(SMALLEST, contender=contender), iterations=1, threads=1)
    assert figures.keys() == growth.MEASURES.keys()
    assert all(figure > 0 for figure in figures.values())


def test_a_point_that_fails_is_reported_with_its_reason() -> None:
    with pytest.raises(RuntimeError, match=r"exit code 1: ValueError: n_steps \(16\) must be a multiple"):
        growth.in_own_process(replace(SMALLEST, sequence_length=5), 1, 1)
