"""Limits that a container or a service manager puts on this process: memory and CPU time.

Pure parsers plus `read_limits(root)`. Both cgroup versions are read, and every ancestor group up
to the mount counts, since a limit on the parent binds the child.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from edgekit.probe.text import read_text, whole

# Version 1 says "no limit" with the largest page-aligned 63-bit number; anything beyond an
# exabyte is such a number whatever the page size.
_NO_LIMIT: Final = 1 << 60


@dataclass(frozen=True, slots=True)
class Limits:
    """`memory_left_bytes` is the least room left under any limit, reclaimable cache included."""

    memory_bytes: int | None = None
    memory_left_bytes: int | None = None
    cpus: float | None = None


@dataclass(frozen=True, slots=True)
class Mount:
    version: int
    controllers: frozenset[str]
    root: str
    point: str


def parse_cgroup(text: str) -> dict[str, str]:
    """Read /proc/self/cgroup into {controller: path}; the version 2 entry has the key ""."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        fields = line.strip().split(":", 2)
        if len(fields) == 3:
            for controller in fields[1].split(","):
                paths[controller] = fields[2]
    return paths


def parse_mounts(text: str) -> list[Mount]:
    """Pick the cgroup mounts out of /proc/self/mountinfo (proc_pid_mountinfo(5))."""
    mounts = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if not separator or len(left) < 5 or len(right) < 3 or not right[0].startswith("cgroup"):
            continue
        version = 2 if right[0] == "cgroup2" else 1
        mounts.append(Mount(version, frozenset(right[2].split(",")), left[3], left[4]))
    return mounts


def parse_limit(text: str | None) -> int | None:
    """A limit file in bytes: "max", absurdly large numbers and rubbish all mean none is set."""
    value = whole(text)
    return value if value is not None and 0 < value < _NO_LIMIT else None


def parse_cpu_max(text: str | None) -> float | None:
    """Version 2 cpu.max, "quota period" in microseconds -> CPUs; "max ..." -> None."""
    words = (text or "").split()
    quota, period = (whole(w) for w in words) if len(words) == 2 else (None, None)
    return quota / period if quota and period else None


def parse_stat(text: str | None) -> dict[str, int]:
    """memory.stat and its like: "name number" lines."""
    pairs = (line.split() for line in (text or "").splitlines())
    return {p[0]: n for p in pairs if len(p) == 2 and (n := whole(p[1])) is not None}


def read_limits(root: Path = Path("/")) -> Limits:
    """The tightest memory and CPU limit on this process; all None where there is none.

    `root` is where /proc and /sys are looked for, so that recorded trees can stand in. In version
    2 memory.high counts as a limit too: above it the kernel throttles a process to a crawl.
    """
    paths = parse_cgroup(read_text(root / "proc/self/cgroup") or "")
    mounts = parse_mounts(read_text(root / "proc/self/mountinfo") or "")
    limits: list[int] = []
    left: list[int] = []
    cpus: list[float] = []
    for mount in mounts:
        for controller in ("memory", "cpu"):
            if mount.version == 1 and controller not in mount.controllers:
                continue
            path = paths.get("" if mount.version == 2 else controller)
            if path is None:
                continue
            for folder in _ancestors(root, mount, path):
                if controller == "cpu":
                    cpus += _cpus(folder, mount.version)
                else:
                    _memory(folder, mount.version, limits, left)
    return Limits(
        memory_bytes=min(limits, default=None),
        memory_left_bytes=min(left, default=None),
        cpus=min(cpus, default=None),
    )


def _ancestors(root: Path, mount: Mount, path: str) -> Iterator[Path]:
    """Folders from this process's group up to the mount point, innermost first."""
    inside = PurePosixPath(path)
    # In a container the file may name the host's path while the mount starts at that very group.
    relative = (
        inside.relative_to(mount.root) if inside.is_relative_to(mount.root) else PurePosixPath(".")
    )
    top = root / mount.point.lstrip("/")
    if ".." in relative.parts:  # a group outside our namespace: only the mount itself is visible
        relative = PurePosixPath(".")
    folder = top / relative
    while folder != top:
        yield folder
        folder = folder.parent
    yield top


def _memory(folder: Path, version: int, limits: list[int], left: list[int]) -> None:
    names = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
    found = [n for n in (parse_limit(read_text(folder / name)) for name in names) if n is not None]
    if not found:
        return
    limits += found
    file = "memory.current" if version == 2 else "memory.usage_in_bytes"
    used = whole(read_text(folder / file))
    stat = parse_stat(read_text(folder / "memory.stat"))
    cache = stat.get("inactive_file" if version == 2 else "total_inactive_file", 0)
    if used is not None:
        left.append(max(0, min(found) - max(0, used - cache)))


def _cpus(folder: Path, version: int) -> list[float]:
    if version == 2:
        text = read_text(folder / "cpu.max")
    else:
        quota, period = (
            read_text(folder / "cpu.cfs_quota_us"),
            read_text(folder / "cpu.cfs_period_us"),
        )
        text = f"{quota.strip()} {period.strip()}" if quota and period else None
    cpus = parse_cpu_max(text)
    return [] if cpus is None else [cpus]
