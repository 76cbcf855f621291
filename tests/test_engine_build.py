"""Which compiler and flags the engine is built with, and why: a table."""

from __future__ import annotations

import pytest

from edgekit.engine_build import (
    NO_AMX,
    Toolchain,
    choose,
    cuda_archs,
    look,
    pinned_version,
    wheel_folder,
)

AMX = frozenset({"avx512f", "amx_int8", "amx_tile"})
PLAIN = frozenset({"avx2"})


def machine(
    flags: frozenset[str] = PLAIN,
    *,
    system: str = "Linux",
    gcc: str | None = "/usr/bin/g++",
    clangs: tuple[tuple[str, int], ...] = (),
    nvcc: str | None = None,
    driver: bool = False,
    archs: tuple[str, ...] = (),
    vulkan: bool = False,
) -> Toolchain:
    return Toolchain(system, flags, gcc, clangs, nvcc, driver, archs, vulkan)


CASES = [
    ("plain gcc", machine(), {}),
    ("amx with gcc only", machine(AMX), {"CFLAGS": NO_AMX, "CXXFLAGS": NO_AMX}),
    (
        "amx with clang",
        machine(AMX, clangs=(("clang-16", 16),)),
        {"CC": "clang-16", "CXX": "clang++-16"},
    ),
    (
        "amx with an old clang",
        machine(AMX, clangs=(("clang-11", 11),)),
        {"CFLAGS": NO_AMX, "CXXFLAGS": NO_AMX},
    ),
    (
        "clang only",
        machine(gcc=None, clangs=(("clang", 18),)),
        {"CC": "clang", "CXX": "clang++"},
    ),
    (
        "cuda",
        machine(nvcc="/usr/local/cuda/bin/nvcc", driver=True),
        {"CMAKE_ARGS": "-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=native"},
    ),
    (
        "cuda on two kinds of card",
        machine(nvcc="/usr/local/cuda/bin/nvcc", driver=True, archs=("86", "90")),
        {"CMAKE_ARGS": "-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=86;90"},
    ),
    ("vulkan", machine(vulkan=True), {"CMAKE_ARGS": "-DGGML_VULKAN=on"}),
    (
        "cuda before vulkan",
        machine(nvcc="/usr/bin/nvcc", driver=True, vulkan=True),
        {"CMAKE_ARGS": "-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=native"},
    ),
    (
        "amx with clang, and a card",
        machine(AMX, clangs=(("clang-16", 16),), nvcc="/usr/bin/nvcc", driver=True, archs=("90",)),
        {
            "CC": "clang-16",
            "CXX": "clang++-16",
            "CMAKE_ARGS": "-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=90",
        },
    ),
    ("toolkit without a driver", machine(nvcc="/usr/bin/nvcc"), {}),
    ("driver without a toolkit", machine(driver=True), {}),
    ("mac", machine(system="Darwin", gcc="/usr/bin/g++"), {}),
]


@pytest.mark.parametrize(("name", "found", "env"), CASES, ids=[c[0] for c in CASES])
def test_choice(name: str, found: Toolchain, env: dict[str, str]) -> None:
    build = choose(found)
    assert dict(build.env) == env
    assert build.reason


def test_compute_capabilities_are_read_once_each() -> None:
    assert cuda_archs("8.6\n9.0\n8.6\n") == ("86", "90")
    assert cuda_archs("12.0\n9.0\n") == ("90", "120")
    assert cuda_archs("[N/A]\nFailed to initialize NVML\n") == ()


def test_no_compiler_is_a_sentence_with_the_fix() -> None:
    with pytest.raises(SystemExit, match="install one"):
        choose(machine(gcc=None))


def test_a_driver_without_nvcc_is_said() -> None:
    assert "nvcc is not" in choose(machine(driver=True)).reason


def test_wheels_of_different_builds_never_meet() -> None:
    a, b = machine(AMX), machine(AMX, clangs=(("clang-16", 16),))
    folders = {wheel_folder("0.3.36", m, choose(m)) for m in (a, b)}
    assert len(folders) == 2
    assert wheel_folder("0.3.36", a, choose(a)) == wheel_folder("0.3.36", a, choose(a))


def test_this_machine_has_a_way() -> None:
    assert choose(look()).reason
    assert pinned_version().count(".") == 2
