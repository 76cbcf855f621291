"""How much memory a plan may take on a device, and on what grounds.

Dedicated memory belongs to the accelerator; the host's memory holds what stays off it. Unified
memory (Apple, GB10) is one pool that is never added twice. A machine without an accelerator plans
with the host's memory, under a cgroup limit where one is lower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgekit.facts import GIB, Device

MIB: Final = 1024**2

MARGIN_BYTES: Final = GIB
"""Kept free on a device, as llama.cpp's own fit does; an eighth where the memory is small."""

RESERVE_BYTES: Final = GIB // 2
"""Left out of the memory of each further card that shares a model's layers; see `device_group`."""

_OVERHEAD_MIB: Final = {"cuda": 691, "rocm": 691, "vulkan": 256, "metal": 256}
"""A backend's context and kernels. CUDA: measured on an A10 (22,731 MiB seen, 22,040 free);
ROCm as CUDA; Metal and Vulkan are allowances, not measurements."""

_HOST_OVERHEAD_BYTES: Final = 54 * MIB
"""The engine's process with nothing loaded: Python, numpy, llama.cpp and the work memory of a
step; 55 MiB resident beside the smallest model, measured on x86-64 Linux."""

VOCABULARY_BYTES_PER_TOKEN: Final = 640
"""llama.cpp's and our tables of token texts, ids and merges, and rows of logits for drafts:
600 and 582 bytes measured for vocabularies of 32,000 and 151,936."""

_APPLE_SMALL_BYTES: Final = 48 * GIB
"""Below it the Metal working set is two thirds of the memory, from it on three quarters."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes that a plan may take on the accelerator (or the host, without one), and why.

    `limit_bytes` is what is there, `bytes` that less the margin. None is unknown.
    """

    bytes: int | None
    limit_bytes: int | None
    margin_bytes: int
    basis: str


def margin(limit_bytes: int) -> int:
    """1 GiB, or an eighth of the memory where that is less."""
    return min(MARGIN_BYTES, limit_bytes // 8)


def device_budget(device: Device) -> Budget:
    """The budget of the memory that holds the layers."""
    limit, basis = _limit(device)
    if limit is None:
        return Budget(None, None, 0, basis)
    kept = margin(limit)
    return Budget(max(0, limit - kept), limit, kept, f"{basis}, less {kept / GIB:.1f} GiB spare")


def host_budget(device: Device) -> Budget:
    """The budget for what stays in host memory beside a dedicated accelerator."""
    limit = device.host_bytes
    if limit is None:
        return Budget(None, None, 0, "host memory is not known")
    kept = margin(limit)
    return Budget(max(0, limit - kept), limit, kept, "host memory free now")


def device_overhead(device: Device) -> tuple[int, str]:
    """Bytes the backend takes for itself on the accelerator, and the basis."""
    if device.memory_kind == "shared":
        return 0, "no accelerator"
    if device.overhead_bytes is not None:
        return device.overhead_bytes, "measured on this device"
    mib = _OVERHEAD_MIB.get(device.backend, 512)
    return mib * MIB, f"allowance for the {device.backend} backend"


def host_overhead(n_vocab: int) -> int:
    """Bytes of the engine process itself: interpreter, libraries and vocabulary tables."""
    return _HOST_OVERHEAD_BYTES + VOCABULARY_BYTES_PER_TOKEN * n_vocab


def _limit(device: Device) -> tuple[int | None, str]:
    if device.free_bytes is not None:
        limit, basis = device.free_bytes, "free now"
        if device.memory_kind == "unified" and device.host_bytes is not None:
            limit = min(limit, device.host_bytes)
        return limit, basis
    if device.usable_bytes is not None:
        return device.usable_bytes, "what the engine sees of an idle device"
    total = device.memory_bytes
    if total is None:
        return None, "its memory is not known"
    if device.memory_kind == "unified" and device.vendor == "apple":
        share, words = (3, 4), "three quarters"
        if total < _APPLE_SMALL_BYTES:
            share, words = (2, 3), "two thirds"
        return total * share[0] // share[1], f"the {words} that Metal may use"
    if device.memory_kind == "dedicated":
        # 22,731 of 23,028 MiB on an A10: the driver keeps a little of the card's memory.
        return total * 987 // 1000, "98.7 % of the card's memory, as seen on an A10"
    return total, "all of its memory"
