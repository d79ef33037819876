"""What an update frees is there for the next one."""

import inspect
import platform
import subprocess
import sys

import pytest

from agents.algorithms import on_policy
from tests.agents.probe_envs import clocks, small_ppo

FAULTS = """
import resource
blocks = [torch.ones(2**20) for _ in range(6)]
del blocks
faults = []
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2**20) for _ in range(6)]  # 4 MiB each, 1024 pages
    del blocks
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))  # the system may take pages away at any time, but not before every block
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory in another way")
def test_large_blocks_are_not_faulted_in_again_and_again() -> None:
    """In a process that has freed nothing yet, and imports torch alone, which is quicker."""
    script = f"import torch\n{inspect.getsource(on_policy.keep_freed_memory)}\nkeep_freed_memory()\n{FAULTS}"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 1024


def test_an_agent_sees_to_that_when_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(on_policy, "keep_freed_memory", lambda: calls.append(1))
    small_ppo(clocks())
    assert calls
