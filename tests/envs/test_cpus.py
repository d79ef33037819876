"""The CPUs that a process may use are those it is bound to, within its container's quota."""

import os
from pathlib import Path

import numpy as np
import pytest

from envs.vector.cpus import available_cpus, cpu_quota


def test_the_cpus_of_this_process_are_counted() -> None:
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert bound is not None
    assert 1 <= available_cpus() <= bound


VERSION_2 = {"proc/self/cgroup": "0::/a/b\n"}
CPU = "sys/fs/cgroup/cpu"
VERSION_1 = {"proc/self/cgroup": "3:memory:/\n2:cpu,cpuacct:/docker/x\n1:name=systemd:/\n"}


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, np.inf),
        ({**VERSION_2, "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, np.inf),
        ({**VERSION_2, "sys/fs/cgroup/a/b/cpu.max": "250000 100000\n"}, 2.5),
        ({**VERSION_2, "sys/fs/cgroup/a/cpu.max": "150000 50000", "sys/fs/cgroup/a/b/cpu.max": "400000 100000"}, 3.0),
        # In a container: the path of the host, of which the mount shows only what belongs to the container.
        ({**VERSION_1, f"{CPU}/cpu.cfs_quota_us": "50000\n", f"{CPU}/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({**VERSION_1, f"{CPU}/docker/x/cpu.cfs_quota_us": "-1\n"}, np.inf),
    ],
)
def test_a_containers_quota_is_read(files: dict[str, str], quota: float, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == quota
