"""What every test runs under."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

# The tensors of the tests are tiny: a second thread only waits, and figures must not depend on the machine's cores.
torch.set_num_threads(1)

# The key that signs runs is the tests' own, for processes that they start too.
_folder = tempfile.TemporaryDirectory(prefix="recurl-tests-")
os.environ["XDG_CONFIG_HOME"] = _folder.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A time limit ends what hangs; it must be far beyond what anything takes on a busy machine."""
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.add_marker(pytest.mark.timeout(7200))


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a key for Weights & Biases nor settings of the machine's user."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    for name, path in (("HOME", ""), ("NETRC", "netrc"), ("WANDB_CONFIG_DIR", "config")):
        monkeypatch.setenv(name, str(tmp_path / path))
