"""Facts about this machine and the software measured, for the record."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from pathlib import Path

import psutil

from tests.benchmarks.serve.settings import Options

PACKAGES = ("edgekit", "llama-cpp-python", "llguidance", "numpy", "uvicorn", "fastapi")
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def machine() -> dict[str, object]:
    """Return the CPU, memory and system."""
    text = _read("/proc/cpuinfo")
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)
    have = set(flags[1].split()) if flags else set()
    return {
        "cpu": name[1] if name else platform.processor(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in have],
        "cpus": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "load_average_before": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def versions(options: Options) -> dict[str, object]:
    """Return what runs: packages here, and what the peers say of themselves."""
    found: dict[str, object] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    if options.llama_server is not None:
        found["llama-server"] = _said([str(options.llama_server), "--version"])
    if options.llama_cpp_python is not None:
        code = "import llama_cpp; print(llama_cpp.__version__)"
        found["llama_cpp.server"] = _said([str(options.llama_cpp_python), "-c", code])
    found["commit"] = _said(["git", "rev-parse", "--short", "HEAD"])
    return found


def others_cpu_s() -> float:
    """CPU seconds spent on this machine by everything but this process, since it booted."""
    whole, own = psutil.cpu_times(), time.process_time()
    return sum(whole) - whole.idle - getattr(whole, "iowait", 0.0) - own


def _said(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        return None
    lines = (done.stdout + done.stderr).splitlines()
    return "; ".join(line.strip() for line in lines if line.strip())[:200] or None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
