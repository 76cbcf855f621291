"""The last look at a finished record: no contradictions leave the probe. Pure."""

from __future__ import annotations

import math
from dataclasses import replace

from edgekit.machine import Accelerator, Cpu, Machine, Memory


def validate(machine: Machine) -> Machine:
    """Turn each fact that cannot be true into None, with a note that says which and why."""
    notes = list(machine.notes)
    cpu = _cpu(machine.host.cpu, notes)
    memory = _memory(machine.host.memory, notes)
    accelerators = tuple(_accelerator(a, notes) for a in machine.accelerators)
    return replace(
        machine,
        host=replace(machine.host, cpu=cpu, memory=memory),
        accelerators=accelerators,
        notes=tuple(dict.fromkeys(notes)),
    )


def _cpu(cpu: Cpu, notes: list[str]) -> Cpu:
    logical = _positive(cpu.logical_cores, "logical cores", notes)
    physical = _positive(cpu.physical_cores, "physical cores", notes)
    usable = _positive(cpu.usable_cores, "usable cores", notes)
    physical = _at_most(physical, logical, "physical cores", "logical cores", notes)
    usable = _at_most(usable, logical, "usable cores", "logical cores", notes)
    return replace(cpu, logical_cores=logical, physical_cores=physical, usable_cores=usable)


def _memory(memory: Memory, notes: list[str]) -> Memory:
    total = _positive(memory.total_bytes, "host memory", notes)
    limit = _positive(memory.limit_bytes, "memory limit", notes)
    available = _not_negative(memory.available_bytes, "available host memory", notes)
    available = _at_most(available, total, "available host memory", "host memory", notes)
    available = _at_most(available, limit, "available host memory", "its limit", notes)
    rate = memory.bandwidth_gb_s
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        notes.append(f"memory bandwidth of {rate} GB/s makes no sense; treated as unknown")
        rate = None
    return Memory(total, available, limit, rate)


def _accelerator(device: Accelerator, notes: list[str]) -> Accelerator:
    what = f"memory of {device.name}"
    total = _positive(device.memory_total_bytes, what, notes)
    free = _not_negative(device.memory_free_bytes, f"free {what}", notes)
    free = _at_most(free, total, f"free {what}", "its total", notes)
    cores = _positive(device.gpu_cores, f"cores of {device.name}", notes)
    return replace(device, memory_total_bytes=total, memory_free_bytes=free, gpu_cores=cores)


def _positive(value: int | None, what: str, notes: list[str]) -> int | None:
    if value is None or value > 0:
        return value
    notes.append(f"{what}: {value} makes no sense; treated as unknown")
    return None


def _not_negative(value: int | None, what: str, notes: list[str]) -> int | None:
    return value if value == 0 else _positive(value, what, notes)


def _at_most(
    value: int | None, limit: int | None, what: str, of_what: str, notes: list[str]
) -> int | None:
    if value is None or limit is None or value <= limit:
        return value
    notes.append(f"{what} ({value}) exceeds {of_what} ({limit}); treated as unknown")
    return None
