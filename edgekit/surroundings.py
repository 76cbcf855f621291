"""What `doctor` looks at outside the machine record: the effects, each small and harmless.

Nothing is imported, installed, written or sent; a port is tried by binding it for an instant.
"""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import os
import re
import shutil
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

COMPILERS = ("c++", "g++", "clang++", "cl")
REQUIREMENT = re.compile(r"[\w.-]+")
# Distribution names whose import name is another word.
IMPORT_NAMES = {"llama-cpp-python": "llama_cpp"}
GPU_LIBRARIES = ("cuda", "hip", "metal", "vulkan", "sycl", "musa", "cann")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Facts for the checks; None is unknown. `missing` maps an extra to its absent packages."""

    python: tuple[int, int]
    platform: str
    missing: dict[str, tuple[str, ...]] | None
    compiler: str | None
    store_path: Path
    disk_free_bytes: int | None
    store_writable: bool
    port: int
    port_problem: str | None
    """None if the port is free, else `in_use`, `denied` or the system's own word."""
    gpu_backends: tuple[str, ...] | None
    """GPU libraries that lie beside the installed engine; None if there is no engine."""
    pinned_engine: str | None


def look_around(store_path: Path, port: int) -> Surroundings:
    """Gather the facts for this process, this store and this port on loopback. Never raises."""
    place = nearest_existing(store_path)
    return Surroundings(
        python=sys.version_info[:2],
        platform=sys.platform,
        missing=missing_packages(("serve", "quantize")),
        compiler=next((path for name in COMPILERS if (path := shutil.which(name))), None),
        store_path=store_path,
        disk_free_bytes=free_bytes(place),
        store_writable=os.access(place, os.W_OK | os.X_OK),
        port=port,
        port_problem=port_problem(port),
        gpu_backends=gpu_backends(),
        pinned_engine=pinned_version("llama-cpp-python"),
    )


def nearest_existing(path: Path) -> Path:
    """Return `path` or its closest ancestor that exists: where it would be created."""
    here = path.expanduser().absolute()
    return next((p for p in (here, *here.parents) if p.exists()), Path(here.anchor))


def free_bytes(path: Path) -> int | None:
    """Bytes an ordinary user may still write on the file system of `path`."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def port_problem(port: int, host: str = "127.0.0.1") -> str | None:
    """Try to bind `port` for an instant, the way the server would."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OverflowError:
            return "not a port number"
        except OSError as error:
            known = {errno.EADDRINUSE: "in_use", errno.EACCES: "denied"}
            return known.get(error.errno or 0, error.strerror or str(error))
    return None


def requirements(extra: str) -> list[str] | None:
    """Return the requirement lines of edgekit's `extra` without markers; None if unknown."""
    try:
        lines = importlib.metadata.requires("edgekit") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    wanted = re.compile(rf"""extra\s*==\s*["']{re.escape(extra)}["']""")
    return [line.partition(";")[0].strip() for line in lines if wanted.search(line)]


def missing_packages(extras: Sequence[str]) -> dict[str, tuple[str, ...]] | None:
    """Return each extra's packages that are not there; None where edgekit is no distribution."""
    missing: dict[str, tuple[str, ...]] = {}
    for extra in extras:
        lines = requirements(extra)
        if lines is None:
            return None
        names = [match.group() for line in lines if (match := REQUIREMENT.match(line))]
        missing[extra] = tuple(name for name in names if not _importable(name))
    return missing


def pinned_version(package: str) -> str | None:
    """Return the exact version that edgekit asks for, if it pins one."""
    for line in requirements("serve") or ():
        name, _, version = line.partition("==")
        if name.strip() == package and version:
            return version.strip()
    return None


def gpu_backends() -> tuple[str, ...] | None:
    """Read which GPU libraries the engine was built with from its folder, without loading it."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / "lib"
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return None
    return tuple(kind for kind in GPU_LIBRARIES if any(f"ggml-{kind}" in name for name in names))


def _importable(distribution: str) -> bool:
    name = IMPORT_NAMES.get(distribution, distribution.replace("-", "_"))
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
