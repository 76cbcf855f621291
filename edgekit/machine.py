"""What a machine is, as far as we know it. Unknown is None, never a guess.

The probe fills these records, the planner reads them, `edgekit probe --json` prints them.
Sizes are bytes; bandwidth is 10^9 bytes per second.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Vendor = Literal["nvidia", "amd", "apple", "intel"]
MemoryKind = Literal["dedicated", "unified", "shared"]


@dataclass(frozen=True, slots=True)
class Cpu:
    """`usable_cores` is what affinity and a CPU quota leave of the logical cores."""

    model: str | None = None
    physical_cores: int | None = None
    logical_cores: int | None = None
    flags: tuple[str, ...] = ()
    usable_cores: int | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """Host memory. `limit_bytes` is a cgroup limit when one is lower than the total."""

    total_bytes: int | None = None
    available_bytes: int | None = None
    limit_bytes: int | None = None
    bandwidth_gb_s: float | None = None


@dataclass(frozen=True, slots=True)
class Host:
    os: str
    arch: str
    kernel: str | None = None
    cpu: Cpu = field(default_factory=Cpu)
    memory: Memory = field(default_factory=Memory)


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One device that can hold layers.

    A unified part shares the host's memory: never add the two. `memory_free_bytes` is what a
    new process may take now; on Apple it is the Metal working-set limit.
    """

    vendor: Vendor
    name: str
    memory_kind: MemoryKind | None = None
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    driver: str | None = None
    compute_capability: str | None = None
    uuid: str | None = None
    mig: bool | None = None
    ecc: bool | None = None
    gpu_cores: int | None = None


@dataclass(frozen=True, slots=True)
class Canary:
    """Did the installed engine survive a few decoded tokens, and with which setting?

    `ok` is None when it could not be tried; `use_extra_bufts` is the setting that survived.
    """

    ok: bool | None
    use_extra_bufts: bool | None
    reason: str


@dataclass(frozen=True, slots=True)
class Engine:
    llama_cpp_python: str | None = None
    backends: tuple[str, ...] | None = None
    gpu_offload: bool | None = None
    canary: Canary | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    host: Host
    accelerators: tuple[Accelerator, ...] = ()
    engine: Engine = field(default_factory=Engine)
    device_profile: str | None = None
    notes: tuple[str, ...] = ()
