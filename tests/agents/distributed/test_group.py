"""Three processes that sum in memory which they share, and how processes part, for real."""

from pathlib import Path
from typing import Any

import pytest
import torch

from agents.distributed.memory import is_available
from tests.agents.distributed import in_processes
from tests.processes import ended, started

pytestmark = pytest.mark.skipif(not is_available, reason="needs Linux")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("memory")
    results = ended(started([str(Path(in_processes.__file__)), str(folder)], n=3))
    assert [code for code, _, _ in results] == [0, 0, -9], results
    return [torch.load(folder / f"{rank}.pt") for rank in range(3)]


def test_sums_are_taken_in_the_order_of_processes_and_equal_everywhere(found: list[dict[str, Any]]) -> None:
    assert all(each["shares memory"] for each in found)
    for each in found:
        for dtype, sums in each["sums"].items():
            for total, (first, second, third) in sums:
                assert total.dtype == dtype
                assert torch.equal(total, first + second + third)


def test_a_signal_is_handled_while_a_process_waits_for_the_others(found: list[dict[str, Any]]) -> None:
    assert [each["alarmed"] for each in found] == [[3.0, 3.0]] * 3


def test_ctrl_c_and_the_death_of_another_process_end_a_wait(found: list[dict[str, Any]]) -> None:
    assert found[0]["interrupted"]
    for reason in found[1]["lost"]:
        assert reason.startswith("another of the 3 processes that train together is gone")
    assert "interrupted" not in found[2]


def test_who_has_left_has_no_thread_of_gloo(found: list[dict[str, Any]]) -> None:
    # One that waits for the interpreter's lock while the process ends aborts it.
    assert "pt_gloo_runloop" not in found[1]["threads"]


def test_who_leaves_an_exchange_does_not_wait_for_it(tmp_path: Path) -> None:
    results = ended(started([str(Path(in_processes.__file__)), str(tmp_path)]))
    assert [code for code, _, _ in results] == [0, 0], results
    assert torch.load(tmp_path / "0.pt") == {"interrupted": True}
