"""The installed inference engine: its version and, once the canary has flown, its backends.

llama_cpp is never imported here: the import itself can crash, which is what the canary is for.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

from edgekit.machine import Accelerator, Engine
from edgekit.probe.canary import try_engine
from edgekit.units import format_gib

_DISTRIBUTION = "llama-cpp-python"


def read_engine(canary_model: Path | None, command: Sequence[str] | None = None) -> Engine:
    """Version from the package metadata; the rest from a canary run on `canary_model`, if given.

    Without a canary, backends and offload are unknown: only a child that loads the library can
    say. `command` replaces the canary's command line.
    """
    version = installed_version()
    if canary_model is None:
        return Engine(llama_cpp_python=version)
    canary, facts = try_engine(canary_model, command=command)
    return Engine(
        llama_cpp_python=version if facts is None or facts.version is None else facts.version,
        backends=None if facts is None else facts.backends,
        gpu_offload=None if facts is None else facts.gpu_offload,
        canary=canary,
    )


def installed_version() -> str | None:
    """The version of llama-cpp-python here, None if it is not installed."""
    try:
        return importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None


def engine_notes(engine: Engine, accelerators: Sequence[Accelerator]) -> tuple[str, ...]:
    """What a person should know about this engine on this machine. Pure."""
    notes: list[str] = []
    if engine.llama_cpp_python is None:
        notes.append("no inference engine is installed (pip install 'edgekit[serve]' adds it)")
    if engine.gpu_offload is False and accelerators:
        best = max(accelerators, key=lambda a: a.memory_total_bytes or 0)
        size = f" ({format_gib(best.memory_total_bytes)})" if best.memory_total_bytes else ""
        notes.append(
            f"the installed llama-cpp-python is CPU-only, so {best.name}{size} would stay unused; "
            "install a wheel built for it"
        )
    canary = engine.canary
    if canary is not None and canary.ok is False:
        notes.append(f"the engine does not work on this machine: {canary.reason}")
    elif canary is not None and canary.use_extra_bufts is False:
        notes.append(
            f"this build of the engine is faulty here: {canary.reason}; it runs without extra "
            "buffers, which is slower (rebuild it for this machine)"
        )
    return tuple(notes)
