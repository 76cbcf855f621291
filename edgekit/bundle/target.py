"""What a bundle is made for: system, processor, Python and the engine's backend. Pure but `this`.

Written `linux-x86_64-cp311-cpu`, `linux-x86_64-cp312-cuda124`, `macos-arm64-cp312-metal`;
`-glibc2.31` may follow for an older Linux. Wheel tags follow PEP 425 and PEP 600 (`packaging`).
"""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

from edgekit.errors import UsageError

if TYPE_CHECKING:
    from packaging.tags import Tag

GLIBC: Final = (2, 28)
"""What a foreign Linux is taken to have at least: RHEL 8, Debian 10, Ubuntu 20.04."""
MACOS: Final = (14, 0)
_FORM = re.compile(
    r"(linux|macos|windows)-(x86_64|aarch64|arm64)-cp3(\d{2})"
    r"-(cpu|metal|vulkan|rocm|cuda(?:\d{2,3})?)(?:-glibc2\.(\d{1,2}))?"
)
_SYSTEMS: Final = {"Linux": "linux", "Darwin": "macos", "Windows": "windows"}
_OCI_ARCH: Final = {"x86_64": "amd64", "arm64": "arm64"}
_OCI_OS: Final = {"macos": "darwin"}


@dataclass(frozen=True, slots=True)
class Target:
    """`arch` is x86_64 or arm64; `python` the minor version of CPython 3."""

    os: str
    arch: str
    python: int
    backend: str
    glibc: tuple[int, int] | None = None

    @property
    def text(self) -> str:
        return f"{self.os}-{self.arch}-cp3{self.python}-{self.backend}"

    @property
    def cuda(self) -> int | None:
        """CUDA's major version: 12 of cuda124."""
        digits = self.backend.removeprefix("cuda")
        return int(digits[:2]) if digits.isdigit() else None

    @property
    def oci_platform(self) -> dict[str, str]:
        return {"os": _OCI_OS.get(self.os, self.os), "architecture": _OCI_ARCH[self.arch]}

    @property
    def platforms(self) -> list[str]:
        """Platform tags that this system takes, the best first."""
        machine = "aarch64" if (self.os, self.arch) == ("linux", "arm64") else self.arch
        if self.os == "macos":
            from packaging.tags import mac_platforms

            return list(mac_platforms(MACOS, self.arch))
        if self.os == "windows":
            return ["win_amd64" if self.arch == "x86_64" else "win_arm64"]
        least = 5 if self.arch == "x86_64" else 17
        legacy = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
        found = []
        for minor in range((self.glibc or GLIBC)[1], least - 1, -1):
            found.append(f"manylinux_2_{minor}_{machine}")
            if minor in legacy:
                found.append(f"{legacy[minor]}_{machine}")
        return [*found, f"linux_{machine}"]

    @property
    def markers(self) -> dict[str, str]:
        """The environment that requirement markers are judged in (PEP 508)."""
        system = {"linux": "Linux", "macos": "Darwin", "windows": "Windows"}[self.os]
        machine = {"linux": {"arm64": "aarch64"}, "windows": {"x86_64": "AMD64", "arm64": "ARM64"}}
        return {
            "os_name": "nt" if self.os == "windows" else "posix",
            "sys_platform": {"linux": "linux", "macos": "darwin", "windows": "win32"}[self.os],
            "platform_system": system,
            "platform_machine": machine.get(self.os, {}).get(self.arch, self.arch),
            "platform_python_implementation": "CPython",
            "implementation_name": "cpython",
            "implementation_version": f"3.{self.python}.0",
            "python_version": f"3.{self.python}",
            "python_full_version": f"3.{self.python}.0",
            "platform_release": "",
            "platform_version": "",
        }


def parse_target(text: str) -> Target:
    """Read a target as typed, or `this`. Raises UsageError (`bad_target`)."""
    if text == "this":
        return this_target()
    match = _FORM.fullmatch(text)
    system, arch, minor, backend, glibc = match.groups() if match else ("",) * 5
    backends = ("cpu", "metal") if system == "macos" else ("cpu", "cuda", "rocm", "vulkan")
    fits = match is not None and int(minor) >= 11 and backend.rstrip("0123456789") in backends
    if not fits or (glibc and system != "linux"):
        raise UsageError(
            f"{text!r} is no target",
            code="bad_target",
            hint="write OS-ARCH-PYTHON-BACKEND such as linux-x86_64-cp311-cpu, "
            "linux-x86_64-cp312-cuda124, macos-arm64-cp312-metal, or this; Python 3.11 or newer",
        )
    least = (2, int(glibc)) if glibc else GLIBC if system == "linux" else None
    return Target(system, arch.replace("aarch64", "arm64"), int(minor), backend, least)


def this_target() -> Target:
    """This machine with its Python and the backend of the installed engine."""
    from edgekit.surroundings import gpu_backends

    names = {"hip": "rocm"}
    built = gpu_backends() or ()
    backend = names.get(built[0], built[0]) if built else "cpu"
    system = _SYSTEMS.get(platform.system(), platform.system().lower())
    return Target(system, arch_of(platform.machine()), sys.version_info[1], backend, glibc_here())


def arch_of(machine: str) -> str:
    """Spell a processor's name one way."""
    known = {"aarch64": "arm64", "amd64": "x86_64"}
    return known.get(machine.lower(), machine.lower())


def glibc_here() -> tuple[int, int] | None:
    """This system's glibc; None where there is none, or it does not say."""
    name, version = platform.libc_ver()
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if name == "glibc" and match else None


def misfit(wheel: str, target: Target) -> str | None:
    """Say why a wheel of this file name cannot be used on the target; None when it can."""
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    try:
        _, _, _, tags = parse_wheel_filename(wheel)
    except InvalidWheelFilename:
        return "is no wheel's file name"
    platforms, taken = target.platforms, _taken(target)
    if tags & taken:
        return None
    if not {"any", *platforms} & {tag.platform for tag in tags}:
        built = ", ".join(sorted({tag.platform for tag in tags}))
        libc = f" with glibc {'.'.join(map(str, target.glibc))}" if target.glibc else ""
        return f"is for {built}, not for {target.os} {target.arch}{libc}"
    built = ", ".join(sorted({f"{tag.interpreter}-{tag.abi}" for tag in tags}))
    return f"is for {built}, not for Python 3.{target.python}"


@cache
def _taken(target: Target) -> frozenset[Tag]:
    """Return every tag that the target takes."""
    from packaging.tags import compatible_tags, cpython_tags

    version, abi, platforms = (3, target.python), f"cp3{target.python}", target.platforms
    native = cpython_tags(version, [abi], platforms)
    return frozenset({*native, *compatible_tags(version, abi, platforms)})
