"""A probed machine as a device to plan for.

What the driver and the kernel say now (free memory, cgroup limit, measured bandwidth) replaces
the catalogue's figures; peaks and fitted constants come from the catalogue's entry for the same
hardware, else from its family. What neither knows stays None.
"""

from __future__ import annotations

from dataclasses import replace

from edgekit.catalogue import load_devices, load_families, match_device
from edgekit.facts import Device
from edgekit.machine import Accelerator, Machine

_BACKENDS = {"nvidia": "cuda", "apple": "metal", "amd": "rocm", "intel": "vulkan"}


def device_from_machine(machine: Machine) -> Device:
    """The device that the engine on this machine will run on, with notes on what was left out.

    One accelerator is planned for, the one with most free memory. None is used when the
    installed engine cannot offload.
    """
    usable = machine.accelerators
    notes: list[str] = []
    if usable and machine.engine.gpu_offload is False:
        names = ", ".join(a.name for a in usable)
        notes.append(f"{names} not used: the installed engine was built without GPU support")
        usable = ()
    if not usable:
        return _cpu(machine, tuple(notes))
    best = max(usable, key=lambda a: a.memory_free_bytes or a.memory_total_bytes or 0)
    if len(usable) > 1:
        notes.append(f"planned on one of {len(usable)} accelerators: {best.name}")
    return _accelerator(machine, best, tuple(notes))


def _cpu(machine: Machine, notes: tuple[str, ...]) -> Device:
    cpu, memory = machine.host.cpu, machine.host.memory
    family, why = _cpu_family(machine)
    return Device(
        id="this",
        name=cpu.model or "this machine's CPU",
        vendor="any",
        kind="cpu",
        backend="cpu",
        family=load_families()[family],
        memory_kind="shared",
        memory_bytes=memory.total_bytes,
        free_bytes=host_free_bytes(machine),
        bandwidth_gb_s=memory.bandwidth_gb_s,
        bandwidth_measured=memory.bandwidth_gb_s is not None,
        cores=cpu.physical_cores or cpu.logical_cores,
        probed=True,
        source="edgekit probe",
        notes=(*notes, why),
    )


def _accelerator(machine: Machine, found: Accelerator, notes: tuple[str, ...]) -> Device:
    entry = load_devices().get(machine.device_profile or "")
    if entry is None or entry.vendor != found.vendor:
        entry = match_device(found.vendor, found.name, found.gpu_cores)
    backend = _BACKENDS[found.vendor]
    if entry is None:
        entry = Device(
            id="this",
            name=found.name,
            vendor=found.vendor,
            kind="accelerator",
            backend=backend,
            family=load_families()[_gpu_family(found)],
            memory_kind="dedicated",
            source="edgekit probe",
        )
        notes = (*notes, f"the catalogue has no entry for {found.name}: speeds are not predicted")
    share = _slice(found, entry)
    if share < 1:
        notes = (*notes, f"a MIG slice with {share:.0%} of the card: speeds scaled by as much")
    return replace(
        entry,
        id="this",
        name=found.name,
        aliases=(),
        backend=backend,
        memory_kind=found.memory_kind or entry.memory_kind,
        memory_bytes=found.memory_total_bytes,
        usable_bytes=None,
        free_bytes=found.memory_free_bytes,
        host_bytes=host_free_bytes(machine),
        bandwidth_gb_s=_scaled(entry.bandwidth_gb_s, share),
        peak_tflops=_scaled(entry.peak_tflops, share),
        fp32_tflops=_scaled(entry.fp32_tflops, share),
        watts=_scaled(entry.watts, share),
        probed=True,
        notes=(*entry.notes, *notes),
    )


def host_free_bytes(machine: Machine) -> int | None:
    """Memory a new process may take: what is available, and no more than the cgroup limit."""
    memory = machine.host.memory
    known = [b for b in (memory.available_bytes, memory.limit_bytes) if b is not None]
    return min(known) if known else None


def _slice(found: Accelerator, entry: Device) -> float:
    if not found.mig or not entry.memory_bytes or not found.memory_total_bytes:
        return 1.0
    return min(1.0, found.memory_total_bytes / entry.memory_bytes)


def _scaled(value: float | None, share: float) -> float | None:
    return None if value is None else value * share


def _cpu_family(machine: Machine) -> tuple[str, str]:
    flags = set(machine.host.cpu.flags)
    canary = machine.engine.canary
    if machine.host.arch.lower() in ("aarch64", "arm64"):
        return "cpu-neon", "speeds from the Arm family: NEON"
    if "amx_int8" in flags:
        if canary is not None and canary.use_extra_bufts is False:
            return "cpu-avx512", "AMX is there but this build of the engine crashes in it"
        return "cpu-amx", "speeds from the x86 family with AMX"
    if "avx512f" in flags:
        return "cpu-avx512", "speeds from the x86 family with AVX-512"
    if "avx2" in flags:
        return "cpu-avx2", "speeds from the x86 family with AVX2"
    return "cpu-desktop", "the CPU's vector units are not known: a cautious family"


def _gpu_family(found: Accelerator) -> str:
    """The nearest family of an accelerator that the catalogue has no entry for."""
    name, capability = found.name.lower(), found.compute_capability or ""
    if found.vendor == "apple":
        tier = "-ultra" if "ultra" in name else "-max" if "max" in name else ""
        return ("apple-m1-m2" if "m1" in name or "m2" in name else "apple-m3") + tier
    if found.vendor == "amd":
        return "amd-gpu"
    if found.vendor == "intel":
        return "intel-arc"
    geforce = "geforce" in name
    if capability == "12.1":
        return "nvidia-gb10"
    if capability.startswith("12"):
        return "nvidia-geforce-50" if geforce else "nvidia-blackwell-pro"
    known = {
        "6.1": "nvidia-pascal",
        "7.0": "nvidia-volta",
        "7.5": "nvidia-turing",
        "8.0": "nvidia-ampere-hbm",
        "8.6": "nvidia-geforce-30" if geforce else "nvidia-ampere-pro",
        "8.7": "nvidia-jetson",
        "8.9": "nvidia-geforce-40" if geforce else "nvidia-ada-pro",
        "9.0": "nvidia-hopper",
        "10.0": "nvidia-hopper",
    }
    return known.get(capability, "nvidia-gpu")
