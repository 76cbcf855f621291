"""AMD GPUs through sysfs: no ROCm and no tool is needed, the amdgpu kernel driver says it all.

Pure parsers plus `read_gpus(root)`. Files: /sys/class/drm/card*/device (amdgpu's documented sysfs
files), /sys/class/kfd/kfd/topology (compute units and gfx version), libdrm's amdgpu.ids (names).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from edgekit.machine import Accelerator, Memory, MemoryKind
from edgekit.probe.cgroup import parse_stat
from edgekit.probe.text import read_text, whole

AMD: Final = "0x1002"
_CARD: Final = re.compile(r"card\d+")
_PCI_SLOT: Final = re.compile(r"([0-9a-f]{4}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])", re.IGNORECASE)

# Processors with the GPU on the CPU's die, by the gfx version that only they have (LLVM's AMDGPU
# processor table). Their "VRAM" is a slice of host memory, and they can take more (GTT).
APU_GFX: Final = frozenset(
    {"gfx902", "gfx909", "gfx90c"}
    | {"gfx1013", "gfx1033", "gfx1035", "gfx1036", "gfx1037"}
    | {"gfx1103", "gfx1150", "gfx1151", "gfx1152", "gfx1153"}
)

# (device id, PCI revision) -> marketing name, as in libdrm's data/amdgpu.ids (MIT), for machines
# without libdrm's file. One device id covers several cards, so the revision is part of the key.
_NAMES: Final = {
    ("744c", "c8"): "AMD Radeon RX 7900 XTX",
    ("744c", "cc"): "AMD Radeon RX 7900 XT",
    ("744c", "ce"): "AMD Radeon RX 7900 GRE",
    ("747e", "c8"): "AMD Radeon RX 7800 XT",
    ("747e", "ff"): "AMD Radeon RX 7700 XT",
    ("7448", "00"): "AMD Radeon Pro W7900",
    ("745e", "cc"): "AMD Radeon Pro W7800",
}


def parse_ids(text: str) -> dict[tuple[str, str], str]:
    """Read libdrm's amdgpu.ids: "device, revision, name" lines, hexadecimal without 0x."""
    names: dict[tuple[str, str], str] = {}
    for line in text.splitlines():
        fields = [f.strip() for f in line.split(",", 2)]
        if len(fields) == 3 and not line.startswith("#"):
            names[fields[0].lower(), fields[1].lower()] = fields[2]
    return names


def gfx_name(target_version: int) -> str | None:
    """KFD's gfx_target_version, major * 10000 + minor * 100 + step -> "gfx1100", "gfx90a"."""
    if target_version <= 0:
        return None
    major, rest = divmod(target_version, 10000)
    minor, step = divmod(rest, 100)
    return f"gfx{major}{minor:x}{step:x}"


def kfd_location(slot: str) -> tuple[int, int] | None:
    """A PCI address "0000:03:00.0" -> KFD's (domain, location_id)."""
    match = _PCI_SLOT.fullmatch(slot.strip())
    if match is None:
        return None
    domain, bus, device, function = (int(g, 16) for g in match.groups())
    return domain, bus << 8 | device << 3 | function


def gpu_cores(node: dict[str, int]) -> int | None:
    """Compute units of a KFD node: its SIMDs over the SIMDs in each unit."""
    per_cu = node.get("simd_per_cu", 0)
    return node.get("simd_count", 0) // per_cu or None if per_cu > 0 else None


def read_gpus(
    host_memory: Memory, root: Path = Path("/")
) -> tuple[tuple[Accelerator, ...], tuple[str, ...]]:
    """All AMD GPUs that the amdgpu driver runs, and notes. `root` lets recorded trees stand in."""
    names = _NAMES | parse_ids(read_text(root / "usr/share/libdrm/amdgpu.ids") or "")
    nodes = _kfd_nodes(root)
    found: list[Accelerator] = []
    notes: list[str] = []
    drm = root / "sys/class/drm"
    cards = sorted(drm.iterdir()) if drm.is_dir() else []
    for device in (c / "device" for c in cards if _CARD.fullmatch(c.name)):
        if _word(device / "vendor") != AMD:
            continue
        uevent = dict(
            line.split("=", 1)
            for line in (read_text(device / "uevent") or "").splitlines()
            if "=" in line
        )
        place = kfd_location(uevent.get("PCI_SLOT_NAME", ""))
        node = nodes.get(place, {}) if place is not None else {}
        accelerator = _accelerator(root, device, names, node, host_memory)
        if accelerator.memory_total_bytes is None:
            notes.append(f"{accelerator.name}: the kernel does not tell its memory")
        if accelerator.memory_kind == "shared":
            notes.append(
                f"{accelerator.name} is part of the CPU: beyond its own slice, its memory is the "
                "host's, so never add the two"
            )
        found.append(accelerator)
    return tuple(found), tuple(notes)


def _accelerator(
    root: Path,
    device: Path,
    names: dict[tuple[str, str], str],
    node: dict[str, int],
    host_memory: Memory,
) -> Accelerator:
    device_id = (_word(device / "device") or "").removeprefix("0x").lower()
    revision = (_word(device / "revision") or "").removeprefix("0x").lower()
    gfx = gfx_name(node.get("gfx_target_version", 0))
    is_card = gfx not in APU_GFX and (gfx is not None or (device_id, revision) in _NAMES)
    kind: MemoryKind | None = "shared" if gfx in APU_GFX else "dedicated" if is_card else None
    total, free = _pool(device, "vram")
    if kind == "shared":
        gtt_total, gtt_free = _pool(device, "gtt")
        # The table may map more host memory than the host has left to give.
        room = [n for n in (gtt_free, host_memory.available_bytes) if n is not None]
        total = _sum(total, gtt_total)
        free = _sum(free, min(room) if gtt_free is not None else None)
    unique = _word(device / "unique_id")
    return Accelerator(
        vendor="amd",
        name=_line(device / "product_name")
        or names.get((device_id, revision))
        or f"AMD GPU {device_id}:{revision}",
        memory_kind=kind,
        memory_total_bytes=total,
        memory_free_bytes=free,
        driver=_word(root / "sys/module/amdgpu/version"),
        compute_capability=gfx,
        uuid=f"GPU-{unique}" if unique else None,
        gpu_cores=gpu_cores(node),
    )


def _kfd_nodes(root: Path) -> dict[tuple[int, int], dict[str, int]]:
    """GPU nodes of the KFD topology by PCI place. Nodes that a container hides stay out."""
    folder = root / "sys/class/kfd/kfd/topology/nodes"
    nodes: dict[tuple[int, int], dict[str, int]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        node = parse_stat(read_text(path / "properties"))
        if node.get("simd_count", 0) > 0:
            nodes[node.get("domain", 0), node.get("location_id", 0)] = node
    return nodes


def _pool(device: Path, name: str) -> tuple[int | None, int | None]:
    """Total and free bytes of one memory pool."""
    total, used = (_number(device / f"mem_info_{name}_{what}") for what in ("total", "used"))
    return total, total - used if total is not None and used is not None else None


def _sum(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first + second


def _line(path: Path) -> str | None:
    return (read_text(path) or "").strip() or None


def _word(path: Path) -> str | None:
    line = _line(path)
    return line.split()[0] if line else None


def _number(path: Path) -> int | None:
    return whole(_line(path))
