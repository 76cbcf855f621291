"""NVML through the real pynvml, against a library that these tests compile."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.machine import Accelerator, Memory
from edgekit.probe import linux, nvidia
from edgekit.probe.tool import ToolOutput
from tests.support.nvml import build_stub, compiler, stub_env

DATA = Path(__file__).parents[1] / "data/probe"
MIB = 1024**2
Found = tuple[tuple[Accelerator, ...], tuple[str, ...]]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None:
        pytest.skip("no C compiler to build the NVML stand-in with")
    return build_stub(tmp_path_factory.mktemp("nvml"))


def ask(library: Path, machine: str, timeout_s: float = 10.0) -> Found:
    memory = linux.read_host(DATA / machine)[0].memory
    env = stub_env(library, DATA / machine / "nvml.txt")
    return nvidia.read_gpus(host_memory=memory, timeout_s=timeout_s, env=env)


@pytest.mark.parametrize(
    ("machine", "name", "total_mib", "free_mib", "driver", "capability", "ecc"),
    [
        ("a10", "NVIDIA A10", 23028, 22731, "550.127.05", "8.6", True),
        ("a10g", "NVIDIA A10G", 23028, 22503, "560.35.05", "8.6", True),
        ("l4", "NVIDIA L4", 23034, 22563, "550.90.07", "8.9", True),
        ("rtx-4090", "NVIDIA GeForce RTX 4090", 24564, 23011, "570.86.16", "8.9", False),
    ],
)
def test_a_card_of_its_own(
    library: Path,
    machine: str,
    name: str,
    total_mib: int,
    free_mib: int,
    driver: str,
    capability: str,
    ecc: bool,
) -> None:
    (gpu,), notes = ask(library, machine)
    assert gpu.vendor == "nvidia"
    assert gpu.name == name
    assert gpu.memory_kind == "dedicated"
    assert (gpu.memory_total_bytes, gpu.memory_free_bytes) == (total_mib * MIB, free_mib * MIB)
    assert (gpu.driver, gpu.compute_capability, gpu.ecc) == (driver, capability, ecc)
    assert (gpu.uuid or "").startswith("GPU-")
    assert gpu.mig is False
    assert notes == ()


def test_mig_instances_stand_for_themselves_and_the_card_does_not(library: Path) -> None:
    gpus, notes = ask(library, "h100-mig")
    assert [g.name for g in gpus] == [
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    ]
    assert [g.memory_total_bytes for g in gpus] == [40448 * MIB, 9728 * MIB]
    assert [g.memory_free_bytes for g in gpus] == [40407 * MIB, 9715 * MIB]
    assert [g.gpu_cores for g in gpus] == [60, 16]
    assert all(g.mig and g.ecc and g.compute_capability == "9.0" for g in gpus)
    assert all((g.uuid or "").startswith("MIG-") for g in gpus)
    assert notes == ()


def test_a_card_in_mig_mode_without_instances_is_of_no_use(library: Path) -> None:
    gpus, notes = ask(library, "mig-without-instance")
    assert gpus == ()
    assert "without an instance" in notes[0]


def test_a_unified_part_takes_the_hosts_memory(library: Path) -> None:
    (gpu,), notes = ask(library, "gb10")
    assert gpu.name == "NVIDIA GB10"
    assert gpu.memory_kind == "unified"
    assert gpu.memory_total_bytes == 127600748 * 1024
    assert gpu.memory_free_bytes == 118566368 * 1024
    assert (gpu.compute_capability, gpu.ecc) == ("12.1", None)
    assert "shares the host's memory" in notes[0]


def test_a_lost_gpu_is_named_with_unknown_memory(library: Path) -> None:
    (gpu,), notes = ask(library, "gpu-lost")
    assert (gpu.memory_total_bytes, gpu.memory_free_bytes, gpu.memory_kind) == (None, None, None)
    assert notes == ("NVIDIA L4: the driver does not tell its memory (GPU is lost)",)


def test_a_hanging_driver_costs_a_note_and_the_time_limit(library: Path) -> None:
    start = time.monotonic()
    gpus, notes = ask(library, "driver-hangs", timeout_s=1.0)
    assert time.monotonic() - start < 5
    assert gpus == ()
    assert notes == ("the NVIDIA driver did not answer within 1 s (check that nvidia-smi works)",)


def test_a_crashing_driver_costs_a_note(library: Path) -> None:
    assert ask(library, "driver-crashes") == (
        (),
        ("the NVIDIA driver's library crashed (SIGSEGV) (check that nvidia-smi works)",),
    )


def test_what_was_learned_before_a_crash_is_kept(library: Path) -> None:
    (gpu,), notes = ask(library, "second-gpu-crashes")
    assert (gpu.name, gpu.memory_total_bytes) == ("NVIDIA L4", 23034 * MIB)
    assert "1 device(s) were read before that" in notes[0]


@pytest.mark.parametrize(
    ("machine", "words"),
    [("driver-mismatch", "NVML/RM version mismatch"), ("driver-not-loaded", "Not Loaded")],
)
def test_a_refusing_driver_is_quoted(library: Path, machine: str, words: str) -> None:
    gpus, notes = ask(library, machine)
    assert gpus == ()
    assert len(notes) == 1
    assert notes[0].startswith("NVML does not answer: ")
    assert words in notes[0]


def test_no_library_is_no_news(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"")  # hides a real one, if this machine has it
    env = {"LD_LIBRARY_PATH": str(tmp_path)}
    assert nvidia.read_gpus(host_memory=Memory(), env=env) == ((), ())


def test_a_python_that_cannot_start_pynvml_is_a_note() -> None:
    output = ToolOutput(1, stderr="Traceback ...\nModuleNotFoundError: No module named 'pynvml'\n")
    gpus, notes = nvidia.parse_nvml(output, Memory())
    assert gpus == ()
    assert "No module named 'pynvml'" in notes[0]


def test_figures_of_a_unified_parts_own_are_not_believed() -> None:
    device = {"index": 0, "mig_instance": None, "name": "NVIDIA GB10"}
    lines = [{**device, "memory": {"total": 5, "free": 1}}, {"done": True}]
    output = ToolOutput(0, "\n".join(json.dumps(line) for line in lines))
    (gpu,), _ = nvidia.parse_nvml(output, Memory(total_bytes=100, available_bytes=80))
    assert (gpu.memory_kind, gpu.memory_total_bytes, gpu.memory_free_bytes) == ("unified", 100, 80)


def test_not_supported_on_an_unknown_part_is_not_taken_for_unified_memory() -> None:
    lines = [
        {"driver": "550", "count": 1},
        {"index": 0, "mig_instance": None, "name": "GRID X", "memory": "not_supported"},
        {"done": True},
    ]
    output = ToolOutput(0, "\n".join(json.dumps(line) for line in lines))
    (gpu,), notes = nvidia.parse_nvml(output, Memory(total_bytes=1, available_bytes=1))
    assert (gpu.memory_kind, gpu.memory_total_bytes) == (None, None)
    assert "does not tell its memory" in notes[0]


@given(
    st.lists(
        st.one_of(
            st.text(max_size=30),
            st.dictionaries(
                st.sampled_from(
                    (
                        *("index", "mig_instance", "mig_mode", "name", "memory", "error", "driver"),
                        *("count", "done", "compute_capability", "cores", "ecc", "uuid", "missing"),
                    )
                ),
                st.recursive(
                    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
                    lambda inner: (
                        st.lists(inner, max_size=3)
                        | st.dictionaries(st.sampled_from(["total", "free"]), inner)
                    ),
                    max_leaves=4,
                ),
            ).map(json.dumps),
        ),
        max_size=6,
    )
)
def test_the_parser_survives_anything_a_child_could_print(lines: list[str]) -> None:
    gpus, notes = nvidia.parse_nvml(ToolOutput(0, "\n".join(lines)), Memory())
    assert all(isinstance(g.name, str) and g.name for g in gpus)
    assert all(isinstance(n, str) for n in notes)


TWO = (
    Accelerator("nvidia", "NVIDIA L4", uuid="GPU-aaa1"),
    Accelerator("nvidia", "NVIDIA L4", uuid="GPU-aab2"),
)


@pytest.mark.parametrize(
    ("setting", "kept"),
    [
        (None, [0, 1]),
        ("0,1", [0, 1]),
        ("1", [1]),
        ("1,0", [1, 0]),
        ("0,7,1", [0]),
        ("", []),
        ("-1", []),
        ("GPU-aab", [1]),
        ("GPU-aa", []),
        ("NoDevFiles", []),
    ],
)
def test_cuda_visible_devices(setting: str | None, kept: list[int]) -> None:
    environment = {} if setting is None else {"CUDA_VISIBLE_DEVICES": setting}
    gpus, notes = nvidia.visible(TWO, environment)
    assert gpus == tuple(TWO[i] for i in kept)
    assert bool(notes) == (len(kept) < 2)


def test_numbers_mean_nothing_sure_among_unlike_cards() -> None:
    unlike = (TWO[0], replace(TWO[1], name="NVIDIA A10"))
    gpus, notes = nvidia.visible(unlike, {"CUDA_VISIBLE_DEVICES": "0"})
    assert gpus == unlike
    assert "CUDA_DEVICE_ORDER" in notes[0]
    ordered = {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert nvidia.visible(unlike, ordered)[0] == unlike[:1]
