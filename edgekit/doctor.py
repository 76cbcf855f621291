"""What is wrong here, and the command that mends it. Pure checks over looked-up facts.

Each check takes the machine and its surroundings and returns one Finding or None, when it has
nothing to say. A healthy fact is a finding too, so that a reader sees what was looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekit.machine import Accelerator, Machine
from edgekit.surroundings import Surroundings, look_around
from edgekit.units import GB, GIB, format_bytes, format_gib

Severity = Literal["ok", "note", "warning", "error"]

OLDEST_PYTHON = (3, 11)
DISK_ERROR_BYTES = 1 * GB
DISK_WARNING_BYTES = 20 * GB
MEMORY_WARNING_BYTES = 2 * GIB
BUSY_GPU_SHARE = 0.5

REBUILD = "edgekit engine build"
"""It picks compiler and flags that work on this CPU, and keeps the old build."""

# Build switches of llama.cpp by vendor (its docs/build.md).
GPU_BUILDS = {
    "nvidia": "-DGGML_CUDA=on",
    "amd": "-DGGML_HIP=on",
    "intel": "-DGGML_SYCL=on",
    "apple": "-DGGML_METAL=on",
}
COMPILER_FIXES = {
    "linux": "sudo apt install build-essential   (Fedora: sudo dnf install gcc-c++ make)",
    "darwin": "xcode-select --install",
    "win32": "winget install Microsoft.VisualStudio.2022.BuildTools",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `code` is stable; `fix` is a command or an act, or None."""

    code: str
    severity: Severity
    message: str
    fix: str | None = None


def diagnose(machine: Machine, store_path: Path, port: int) -> list[Finding]:
    """Look around and return every finding, worst first. Never raises for what is broken."""
    return examine(machine, look_around(store_path, port))


def examine(machine: Machine, around: Surroundings) -> list[Finding]:
    """Run all checks on given facts; equal severities keep the order of `CHECKS`. Pure."""
    order = ("error", "warning", "note", "ok")
    found = [finding for check in CHECKS if (finding := check(machine, around)) is not None]
    return sorted(found, key=lambda finding: order.index(finding.severity))


def check_python(_: Machine, around: Surroundings) -> Finding:
    version = ".".join(map(str, around.python))
    if around.python < OLDEST_PYTHON:
        return Finding(
            "python", "error", f"Python {version} is too old", "install Python 3.11 or later"
        )
    return Finding("python", "ok", f"Python {version}")


def check_extras(_: Machine, around: Surroundings) -> Finding:
    if around.missing is None:
        return Finding(
            "extras", "note", "edgekit is not installed as a package, so its extras are unknown"
        )
    lacking = {extra: names for extra, names in around.missing.items() if names}
    if not lacking:
        return Finding("extras", "ok", f"extras installed: {', '.join(around.missing)}")
    missing = ", ".join(sorted({name for names in lacking.values() for name in names}))
    return Finding(
        "extras",
        "warning",
        f"not installed: {missing}; planning works, {' and '.join(lacking)} will not",
        f"pip install 'edgekit[{','.join(lacking)}]'",
    )


def check_compiler(machine: Machine, around: Surroundings) -> Finding:
    if around.compiler is not None:
        return Finding("compiler", "ok", f"C++ compiler {around.compiler}")
    if machine.engine.llama_cpp_python is not None:
        return Finding("compiler", "note", "no C++ compiler; none is needed, the engine is built")
    return Finding(
        "compiler",
        "warning",
        "no C++ compiler, and the engine still has to be built",
        COMPILER_FIXES.get(around.platform, "install a C++ compiler"),
    )


def check_engine(machine: Machine, around: Surroundings) -> Finding | None:
    version = machine.engine.llama_cpp_python
    if version is None:
        return None
    if around.pinned_engine not in (None, version):
        return Finding(
            "engine_version",
            "warning",
            f"llama-cpp-python {version} is installed, edgekit is tested with "
            f"{around.pinned_engine}",
            f"pip install 'llama-cpp-python=={around.pinned_engine}'",
        )
    return Finding("engine_version", "ok", f"llama-cpp-python {version}")


def check_canary(machine: Machine, _: Surroundings) -> Finding | None:
    canary = machine.engine.canary
    if canary is None or (canary.ok is None and machine.engine.llama_cpp_python is None):
        return None
    if canary.ok is False:
        return Finding("canary", "error", f"the engine does not work: {canary.reason}", REBUILD)
    if canary.ok is None:
        return Finding(
            "canary",
            "note",
            f"the engine was not tried: {canary.reason}",
            "edgekit probe tries it on the embedded model",
        )
    if canary.use_extra_bufts is False:
        return Finding(
            "canary",
            "warning",
            f"this build of the engine is faulty here: {canary.reason}; it runs slower without "
            "its extra buffers",
            REBUILD,
        )
    return Finding("canary", "ok", f"the engine works: {canary.reason}")


def check_gpu_build(machine: Machine, around: Surroundings) -> Finding | None:
    """A GPU that a CPU-only engine would leave idle: the commonest bad installation of all."""
    if not machine.accelerators or machine.engine.llama_cpp_python is None:
        return None
    gpu = max(machine.accelerators, key=lambda a: a.memory_total_bytes or 0)
    offload = machine.engine.gpu_offload
    if offload is None and around.gpu_backends is not None:
        offload = bool(around.gpu_backends)
    if offload is None:
        return None
    if offload:
        return Finding("gpu_build", "ok", f"the engine can use {gpu.name}")
    return Finding(
        "gpu_build",
        "warning",
        f"{gpu.name} is here, but the installed engine is CPU-only and would leave it idle",
        _rebuild(GPU_BUILDS[gpu.vendor], machine, around),
    )


def check_gpu_memory(machine: Machine, _: Surroundings) -> Finding | None:
    busy = [gpu for gpu in machine.accelerators if _is_busy(gpu)]
    if not busy:
        return None
    figures = ", ".join(
        f"{gpu.name}: {format_gib(gpu.memory_free_bytes)} of {format_gib(gpu.memory_total_bytes)}"
        for gpu in busy
    )
    return Finding(
        "gpu_memory",
        "warning",
        f"most GPU memory is taken ({figures} free)",
        "end what uses the GPU, or deploy a smaller file type",
    )


def check_memory(machine: Machine, _: Surroundings) -> Finding | None:
    memory = machine.host.memory
    if memory.available_bytes is None:
        return None
    free = f"{format_gib(memory.available_bytes)} of memory available"
    if memory.limit_bytes is not None:
        free += f", limited to {format_gib(memory.limit_bytes)} by a container or service"
    if memory.available_bytes < MEMORY_WARNING_BYTES:
        fix = "free some memory" if memory.limit_bytes is None else "raise the memory limit"
        return Finding("memory", "warning", free, fix)
    return Finding("memory", "ok" if memory.limit_bytes is None else "note", free)


def check_store(_: Machine, around: Surroundings) -> Finding:
    if around.store_writable:
        return Finding("store", "ok", f"the store {around.store_path} can be written")
    return Finding(
        "store",
        "error",
        f"the store {around.store_path} cannot be written",
        "give yourself write access there, or move the store with EDGEKIT_STORE",
    )


def check_disk(_: Machine, around: Surroundings) -> Finding | None:
    free = around.disk_free_bytes
    if free is None:
        return None
    message = f"{format_bytes(free)} of disk free for {around.store_path}"
    fix = "free some disk, or move the store with EDGEKIT_STORE"
    if free < DISK_ERROR_BYTES:
        return Finding("disk", "error", message, fix)
    if free < DISK_WARNING_BYTES:
        return Finding("disk", "warning", f"{message}: large models will not fit", fix)
    return Finding("disk", "ok", message)


def check_port(_: Machine, around: Surroundings) -> Finding:
    problem = around.port_problem
    if problem is None:
        return Finding("port", "ok", f"port {around.port} is free")
    if problem == "in_use":
        return Finding(
            "port",
            "warning",
            f"port {around.port} is in use",
            f"stop what listens there, or add --port {around.port + 1}",
        )
    why = "needs more rights" if problem == "denied" else problem
    return Finding("port", "error", f"port {around.port}: {why}", "add --port 8484")


Check = Callable[[Machine, Surroundings], Finding | None]
CHECKS: tuple[Check, ...] = (
    check_python,
    check_extras,
    check_engine,
    check_canary,
    check_gpu_build,
    check_gpu_memory,
    check_compiler,
    check_memory,
    check_store,
    check_disk,
    check_port,
)


def _is_busy(gpu: Accelerator) -> bool:
    if gpu.memory_free_bytes is None or not gpu.memory_total_bytes:
        return False
    # A unified part's memory is everyone's: what is taken of it says nothing about the GPU.
    return (
        gpu.memory_kind == "dedicated"
        and gpu.memory_free_bytes < BUSY_GPU_SHARE * gpu.memory_total_bytes
    )


def _rebuild(switch: str, machine: Machine, around: Surroundings) -> str:
    """Return the command that builds the engine for an accelerator here."""
    version = around.pinned_engine or machine.engine.llama_cpp_python
    package = f"llama-cpp-python=={version}" if version else "llama-cpp-python"
    return (
        f'CMAKE_ARGS="{switch}" pip install --force-reinstall --no-cache-dir --no-binary '
        f"llama-cpp-python '{package}'"
    )
