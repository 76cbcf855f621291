"""NVIDIA GPUs: NVML in a child with a time limit, and a pure parser of what the child printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from edgekit.machine import Accelerator, Memory, MemoryKind
from edgekit.probe.tool import ToolOutput, run_tool

TIMEOUT_S: Final = 10.0

# Parts that share the host's memory. NVML reports none of their own, and drivers that do report
# some count the host's cache as used. The list is by name because "not supported" alone also comes
# from virtual GPUs and broken drivers.
UNIFIED_NAMES: Final = frozenset(
    {"NVIDIA GB10", "NVIDIA Thor", "Orin (nvgpu)", "NVIDIA Jetson AGX Thor"}
)

Facts = Mapping[str, object]


def read_gpus(
    *,
    host_memory: Memory,
    timeout_s: float = TIMEOUT_S,
    env: Mapping[str, str] | None = None,
) -> tuple[tuple[Accelerator, ...], tuple[str, ...]]:
    """All NVIDIA devices this process could use, and notes on what went wrong.

    `env` is added to the child's environment (tests point LD_LIBRARY_PATH at their own NVML).
    """
    child = Path(__file__).with_name("nvml_child.py")
    # -P keeps this folder off the child's import path, where our profile.py would hide Python's.
    output = run_tool([sys.executable, "-P", str(child)], timeout_s=timeout_s, env=env)
    return parse_nvml(output, host_memory, timeout_s)


def parse_nvml(
    output: ToolOutput, host_memory: Memory, timeout_s: float = TIMEOUT_S
) -> tuple[tuple[Accelerator, ...], tuple[str, ...]]:
    """Turn the child's lines into accelerators. Pure.

    Memory free is what NVML calls free now, not the total: a desktop or another process may hold
    some. A unified part takes the host's figures, since it has none of its own. A card in MIG mode
    gives its instances, never itself, because CUDA cannot run on the whole card then.
    """
    records = [r for line in output.stdout.splitlines() if (r := _object(line)) is not None]
    notes: list[str] = []
    driver: str | None = None
    devices: list[Facts] = []
    for record in records:
        if "done" in record or "count" in record:
            driver = _text(record.get("driver")) or driver
        elif "mig_instance" in record:
            devices.append(record)
        elif "index" in record:
            notes.append(f"NVIDIA GPU {record['index']} cannot be opened: {record.get('error')}")
        elif record.get("missing") is not True:
            notes.append(f"NVML does not answer: {record.get('error')}")
    if not any("done" in r or ("error" in r and "index" not in r) for r in records):
        notes.append(_unfinished(output, timeout_s, len(devices)))
    found = []
    for facts in devices:
        if facts.get("mig_instance") is None and facts.get("mig_mode") is True:
            if not any(_is_slice_of(d, facts) for d in devices):
                notes.append(
                    f"{_text(facts.get('name')) or 'an NVIDIA GPU'} is in MIG mode without an "
                    "instance, so nothing can run on it (nvidia-smi mig -cgi makes one)"
                )
            continue
        accelerator, note = _accelerator(facts, driver, host_memory)
        found.append(accelerator)
        if note is not None:
            notes.append(note)
    return tuple(found), tuple(notes)


def visible(
    gpus: Sequence[Accelerator], environment: Mapping[str, str]
) -> tuple[tuple[Accelerator, ...], tuple[str, ...]]:
    """Keep the devices that CUDA_VISIBLE_DEVICES leaves, as CUDA reads it. Pure.

    Names (GPU-..., MIG-...) may be shortened to a unique prefix; the list ends at the first entry
    that names nothing. Numbers count in CUDA's order, which is NVML's only if all devices are alike
    or CUDA_DEVICE_ORDER is PCI_BUS_ID; otherwise nothing is hidden and a note says so.
    """
    setting = environment.get("CUDA_VISIBLE_DEVICES")
    if setting is None or not gpus:
        return tuple(gpus), ()
    same_order = (
        environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len({g.name for g in gpus}) == 1
    )
    kept: list[Accelerator] = []
    for entry in (e.strip() for e in setting.split(",")):
        if entry.isascii() and entry.isdigit():
            if not same_order:
                return tuple(gpus), (
                    f"CUDA_VISIBLE_DEVICES={setting} counts in CUDA's own order, so all GPUs are "
                    "listed (set CUDA_DEVICE_ORDER=PCI_BUS_ID to make it clear)",
                )
            matches = [gpus[int(entry)]] if int(entry) < len(gpus) else []
        else:
            matches = [g for g in gpus if entry and (g.uuid or "").startswith(entry)]
        if len(matches) != 1:
            break
        kept.append(matches[0])
    hidden = len(gpus) - len(kept)
    notes = (f"CUDA_VISIBLE_DEVICES={setting} hides {hidden} of {len(gpus)} NVIDIA devices",)
    return tuple(kept), notes if hidden else ()


def _accelerator(
    facts: Facts, driver: str | None, host_memory: Memory
) -> tuple[Accelerator, str | None]:
    name = _text(facts.get("name")) or "NVIDIA GPU"
    memory = facts.get("memory")
    kind: MemoryKind | None = None
    total = free = None
    note = None
    if name in UNIFIED_NAMES:
        kind, total, free = "unified", host_memory.total_bytes, host_memory.available_bytes
        note = f"{name} shares the host's memory; its free memory is what the host has available"
    elif isinstance(memory, dict):
        kind, total, free = "dedicated", _count(memory.get("total")), _count(memory.get("free"))
    else:
        note = f"{name}: the driver does not tell its memory ({_text(memory) or 'no answer'})"
    return Accelerator(
        vendor="nvidia",
        name=name,
        memory_kind=kind,
        memory_total_bytes=total,
        memory_free_bytes=free,
        driver=driver,
        compute_capability=_capability(facts.get("compute_capability")),
        uuid=_text(facts.get("uuid")),
        mig=facts.get("mig_instance") is not None,
        ecc=_flag(facts.get("ecc")),
        gpu_cores=_count(facts.get("cores")),
    ), note


def _unfinished(output: ToolOutput, timeout_s: float, n_known: int) -> str:
    if output.timed_out:
        what = f"the NVIDIA driver did not answer within {timeout_s:g} s"
    elif output.died_of is not None:
        what = f"the NVIDIA driver's library crashed ({output.died_of})"
    else:
        what = f"NVML could not be asked ({output.last_words or 'no output'})"
    kept = f"; {n_known} device(s) were read before that" if n_known else ""
    return what + kept + " (check that nvidia-smi works)"


def _is_slice_of(record: Facts, card: Facts) -> bool:
    return record.get("index") == card.get("index") and record.get("mig_instance") is not None


def _object(line: str) -> Facts | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _text(value: object) -> str | None:
    return value.strip() if isinstance(value, str) and value.strip() else None


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _capability(value: object) -> str | None:
    if isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) for n in value):
        return f"{value[0]}.{value[1]}"
    return None
