"""What a machine is refused for, and the sentence that helps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgekit.bundle.requirements import (
    DISK_SPARE,
    Here,
    ModelNeed,
    Requirements,
    check,
    pick,
    read_requirements,
)
from edgekit.errors import BadDataError
from edgekit.machine import Accelerator, Cpu, Host, Machine, Memory

GIB = 1 << 30
NEEDS = Requirements(
    target="linux-x86_64-cp311-cpu",
    os="linux",
    arch="x86_64",
    python="3.11",
    backend="cpu",
    glibc="2.34",
    cpu_flags=("avx2", "fma"),
    libraries=("libgomp.so.1",),
    models=(ModelNeed("mistral-3-small", "Q4_K_M", 14 * GIB, 16 * GIB),),
    wheels={"numpy-2.0-cp311-cp311-manylinux_2_28_x86_64.whl": "0" * 64},
)
CUDA = replace(
    NEEDS, target="linux-x86_64-cp311-cuda124", backend="cuda124", cuda=12, compute_capability="8.0"
)
CARD = Accelerator(
    "nvidia",
    "A card",
    memory_kind="dedicated",
    memory_free_bytes=20 * GIB,
    driver="550.54.14",
    compute_capability="8.6",
)


def machine(
    system: str = "linux",
    arch: str = "x86_64",
    flags: tuple[str, ...] = ("avx2", "fma", "sse4_2"),
    memory: int | None = 32 * GIB,
    cards: tuple[Accelerator, ...] = (),
) -> Machine:
    host = Host(system, arch, cpu=Cpu(flags=flags), memory=Memory(available_bytes=memory))
    return Machine(host, cards)


GOOD = Here(machine(), "3.11", (2, 36), 100 * GIB)
WITH_CARD = replace(GOOD, machine=machine(cards=(CARD,)))


def card(**changes: Any) -> Here:
    return replace(GOOD, machine=machine(cards=(replace(CARD, **changes),)))


@pytest.mark.parametrize(
    ("needs", "here", "code", "exit_code", "sentence", "hint"),
    [
        (
            NEEDS, replace(GOOD, machine=machine(arch="aarch64")), "wrong_system", 69,
            "for linux x86_64, this machine is linux aarch64", "--for linux-arm64-cp311-cpu",
        ),
        (
            NEEDS, replace(GOOD, machine=machine("Darwin", "arm64")), "wrong_system", 69,
            "this machine is macos arm64", "--for macos-arm64",
        ),
        (
            replace(NEEDS, wheels={"x-1-cp311-cp311-win_amd64.whl": ""}),
            GOOD, "wrong_wheel", 65, "x-1-cp311-cp311-win_amd64.whl is for win_amd64", "maker",
        ),
        (
            replace(NEEDS, wheels={"x-1-cp312-cp312-manylinux_2_17_x86_64.whl": ""}),
            GOOD, "wrong_wheel", 65, "not for Python 3.11", "maker",
        ),
        (
            NEEDS, replace(GOOD, python="3.12"), "wrong_python", 69,
            "for Python 3.11, this is 3.12", "python3.11",
        ),
        (
            NEEDS, replace(GOOD, glibc=(2, 31)), "old_glibc", 69,
            "glibc 2.34 is needed, this machine has 2.31", "-glibc2.31",
        ),
        (NEEDS, replace(GOOD, glibc=None), "old_glibc", 69, "has none", "musl"),
        (
            NEEDS, replace(GOOD, machine=machine(flags=("sse4_2",))), "cpu_lacks", 69,
            "avx2, fma, which this one lacks", "--wheels",
        ),
        (
            NEEDS, replace(GOOD, missing=("libgomp.so.1",)), "library_missing", 69,
            "needs libgomp.so.1", "install libgomp1",
        ),
        (CUDA, GOOD, "no_driver", 69, "no NVIDIA GPU with a working driver", "525.60.13 or newer"),
        (
            CUDA, card(driver="470.82.01"), "old_driver", 69,
            "CUDA 12 needs NVIDIA driver 525.60.13 or newer, this machine has 470.82.01",
            "newer driver",
        ),
        (
            CUDA, card(compute_capability="7.5"), "old_gpu", 69,
            "compute capability 8.0, this card has 7.5", "this card",
        ),
        (
            replace(NEEDS, backend="vulkan"), GOOD, "no_driver", 69, "no GPU that works", "driver",
        ),
        (
            NEEDS, replace(GOOD, machine=machine(memory=8 * GIB)), "too_little_memory", 69,
            "mistral-3-small Q4_K_M needs 16.0 GiB of memory at least, 8.0 GiB are free",
            "smaller file type",
        ),
        (
            NEEDS, replace(GOOD, free_bytes=14 * GIB), "disk_full", 73,
            "of disk are needed, 15.0 GB are free", "--in-place",
        ),
    ],
)  # fmt: skip
def test_each_lack_is_refused_with_what_helps(
    needs: Requirements, here: Here, code: str, exit_code: int, sentence: str, hint: str
) -> None:
    (problem,) = check(needs, here)
    assert (problem.code, problem.exit_code) == (code, exit_code)
    assert sentence in problem.sentence
    assert hint in problem.hint


@pytest.mark.parametrize(
    ("needs", "here"),
    [
        (NEEDS, GOOD),
        (CUDA, WITH_CARD),
        (replace(NEEDS, glibc=None, cpu_flags=None), replace(GOOD, glibc=None)),
        (NEEDS, replace(GOOD, machine=machine(flags=()))),
        (NEEDS, replace(GOOD, machine=machine(memory=None), free_bytes=None)),
        (CUDA, card(driver=None, compute_capability=None)),
        # What does not fit the host may fit host and card together.
        (CUDA, replace(GOOD, machine=machine(memory=8 * GIB, cards=(CARD,)))),
        (replace(NEEDS, models=()), replace(GOOD, free_bytes=0)),
    ],
)
def test_what_is_there_or_unknown_refuses_nothing(needs: Requirements, here: Here) -> None:
    assert check(needs, here) == []


def test_the_disk_rule_is_two_percent_and_a_little() -> None:
    wanted = int(14 * GIB * 1.02) + DISK_SPARE
    assert check(NEEDS, replace(GOOD, free_bytes=wanted)) == []
    assert len(check(NEEDS, replace(GOOD, free_bytes=wanted - 1))) == 1


def test_what_needs_no_room_is_not_refused_for_it() -> None:
    """Served from the medium, or shared with it."""
    assert check(NEEDS, replace(GOOD, free_bytes=0, needed_bytes=0)) == []
    (problem,) = check(NEEDS, replace(GOOD, free_bytes=9, needed_bytes=10))
    assert problem.code == "disk_full"


def test_several_lacks_are_all_said() -> None:
    bad = replace(GOOD, glibc=(2, 17), python="3.12", free_bytes=0)
    assert [p.code for p in check(NEEDS, bad)] == ["wrong_python", "old_glibc", "disk_full"]


def test_the_runtime_that_fits_is_picked() -> None:
    arm = replace(NEEDS, target="linux-arm64-cp311-cpu", arch="arm64", wheels={})
    assert pick([], GOOD) is None
    for runtimes in ([arm, CUDA, NEEDS], [NEEDS, arm, CUDA]):
        assert pick(runtimes, GOOD) == (NEEDS, [])
        assert pick(runtimes, WITH_CARD) == (CUDA, [])
    found = pick([arm], GOOD)
    assert found is not None
    assert [p.code for p in found[1]] == ["wrong_system"]
    # Nearest miss: another Python on this system before another system.
    found = pick([arm, NEEDS], replace(GOOD, python="3.13"))
    assert found is not None
    assert found[0] is NEEDS


def test_the_json_form_comes_back_whole() -> None:
    assert read_requirements(CUDA.as_dict() | {"later": 1}) == CUDA
    assert CUDA.as_dict()["driver"] == "525.60.13"


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"schema": "other/1"},
        NEEDS.as_dict() | {"models": [{"model": 1}]},
        NEEDS.as_dict() | {"wheels": []},
        NEEDS.as_dict() | {"models": 3},
        {key: item for key, item in NEEDS.as_dict().items() if key != "os"},
        NEEDS.as_dict() | {"python": 3},
        NEEDS.as_dict() | {"glibc": "new"},
        NEEDS.as_dict() | {"cpu_flags": [3]},
    ],
)
def test_damaged_requirements_are_bad_data(value: dict[str, Any]) -> None:
    with pytest.raises(BadDataError):
        read_requirements(value)
