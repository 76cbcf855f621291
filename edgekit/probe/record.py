"""The `edgekit.probe/1` record: what `edgekit probe --json` prints. Pure."""

from __future__ import annotations

from typing import Final

from edgekit.machine import Accelerator, Canary, Machine

SCHEMA: Final = "edgekit.probe/1"

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]


def to_json(machine: Machine) -> dict[str, JsonValue]:
    """The machine as plain JSON values: integers for bytes, null for unknown.

    Beyond the contract's fields it carries `usable_cores`, `mig`, `ecc`, `gpu_cores` and `notes`.
    """
    host, cpu, memory, engine = (
        machine.host,
        machine.host.cpu,
        machine.host.memory,
        machine.engine,
    )
    return {
        "schema": SCHEMA,
        "host": {
            "os": host.os,
            "arch": host.arch,
            "kernel": host.kernel,
            "cpu": {
                "model": cpu.model,
                "physical_cores": cpu.physical_cores,
                "logical_cores": cpu.logical_cores,
                "usable_cores": cpu.usable_cores,
                "flags": list(cpu.flags),
            },
            "memory": {
                "total_bytes": memory.total_bytes,
                "available_bytes": memory.available_bytes,
                "limit_bytes": memory.limit_bytes,
                "bandwidth_gb_s": memory.bandwidth_gb_s,
            },
        },
        "accelerators": [_accelerator(a) for a in machine.accelerators],
        "engine": {
            "llama_cpp_python": engine.llama_cpp_python,
            "backends": None if engine.backends is None else list(engine.backends),
            "gpu_offload": engine.gpu_offload,
            "canary": _canary(engine.canary),
        },
        "device_profile": machine.device_profile,
        "notes": list(machine.notes),
    }


def _accelerator(device: Accelerator) -> dict[str, JsonValue]:
    return {
        "vendor": device.vendor,
        "name": device.name,
        "memory_kind": device.memory_kind,
        "memory_total_bytes": device.memory_total_bytes,
        "memory_free_bytes": device.memory_free_bytes,
        "driver": device.driver,
        "compute_capability": device.compute_capability,
        "uuid": device.uuid,
        "mig": device.mig,
        "ecc": device.ecc,
        "gpu_cores": device.gpu_cores,
    }


def _canary(canary: Canary | None) -> JsonValue:
    if canary is None:
        return None
    return {
        "ok": canary.ok,
        "use_extra_bufts": canary.use_extra_bufts,
        "reason": canary.reason,
    }
