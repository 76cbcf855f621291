"""How many threads the engine gets: the physical cores that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

SYSTEM = Path("/sys/devices/system/cpu")
CGROUP = Path("/sys/fs/cgroup")


def default_threads(system: Path = SYSTEM, cgroup: Path = CGROUP) -> tuple[int, str]:
    """Return (threads, reason).

    Two threads on one core share its units and its bandwidth, so physical cores are counted;
    a cgroup's quota caps them, since threads beyond it are stopped in mid-step.
    """
    if hasattr(os, "sched_getaffinity"):
        cpus = os.sched_getaffinity(0)
    else:
        cpus = set(range(os.cpu_count() or 1))
    cores = {_core_of(cpu, system) for cpu in cpus}
    n, reason = len(cores), f"{len(cores)} physical cores of {len(cpus)} usable CPUs"
    quota = _quota(cgroup)
    if quota is not None and quota < n:
        n = max(1, math.floor(quota))
        reason += f", capped by a CPU quota of {quota:g}"
    return n, reason


def _core_of(cpu: int, system: Path) -> str:
    """Return a name that CPUs of one core share; each CPU is its own core if unknown."""
    try:
        return (system / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota(cgroup: Path) -> float | None:
    """Return the CPU quota in cores (cgroup v2, then v1); None: there is none."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        v1 = int((cgroup / "cpu/cpu.cfs_quota_us").read_text())
        return v1 / int((cgroup / "cpu/cpu.cfs_period_us").read_text()) if v1 > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
