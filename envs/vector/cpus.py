"""How many CPUs this process may use."""

import math
import os
from pathlib import Path


def available_cpus() -> int:
    """CPUs this process may use: those it is bound to, or as many as a container's quota of their time makes up."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(bound, cpu_quota())))


def cpu_quota(root: Path = Path("/")) -> float:
    """CPUs' worth of time that this process's control groups, versions 1 and 2, give it; infinite without a quota.

    Args:
        root: the folder that holds ``proc`` and ``sys``.
    """
    quotas = [math.inf]
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        # A quota holds for all groups below. In a container the path may be the host's, and the mount alone be there.
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(mount):
                files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
                quota, period, *_ = [*" ".join(_read(folder / file) for file in files).split(), "max", "100000"]
                if quota.isdigit():  # neither "max" nor -1
                    quotas.append(int(quota) / int(period))
    return min(quotas)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
