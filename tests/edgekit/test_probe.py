"""The whole probe: this machine for real, and the pure parts that put a record together."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import probe as probing
from edgekit.machine import Accelerator, Canary, Cpu, Engine, Host, Machine, Memory
from edgekit.probe import amd, bandwidth, engine, linux, pci
from edgekit.probe.profile import catalogue_names, normalise

DATA = Path(__file__).parents[1] / "data/probe"
GIB = 1024**3
HOST = Host("linux", "x86_64")
A10 = Accelerator("nvidia", "NVIDIA A10", "dedicated", 24 * GIB, 23 * GIB)


def test_this_machine() -> None:
    machine = probing.probe()
    host = machine.host
    assert host.cpu.logical_cores is not None
    assert host.cpu.usable_cores is not None
    assert host.memory.total_bytes is not None
    assert host.memory.available_bytes is not None
    assert 0 < host.memory.available_bytes <= host.memory.total_bytes
    assert host.memory.bandwidth_gb_s is not None
    assert 0.5 < host.memory.bandwidth_gb_s < 20_000
    assert machine.engine.canary is None
    assert probing.validate(machine) == machine
    assert json.loads(json.dumps(probing.to_json(machine)))["schema"] == "edgekit.probe/1"


def test_bandwidth_can_be_left_out() -> None:
    machine = probing.probe(measure_bandwidth=False, devices=())
    assert machine.host.memory.bandwidth_gb_s is None
    assert machine.device_profile is None


def test_the_record_has_the_contracts_fields() -> None:
    machine = Machine(
        HOST, (A10,), Engine("0.3.36", ("CUDA", "CPU"), True, Canary(True, True, "fine")), "x"
    )
    record = probing.to_json(machine)
    assert set(record) == {"schema", "host", "accelerators", "engine", "device_profile", "notes"}
    host, gpus, engine_part = record["host"], record["accelerators"], record["engine"]
    assert isinstance(host, dict)
    assert isinstance(gpus, list)
    assert isinstance(engine_part, dict)
    assert set(host) == {"os", "arch", "kernel", "cpu", "memory"}
    assert isinstance(host["cpu"], dict)
    assert isinstance(host["memory"], dict)
    assert set(host["cpu"]) >= {"model", "physical_cores", "logical_cores", "flags"}
    assert set(host["memory"]) == {
        *("total_bytes", "available_bytes", "limit_bytes", "bandwidth_gb_s")
    }
    assert isinstance(gpus[0], dict)
    assert set(gpus[0]) >= {
        *("vendor", "name", "memory_kind", "memory_total_bytes", "memory_free_bytes"),
        *("driver", "compute_capability", "uuid"),
    }
    assert engine_part == {
        "llama_cpp_python": "0.3.36",
        "backends": ["CUDA", "CPU"],
        "gpu_offload": True,
        "canary": {"ok": True, "use_extra_bufts": True, "reason": "fine"},
    }


def test_unknown_is_null_in_the_record() -> None:
    record = probing.to_json(Machine(HOST))
    text = json.dumps(record)
    assert '"bandwidth_gb_s": null' in text
    assert '"canary": null' in text
    assert '"unknown"' not in text


DEVICES = [
    ("nvidia-a10", ("NVIDIA A10",)),
    ("nvidia-a10g", ("NVIDIA A10G",)),
    ("nvidia-rtx-4090", ("NVIDIA GeForce RTX 4090",)),
    ("nvidia-rtx-4090-d", ("NVIDIA GeForce RTX 4090 D",)),
    ("nvidia-h100-sxm", ("NVIDIA H100 80GB HBM3",)),
    ("nvidia-rtx-4060-ti-8g", ("NVIDIA GeForce RTX 4060 Ti",)),
    ("nvidia-rtx-4060-ti-16g", ("NVIDIA GeForce RTX 4060 Ti",)),
    ("apple-m2-max-30c", catalogue_names(["Apple M2 Max"], 30)),
    ("apple-m2-max-38c", catalogue_names(["Apple M2 Max"], 38)),
    ("cpu-epyc-7r32", ("AMD EPYC 7R32",)),
]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["NVIDIA A10"], "nvidia-a10"),
        (["nvidia  a10"], "nvidia-a10"),
        (["A10"], "nvidia-a10"),
        (["NVIDIA A10G"], "nvidia-a10g"),
        (["NVIDIA A10-24Q"], None),
        (["NVIDIA GeForce RTX 4090"], "nvidia-rtx-4090"),
        (["NVIDIA GeForce RTX 4090 D"], "nvidia-rtx-4090-d"),
        (["NVIDIA GeForce RTX 4090 Laptop GPU"], None),
        (["NVIDIA H100 80GB HBM3 MIG 1g.10gb"], None),
        (["NVIDIA GeForce RTX 4060 Ti"], None),
        (["NVIDIA A10", "NVIDIA A10"], "nvidia-a10"),
        (["NVIDIA A10", "NVIDIA A10G"], None),
        (["NVIDIA A10", "NVIDIA T1000"], None),
        ([], None),
    ],
)
def test_profile_by_exact_name(names: list[str], expected: str | None) -> None:
    machine = Machine(HOST, tuple(Accelerator("nvidia", name) for name in names))
    assert probing.match_profile(machine, DEVICES) == expected


@pytest.mark.parametrize(
    ("cores", "expected"),
    [(30, "apple-m2-max-30c"), (38, "apple-m2-max-38c"), (24, None), (None, None)],
)
def test_profile_of_a_mac_counts_gpu_cores(cores: int | None, expected: str | None) -> None:
    machine = Machine(HOST, (Accelerator("apple", "Apple M2 Max", gpu_cores=cores),))
    assert probing.match_profile(machine, DEVICES) == expected


def test_without_an_accelerator_the_cpu_is_looked_up() -> None:
    machine = Machine(replace(HOST, cpu=Cpu(model="AMD EPYC 7R32")))
    assert probing.match_profile(machine, DEVICES) == "cpu-epyc-7r32"
    assert probing.match_profile(replace(machine, accelerators=(A10,)), DEVICES) == "nvidia-a10"


def test_names_are_normalised_but_not_shortened() -> None:
    assert normalise("Intel(R) Arc(TM)  B580 Graphics") == "arc b580 graphics"
    assert normalise("NVIDIA") == "nvidia"
    assert normalise("Radeon RX 7900 XTX") != normalise("Radeon RX 7900 XT")


def test_the_catalogue_knows_its_own_devices() -> None:
    devices, notes = probing._catalogue()
    assert notes == []
    mac = Accelerator("apple", "Apple M2 Max", gpu_cores=38)
    assert probing.match_profile(Machine(HOST, (A10,)), devices) == "nvidia-a10"
    assert probing.match_profile(Machine(HOST, (mac,)), devices) == "apple-m2-max-38c"


def test_a_gpu_inside_the_cpu_is_not_used_beside_a_card() -> None:
    host, _ = linux.read_host(DATA / "rx-7900-xtx")
    gpus, notes = amd.read_gpus(host.memory, DATA / "rx-7900-xtx")
    devices = [("amd-rx-7900-xtx", ("AMD Radeon RX 7900 XTX",))]
    machine = probing.finish(host, gpus, Engine(), notes, devices)
    assert [a.name for a in machine.accelerators] == ["AMD Radeon RX 7900 XTX"]
    assert machine.device_profile == "amd-rx-7900-xtx"
    assert any("left out" in note for note in machine.notes)


@pytest.mark.parametrize(
    ("offload", "gpus", "warns"),
    [(False, (A10,), True), (True, (A10,), False), (None, (A10,), False), (False, (), False)],
)
def test_a_cpu_only_engine_beside_a_gpu_is_pointed_out(
    offload: bool | None, gpus: tuple[Accelerator, ...], warns: bool
) -> None:
    notes = engine.engine_notes(Engine("0.3.36", ("CPU",), offload), gpus)
    assert any("CPU-only" in note for note in notes) == warns


def test_notes_on_canary_and_missing_engine() -> None:
    faulty = Engine("0.3.36", canary=Canary(True, False, "died"))
    dead = Engine("0.3.36", canary=Canary(False, None, "died twice"))
    assert "slower" in engine.engine_notes(faulty, ())[0]
    assert "does not work" in engine.engine_notes(dead, ())[0]
    assert "no inference engine" in engine.engine_notes(Engine(), ())[0]


def test_validate_turns_contradictions_into_unknowns_with_notes() -> None:
    machine = Machine(
        replace(
            HOST,
            cpu=Cpu("x", 8, 4, (), 0),
            memory=Memory(8 * GIB, 9 * GIB, -1, float("inf")),
        ),
        (replace(A10, memory_free_bytes=25 * GIB), replace(A10, memory_total_bytes=0)),
    )
    valid = probing.validate(machine)
    assert valid.host.cpu == Cpu("x", None, 4, (), None)
    assert valid.host.memory == Memory(8 * GIB, None, None, None)
    assert valid.accelerators[0].memory_free_bytes is None
    assert valid.accelerators[0].memory_total_bytes == 24 * GIB
    assert valid.accelerators[1].memory_total_bytes is None
    assert len(valid.notes) == 7
    assert probing.validate(valid) == valid


@given(*[st.none() | st.integers(-(10**3), 10**3) for _ in range(4)], st.none() | st.floats())
def test_validated_records_never_contradict_themselves(
    total: int | None,
    available: int | None,
    limit: int | None,
    free: int | None,
    rate: float | None,
) -> None:
    host = replace(HOST, memory=Memory(total, available, limit, rate))
    gpu = Accelerator("nvidia", "x", "dedicated", total, free)
    valid = probing.validate(Machine(host, (gpu,)))
    memory, device = valid.host.memory, valid.accelerators[0]
    for least, most in (
        (memory.available_bytes, memory.total_bytes),
        (memory.available_bytes, memory.limit_bytes),
        (device.memory_free_bytes, device.memory_total_bytes),
    ):
        assert least is None or least >= 0
        assert most is None or most > 0
        assert least is None or most is None or least <= most
    assert probing.validate(valid) == valid
    json.dumps(probing.to_json(valid), allow_nan=False)


def test_bandwidth_buffers() -> None:
    mib = 1024**2
    assert bandwidth.buffer_bytes(2, 20 * GIB, None) == 256 * mib
    assert bandwidth.buffer_bytes(24, 200 * GIB, None) == 384 * mib
    assert bandwidth.buffer_bytes(64, 200 * GIB, None) == 512 * mib
    assert bandwidth.buffer_bytes(2, 20 * GIB, 200 * mib) == 400 * mib
    assert bandwidth.buffer_bytes(2, GIB, None) == 128 * mib
    assert bandwidth.buffer_bytes(2, 100 * mib, None) is None
    assert bandwidth.buffer_bytes(None, GIB, None) is None
    assert bandwidth.buffer_bytes(0, GIB, None) is None
    assert bandwidth.last_level_cache(["48K\n", "2048K", "491520K", "x", ""]) == 480 * mib


def test_bandwidth_that_cannot_be_measured_is_unknown() -> None:
    assert bandwidth.measure(threads=2, available_bytes=1024) is None
    assert bandwidth.measure(threads=None, available_bytes=GIB) is None


def test_bandwidth_of_chosen_cpus_leaves_the_process_alone() -> None:
    before = os.sched_getaffinity(0)
    rate = bandwidth.measure(threads=1, available_bytes=GIB, cpus={min(before)}, budget_s=0.1)
    assert rate is not None
    assert rate > 0
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(
    ("load", "threads", "speaks"),
    [(0.3, 2, False), (1.0, 2, True), (5.4, 2, True), (5.4, 64, False), (None, 2, False)],
)
def test_a_busy_machine_is_pointed_out(load: float | None, threads: int, speaks: bool) -> None:
    assert (bandwidth.busy_note(load, threads) is not None) == speaks


def test_gpus_without_a_driver_are_pointed_out(tmp_path: Path) -> None:
    for slot, vendor, kind in [("0", "0x10de", "0x030200"), ("1", "0x10de", "0x040300")]:
        device = tmp_path / "sys/bus/pci/devices" / f"0000:00:0{slot}.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text(vendor + "\n")
        (device / "class").write_text(kind + "\n")
    assert pci.gpu_vendors(tmp_path) == {"nvidia"}
    assert "load its driver" in pci.silent_gpu_notes({"nvidia"}, set())[0]
    assert pci.silent_gpu_notes({"nvidia"}, {"nvidia"}) == ()


def test_every_recorded_machine_says_where_it_comes_from() -> None:
    table = (DATA / "README.md").read_text(encoding="utf-8")
    folders = sorted(p.name for p in DATA.iterdir() if p.is_dir())
    assert len(folders) >= 12
    assert [name for name in folders if f"`{name}`" not in table] == []
