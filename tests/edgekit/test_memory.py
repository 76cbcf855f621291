"""Memory plans: exact weights and KV, placement, budgets, and the dry load of a real file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import budget, dryload, memory
from edgekit.catalogue import find_device, find_model, load_filetypes
from edgekit.errors import BadDataError, EngineFailedError, MissingInputError, UsageError
from edgekit.facts import Device
from tests.support import gguf_models

GIB = 1024**3
MISTRAL = find_model("mistral-3-small")
QWEN = find_model("qwen2.5-coder-7b")
POCKET = find_model("pocket")
A10 = find_device("a10")
M2 = find_device("m2-max")
TABLES = {name: memory.weights(MISTRAL, name) for name in load_filetypes()}


def cpu(**known: int | None) -> Device:
    return replace(find_device("this"), backend="cpu", kind="cpu", probed=False, **known)


# Published GGUF files of the same repository (bartowski); their headers are one size.
@pytest.mark.parametrize(
    ("filetype", "file_bytes"),
    [
        ("Q2_K", 8_890_324_672),
        ("Q3_K_M", 11_474_081_472),
        ("Q4_K_M", 14_333_908_672),
        ("Q5_K_M", 16_763_983_552),
        ("Q6_K", 19_345_938_112),
        ("Q8_0", 25_054_779_072),
    ],
)
def test_file_sizes_are_those_published(filetype: str, file_bytes: int) -> None:
    assert TABLES[filetype].total + MISTRAL.header_bytes == file_bytes


def test_the_published_qwen_file_has_our_size() -> None:
    assert memory.weights(QWEN, "Q4_K_M").total + QWEN.header_bytes == 4_683_073_536


def test_bf16_is_the_checkpoint_with_norms_in_f32() -> None:
    n_norm_values = (2 * 40 + 1) * 5120
    assert TABLES["BF16"].total == 47_144_806_400 + 2 * n_norm_values


@pytest.mark.parametrize(
    ("card", "kv_type", "per_token"),
    [
        (MISTRAL, "f16", 163_840),
        (MISTRAL, "q8_0", 87_040),
        (MISTRAL, "q4_0", 46_080),
        (QWEN, "f16", 57_344),
        (POCKET, "f16", 1_536),
    ],
)
def test_kv_bytes_are_exact(card: object, kv_type: str, per_token: int) -> None:
    assert memory.kv_bytes_per_token(card.config, kv_type) == per_token  # type: ignore[attr-defined]


def test_contexts_are_padded_as_llama_cpp_pads_them() -> None:
    assert [memory.cells(n) for n in (1, 256, 257, 32768)] == [256, 256, 512, 32768]


def test_all_layers_on_a_card_leave_the_embeddings_on_the_host() -> None:
    plan = memory.predict(MISTRAL, A10, TABLES["Q4_K_M"], n_ctx=8192, users=2)
    card, host = plan.parts
    assert host.weights == TABLES["Q4_K_M"].embedding
    assert card.weights + host.weights == plan.weights == TABLES["Q4_K_M"].total
    assert (card.kv, host.kv) == (8192 * 163_840, 0)
    assert plan.total == plan.weights + plan.kv + plan.compute + plan.overhead
    assert plan.n_gpu_layers == plan.n_layers == 41


def test_a_partial_offload_takes_the_last_layers_and_their_kv() -> None:
    table = TABLES["Q4_K_M"]
    plan = memory.predict(MISTRAL, A10, table, n_ctx=4096, users=1, n_gpu_layers=11)
    card, host = plan.parts
    assert card.weights == table.output + sum(table.layers[30:])
    assert host.weights == table.embedding + sum(table.layers[:30])
    assert (card.kv, host.kv) == (10 * 4096 * 4096, 30 * 4096 * 4096)
    nothing = memory.predict(MISTRAL, A10, table, n_ctx=4096, users=1, n_gpu_layers=0)
    assert nothing.parts[0].weights == nothing.parts[0].kv == nothing.parts[0].compute == 0
    assert nothing.parts[1].weights == table.total


def test_tied_embeddings_lie_on_both_sides() -> None:
    config = {**POCKET.config, "tie_word_embeddings": True}
    tied = replace(POCKET, config=config)
    table = memory.weights(tied, "Q8_0")
    card, host = memory.predict(tied, A10, table, n_ctx=512, users=1).parts
    assert table.tied
    assert card.weights == table.total
    assert host.weights == table.embedding
    whole = memory.predict(tied, M2, table, n_ctx=512, users=1)
    assert whole.weights == table.total


@pytest.mark.parametrize(
    ("device", "limit", "basis"),
    [
        (A10, 22_731 * 2**20, "idle device"),
        (M2, 72 * GIB, "three quarters"),
        (find_device("m2-max@32"), 32 * GIB * 2 // 3, "two thirds"),
        (replace(A10, free_bytes=10 * GIB), 10 * GIB, "free now"),
        (replace(M2, free_bytes=72 * GIB, host_bytes=20 * GIB), 20 * GIB, "free now"),
        (cpu(memory_bytes=32 * GIB, free_bytes=16 * GIB), 16 * GIB, "free now"),
        (replace(A10, usable_bytes=None), 24_146_608_128 * 987 // 1000, "98.7 %"),
    ],
)
def test_budgets_state_their_basis(device: Device, limit: int, basis: str) -> None:
    found = budget.device_budget(device)
    assert found.limit_bytes == limit
    assert found.bytes == limit - GIB
    assert basis in found.basis


def test_small_memories_keep_an_eighth_free() -> None:
    assert budget.margin(4 * GIB) == GIB // 2
    assert budget.margin(64 * GIB) == GIB


def test_unknown_memory_never_fits() -> None:
    plan = memory.predict(POCKET, cpu(), memory.weights(POCKET, "Q8_0"), n_ctx=512, users=1)
    assert plan.budget is None
    assert plan.missing is None
    assert not plan.fits


def test_one_pool_is_counted_once() -> None:
    table = TABLES["Q4_K_M"]
    plan = memory.predict(MISTRAL, M2, table, n_ctx=4096, users=1)
    assert len(plan.parts) == 1
    assert plan.weights == table.total
    assert plan.budget == 71 * GIB


@pytest.mark.parametrize(
    "wrong",
    [{"n_ctx": 0}, {"users": 0}, {"users": 257}, {"n_gpu_layers": -1}, {"kv_type": "q3_k"}],
)
def test_impossible_plans_are_usage_errors(wrong: dict[str, object]) -> None:
    options = {"n_ctx": 512, "users": 1, **wrong}
    with pytest.raises(UsageError):
        memory.predict(MISTRAL, A10, TABLES["Q4_K_M"], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, 0, -3, "64", True, 1.5])
def test_a_bad_config_is_bad_data(value: object) -> None:
    with pytest.raises(BadDataError, match="hidden_size"):
        memory.shape({**POCKET.config, "hidden_size": value})


def test_an_unknown_architecture_is_bad_data() -> None:
    odd = replace(POCKET, config={**POCKET.config, "architectures": ["OddForCausalLM"]})
    with pytest.raises(BadDataError, match="OddForCausalLM"):
        memory.weights(odd, "Q8_0")


def test_amx_packs_weights_into_more_bytes() -> None:
    from edgekit.catalogue import load_families

    table = memory.weights(POCKET, "Q8_0")
    # 6,750,208 values of all matrices but the embeddings, four bytes more for each 32.
    assert table.packing == 6_750_208 // 32 * 4
    plain, amx = (
        memory.predict(POCKET, replace(cpu(), family=load_families()[f]), table, n_ctx=512, users=1)
        for f in ("cpu-avx2", "cpu-amx")
    )
    assert amx.overhead - plain.overhead == table.packing
    assert amx.weights == plain.weights == table.total


PLACES = st.sampled_from([A10, M2, find_device("rtx-4090"), cpu(free_bytes=20 * GIB)])


@settings(max_examples=60, deadline=None)
@given(
    device=PLACES,
    filetype=st.sampled_from(sorted(TABLES)),
    n_ctx=st.integers(1, 131_072),
    more=st.integers(0, 65_536),
    users=st.integers(1, 32),
    layers=st.integers(0, 41),
)
def test_more_context_or_users_never_takes_less(
    device: Device, filetype: str, n_ctx: int, more: int, users: int, layers: int
) -> None:
    def total(ctx: int, who: int) -> int:
        plan = memory.predict(
            MISTRAL, device, TABLES[filetype], n_ctx=ctx, users=who, n_gpu_layers=layers
        )
        assert plan.weights == TABLES[filetype].total
        assert sum(p.total for p in plan.parts) == plan.total
        return plan.total

    assert total(n_ctx, users) <= total(n_ctx + more, users) <= total(n_ctx + more, users + 1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dry") / "tiny.gguf"
    gguf_models.write_model(path)
    return path


def test_a_dry_load_measures_what_the_formula_says(tiny: Path) -> None:
    pytest.importorskip("llama_cpp")
    found = dryload.dry_load(tiny, n_ctx=2048, n_seq_max=4)
    layers, hidden = gguf_models.LAYERS, gguf_models.HIDDEN
    assert found.kv == 2 * 2 * layers * 2048 * (hidden // 2)
    shape = memory.Shape(layers, hidden, 4, 2, 16, 2 * hidden, len(gguf_models.vocabulary()))
    assert sum(found.compute.values()) == pytest.approx(
        memory.compute_bytes(shape, 2048, 4), rel=0.15
    )
    assert found.output == pytest.approx(memory.output_bytes(shape, 4), rel=0.15)


@pytest.mark.parametrize("streams", [False, True])
def test_scores_stand_in_memory_without_flash_attention(tiny: Path, streams: bool) -> None:
    pytest.importorskip("llama_cpp")
    found = dryload.dry_load(tiny, n_ctx=8192, n_seq_max=4, flash_attn=False, streams=streams)
    layers, hidden = gguf_models.LAYERS, gguf_models.HIDDEN
    shape = memory.Shape(layers, hidden, 4, 2, 16, 2 * hidden, len(gguf_models.vocabulary()))
    said = memory.compute_bytes(shape, 8192, 4, flash_attn=False, streams=streams)
    assert sum(found.compute.values()) == pytest.approx(said, rel=0.02)
    assert said > 3 * memory.compute_bytes(shape, 8192, 4, streams=streams)


def test_scores_count_in_a_plan() -> None:
    def total(**more: bool) -> int:
        return memory.predict(MISTRAL, A10, TABLES["Q2_K"], n_ctx=8192, users=4, **more).total

    assert total(flash_attn=False) > total() + 300 * 1024**2
    assert total(flash_attn=False, streams=True) < total(flash_attn=False)


@pytest.mark.parametrize("filetype", ["BF16", "Q8_0", "Q4_K_M"])
def test_pocket_is_predicted_to_the_byte(filetype: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from edgekit_quantize.convert import convert

    folder = Path(memory.__file__).parents[1] / "profiles" / "edgekit_profiles" / "pocket"
    if not (folder / "config.json").is_file():
        pytest.skip("the pocket model is not built yet")
    path = tmp_path / "pocket.gguf"
    made = convert(folder, path, filetype, threads=1)
    table = memory.weights(POCKET, filetype)
    assert made.tensor_bytes == table.total
    assert made.file_bytes == pytest.approx(table.total + POCKET.header_bytes, abs=4096)
    found = dryload.dry_load(path, n_ctx=8192, n_seq_max=4, use_extra_bufts=False)
    plan = memory.predict(POCKET, cpu(free_bytes=8 * GIB), table, n_ctx=8192, users=4)
    assert sum(found.weights.values()) == plan.weights
    assert found.kv == plan.kv
    assert sum(found.compute.values()) + found.output == pytest.approx(plan.compute, rel=0.01)
    refined = dryload.refine(plan, found)
    assert refined.basis == "dry load"
    assert refined.total == pytest.approx(plan.total, rel=0.01)


def test_a_dry_load_refines_a_plan() -> None:
    text = json.dumps(
        {
            "weights_bytes": {"CUDA0": 700, "CPU": 300},
            "kv_bytes": 400,
            "compute_bytes": {"CUDA0": 50, "CUDA_Host": 7},
            "output_bytes": 3,
        }
    )
    measured = dryload.parse(f"log line\n{text}\n")
    split = memory.predict(MISTRAL, A10, TABLES["Q2_K"], n_ctx=512, users=1, n_gpu_layers=11)
    plan = dryload.refine(split, measured)
    assert [(p.weights, p.kv, p.compute) for p in plan.parts] == [(700, 100, 50), (300, 300, 10)]
    assert plan.basis == "dry load"
    assert plan.overhead == split.overhead
    whole = memory.predict(MISTRAL, M2, TABLES["Q2_K"], n_ctx=512, users=1)
    assert [(p.weights, p.kv, p.compute) for p in dryload.refine(whole, measured).parts] == [
        (1000, 400, 60)
    ]


@pytest.mark.parametrize("text", ["", "nonsense", "[]", '{"weights_bytes": 3}'])
def test_a_nonsense_answer_is_an_engine_error(text: str) -> None:
    with pytest.raises(EngineFailedError, match="cannot be read"):
        dryload.parse(text)


def test_a_missing_or_broken_file_is_said_clearly(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        dryload.dry_load(tmp_path / "gone.gguf", n_ctx=512, n_seq_max=1)
    pytest.importorskip("llama_cpp")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\xff" * 64)
    with pytest.raises(EngineFailedError, match="dry load"):
        dryload.dry_load(broken, n_ctx=512, n_seq_max=1)
