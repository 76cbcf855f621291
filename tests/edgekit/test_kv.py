"""The KV cache to the byte: by published figures, by invariants, and by the engine's dry load."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import dryload, kv, memory
from edgekit.catalogue import load_models
from edgekit.errors import UsageError
from edgekit.shape import Shape, shape
from tests.support.skeletons import write_skeleton

MODELS = load_models()
DENSE = Shape(4, 64, 4, 2, 16, 128, 100)
LOCAL = Shape(4, 64, 4, 2, 16, 128, 100, windows=(512, 512, 512, 0))


@pytest.mark.parametrize(
    ("n_ctx", "users", "window", "streams", "full", "windowed"),
    [
        (4096, 1, 1024, False, 4096, 1536),
        (4096, 2, 1024, False, 4096, 2560),
        (4096, 8, 1024, False, 4096, 4096),
        (4096, 4, 1024, True, 4096, 4 * 1024),
        (4000, 1, 128, False, 4096, 768),
        (20000, 3, 0, True, 3 * 6912, 3 * 512),
        (100, 1, 8192, False, 256, 256),
        (131072, 1, 8192, False, 131072, 8704),
    ],
)
def test_cells_are_those_of_llama_cpp(
    n_ctx: int, users: int, window: int, streams: bool, full: int, windowed: int
) -> None:
    found = kv.cells(n_ctx, users, window, 512, streams=streams)
    assert (found.full, found.windowed) == (full, windowed)


SHAPES = st.sampled_from([shape(m.config) for m in MODELS.values()] + [DENSE, LOCAL])


@given(
    s=SHAPES,
    n_ctx=st.integers(1, 300_000),
    users=st.integers(1, 64),
    streams=st.booleans(),
    first=st.integers(0, 500),
    more=st.integers(0, 100_000),
)
def test_sums_agree_and_more_never_takes_less(
    s: Shape, n_ctx: int, users: int, streams: bool, first: int, more: int
) -> None:
    table = kv.table(s, "f16")
    found = kv.cells(n_ctx, users, table.window, 512, streams=streams)
    rows = kv.layers(s, "f16", n_ctx, users, streams=streams)
    first = min(first, s.n_layer)
    assert table.bytes(found, first) == sum(row.bytes for row in rows[first:])
    assert table.bytes(found, s.n_layer) == 0
    longer = kv.cells(n_ctx + more, users, table.window, 512, streams=streams)
    assert table.bytes(longer) >= table.bytes(found)
    if not streams:
        wider = kv.cells(n_ctx, users + 1, table.window, 512)
        assert table.bytes(wider) >= table.bytes(found)


def test_latent_attention_has_no_v_and_local_layers_stop_growing() -> None:
    lite = kv.layers(shape(MODELS["deepseek-coder-v2-lite"].config), "f16", 8192, 1)
    assert {(row.k, row.v) for row in lite} == {(1152, 0)}
    gemma = shape(MODELS["gemma-3-27b"].config)
    rows = kv.layers(gemma, "f16", 131_072, 1)
    assert [row.cells for row in rows[:6]] == [1536] * 5 + [131_072]
    assert sum(row.cells == 131_072 for row in rows) == 10


def test_a_recurrent_layer_keeps_a_state_for_each_sequence() -> None:
    s = Shape(2, 64, 4, 2, 16, 128, 100, state=(1000, 0))
    assert [r.bytes for r in kv.layers(s, "f16", 256, 3)] == [3 * 4000, 2 * 2 * 32 * 256]
    with pytest.raises(ValueError, match="per layer"):
        Shape(2, 64, 4, 2, 16, 128, 100, state=(1000,))


@pytest.mark.parametrize(("kv_type", "s"), [("q3_k", DENSE), ("q8_0", Shape(1, 8, 1, 1, 8, 8, 8))])
def test_what_cannot_be_stored_is_refused(kv_type: str, s: Shape) -> None:
    with pytest.raises(UsageError, match="cannot be stored"):
        kv.table(s, kv_type)


KINDS = ["mistral-small-24b-2501", "gemma-3-27b", "llama-4-scout", "deepseek-coder-v2-lite"]
LATER = [
    *("codellama-70b", "deepseek-v3", "gpt-oss-20b", "llama-4-maverick", "ministral-3-3b-2512"),
    *("muse-glimmer-30b", "phi-4", "qwen2.5-coder-1.5b", "qwen3-coder-30b-a3b"),
]
LOADS = [(4096, 1, "f16", False), (16384, 3, "q8_0", False), (20000, 3, "f16", True)]


@pytest.mark.parametrize(
    "name", [*KINDS, *(pytest.param(n, marks=pytest.mark.slow) for n in LATER)]
)
def test_the_engine_allocates_what_we_say(name: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    card = MODELS[name]
    path = write_skeleton(card, "Q4_K_M", tmp_path / "skeleton.gguf")
    weights = memory.weights(card, "Q4_K_M")
    for n_ctx, users, kv_type, streams in LOADS if name not in KINDS else LOADS[1:]:
        found = dryload.dry_load(
            path,
            n_ctx=n_ctx,
            n_seq_max=users,
            kv_type=kv_type,
            streams=streams,
            use_extra_bufts=False,
            flash_attn=True,
        )
        table = kv.table(weights.shape, kv_type)
        held = kv.cells(n_ctx, users, table.window, memory.N_UBATCH, streams=streams)
        assert found.kv == table.bytes(held)
        assert sum(found.weights.values()) == weights.total
