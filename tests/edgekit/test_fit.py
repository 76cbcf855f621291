"""Fit: verdicts, reasons and the choice; tables for decisions, properties for order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import fit, memory
from edgekit.candidate import Case, judge
from edgekit.catalogue import find_device, find_filetype, find_model, load_filetypes
from edgekit.errors import MissingInputError, NoDeviceError, UsageError
from edgekit.machine import Accelerator, Canary, Cpu, Engine, Host, Machine, Memory

GIB = 1024**3
ROOT = Path(fit.__file__).parents[1]
MISTRAL = find_model("mistral-3-small")
QWEN = find_model("qwen2.5-coder-7b")
POCKET = find_model("pocket")
A10 = find_device("a10")
TABLES = {name: memory.weights(MISTRAL, name) for name in load_filetypes()}
COMMON = [f.id for f in load_filetypes().values() if f.common]
ORDER = {"fits": 0, "tight": 1, "no": 2}


@pytest.mark.parametrize(
    ("model", "device", "users", "filetype", "n_ctx", "in_reason"),
    [
        (MISTRAL, "a10", 4, "Q5_K_M", 32768, "Q6_K would need 2.2 GiB more"),
        (MISTRAL, "rtx-4090", 4, "Q5_K_M", 32768, "Q6_K would need"),
        (MISTRAL, "m2-max@32", 1, "Q4_K_M", 32768, "Q5_K_S would need"),
        (MISTRAL, "m2-max", 4, "Q8_0", 32768, "F16 is not taken"),
        (QWEN, "a10", 4, "Q8_0", 32768, "F16 is not taken"),
        (POCKET, "a10", 2, "Q8_0", 16384, "shared by 2 users"),
    ],
)
def test_the_choice(
    model: object, device: str, users: int, filetype: str, n_ctx: int, in_reason: str
) -> None:
    choice = fit.choose(model, find_device(device), users=users)  # type: ignore[arg-type]
    assert (choice.filetype, choice.n_ctx) == (filetype, n_ctx)
    assert in_reason in choice.reason
    assert choice.plan.fits
    assert len(choice.runners_up) + len(choice.rejected) == len(COMMON) - 1
    assert all(lost.why for lost in (*choice.runners_up, *choice.rejected))
    assert {lost.verdict for lost in choice.runners_up} == {"fits"}


def test_the_context_gives_way_before_quality_does() -> None:
    small = replace(A10, usable_bytes=18 * GIB)
    choice = fit.choose(MISTRAL, small, users=1)
    assert choice.filetype == "Q4_K_M"
    assert 8192 <= choice.n_ctx < 32768
    assert "shorter than 32,768" in choice.reason


def test_quality_gives_way_when_no_useful_context_is_left() -> None:
    choice = fit.choose(MISTRAL, replace(A10, usable_bytes=14 * GIB), users=1)
    assert find_filetype(choice.filetype).loss > fit.GOOD_LOSS


def test_the_context_stretches_to_what_fits() -> None:
    long = replace(MISTRAL, n_ctx_train=131_072)
    choice = fit.choose(long, find_device("m2-max"), users=1)
    assert choice.n_ctx == 131_072
    assert fit.choose(long, A10, users=1).n_ctx == 33_280


@pytest.mark.parametrize(("bandwidth", "filetype"), [(80.0, "Q6_K"), (2000.0, "Q8_0")])
def test_a_slow_device_gets_no_eight_bits(bandwidth: float, filetype: str) -> None:
    device = replace(A10, usable_bytes=64 * GIB, bandwidth_gb_s=bandwidth)
    choice = fit.choose(MISTRAL, device)
    assert choice.filetype == filetype
    assert (bandwidth > 100) or "worth the wait" in choice.reason


def test_what_is_asked_for_is_kept() -> None:
    choice = fit.choose(MISTRAL, A10, users=2, n_ctx=4096, filetype="q3_k_m")
    assert (choice.filetype, choice.n_ctx) == ("Q3_K_M", 4096)
    assert choice.reason.startswith("Q3_K_M as asked")
    whole = fit.choose(MISTRAL, find_device("m2-max"), filetype="BF16")
    assert whole.filetype == "BF16"


def test_a_partial_offload_is_taken_only_when_asked() -> None:
    with pytest.raises(NoDeviceError) as caught:
        fit.choose(MISTRAL, A10, filetype="Q8_0", n_ctx=4096)
    assert caught.value.exit_code == 69
    assert "layers on the device" in (caught.value.hint or "")
    choice = fit.choose(MISTRAL, A10, filetype="Q8_0", n_ctx=4096, n_gpu_layers=30)
    assert choice.n_gpu_layers == 30
    assert choice.candidate.verdict == "tight"


def test_nothing_fits_says_what_would() -> None:
    with pytest.raises(NoDeviceError) as caught:
        fit.choose(MISTRAL, A10, users=64)
    assert "does not fit NVIDIA A10" in caught.value.message
    assert "Q4_K_M fits at 47,360 tokens" in (caught.value.hint or "")
    with pytest.raises(NoDeviceError) as caught:
        fit.choose(MISTRAL, replace(A10, usable_bytes=2 * GIB))
    assert "more memory" in (caught.value.hint or "")


def test_more_context_than_trained_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="trained on 32,768"):
        fit.choose(MISTRAL, A10, n_ctx=40_000)
    assert fit.choose(MISTRAL, A10, users=2, n_ctx=40_000).n_ctx == 40_000


def test_this_must_be_probed_first_and_unknown_file_types_are_named() -> None:
    with pytest.raises(UsageError, match="probed first"):
        fit.choose(POCKET, find_device("this"))
    with pytest.raises(MissingInputError, match="Q9_K"):
        fit.candidates(POCKET, A10, filetype="Q9_K")


@pytest.mark.parametrize(
    ("change", "verdict", "binding", "words"),
    [
        ({}, "fits", "memory", "stay free"),
        ({"usable_bytes": 21 * GIB + 300 * 2**20}, "tight", "memory", "should stay free"),
        ({"usable_bytes": 18 * GIB}, "tight", "memory", "layers on the device"),
        ({"usable_bytes": 9 * GIB}, "no", "memory", "no context fits"),
        ({"host_bytes": GIB // 2}, "no", "host memory", "the host needs"),
        ({"usable_bytes": None, "memory_bytes": None}, "no", "unknown", "is not known"),
    ],
)
def test_verdicts(change: dict[str, int | None], verdict: str, binding: str, words: str) -> None:
    case = Case(MISTRAL, replace(A10, **change), find_filetype("Q5_K_M"), 4, TABLES["Q5_K_M"])
    found = judge(case, 32768)
    assert (found.verdict, found.binding) == (verdict, binding)
    assert words in found.reason
    assert (found.speed.decode is None) == (verdict == "no")


@settings(max_examples=80, deadline=None)
@given(
    memory_gib=st.floats(1, 120),
    more=st.floats(0, 40),
    filetype=st.sampled_from(sorted(TABLES)),
    n_ctx=st.integers(256, 131_072),
    users=st.integers(1, 8),
    kind=st.sampled_from(["dedicated", "unified"]),
)
def test_more_memory_is_never_a_worse_verdict(
    memory_gib: float, more: float, filetype: str, n_ctx: int, users: int, kind: str
) -> None:
    base = A10 if kind == "dedicated" else find_device("m2-max")

    def verdict(gib: float) -> int:
        device = replace(base, usable_bytes=int(gib * GIB))
        case = Case(MISTRAL, device, find_filetype(filetype), users, TABLES[filetype])
        return ORDER[judge(case, n_ctx).verdict]

    assert verdict(memory_gib + more) <= verdict(memory_gib)


@settings(max_examples=25, deadline=None)
@given(
    memory_gib=st.floats(6, 100),
    more=st.floats(0, 20),
    n_ctx=st.one_of(st.none(), st.sampled_from([4096, 16384, 32768])),
    users=st.sampled_from([1, 4]),
)
def test_a_choice_fits_and_more_memory_never_loses_one(
    memory_gib: float, more: float, n_ctx: int | None, users: int
) -> None:
    def pick(gib: float) -> fit.Choice | None:
        device = replace(A10, usable_bytes=int(gib * GIB))
        try:
            return fit.choose(MISTRAL, device, users=users, n_ctx=n_ctx)
        except NoDeviceError:
            return None

    small, large = pick(memory_gib), pick(memory_gib + more)
    if small is None:
        return
    assert large is not None
    assert small.plan.fits
    assert small.plan.budget is not None
    assert small.plan.total <= small.plan.budget
    if n_ctx is not None:
        assert find_filetype(large.filetype).loss <= find_filetype(small.filetype).loss


def test_the_record_has_every_field_of_the_contract() -> None:
    rows = fit.candidates(MISTRAL, A10, users=4)
    record = json.loads(json.dumps(fit.fit_record(rows)))
    assert record["schema"] == "edgekit.fit/1"
    assert sorted(row["filetype"] for row in record["rows"]) == sorted(COMMON)
    assert len(COMMON) == 13
    first = record["rows"][0]
    assert first["verdict"] == "fits"
    assert first["reason"] == fit.choose(MISTRAL, A10, users=4).reason
    for row in record["rows"]:
        assert {"model", "device", "filetype", "n_ctx", "users", "verdict", "binding"} <= set(row)
        assert {"reason", "file_bytes", "offload", "licence", "cost"} <= set(row)
        sizes = row["bytes"]
        four = [sizes[k] for k in ("weights", "kv", "compute", "overhead")]
        assert sizes["total"] == sum(four) == sum(p["total"] for p in sizes["parts"])
        assert all(isinstance(v, int) for v in (*four, sizes["budget"], row["file_bytes"]))
        assert row["file_bytes"] > sizes["weights"]
        assert (row["verdict"] == "fits") <= (sizes["total"] <= sizes["budget"])
        assert set(row["cost"]) == {"device_usd", "watts", "usd_per_million_tokens"}
        for name in ("decode_tok_s", "prefill_tok_s", "ttft_ms"):
            assert row[name] is None or set(row[name]) == {"value", "low", "high", "basis"}
    priced = fit.fit_record(fit.candidates(MISTRAL, find_device("rtx-4090"), users=4))
    cost = priced["rows"][0]["cost"]  # type: ignore[index]
    assert 0.05 < cost["usd_per_million_tokens"] < 5


def test_planning_needs_no_heavy_import() -> None:
    code = (
        "import sys\n"
        "for heavy in ('numpy', 'llama_cpp', 'fastapi', 'pydantic', 'httpx'):\n"
        "    sys.modules[heavy] = None\n"
        "from edgekit import catalogue, fit\n"
        "card = catalogue.find_model('mistral-3-small')\n"
        "print(fit.choose(card, catalogue.find_device('a10'), users=4).filetype)\n"
    )
    path = os.pathsep.join(str(ROOT / p) for p in ("", "profiles", "quantize", "server"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.stdout.strip() == "Q5_K_M", done.stderr


def machine(
    *accelerators: Accelerator,
    flags: tuple[str, ...] = ("avx2", "avx512f", "amx_int8"),
    arch: str = "x86_64",
    engine: Engine | None = None,
    limit: int | None = None,
    bandwidth: float | None = 41.0,
) -> Machine:
    memory = Memory(24 * GIB, 20 * GIB, limit, bandwidth)
    host = Host("linux", arch, cpu=Cpu("Intel Xeon", 2, 2, flags), memory=memory)
    return Machine(host, accelerators, engine or Engine())


AMX_DIES = Engine(canary=Canary(False, False, "died of SIGSEGV"))


@pytest.mark.parametrize(
    ("given", "family", "free"),
    [
        (machine(), "cpu-amx", 20 * GIB),
        (machine(engine=AMX_DIES), "cpu-avx512", 20 * GIB),
        (machine(flags=("avx2", "avx512f")), "cpu-avx512", 20 * GIB),
        (machine(flags=("avx2",), limit=4 * GIB), "cpu-avx2", 4 * GIB),
        (machine(flags=()), "cpu-desktop", 20 * GIB),
        (machine(arch="aarch64", flags=("asimd",)), "cpu-neon", 20 * GIB),
    ],
)
def test_a_machine_without_accelerator_plans_on_its_memory(
    given: Machine, family: str, free: int
) -> None:
    device = fit.device_from_machine(given)
    assert (device.family.id, device.free_bytes) == (family, free)
    choice = fit.choose(POCKET, device)
    assert choice.n_gpu_layers == 0
    assert choice.candidate.speed.decode is not None


def test_a_known_card_takes_its_facts_from_the_catalogue_and_its_memory_from_the_driver() -> None:
    card = Accelerator("nvidia", "NVIDIA A10", "dedicated", 23_028 << 20, 20_000 << 20)
    device = fit.device_from_machine(machine(card))
    assert (device.id, device.bandwidth_gb_s, device.free_bytes) == ("this", 600.0, 20_000 << 20)
    assert device.host_bytes == 20 * GIB
    assert fit.choose(MISTRAL, device, users=4).filetype == "Q4_K_M"


@pytest.mark.parametrize(
    ("accelerators", "engine", "note"),
    [
        (("NVIDIA A10",), Engine(gpu_offload=False), "built without GPU"),
        (("NVIDIA A10", "NVIDIA A10"), Engine(), "one of 2"),
        (("NVIDIA X9",), Engine(), "no entry for NVIDIA X9"),
    ],
)
def test_what_is_left_out_is_noted(
    accelerators: tuple[str, ...], engine: Engine, note: str
) -> None:
    cards = [Accelerator("nvidia", n, "dedicated", 24 * GIB, 23 * GIB) for n in accelerators]
    device = fit.device_from_machine(machine(*cards, engine=engine))
    assert any(note in line for line in device.notes)
    found = fit.choose(POCKET, device).candidate
    assert (found.speed.decode is None) == ("X9" in accelerators[0])


def test_a_slice_of_a_card_has_a_slice_of_its_speed() -> None:
    card = Accelerator("nvidia", "NVIDIA A10", "dedicated", 11_514 << 20, 11_000 << 20, mig=True)
    device = fit.device_from_machine(machine(card))
    assert device.bandwidth_gb_s == pytest.approx(300)


def test_apple_memory_is_one_pool() -> None:
    gpu = Accelerator("apple", "Apple M2 Max", "unified", 32 * GIB, 21 * GIB, gpu_cores=38)
    device = fit.device_from_machine(machine(gpu, arch="arm64"))
    assert device.bandwidth_gb_s == 400
    plan = fit.choose(QWEN, device).plan
    assert len(plan.parts) == 1
    # 20 GiB are available to processes, less than Metal's 21; 1 GiB stays free.
    assert plan.budget == 19 * GIB
