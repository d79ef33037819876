"""The GPU benchmark measures every contender, and nothing without a GPU."""

import json
import pathlib
from typing import Any

import gpu
import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device, which this would measure for minutes")
def test_without_a_gpu_nothing_is_measured_or_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "measure", None)
    monkeypatch.setattr(gpu, "append", None)
    assert gpu.main(gpu.Settings()) == 0
    assert "no CUDA device here: nothing is measured, nothing is written" in capsys.readouterr().out


def test_every_contender_trains_and_has_a_row(tmp_path: pathlib.Path) -> None:
    """On a CPU, where nothing is captured."""
    settings = gpu.Settings(steps=8, turns=2, seconds=0.0, device="cpu")
    case = gpu.measure(2, 8, settings)
    assert [row["contender"] for row in case["rows"]] == list(gpu.builders("cpu"))
    for row in case["rows"]:
        assert not row["error"]
        assert len(row["turns"]) == 2
        assert min(row["whole"], row["collecting"], row["training"]) > 0
    record = tmp_path / "results" / "gpu.json"
    gpu.append({"measured": gpu.described(settings), "cases": [case]}, record)
    gpu.append({"cases": []}, record)
    first, second = json.loads(record.read_text())
    assert first["cases"] == json.loads(json.dumps([case]))
    assert "torch" in first["measured"]
    assert second == {"cases": []}
    assert [path.name for path in record.parent.iterdir()] == ["gpu.json"]


def test_a_contender_that_cannot_be_built_is_reported_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(case: Any) -> Any:
        raise RuntimeError("CUDA out of memory\nand more")

    monkeypatch.setattr(gpu, "builders", lambda device: {gpu.BASE: too_large})
    (row,) = gpu.measure(2, 8, gpu.Settings(device="cpu"))["rows"]
    assert (row["contender"], row["error"]) == (gpu.BASE, "RuntimeError: CUDA out of memory")
