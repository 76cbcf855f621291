"""What a runtime asks of a machine, and whether this one has it. Pure.

CUDA's least drivers: NVIDIA, "CUDA Compatibility", minor-version compatibility (11: 450.80.02,
12: 525.60.13, 13: 580.65.06).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from edgekit.bundle.target import Target, arch_of, misfit
from edgekit.errors import BadDataError, CannotCreateError, NoDeviceError
from edgekit.machine import Machine
from edgekit.this_machine import host_free_bytes
from edgekit.units import format_bytes, format_gib

SCHEMA: Final = "edgekit.requirements/1"
DRIVERS: Final = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
DISK_FACTOR: Final = 1.02
DISK_SPARE: Final = 512 << 20
BAD_DATA: Final = BadDataError.exit_code
NO_DEVICE: Final = NoDeviceError.exit_code
NO_ROOM: Final = CannotCreateError.exit_code


@dataclass(frozen=True, slots=True)
class ModelNeed:
    """A model's file, and its memory with the shortest useful context; None is unknown."""

    model: str
    filetype: str
    file_bytes: int
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class Requirements:
    """None is unknown and refuses nothing. `wheels`: digests by file name."""

    target: str
    os: str
    arch: str
    python: str
    backend: str
    glibc: str | None = None
    cpu_flags: tuple[str, ...] | None = None
    libraries: tuple[str, ...] = ()
    cuda: int | None = None
    compute_capability: str | None = None
    unpacked_bytes: int = 0
    models: tuple[ModelNeed, ...] = ()
    wheels: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        driver = DRIVERS.get(self.cuda or 0)
        return {"schema": SCHEMA, **asdict(self), "driver": driver}


@dataclass(frozen=True, slots=True)
class Here:
    """A machine as it is judged.

    `missing` are libraries that its loader does not find; `needed_bytes` is the room that an
    installation would take here, None where that is not known and the models' sizes say it.
    """

    machine: Machine
    python: str
    glibc: tuple[int, int] | None
    free_bytes: int | None
    missing: tuple[str, ...] = ()
    needed_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a machine cannot run a bundle, what to do, and the exit code that says so."""

    code: str
    sentence: str
    hint: str
    exit_code: int


def read_requirements(value: Mapping[str, Any]) -> Requirements:
    """Read the JSON form. Raises BadDataError (`bad_layout`)."""
    known = {f.name for f in fields(Requirements)}
    try:
        given = {key: item for key, item in value.items() if key in known}
        given["models"] = tuple(ModelNeed(**model) for model in given.get("models", ()))
        given["libraries"] = tuple(given.get("libraries", ()))
        if given.get("cpu_flags") is not None:
            given["cpu_flags"] = tuple(given["cpu_flags"])
        needs = Requirements(**given)
        if value.get("schema") == SCHEMA and _is_sound(needs):
            return needs
    except (TypeError, AttributeError, ValueError):
        pass
    raise BadDataError(
        "the bundle's requirements cannot be read",
        code="bad_layout",
        hint="get the bundle again from its maker",
    )


def _is_sound(needs: Requirements) -> bool:
    texts = (needs.target, needs.os, needs.arch, needs.backend)
    lists = (*needs.libraries, *(needs.cpu_flags or ()), *needs.wheels, *needs.wheels.values())
    numbers = [needs.unpacked_bytes, *(one.file_bytes for one in needs.models)]
    known = (needs.cuda, *(one.memory_bytes for one in needs.models))
    return (
        all(isinstance(text, str) for text in (*texts, *lists))
        and all(type(number) is int for number in numbers)
        and all(isinstance(number, int | None) for number in known)
        and re.fullmatch(r"3\.\d{1,2}", needs.python) is not None
        and re.fullmatch(r"\d{1,2}\.\d{1,2}", needs.glibc or "2.0") is not None
        and re.fullmatch(r"[\d.]+", needs.compute_capability or "0") is not None
    )


def check(needs: Requirements, here: Here) -> list[Problem]:
    """Return everything that stands in the way, nearest the ground first; none is well."""
    found: list[Problem] = []
    for rule in (_system, _wheels, _python, _glibc, _cpu, _libraries, _gpu, _memory, _disk):
        found += rule(needs, here)
        # A bundle for another system says nothing about this one's driver.
        if rule is _system and found:
            break
    return found


def pick(runtimes: Sequence[Requirements], here: Here) -> tuple[Requirements, list[Problem]] | None:
    """Choose the runtime for a machine: fewest problems, then a GPU before the CPU."""
    judged = [(check(one, here), one) for one in runtimes]
    if not judged:
        return None
    problems, best = min(
        judged, key=lambda p: (_strange(p[0]), len(p[0]), p[1].backend == "cpu", p[1].target)
    )
    return best, problems


def _strange(problems: Sequence[Problem]) -> bool:
    return any(problem.code == "wrong_system" for problem in problems)


def _system(needs: Requirements, here: Here) -> list[Problem]:
    host = here.machine.host
    system = {"darwin": "macos"}.get(host.os.lower(), host.os.lower())
    if (system, arch_of(host.arch)) == (needs.os, needs.arch):
        return []
    return [
        Problem(
            "wrong_system",
            f"this bundle is for {needs.os} {needs.arch}, this machine is {system} {host.arch}",
            f"make one with edgekit bundle create … --for {system}-{arch_of(host.arch)}"
            f"-cp{here.python.replace('.', '')}-cpu",
            NO_DEVICE,
        )
    ]


def _wheels(needs: Requirements, _: Here) -> list[Problem]:
    """Judge the wheels by the target they are said to be for; a maker's mistake is theirs."""
    libc = tuple(map(int, needs.glibc.split("."))) if needs.glibc else None
    least = (libc[0], libc[1]) if libc else None
    target = Target(needs.os, needs.arch, int(needs.python[2:]), needs.backend, least)
    wrong = [f"{name} {why}" for name in sorted(needs.wheels) if (why := misfit(name, target))]
    if not wrong:
        return []
    more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return [
        Problem(
            "wrong_wheel",
            f"the bundle says it is for {needs.target}, but {wrong[0]}{more}",
            "get a bundle from its maker whose wheels are for this machine",
            BAD_DATA,
        )
    ]


def _python(needs: Requirements, here: Here) -> list[Problem]:
    if here.python == needs.python:
        return []
    return [
        Problem(
            "wrong_python",
            f"the bundle's packages are for Python {needs.python}, this is {here.python}",
            f"run it with python{needs.python}, or make one with --for "
            f"{needs.os}-{needs.arch}-cp{here.python.replace('.', '')}-{needs.backend}",
            NO_DEVICE,
        )
    ]


def _glibc(needs: Requirements, here: Here) -> list[Problem]:
    if needs.glibc is None or needs.os != "linux":
        return []
    wanted = tuple(map(int, needs.glibc.split(".")))
    if here.glibc is not None and here.glibc >= wanted:
        return []
    older = f"-glibc{'.'.join(map(str, here.glibc))}" if here.glibc else ""
    found = f"has {'.'.join(map(str, here.glibc))}" if here.glibc else "has none, or hides it"
    hint = (
        f"make a bundle with --for {needs.target}{older} and an engine built on such a system"
        if here.glibc
        else "use a Linux with glibc (Debian, Ubuntu, RHEL, SUSE); Alpine's musl cannot run these"
    )
    return [
        Problem(
            "old_glibc", f"glibc {needs.glibc} is needed, this machine {found}", hint, NO_DEVICE
        )
    ]


def _cpu(needs: Requirements, here: Here) -> list[Problem]:
    flags = here.machine.host.cpu.flags
    lacking = sorted(set(needs.cpu_flags or ()) - set(flags)) if flags else []
    if not lacking:
        return []
    return [
        Problem(
            "cpu_lacks",
            f"the engine was built for a CPU with {', '.join(lacking)}, which this one lacks",
            "make the bundle with an engine for a plainer CPU: a prebuilt wheel with --wheels, or "
            "one built on a machine like this",
            NO_DEVICE,
        )
    ]


def _libraries(needs: Requirements, here: Here) -> list[Problem]:
    lacking = [name for name in needs.libraries if name in here.missing]
    if not lacking:
        return []
    return [
        Problem(
            "library_missing",
            f"the engine needs {', '.join(lacking)}, which this machine does not have",
            f"install {'; '.join(dict.fromkeys(map(_package, lacking)))}",
            NO_DEVICE,
        )
    ]


def _package(library: str) -> str:
    known = {
        "libomp": "libomp5 (Debian) or libomp (RHEL)",
        "libgomp": "libgomp1 (Debian) or libgomp (RHEL)",
        "libstdc++": "libstdc++6 (Debian) or libstdc++ (RHEL)",
        "libgcc_s": "libgcc-s1 (Debian) or libgcc (RHEL)",
        "libssl": "libssl3 (Debian) or openssl-libs (RHEL)",
        "libcrypto": "libssl3 (Debian) or openssl-libs (RHEL)",
        "libvulkan": "libvulkan1 (Debian) or vulkan-loader (RHEL)",
        "libcudart": "the CUDA runtime of the same major version",
        "libcublas": "cuBLAS of the same major version of CUDA",
    }
    return next((text for start, text in known.items() if library.startswith(start)), library)


def _gpu(needs: Requirements, here: Here) -> list[Problem]:
    vendors = {"cuda": "nvidia", "rocm": "amd", "metal": "apple", "vulkan": None}
    kind = "cuda" if needs.backend.startswith("cuda") else needs.backend
    if kind not in vendors:
        return []
    vendor = vendors[kind]
    found = [a for a in here.machine.accelerators if vendor in (None, a.vendor)]
    if not found:
        name = {"nvidia": "NVIDIA GPU with a working driver", "amd": "AMD GPU with its driver"}
        return [
            Problem(
                "no_driver",
                f"no {name.get(vendor or '', 'GPU that works')} was found; the bundle's engine is "
                f"for {needs.backend}",
                "install the driver"
                + (f", {_driver(needs)} or newer" if _driver(needs) else "")
                + f", or make a bundle with --for {needs.os}-{needs.arch}-cp"
                f"{needs.python.replace('.', '')}-cpu",
                NO_DEVICE,
            )
        ]
    if kind != "cuda":
        return []
    return [*_old_driver(needs, found[0].driver), *_old_card(needs, found[0].compute_capability)]


def _driver(needs: Requirements) -> str | None:
    return DRIVERS.get(needs.cuda or 0)


def _old_driver(needs: Requirements, driver: str | None) -> list[Problem]:
    least = _driver(needs)
    if least is None or driver is None or _numbers(driver) >= _numbers(least):
        return []
    return [
        Problem(
            "old_driver",
            f"CUDA {needs.cuda} needs NVIDIA driver {least} or newer, this machine has {driver}",
            "install a newer driver, or make a bundle for an older CUDA",
            NO_DEVICE,
        )
    ]


def _old_card(needs: Requirements, capability: str | None) -> list[Problem]:
    least = needs.compute_capability
    if least is None or capability is None or _numbers(capability) >= _numbers(least):
        return []
    return [
        Problem(
            "old_gpu",
            f"the engine was built for compute capability {least}, this card has {capability}",
            "make the bundle with an engine built for this card",
            NO_DEVICE,
        )
    ]


def _memory(needs: Requirements, here: Here) -> list[Problem]:
    """Refuse what cannot fit at all; the fit verdict says how well the rest does."""
    free = _free_memory(needs, here.machine)
    return [
        Problem(
            "too_little_memory",
            f"{one.model} {one.filetype} needs {format_gib(one.memory_bytes)} of memory at least, "
            f"{format_gib(free)} are free",
            "free some memory, or make a bundle with a smaller file type or model",
            NO_DEVICE,
        )
        for one in needs.models
        if one.memory_bytes is not None and free is not None and one.memory_bytes > free
    ]


def _free_memory(needs: Requirements, machine: Machine) -> int | None:
    """All that layers could lie in: the host's, and cards' when the engine uses them."""
    host = host_free_bytes(machine)
    if needs.backend == "cpu" or host is None:
        return host
    cards = [a for a in machine.accelerators if a.memory_kind == "dedicated"]
    return host + sum(a.memory_free_bytes or a.memory_total_bytes or 0 for a in cards)


def _disk(needs: Requirements, here: Here) -> list[Problem]:
    wanted = disk_bytes(needs) if here.needed_bytes is None else here.needed_bytes
    if here.free_bytes is None or not needs.models or here.free_bytes >= wanted:
        return []
    return [
        Problem(
            "disk_full",
            f"{format_bytes(wanted)} of disk are needed, {format_bytes(here.free_bytes)} are free",
            "free some space, move the store with EDGEKIT_STORE, or serve from the medium with "
            "--in-place",
            NO_ROOM,
        )
    ]


def disk_bytes(needs: Requirements) -> int:
    """Room that an installation takes: the models and what a store may leave open."""
    return int(sum(one.file_bytes for one in needs.models) * DISK_FACTOR) + DISK_SPARE


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
