"""Each ill of a machine is found, named and given its fix."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.doctor import CHECKS, Finding, diagnose, examine
from edgekit.machine import Accelerator, Canary, Cpu, Engine, Host, Machine, Memory
from edgekit.surroundings import (
    Surroundings,
    gpu_backends,
    look_around,
    missing_packages,
    nearest_existing,
    port_problem,
)

GIB = 1024**3
GPU = Accelerator("nvidia", "NVIDIA A10", "dedicated", 24 * GIB, 23 * GIB)
HEALTHY = Machine(
    Host("linux", "x86_64", None, Cpu(), Memory(64 * GIB, 60 * GIB, None, 41.0)),
    (GPU,),
    Engine("0.3.36", ("CPU", "CUDA"), True, Canary(True, True, "4 tokens decoded")),
)
AROUND = Surroundings(
    python=(3, 12),
    platform="linux",
    missing={"serve": (), "quantize": ()},
    compiler="/usr/bin/c++",
    store_path=Path("/var/lib/edgekit"),
    disk_free_bytes=500 * 10**9,
    store_writable=True,
    port=8484,
    port_problem=None,
    gpu_backends=("cuda",),
    pinned_engine="0.3.36",
)


def memory(**changes: int) -> Machine:
    changed = replace(HEALTHY.host.memory, **changes)  # type: ignore[arg-type]
    return replace(HEALTHY, host=replace(HEALTHY.host, memory=changed))


def engine(**changes: object) -> Machine:
    return replace(HEALTHY, engine=replace(HEALTHY.engine, **changes))  # type: ignore[arg-type]


def by_code(machine: Machine, around: Surroundings) -> dict[str, Finding]:
    return {finding.code: finding for finding in examine(machine, around)}


def test_a_healthy_machine_is_all_ok() -> None:
    found = examine(HEALTHY, AROUND)
    assert {finding.severity for finding in found} == {"ok"}
    assert all(finding.fix is None for finding in found)
    assert len(found) == len(CHECKS) - 1  # an idle GPU's memory is not worth a line


@pytest.mark.parametrize(
    ("machine", "around", "code", "severity", "fix"),
    [
        (HEALTHY, {"python": (3, 10)}, "python", "error", "3.11"),
        (HEALTHY, {"missing": {"serve": ("fastapi",)}}, "extras", "warning", "edgekit[serve]"),
        (HEALTHY, {"missing": None}, "extras", "note", None),
        (HEALTHY, {"compiler": None}, "compiler", "note", None),
        (engine(llama_cpp_python=None), {"compiler": None}, "compiler", "warning", "apt install"),
        (
            engine(llama_cpp_python=None),
            {"compiler": None, "platform": "darwin"},
            "compiler",
            "warning",
            "xcode-select",
        ),
        (engine(llama_cpp_python="0.3.1"), {}, "engine_version", "warning", "==0.3.36"),
        (engine(canary=Canary(False, None, "SIGILL")), {}, "canary", "error", "engine build"),
        (engine(canary=Canary(True, False, "SIGSEGV")), {}, "canary", "warning", "engine build"),
        (engine(canary=Canary(None, None, "no model")), {}, "canary", "note", "edgekit probe"),
        (engine(gpu_offload=False), {}, "gpu_build", "warning", "GGML_CUDA=on"),
        (engine(gpu_offload=None), {"gpu_backends": ()}, "gpu_build", "warning", "GGML_CUDA=on"),
        (memory(available_bytes=GIB), {}, "memory", "warning", "free some memory"),
        (memory(limit_bytes=8 * GIB), {}, "memory", "note", None),
        (memory(limit_bytes=GIB, available_bytes=GIB), {}, "memory", "warning", "raise the"),
        (HEALTHY, {"store_writable": False}, "store", "error", "write access"),
        (HEALTHY, {"disk_free_bytes": 10**8}, "disk", "error", "free some disk"),
        (HEALTHY, {"disk_free_bytes": 10**10}, "disk", "warning", "free some disk"),
        (HEALTHY, {"port_problem": "in_use"}, "port", "warning", "--port 8485"),
        (HEALTHY, {"port_problem": "denied", "port": 80}, "port", "error", "--port 8484"),
    ],
)
def test_each_ill_is_found(
    machine: Machine, around: dict[str, object], code: str, severity: str, fix: str | None
) -> None:
    finding = by_code(machine, replace(AROUND, **around))[code]  # type: ignore[arg-type]
    assert finding.severity == severity
    assert finding.message
    if fix is None:
        assert finding.fix is None
    else:
        assert finding.fix is not None
        assert fix in finding.fix


@pytest.mark.parametrize(
    ("vendor", "switch"), [("amd", "GGML_HIP"), ("apple", "GGML_METAL"), ("intel", "GGML_SYCL")]
)
def test_a_cpu_only_engine_is_rebuilt_for_its_gpu(vendor: str, switch: str) -> None:
    gpu = Accelerator(vendor, "some GPU")  # type: ignore[arg-type]
    machine = replace(engine(gpu_offload=False), accelerators=(gpu,))
    fix = by_code(machine, AROUND)["gpu_build"].fix
    assert fix is not None
    assert switch in fix
    assert "llama-cpp-python==0.3.36" in fix


def test_a_busy_gpu_is_said_but_not_a_unified_one() -> None:
    busy = replace(GPU, memory_free_bytes=GIB)
    assert by_code(replace(HEALTHY, accelerators=(busy,)), AROUND)["gpu_memory"].fix
    shared = replace(busy, memory_kind="unified")
    assert "gpu_memory" not in by_code(replace(HEALTHY, accelerators=(shared,)), AROUND)


def test_the_worst_comes_first() -> None:
    around = replace(AROUND, port_problem="in_use", store_writable=False)
    severities = [finding.severity for finding in examine(HEALTHY, around)]
    assert severities[:2] == ["error", "warning"]


def test_unknown_facts_raise_no_alarm() -> None:
    unknown = Machine(Host("linux", "x86_64"))
    around = replace(AROUND, disk_free_bytes=None, gpu_backends=None, pinned_engine=None)
    assert {f.severity for f in examine(unknown, around)} == {"ok"}


def test_a_taken_port_is_seen_and_left_alone() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port_problem(port) == "in_use"
    assert port_problem(port) is None
    assert port_problem(99_999) == "not a port number"


def test_the_store_is_judged_where_it_would_be_made(tmp_path: Path) -> None:
    deep = tmp_path / "not" / "there" / "yet"
    assert nearest_existing(deep) == tmp_path
    around = look_around(deep, 0)
    assert around.store_writable
    assert around.disk_free_bytes is not None
    assert not deep.exists()


def test_missing_packages_are_those_that_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = [
        "httpx>=0.28",
        'numpy>=1.26; extra == "serve"',
        'no-such-package-at-all==1; extra == "serve"',
        'edgekit[serve]; extra == "all"',
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: lines)
    assert missing_packages(["serve"]) == {"serve": ("no-such-package-at-all",)}

    def not_installed(_: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "requires", not_installed)
    assert missing_packages(["serve"]) is None


def test_gpu_libraries_are_read_from_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llama_cpp"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('never loaded')")
    (package / "lib" / "libggml-cuda.so").touch()
    (package / "lib" / "libggml-cpu.so").touch()
    spec = importlib.util.spec_from_file_location(
        "llama_cpp", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    assert gpu_backends() == ("cuda",)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert gpu_backends() is None


def test_this_machine_can_be_diagnosed(tmp_path: Path) -> None:
    found = diagnose(Machine(Host("linux", "x86_64")), tmp_path, 0)
    assert {"python", "port", "store"} <= {finding.code for finding in found}
