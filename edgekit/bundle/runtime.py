"""The runtimes of a bundle: what a wheelhouse asks of a machine, read from its wheels."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from edgekit.bundle.create import Add
from edgekit.bundle.elf import needs_of
from edgekit.bundle.layout import FILE_PATH, Descriptor, Layout
from edgekit.bundle.requirements import Here, ModelNeed, Requirements, read_requirements
from edgekit.bundle.target import Target, glibc_here, this_target
from edgekit.bundle.wheels import RUNTIME, WHEEL, add_runtime, wheelhouse
from edgekit.errors import BadDataError
from edgekit.machine import Machine

_GLIBC: Final = re.compile(r"lib(c|m|dl|pthread|rt|util|resolv|anl|nsl)\.so[.\d]*|ld-linux.*")
_DRIVER: Final = re.compile(r"lib(cuda|nvidia-ml)\.so.*|libpython.*")
_SONAME: Final = re.compile(r"[\w.+-]{1,100}")
_UNUSED: Final = ("lib/", "bin/")
_MANYLINUX: Final = re.compile(r"manylinux_(\d+)_(\d+)_")
_LEGACY: Final = {"manylinux2014_": (2, 17), "manylinux2010_": (2, 12), "manylinux1_": (2, 5)}
# What llama_print_system_info calls them, and what Linux does; it says how the code was compiled.
_FLAGS: Final = {
    "SSE3": "pni", "SSSE3": "ssse3", "AVX": "avx", "AVX_VNNI": "avx_vnni", "AVX2": "avx2",
    "F16C": "f16c", "FMA": "fma", "BMI2": "bmi2", "AVX512": "avx512f",
    "AVX512_VBMI": "avx512vbmi", "AVX512_VNNI": "avx512_vnni", "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8", "NEON": "asimd", "FP16_VA": "asimdhp", "MATMUL_INT8": "i8mm",
    "DOTPROD": "asimddp", "SVE": "sve", "SME": "sme",
}  # fmt: skip


def runtime(target: Target, sources: Sequence[str], models: Sequence[ModelNeed]) -> Add:
    """Return what adds a target's wheels to a bundle; `sources` as in `wheelhouse`."""

    def add(layout: Layout) -> Sequence[Descriptor]:
        with wheelhouse(target, sources) as wheels:
            needs = replace(requirements_of(target, wheels), models=tuple(models))
            if not sources and target == this_target():
                needs = replace(
                    needs, cpu_flags=engine_flags(), compute_capability=_capability(target)
                )
            return [add_runtime(layout, wheels, target, needs)]

    return add


def requirements_of(target: Target, wheels: Iterable[Path]) -> Requirements:
    """Read what the wheels ask for. CPU flags and compute capability stay unknown."""
    versions: list[tuple[int, int]] = []
    wanted: set[str] = set()
    carried: set[str] = set()
    digests: dict[str, str] = {}
    unpacked = 0
    for wheel in sorted(wheels):
        digests[wheel.name] = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if (tagged := tagged_glibc(wheel.name)) is not None:
            versions.append(tagged)
        with zipfile.ZipFile(wheel) as archive:
            unpacked += sum(member.file_size for member in archive.infolist())
            for member in archive.namelist():
                # Beside the packages, llama-cpp-python leaves a second copy and tools that no one
                # loads; their needs would refuse machines that can run the engine.
                if target.os != "linux" or ".so" not in member or member.startswith(_UNUSED):
                    continue
                carried.add(member.rsplit("/", 1)[-1])
                needs = needs_of(archive.read(member))
                if needs is None:
                    continue
                wanted |= set(needs.libraries)
                carried |= {needs.soname} if needs.soname else set()
                # A tagged wheel was audited; an untagged one is read.
                if tagged is None and needs.glibc is not None:
                    versions.append(needs.glibc)
    libraries = sorted(
        name
        for name in wanted - carried
        if not _GLIBC.fullmatch(name) and not _DRIVER.fullmatch(name)
    )
    cuda = next(
        (int(n.rsplit(".", 1)[1]) for n in libraries if n.startswith("libcudart.so.")), None
    )
    return Requirements(
        target=target.text,
        os=target.os,
        arch=target.arch,
        python=f"3.{target.python}",
        backend=target.backend,
        glibc=".".join(map(str, max(versions))) if versions else None,
        libraries=tuple(libraries),
        cuda=target.cuda or cuda,
        unpacked_bytes=unpacked,
        wheels=digests,
    )


def tagged_glibc(wheel: str) -> tuple[int, int] | None:
    """Return the oldest glibc that a wheel's name says it runs on; None when it says nothing."""
    found = [(int(a), int(b)) for a, b in _MANYLINUX.findall(wheel)]
    found += [version for start, version in _LEGACY.items() if start in wheel]
    return min(found, default=None)


def runtimes_of(layout: Layout) -> list[Requirements]:
    """Return every runtime of a layout. Raises BadDataError (`bad_layout`)."""
    found = []
    for descriptor in layout.index():
        if descriptor.artifact_type != RUNTIME:
            continue
        manifest = layout.manifest(descriptor)
        needs = read_requirements(layout.json(manifest.config))
        carried = {
            layer.annotations.get(FILE_PATH, ""): layer.hex
            for layer in manifest.layers
            if layer.media_type == WHEEL
        }
        if carried != dict(needs.wheels):
            raise BadDataError(
                f"the runtime {needs.target} lists other wheels than it carries",
                code="bad_layout",
                hint="get the bundle again from its maker",
            )
        found.append(needs)
    return found


def look_here(
    machine: Machine,
    store: Path,
    runtimes: Iterable[Requirements],
    needed_bytes: int | None = None,
) -> Here:
    """Gather what requirements are judged by. Libraries are looked for by loading them."""
    from edgekit.surroundings import free_bytes, nearest_existing

    names = {name for one in runtimes for name in one.libraries if _SONAME.fullmatch(name)}
    return Here(
        machine,
        f"{sys.version_info[0]}.{sys.version_info[1]}",
        glibc_here(),
        free_bytes(nearest_existing(store)),
        tuple(sorted(name for name in names if not _loads(name))),
        needed_bytes,
    )


def engine_flags() -> tuple[str, ...] | None:
    """Return the CPU flags that the installed engine was compiled for; None when it cannot say."""
    code = "import llama_cpp, sys; sys.stdout.write(llama_cpp.llama_print_system_info().decode())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_flags(done.stdout) if done.returncode == 0 else None


def parse_flags(text: str) -> tuple[str, ...] | None:
    """Read the engine's own line. Pure; None when it holds no flag we know."""
    on = re.findall(r"(\w+) = 1\b", text)
    return tuple(sorted(_FLAGS[name] for name in on if name in _FLAGS)) or None


def _capability(target: Target) -> str | None:
    if not target.backend.startswith("cuda"):
        return None
    from edgekit.engine_build import look

    least = min(look().cuda_archs, key=int, default=None)
    return f"{least[:-1]}.{least[-1]}" if least else None


def _loads(name: str) -> bool:
    import ctypes

    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
