"""The GPU benchmark measures what it says where there is a GPU, and says so where there is none."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import gpu
import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device, which this would measure for minutes")
def test_without_a_gpu_it_says_so_and_writes_nothing() -> None:
    before = gpu.RECORD.read_bytes() if gpu.RECORD.exists() else None
    ended = subprocess.run([sys.executable, "benchmarks/gpu.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "no CUDA device here: nothing is measured, nothing is written" in ended.stdout
    assert (gpu.RECORD.read_bytes() if gpu.RECORD.exists() else None) == before


def test_every_contender_trains_and_is_told_apart(tmp_path: pathlib.Path) -> None:
    """On a CPU, where there is nothing to capture."""
    settings = gpu.Settings(steps=8, turns=2, seconds=0.0, device="cpu")
    case = gpu.measure(2, 8, settings)
    assert not case["not measured"]
    assert list(case["rows"]) == list(gpu.builders("cpu"))
    for row in case["rows"].values():
        assert len(row["turns"]) == 2
        assert min(row["whole"], row["collecting"], row["training"]) > 0
    gpu.append({"measured": gpu.described(settings), "cases": [case]}, tmp_path / "results" / "gpu.json")
    gpu.append({"cases": []}, tmp_path / "results" / "gpu.json")
    first, second = json.loads((tmp_path / "results" / "gpu.json").read_text())
    assert first["cases"] == [case]
    assert "torch" in first["measured"]
    assert second == {"cases": []}
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["gpu.json"]


def test_a_contender_that_cannot_be_built_is_reported_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(case: Any) -> Any:
        raise RuntimeError("CUDA out of memory\nand more")

    monkeypatch.setattr(gpu, "builders", lambda device: {gpu.BASE: too_large})
    case = gpu.measure(2, 8, gpu.Settings(device="cpu"))
    assert case["rows"] == {}
    assert case["not measured"] == {gpu.BASE: "RuntimeError: CUDA out of memory"}


def test_a_ratio_is_the_median_of_those_within_a_turn() -> None:
    case = {"rows": {"ours": {"turns": [10.0, 40.0, 30.0]}, "theirs": {"turns": [5.0, 10.0, 10.0]}}}
    assert gpu.ratios(case, "ours", "theirs") == (3.0, 2.0, 4.0)
    assert gpu.ratios(case, "ours", "absent") is None
