"""What Linux says about its host: /proc and the cgroup files. Pure parsers, one reader."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgekit.machine import Cpu, Host, Memory
from edgekit.probe.cgroup import Limits, read_limits
from edgekit.probe.text import read_text, whole
from edgekit.units import format_gib

# Arm's own part numbers (MIDR_EL1, implementer 0x41), from the Technical Reference Manuals.
_ARM_PARTS: Final = {
    0xD03: "Cortex-A53",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD40: "Neoverse-V1",
    0xD42: "Cortex-A78AE",
    0xD49: "Neoverse-N2",
    0xD4F: "Neoverse-V2",
    0xD80: "Cortex-A520",
    0xD81: "Cortex-A720",
    0xD82: "Cortex-X4",
    0xD85: "Cortex-X925",
    0xD87: "Cortex-A725",
}


def parse_cpuinfo(text: str) -> Cpu:
    """Read /proc/cpuinfo of an x86 or Arm machine.

    Physical cores are counted as distinct (physical id, core id) pairs, which x86 kernels print.
    Arm kernels print neither; there every listed processor is a core, as no Arm server or board
    part on sale has several threads per core.
    """
    blocks = [_fields(block) for block in text.split("\n\n") if block.strip()]
    processors = [b for b in blocks if "processor" in b]
    if not processors:
        return Cpu()
    first = processors[0]
    cores = {(b["physical id"], b["core id"]) for b in processors if "core id" in b}
    is_arm = "CPU implementer" in first
    physical = len(cores) if cores else (len(processors) if is_arm else None)
    return Cpu(
        model=first.get("model name") or _arm_model(processors),
        physical_cores=physical,
        logical_cores=len(processors),
        flags=tuple((first.get("flags") or first.get("Features") or "").split()),
    )


def parse_meminfo(text: str) -> dict[str, int]:
    """Read /proc/meminfo into bytes; its "kB" are 1024 bytes (proc_meminfo(5))."""
    sizes: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        size = whole(words[0]) if len(words) == 2 and words[1] == "kB" else None
        if size is not None:
            sizes[name] = size * 1024
    return sizes


def merge_memory(sizes: dict[str, int], limits: Limits) -> Memory:
    """Host memory under the limits: what is available is the least of both."""
    total = sizes.get("MemTotal")
    limit = limits.memory_bytes
    if limit is not None and total is not None and limit >= total:
        limit = None
    room = [n for n in (sizes.get("MemAvailable"), limits.memory_left_bytes) if n is not None]
    return Memory(total_bytes=total, available_bytes=min(room) if room else None, limit_bytes=limit)


def usable_cores(logical: int | None, affinity: int | None, quota: float | None) -> int | None:
    """Threads that can run at once: the least of cores, affinity mask and CPU quota, at least 1."""
    known = [n for n in (logical, affinity) if n is not None]
    if quota is not None:
        known.append(max(1, int(quota)))
    return min(known) if known else None


def read_sockets(root: Path = Path("/")) -> tuple[frozenset[int], ...]:
    """Logical CPUs by socket, in the kernel's numbering; empty where sysfs does not tell."""
    sockets: dict[int, set[int]] = {}
    for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/topology/physical_package_id"):
        cpu, socket = whole(path.parents[1].name.removeprefix("cpu")), whole(read_text(path))
        if cpu is not None and socket is not None:
            sockets.setdefault(socket, set()).add(cpu)
    return tuple(frozenset(cpus) for _, cpus in sorted(sockets.items()))


def one_socket(
    sockets: Sequence[frozenset[int]], allowed: frozenset[int]
) -> tuple[frozenset[int] | None, str | None]:
    """The allowed CPUs of the socket that has most of them, and a note; None if there is one. Pure.

    Two sockets decode no faster than one (they read each other's memory), so one is measured.
    """
    ours = [cpus & allowed for cpus in sockets if cpus & allowed]
    if len(ours) < 2:
        return None, None
    return max(ours, key=len), (
        f"{len(ours)} CPU sockets: memory bandwidth is that of one, and an engine on the CPU is "
        "best bound to one (numactl --cpunodebind=0 --membind=0)"
    )


def read_host(root: Path = Path("/")) -> tuple[Host, tuple[str, ...]]:
    """The host and what is worth saying about it. `root` lets recorded trees stand in."""
    live = root == Path("/")
    cpu = parse_cpuinfo(read_text(root / "proc/cpuinfo") or "")
    limits = read_limits(root)
    memory = merge_memory(parse_meminfo(read_text(root / "proc/meminfo") or ""), limits)
    notes: list[str] = []
    if memory.limit_bytes is not None:
        notes.append(f"memory is limited to {format_gib(memory.limit_bytes)} by a control group")
    affinity = len(os.sched_getaffinity(0)) if live and hasattr(os, "sched_getaffinity") else None
    cores = usable_cores(cpu.logical_cores, affinity, limits.cpus)
    if cores is not None and cpu.logical_cores is not None and cores < cpu.logical_cores:
        reason = "CPU quota" if limits.cpus is not None else "affinity mask"
        notes.append(f"only {cores} of {cpu.logical_cores} logical cores may be used ({reason})")
    version = (read_text(root / "proc/version") or "").split()
    return Host(
        os="linux",
        arch=platform.machine() if live else _arch(cpu),
        kernel=version[2] if len(version) > 2 else None,
        cpu=Cpu(cpu.model, cpu.physical_cores, cpu.logical_cores, cpu.flags, cores),
        memory=memory,
    ), tuple(notes)


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, separator, value in pairs if separator}


def _arch(cpu: Cpu) -> str:
    return "aarch64" if "asimd" in cpu.flags else "x86_64"


def _arm_model(processors: list[dict[str, str]]) -> str | None:
    """Name the cores by part number, in the kernel's order: "10x Cortex-X925, 10x Cortex-A725"."""
    counts: dict[str, int] = {}
    for block in processors:
        try:
            implementer, part = int(block["CPU implementer"], 0), int(block["CPU part"], 0)
        except (KeyError, ValueError):
            return None
        name = _ARM_PARTS.get(part) if implementer == 0x41 else None
        if name is None:
            return None
        counts[name] = counts.get(name, 0) + 1
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{n}x {name}" for name, n in counts.items())
