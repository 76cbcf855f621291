"""/proc, cgroups and the amdgpu files, on recorded and reconstructed trees."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.machine import Cpu, Memory
from edgekit.probe import amd, cgroup, linux

DATA = Path(__file__).parents[1] / "data/probe"
GIB = 1024**3


@pytest.mark.parametrize(
    ("machine", "model", "arch", "physical", "logical", "flag", "total_kib"),
    [
        (
            "a10",
            "Intel(R) Xeon(R) Platinum 8369B CPU @ 2.90GHz",
            "x86_64",
            4,
            8,
            "avx512f",
            31626380,
        ),
        ("a10g", "AMD EPYC 7R32", "x86_64", 2, 4, "avx2", 16073104),
        ("l4", "Intel(R) Xeon(R) CPU @ 2.20GHz", "x86_64", 2, 4, "avx512_vnni", 16374584),
        (
            "rtx-4090",
            "AMD Ryzen 7 7800X3D 8-Core Processor",
            "x86_64",
            8,
            16,
            "avx512_bf16",
            65011712,
        ),
        ("h100-mig", "Intel(R) Xeon(R) Platinum 8480C", "x86_64", 4, 8, "amx_int8", 131808216),
        ("gb10", "10x Cortex-A725, 10x Cortex-X925", "aarch64", 20, 20, "svei8mm", 127600748),
        ("raspberry-pi-5", "Cortex-A76", "aarch64", 4, 4, "asimddp", 8251904),
        ("this-machine", "Intel(R) Xeon(R) Processor", "x86_64", 2, 2, "amx_tile", 24683656),
    ],
)
def test_host(
    machine: str, model: str, arch: str, physical: int, logical: int, flag: str, total_kib: int
) -> None:
    host, notes = linux.read_host(DATA / machine)
    assert (host.os, host.arch) == ("linux", arch)
    assert host.cpu.model == model
    assert (host.cpu.physical_cores, host.cpu.logical_cores) == (physical, logical)
    assert host.cpu.usable_cores == logical
    assert flag in host.cpu.flags
    assert host.memory.total_bytes == total_kib * 1024
    assert host.memory.limit_bytes is None
    assert notes == ()


def test_kernel_release_is_read() -> None:
    assert linux.read_host(DATA / "l4")[0].kernel == "6.1.0-28-cloud-amd64"


def test_one_of_two_sockets_is_measured(tmp_path: Path) -> None:
    for cpu, socket in enumerate((0, 0, 1, 1, 1)):
        path = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id"
        path.parent.mkdir(parents=True)
        path.write_text(f"{socket}\n")
    sockets = linux.read_sockets(tmp_path)
    assert sockets == (frozenset({0, 1}), frozenset({2, 3, 4}))
    cpus, note = linux.one_socket(sockets, frozenset(range(5)))
    assert cpus == frozenset({2, 3, 4})
    assert "2 CPU sockets" in (note or "")
    assert linux.one_socket(sockets, frozenset({0, 1})) == (None, None)
    assert linux.one_socket((), frozenset({0})) == (None, None)


def test_an_empty_root_knows_nothing(tmp_path: Path) -> None:
    host, notes = linux.read_host(tmp_path)
    assert host.cpu == Cpu()
    assert host.memory == Memory()
    assert notes == ()


def test_container_with_a_memory_limit_and_a_cpu_quota() -> None:
    host, notes = linux.read_host(DATA / "container-v2")
    assert host.memory.limit_bytes == 8 * GIB
    # 3.2 GiB are in use, of which 1 GiB is file cache that the kernel gives back.
    assert host.memory.available_bytes == 8 * GIB - (3435973836 - GIB)
    assert (host.cpu.logical_cores, host.cpu.usable_cores) == (8, 2)
    assert notes == (
        "memory is limited to 8.0 GiB by a control group",
        "only 2 of 8 logical cores may be used (CPU quota)",
    )


def test_version_1_container_whose_path_is_the_hosts() -> None:
    host, notes = linux.read_host(DATA / "container-v1")
    assert host.memory.limit_bytes == 4 * GIB
    assert host.memory.available_bytes == 4 * GIB - (1610612736 - 536870912)
    assert host.cpu.usable_cores == 8
    assert notes == ("memory is limited to 4.0 GiB by a control group",)


def test_a_limit_on_the_parent_group_binds_and_high_counts() -> None:
    limits = cgroup.read_limits(DATA / "slice-limit")
    assert limits == cgroup.Limits(12 * GIB, 8 * GIB, None)


def test_a_limit_above_the_memory_is_no_limit() -> None:
    memory = linux.merge_memory({"MemTotal": 8 * GIB}, cgroup.Limits(16 * GIB, 16 * GIB, None))
    assert memory.limit_bytes is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max\n", None),
        ("9223372036854771712\n", None),
        ("18446744073709551615", None),
        ("0", None),
        ("-1", None),
        ("", None),
        (None, None),
        ("8589934592\n", 8 * GIB),
    ],
)
def test_limit_files(text: str | None, expected: int | None) -> None:
    assert cgroup.parse_limit(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max 100000", None), ("50000 100000\n", 0.5), ("-1 100000", None), ("1 0", None), ("", None)],
)
def test_cpu_max(text: str, expected: float | None) -> None:
    assert cgroup.parse_cpu_max(text) == expected


@pytest.mark.parametrize(
    ("logical", "affinity", "quota", "expected"),
    [(8, None, None, 8), (8, 3, None, 3), (8, 8, 2.5, 2), (8, 8, 0.2, 1), (None, None, None, None)],
)
def test_usable_cores(
    logical: int | None, affinity: int | None, quota: float | None, expected: int | None
) -> None:
    assert linux.usable_cores(logical, affinity, quota) == expected


@given(st.text(max_size=300))
def test_parsers_survive_any_text(text: str) -> None:
    linux.parse_cpuinfo(text)
    linux.parse_meminfo(text)
    cgroup.parse_cgroup(text)
    cgroup.parse_mounts(text)
    cgroup.parse_limit(text)
    cgroup.parse_cpu_max(text)
    cgroup.parse_stat(text)
    amd.parse_ids(text)
    amd.kfd_location(text)


@given(st.text(alphabet="abc 0123456789:,()-./\n\tkB", max_size=300))
def test_parsers_survive_text_that_looks_right(text: str) -> None:
    cpu = linux.parse_cpuinfo("processor : 0\n" + text)
    assert cpu.logical_cores is not None
    assert cpu.logical_cores >= 1
    assert all(n >= 0 for n in linux.parse_meminfo("MemTotal: 1 kB\n" + text).values())
    cgroup.parse_mounts("1 2 0:1 / /sys rw - cgroup2 cgroup rw\n" + text)


def test_radeon_rx_7900_xtx() -> None:
    gpus, notes = amd.read_gpus(Memory(), DATA / "rx-7900-xtx")
    card, inside = gpus
    assert card.name == "AMD Radeon RX 7900 XTX"
    assert card.memory_kind == "dedicated"
    assert card.memory_total_bytes == 25753026560
    assert card.memory_free_bytes == 25753026560 - 1342177280
    assert card.compute_capability == "gfx1100"
    assert card.gpu_cores == 96
    assert card.uuid == "GPU-a1ffcf7b3f1d51ff"
    assert card.driver is None
    assert (inside.compute_capability, inside.memory_kind) == ("gfx1036", "shared")
    assert len(notes) == 1


def test_an_apu_reaches_into_host_memory_but_not_beyond_what_is_left() -> None:
    vram, gtt = 536870912, 67096129536
    free_vram, free_gtt = vram - 181403648, gtt - 33554432
    for room, expected in ((None, free_gtt), (100 * GIB, free_gtt), (20 * GIB, 20 * GIB)):
        (gpu,), notes = amd.read_gpus(Memory(available_bytes=room), DATA / "strix-halo")
        assert gpu.memory_kind == "shared"
        assert gpu.compute_capability == "gfx1151"
        assert gpu.gpu_cores == 40
        assert gpu.memory_total_bytes == vram + gtt
        assert gpu.memory_free_bytes == free_vram + expected
        assert "never add the two" in notes[0]


def test_names_come_from_libdrm_where_it_is_installed(tmp_path: Path) -> None:
    _card(tmp_path, {"device": "0x15bf", "revision": "0xc4"})
    assert amd.read_gpus(Memory(), tmp_path)[0][0].name == "AMD GPU 15bf:c4"
    ids = tmp_path / "usr/share/libdrm/amdgpu.ids"
    ids.parent.mkdir(parents=True)
    ids.write_text("# List of AMDGPU IDs\n1.0.0\n15BF,\tC4,\tAMD Ryzen Z1 Extreme\n")
    assert amd.read_gpus(Memory(), tmp_path)[0][0].name == "AMD Ryzen Z1 Extreme"


def test_a_card_whose_driver_says_nothing_is_named_with_unknown_memory(tmp_path: Path) -> None:
    _card(tmp_path, {"product_name": "AMD Instinct MI210"})
    (gpu,), notes = amd.read_gpus(Memory(), tmp_path)
    assert gpu.name == "AMD Instinct MI210"
    assert (gpu.memory_total_bytes, gpu.memory_free_bytes, gpu.memory_kind) == (None, None, None)
    assert notes == ("AMD Instinct MI210: the kernel does not tell its memory",)


def test_other_vendors_cards_are_left_alone(tmp_path: Path) -> None:
    _card(tmp_path, {"vendor": "0x8086", "device": "0x56a0"})
    assert amd.read_gpus(Memory(), tmp_path) == ((), ())


@pytest.mark.parametrize(
    ("version", "name"),
    [
        (110000, "gfx1100"),
        (90010, "gfx90a"),
        (90402, "gfx942"),
        (110501, "gfx1151"),
        (100306, "gfx1036"),
        (0, None),
    ],
)
def test_gfx_names(version: int, name: str | None) -> None:
    assert amd.gfx_name(version) == name


@pytest.mark.parametrize(
    ("slot", "place"),
    [("0000:03:00.0", (0, 768)), ("0001:c3:00.1", (1, 49921)), ("03:00.0", None), ("", None)],
)
def test_kfd_location(slot: str, place: tuple[int, int] | None) -> None:
    assert amd.kfd_location(slot) == place


def _card(root: Path, facts: dict[str, str]) -> None:
    device = root / "sys/class/drm/card0/device"
    device.mkdir(parents=True)
    for name, text in {"vendor": "0x1002", **facts}.items():
        (device / name).write_text(text + "\n")
