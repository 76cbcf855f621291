"""GPUs on the PCI bus that no driver speaks for: found so that they can be named in a note."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

from edgekit.probe.text import read_text

_VENDORS: Final = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}
_DISPLAY_CLASS: Final = "0x03"
_HINT: Final = {
    "nvidia": "an NVIDIA GPU is on the PCI bus, but NVML shows none: install or load its driver",
    "amd": "an AMD GPU is on the PCI bus, but the amdgpu driver does not run it",
    "intel": "an Intel GPU is on the PCI bus; its memory is not read yet, so it is left out",
}


def gpu_vendors(root: Path = Path("/")) -> frozenset[str]:
    """Vendors that have a display or 3D controller on the PCI bus (PCI class 03)."""
    folder = root / "sys/bus/pci/devices"
    found = set()
    for device in sorted(folder.iterdir()) if folder.is_dir() else []:
        kind = (read_text(device / "class") or "").strip()
        vendor = _VENDORS.get((read_text(device / "vendor") or "").strip())
        if vendor is not None and kind.startswith(_DISPLAY_CLASS):
            found.add(vendor)
    return frozenset(found)


def silent_gpu_notes(on_bus: Collection[str], found: Collection[str]) -> tuple[str, ...]:
    """A note for each vendor on the bus of which no accelerator was found. Pure."""
    return tuple(_HINT[v] for v in sorted(on_bus) if v in _HINT and v not in found)
