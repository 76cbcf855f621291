"""macOS: sysctl, vm_stat, system_profiler and Metal. Pure parsers, one reader."""

from __future__ import annotations

import json
import platform
import re
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

from edgekit.machine import Accelerator, Cpu, Host, Memory
from edgekit.probe.text import whole
from edgekit.probe.tool import run_tool
from edgekit.units import GIB, MIB, format_gib

# Metal's default working set as a share of memory, the LOWEST seen for each size in llama.cpp
# logs ("recommendedMaxWorkingSetSize"): 8 to 32 GB give 2/3 (M2 24 GB 17,179.89 MB, M3 Pro 18 GB
# 12,884.92 MB), 36 to 192 GB give 3/4 (M4 Max 36 GB 28,991.03 MB). macOS 26 gives more (16 GB 0.74,
# 32 and 48 GB 0.78, 128 GB 0.84; M3 Ultra 512 GB 0.906), so this is a floor, used only when Metal
# itself cannot be asked. A size that is not here was never seen: unknown.
_FLOOR: Final = {
    **dict.fromkeys((8, 16, 18, 24, 32), Fraction(2, 3)),
    **dict.fromkeys((36, 48, 64, 96, 128, 192, 256, 512), Fraction(3, 4)),
}
_PAGE: Final = re.compile(r"page size of (\d+) bytes")
_ARM_FLAGS: Final = "hw.optional.arm.FEAT_"

SYSCTL: Final = (
    "sysctl", "hw", "machdep.cpu", "kern.osrelease", "iogpu", "sysctl.proc_translated"
)  # fmt: skip
DISPLAYS: Final = ("system_profiler", "-json", "SPDisplaysDataType")


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    cores: int | None
    metal: str | None


def parse_sysctl(text: str) -> dict[str, str]:
    """Read `sysctl` output: "name: value" lines; its complaints about unknown names are skipped."""
    pairs = (line.partition(": ") for line in text.splitlines())
    return {
        key.strip(): value.strip() for key, sep, value in pairs if sep and key.strip() != "sysctl"
    }


def parse_vm_stat(text: str) -> int | None:
    """Memory that can be had without swapping, in bytes, out of `vm_stat`.

    Free, inactive, speculative and purgeable pages, as Activity Monitor's "cached" plus free.
    """
    page = _PAGE.search(text)
    counts = {
        k: v.strip().rstrip(".") for k, _, v in (ln.partition(":") for ln in text.split("\n"))
    }
    names = ("Pages free", "Pages inactive", "Pages speculative", "Pages purgeable")
    numbers = [n for name in names if (n := whole(counts.get(name))) is not None]
    page_bytes = whole(page.group(1)) if page else None
    return sum(numbers) * page_bytes if page_bytes and "Pages free" in counts else None


def parse_displays(text: str) -> list[Gpu]:
    """GPUs out of `system_profiler -json SPDisplaysDataType`; only Apple's own are returned."""
    try:
        entries = json.loads(text)["SPDisplaysDataType"]
    except (ValueError, KeyError, TypeError):
        return []
    gpus = []
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and entry.get("spdisplays_vendor") == "sppci_vendor_Apple":
            name, cores = entry.get("sppci_model"), entry.get("sppci_cores")
            if isinstance(name, str):
                family = entry.get("spdisplays_mtlgpufamilysupport")
                gpus.append(
                    Gpu(
                        name,
                        whole(cores),
                        family if isinstance(family, str) else None,
                    )
                )
    return gpus


def parse_metal(text: str) -> int | None:
    """The working set in bytes out of the Metal child's line; None if it could not be had."""
    try:
        value = json.loads(text)["working_set_bytes"]
    except (ValueError, KeyError, TypeError):
        return None
    return value if isinstance(value, int) and value > 0 else None


def working_set(
    total_bytes: int | None, wired_limit_mb: int | None, metal_bytes: int | None
) -> tuple[int | None, str | None]:
    """Bytes the GPU may use, and what to say about the figure. Pure.

    In order: Metal's own answer, a wired limit that somebody set, the lowest share ever seen for
    this memory size; None for sizes never seen.
    """
    if metal_bytes is not None:
        return metal_bytes, None
    if wired_limit_mb:
        return wired_limit_mb * MIB, "Metal could not be asked; iogpu.wired_limit_mb stands in"
    size_gib = None if total_bytes is None else total_bytes // GIB
    share = _FLOOR.get(size_gib) if size_gib is not None else None
    if total_bytes is None or share is None:
        return None, (
            "Metal could not be asked, and its working set for this memory size is unknown "
            "(sudo sysctl iogpu.wired_limit_mb=N sets it)"
        )
    return int(total_bytes * share), (
        "Metal could not be asked; its working set is at least "
        f"{format_gib(int(total_bytes * share))} on a machine of this size"
    )


def describe(
    sysctl_text: str,
    vm_stat_text: str,
    displays_text: str,
    metal_text: str,
    arch: str,
) -> tuple[Host, tuple[Accelerator, ...], tuple[str, ...]]:
    """Merge the four outputs into host, accelerators and notes. Pure."""
    facts = parse_sysctl(sysctl_text)
    total = whole(facts.get("hw.memsize"))
    flags = tuple(
        key.removeprefix(_ARM_FLAGS).lower()
        for key, value in facts.items()
        if key.startswith(_ARM_FLAGS) and value == "1"
    )
    features = (
        facts.get("machdep.cpu.features", "") + " " + facts.get("machdep.cpu.leaf7_features", "")
    )
    logical = whole(facts.get("hw.logicalcpu"))
    host = Host(
        os="macos",
        arch=arch,
        kernel=facts.get("kern.osrelease"),
        cpu=Cpu(
            model=facts.get("machdep.cpu.brand_string"),
            physical_cores=whole(facts.get("hw.physicalcpu")),
            logical_cores=logical,
            flags=flags or tuple(features.lower().split()),
            usable_cores=logical,
        ),
        memory=Memory(total_bytes=total, available_bytes=parse_vm_stat(vm_stat_text)),
    )
    notes: list[str] = []
    found = []
    for gpu in parse_displays(displays_text):
        limit, note = working_set(
            total, whole(facts.get("iogpu.wired_limit_mb")), parse_metal(metal_text)
        )
        if note is not None:
            notes.append(f"{gpu.name}: {note}")
        found.append(
            Accelerator(
                vendor="apple",
                name=gpu.name,
                memory_kind="unified",
                memory_total_bytes=total,
                memory_free_bytes=limit,
                gpu_cores=gpu.cores,
            )
        )
    if facts.get("sysctl.proc_translated") == "1":
        notes.append("this Python runs under Rosetta; an arm64 Python is several times faster")
    if not found:
        notes.append("no Apple GPU: this is an Intel Mac or a virtual machine, the CPU is used")
    return host, tuple(found), tuple(notes)


def read_mac() -> tuple[Host, tuple[Accelerator, ...], tuple[str, ...]]:
    """Run the four tools here and merge what they say."""
    child = str(Path(__file__).with_name("metal_child.py"))
    return describe(
        run_tool(SYSCTL, timeout_s=5).stdout,
        run_tool(("vm_stat",), timeout_s=5).stdout,
        run_tool(DISPLAYS, timeout_s=15).stdout,
        run_tool((sys.executable, "-P", child), timeout_s=10).stdout,
        platform.machine(),
    )
