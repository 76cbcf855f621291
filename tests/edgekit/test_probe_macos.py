"""macOS outputs: chips, memory, and the working set with its sources."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.machine import Accelerator, Host, Memory
from edgekit.probe import macos, windows
from edgekit.probe.tool import run_tool
from edgekit.units import GIB, MIB

DATA = Path(__file__).parents[1] / "data/probe"


def describe(machine: str) -> tuple[Host, tuple[Accelerator, ...], tuple[str, ...]]:
    names = ("sysctl.txt", "vm_stat.txt", "displays.json", "metal.json")
    texts = [(DATA / machine / name).read_text(encoding="utf-8") for name in names]
    return macos.describe(texts[0], texts[1], texts[2], texts[3], "arm64")


@pytest.mark.parametrize(
    ("machine", "chip", "cores", "gpu_cores", "gib", "working_set"),
    [
        ("m1", "Apple M1", 8, 8, 16, 16 * GIB * 2 // 3),
        ("m2-max", "Apple M2 Max", 12, 38, 64, 48 * GIB),
        ("m3-ultra", "Apple M3 Ultra", 32, 80, 512, 498216206336),
        ("m4-pro-wired", "Apple M4 Pro", 14, 16, 24, 20480 * MIB),
    ],
)
def test_apple_silicon(
    machine: str, chip: str, cores: int, gpu_cores: int, gib: int, working_set: int
) -> None:
    host, (gpu,), _ = describe(machine)
    assert (host.os, host.arch, host.cpu.model) == ("macos", "arm64", chip)
    assert host.cpu.physical_cores == host.cpu.logical_cores == host.cpu.usable_cores == cores
    assert "dotprod" in host.cpu.flags
    assert "sme" not in host.cpu.flags
    assert host.memory.total_bytes == gib * GIB
    assert host.memory.available_bytes is not None
    assert 0 < host.memory.available_bytes < gib * GIB
    assert (gpu.vendor, gpu.name, gpu.gpu_cores) == ("apple", chip, gpu_cores)
    assert gpu.memory_kind == "unified"
    assert (gpu.memory_total_bytes, gpu.memory_free_bytes) == (gib * GIB, working_set)


def test_metals_own_answer_needs_no_note() -> None:
    assert describe("m2-max")[2] == ()


def test_a_floor_and_a_wired_limit_say_where_they_come_from() -> None:
    assert describe("m1")[2] == (
        "Apple M1: Metal could not be asked; its working set is at least 10.7 GiB on a machine "
        "of this size",
    )
    assert "iogpu.wired_limit_mb stands in" in describe("m4-pro-wired")[2][0]


@pytest.mark.parametrize(
    ("gib", "share"),
    [(8, 2 / 3), (18, 2 / 3), (24, 2 / 3), (32, 2 / 3), (36, 0.75), (48, 0.75), (192, 0.75)],
)
def test_working_set_of_sizes_that_were_seen(gib: int, share: float) -> None:
    found, note = macos.working_set(gib * GIB, 0, None)
    assert found == pytest.approx(gib * GIB * share, abs=1)
    assert note is not None


@pytest.mark.parametrize("total", [None, 0, 12 * GIB, 1024 * GIB])
def test_working_set_of_other_sizes_is_unknown_and_says_so(total: int | None) -> None:
    found, note = macos.working_set(total, None, None)
    assert found is None
    assert "iogpu.wired_limit_mb=N" in (note or "")


def test_an_intel_mac_has_no_accelerator() -> None:
    host, gpus, notes = describe("intel-mac")
    assert gpus == ()
    assert "avx2" in host.cpu.flags
    assert (host.cpu.physical_cores, host.cpu.logical_cores) == (8, 16)
    assert "the CPU is used" in notes[0]


def test_rosetta_is_pointed_out() -> None:
    _, _, notes = macos.describe("sysctl.proc_translated: 1\n", "", "", "", "x86_64")
    assert any("Rosetta" in note for note in notes)


def test_tools_that_say_nothing_leave_everything_unknown() -> None:
    host, gpus, _ = macos.describe("", "", "", "", "arm64")
    assert host.memory == Memory()
    assert host.cpu.model is None
    assert gpus == ()


@given(st.text(max_size=200))
def test_parsers_survive_any_text(text: str) -> None:
    macos.describe(text, text, text, text, "arm64")
    macos.parse_vm_stat("page size of 4096 bytes\nPages free: " + text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["SPDisplaysDataType", "sppci_model", "sppci_cores"])
                | st.sampled_from(["spdisplays_vendor", "working_set_bytes"]),
                inner | st.just("sppci_vendor_Apple"),
            )
        ),
        max_leaves=12,
    )
)
def test_parsers_survive_any_json(value: object) -> None:
    text = json.dumps(value)
    assert isinstance(macos.parse_displays(text), list)
    found = macos.parse_metal(text)
    assert found is None or found > 0


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has Metal")
def test_the_metal_child_says_why_it_has_no_answer() -> None:
    child = Path(macos.__file__).with_name("metal_child.py")
    output = run_tool([sys.executable, "-P", str(child)], timeout_s=10)
    assert output.ok
    assert "error" in json.loads(output.stdout)
    assert macos.parse_metal(output.stdout) is None


def test_windows_basics() -> None:
    host, notes = windows.describe(
        system="Windows",
        arch="AMD64",
        version="10.0.22631",
        cpu_model="Intel64 Family 6 Model 151 Stepping 2, GenuineIntel",
        physical_cores=12,
        logical_cores=20,
        total_bytes=34 * 10**9,
        available_bytes=20 * 10**9,
    )
    assert (host.os, host.arch, host.kernel) == ("windows", "x86_64", "10.0.22631")
    assert (host.cpu.physical_cores, host.cpu.usable_cores) == (12, 20)
    assert host.memory.total_bytes == 34 * 10**9
    assert "only NVIDIA" in notes[0]


def test_the_fallback_reader_works_here() -> None:
    host, _ = windows.read_host()
    assert host.memory.total_bytes is not None
    assert host.memory.total_bytes > 0
    assert host.cpu.logical_cores is not None
