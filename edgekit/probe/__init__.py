"""Look at this machine: run a tool or read files, parse the text, merge, validate.

`probe()` is the door. Unknown facts are None, never a guess; whatever is worth saying about a
fact or its absence is a note. No single tool that hangs, crashes or lies costs more than its facts.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.machine import Accelerator, Engine, Host, Machine
from edgekit.probe import amd, bandwidth, engine, linux, macos, nvidia, pci, windows
from edgekit.probe.canary import run_canary
from edgekit.probe.profile import catalogue_names, match_profile
from edgekit.probe.record import to_json
from edgekit.probe.text import read_text
from edgekit.probe.validate import validate

__all__ = ["match_profile", "probe", "run_canary", "to_json", "validate"]


def probe(
    *,
    canary_model: Path | None = None,
    measure_bandwidth: bool = True,
    devices: Iterable[tuple[str, Sequence[str]]] | None = None,
) -> Machine:
    """Everything known about this machine, validated. Never raises for what it cannot find out.

    With `canary_model` (a GGUF) the engine is tried on it in a child. Measuring bandwidth takes
    under half a second. `devices` are (id, names) pairs for `device_profile`, by default the
    catalogue's.
    """
    host, accelerators, notes = _look(Path("/"))
    if devices is None:
        devices, catalogue_notes = _catalogue()
        notes += catalogue_notes
    if measure_bandwidth:
        host, bandwidth_notes = _with_bandwidth(host)
        notes += bandwidth_notes
    return finish(host, accelerators, engine.read_engine(canary_model), notes, devices)


def finish(
    host: Host,
    accelerators: Sequence[Accelerator],
    engine_facts: Engine,
    notes: Sequence[str],
    devices: Iterable[tuple[str, Sequence[str]]] = (),
) -> Machine:
    """Merge the parts into a validated record with its device profile and all notes. Pure."""
    accelerators, integrated_notes = without_integrated(accelerators)
    notes = (*notes, *integrated_notes, *engine.engine_notes(engine_facts, accelerators))
    machine = Machine(host, tuple(accelerators), engine_facts, None, tuple(notes))
    return validate(replace(machine, device_profile=match_profile(machine, devices)))


def without_integrated(
    accelerators: Sequence[Accelerator],
) -> tuple[tuple[Accelerator, ...], tuple[str, ...]]:
    """Leave out GPUs inside the CPU when there is a card, as llama.cpp does. Pure."""
    if not any(a.memory_kind == "dedicated" for a in accelerators):
        return tuple(accelerators), ()
    kept = tuple(a for a in accelerators if a.memory_kind != "shared")
    return kept, tuple(
        f"{a.name} is left out: a GPU inside the CPU is not used beside a card"
        for a in accelerators
        if a.memory_kind == "shared"
    )


def _catalogue() -> tuple[list[tuple[str, tuple[str, ...]]], list[str]]:
    """The catalogue as (id, names); a broken file in it costs the profile, not the probe."""
    from edgekit.catalogue import load_devices

    try:
        devices = load_devices().values()
    except EdgekitError as error:
        return [], [f"the device catalogue cannot be read, so no profile was looked up: {error}"]
    pairs = [
        (d.id, catalogue_names(d.reported_names, d.gpu_cores if d.vendor == "apple" else None))
        for d in devices
    ]
    return pairs, []


def _look(root: Path) -> tuple[Host, list[Accelerator], list[str]]:
    """Host, accelerators and notes of this operating system."""
    system = platform.system()
    if system == "Darwin":
        host, apple, mac_notes = macos.read_mac()
        return host, list(apple), list(mac_notes)
    host, host_notes = linux.read_host(root) if system == "Linux" else windows.read_host()
    notes = list(host_notes)
    gpus, nvidia_notes = nvidia.read_gpus(host_memory=host.memory)
    gpus, visible_notes = nvidia.visible(gpus, os.environ)
    accelerators = list(gpus)
    notes += [*nvidia_notes, *visible_notes]
    if system == "Linux":
        radeons, amd_notes = amd.read_gpus(host.memory, root)
        accelerators += radeons
        notes += amd_notes
        known: set[str] = {a.vendor for a in accelerators}
        if nvidia_notes or visible_notes:
            known.add("nvidia")  # its silence has been explained already
        notes += pci.silent_gpu_notes(pci.gpu_vendors(root), known)
    return host, accelerators, notes


def _with_bandwidth(host: Host) -> tuple[Host, list[str]]:
    caches = [
        text
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        if (text := read_text(path)) is not None
    ]
    allowed = frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ())
    cpus, note = linux.one_socket(linux.read_sockets(), allowed)
    threads = host.cpu.usable_cores
    busy = bandwidth.busy_note(os.getloadavg()[0] if hasattr(os, "getloadavg") else None, threads)
    rate = bandwidth.measure(
        threads=threads if cpus is None or threads is None else min(threads, len(cpus)),
        available_bytes=host.memory.available_bytes,
        cache_bytes=bandwidth.last_level_cache(caches),
        cpus=cpus,
    )
    rounded = None if rate is None else round(rate, 1)
    measured = replace(host, memory=replace(host.memory, bandwidth_gb_s=rounded))
    if rounded is None:
        return measured, ["memory bandwidth could not be measured"]
    return measured, [n for n in (note, busy) if n is not None]
