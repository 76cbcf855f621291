"""Windows basics, and any other system: what the standard library and psutil know.

GPUs come from NVML alone.
"""

from __future__ import annotations

import platform

from edgekit.machine import Cpu, Host, Memory


def describe(
    *,
    system: str,
    arch: str,
    version: str,
    cpu_model: str | None,
    physical_cores: int | None,
    logical_cores: int | None,
    total_bytes: int | None,
    available_bytes: int | None,
) -> tuple[Host, tuple[str, ...]]:
    """Build the host record from plain facts. Pure."""
    host = Host(
        os=system.lower(),
        arch={"AMD64": "x86_64", "ARM64": "aarch64"}.get(arch, arch),
        kernel=version or None,
        cpu=Cpu(cpu_model or None, physical_cores, logical_cores, (), logical_cores),
        memory=Memory(total_bytes=total_bytes, available_bytes=available_bytes),
    )
    return host, (f"on {system} only NVIDIA GPUs are looked for",)


def read_host() -> tuple[Host, tuple[str, ...]]:
    """The host as seen by `platform` and psutil; works, with less detail, on any system."""
    import psutil

    memory = psutil.virtual_memory()
    return describe(
        system=platform.system(),
        arch=platform.machine(),
        version=platform.version(),
        cpu_model=platform.processor(),
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=psutil.cpu_count(logical=True),
        total_bytes=memory.total,
        available_bytes=memory.available,
    )
