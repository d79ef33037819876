"""The benchmark of images compares like with like, and reports what it measured."""

from typing import Any

import images
import pytest


def result(name: str = "breakout") -> dict[str, Any]:
    theirs: dict[str, Any] = dict(iteration=[9.0, 8.0, 30.0], collecting=[3.0, 2.0, 6.0], training=[6.0, 6.0, 24.0])
    ours: dict[str, Any] = dict(iteration=[3.0, 4.0, 5.0], collecting=[2.0, 3.0, 3.0], training=[1.0, 1.0, 2.0])
    measured = {"day": "a day", "processor": "a processor", "threads": "1"}
    return {
        "name": name,
        "measured": measured,
        images.THEIRS: {**theirs, "memory": 1000.0},
        images.OURS: {**ours, "memory": 400.0},
    }


def test_a_ratio_is_the_median_of_those_within_a_turn() -> None:
    assert images.ratio(result(), "iteration") == 3.0
    assert images.ratio(result(), "training") == 6.0


def test_rows_name_figures_and_units() -> None:
    found = images.rows([result("car_racing")])
    assert found[0] == ["car racing", "iteration", "9.0 s", "4.0 s", "3.0x"]
    assert found[-1] == ["car racing", "peak memory", "1,000 MiB", "400 MiB", "0.40x"]


def test_a_page_is_changed_between_its_marks_alone(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{images.BEGIN}\nold\n{images.END}\nafter\n")
    monkeypatch.setattr(images, "DOCS", tmp_path)
    for _ in range(2):
        images.write_docs([result()])
        text = page.read_text()
        assert text.startswith(f"before\n{images.BEGIN}\n")
        assert text.endswith(f"\n{images.END}\nafter\n")
        assert "old" not in text
        assert text.count("peak memory") == 1
        assert "a processor" in text


@pytest.mark.parametrize("case", images.CASES)
def test_rollouts_are_cut_into_even_minibatches(case: str) -> None:
    settings = images.CASES[case][1]()
    assert settings["n_steps"] * 8 % settings["batch_size"] == 0
