"""What an update frees is there for the next one."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import torch
import envs
from agents import RecurrentPPO

RecurrentPPO("MlpLstmPolicy", envs.make("CartPoleNoVel-v1", n_envs=2), n_steps=8, batch_size=16)
blocks = [torch.ones(2**20) for _ in range(6)]
del blocks
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    blocks = [torch.ones(2**20) for _ in range(6)]  # 4 MiB each, 1024 pages
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="how other C libraries keep memory is their affair")
def test_large_blocks_are_not_faulted_in_again_and_again() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 2 * 6 * 1024
