"""Importance matrices: what is summed, for whom, and that it does not depend on threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_quantize.convert import convert
from edgekit_quantize.errors import BadCheckpointError
from edgekit_quantize.imatrix import ROWS_AT_ONCE, Collector
from edgekit_quantize.products import Product, weight_name
from edgekit_quantize.windows import cut
from tests.support import llama_oracle, mixtures, pocket_forward, proof
from tests.support.pocket import convert_pocket

HF_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TEXT = Path(__file__).read_text() * 2


def test_sums_are_those_of_an_independent_forward_pass(tmp_path: Path) -> None:
    model = convert_pocket(tmp_path, "F32")
    proof.collect(model, TEXT, tmp_path / "m.npz", chunks=2, chunk_size=128, threads=2)
    (ids,) = llama_oracle.call({"do": "tokenize", "model": str(model), "texts": [TEXT]})
    windows = cut(ids, [1], 128, 2)
    sums: dict[str, np.ndarray] = {}

    def see(name: str, inputs: np.ndarray) -> None:
        squares = np.square(inputs, dtype=np.float64).sum(axis=0)
        sums[name] = sums.get(name, 0) + squares

    weights = pocket_forward.read_weights()
    for window in windows.ids:
        pocket_forward.forward(weights, list(window), see)
    worst = 0.0
    with np.load(tmp_path / "m.npz") as found:
        assert len(found.files) == 2 * 6 * 7
        for layer in range(6):
            for ours, theirs in HF_NAMES.items():
                name = f"blk.{layer}.{ours}.weight"
                want = sums[f"model.layers.{layer}.{theirs}"]
                off = np.abs(found[name][0] - want).max() / want.max()
                assert found[f"{name}#"].tolist() == [256]
                worst = max(worst, float(off))
    assert worst < 1e-3


def test_the_same_bits_for_any_number_of_threads(tmp_path: Path) -> None:
    model = convert_pocket(tmp_path, "BF16")
    for threads in (1, 3):
        proof.collect(model, TEXT, tmp_path / f"{threads}.npz", chunks=2, threads=threads)
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "3.npz").read_bytes()


def product(inputs: np.ndarray, key: int = 1, **more: object) -> Product:
    fields = {"weight": "blk.0.w.weight", "n_matrices": 1, "experts": None, **more}
    return Product(inputs=inputs.astype(np.float32), key=key, **fields)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 2 * ROWS_AT_ONCE + 3),
    used=st.integers(1, 3),
    shared=st.booleans(),
    experts=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_each_expert_gets_its_own_rows(
    tokens: int, used: int, shared: bool, experts: int, seed: int
) -> None:
    r = np.random.default_rng(seed)
    inputs = r.normal(size=(tokens, 1 if shared else used, 4)).astype(np.float32)
    ids = r.integers(0, experts, (tokens, used)).astype(np.int32)
    collector = Collector()
    collector.add(product(inputs, n_matrices=experts, experts=ids))
    sums, counts = np.zeros((experts, 4)), np.zeros(experts, np.int64)
    for token in range(tokens):
        for slot in range(used):
            row = inputs[token, 0 if shared else slot].astype(np.float64)
            sums[ids[token, slot]] += row * row
            counts[ids[token, slot]] += 1
    entry = collector.entries["blk.0.w.weight"]
    np.testing.assert_allclose(entry.sums, sums, rtol=1e-12)
    assert entry.counts.tolist() == counts.tolist()


def test_a_weight_of_several_matrices_has_sums_for_each() -> None:
    # Attention over compressed keys has one matrix a head; two sequences are two outer axes more.
    inputs = np.arange(4 * 3 * 2, dtype=np.float32).reshape(4, 3, 2)
    collector = Collector()
    collector.add(product(inputs, n_matrices=2))
    entry = collector.entries["blk.0.w.weight"]
    squares = np.square(inputs, dtype=np.float64).sum(axis=1)
    np.testing.assert_array_equal(entry.sums, [squares[0] + squares[2], squares[1] + squares[3]])
    assert entry.counts.tolist() == [6]


def test_shared_inputs_are_summed_once_within_a_graph_only() -> None:
    collector = Collector()
    one, two = np.ones((1, 2, 2)), np.full((1, 2, 2), 3.0)
    collector.add(product(one, weight="blk.0.q.weight"))
    collector.add(product(one, weight="blk.0.k.weight"))
    collector.begin()
    collector.add(product(two, weight="blk.0.q.weight"))
    assert collector.entries["blk.0.q.weight"].sums.tolist() == [[20.0, 20.0]]
    assert collector.entries["blk.0.k.weight"].sums.tolist() == [[2.0, 2.0]]


def test_activations_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(BadCheckpointError) as caught:
        Collector().add(product(np.array([[[1.0, np.nan]]])))
    assert (caught.value.code, caught.value.exit_code) == ("not_finite", 65)


def test_the_experts_of_a_real_mixture_share_out_the_tokens(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    convert(mixtures.qwen3moe(tmp_path / "moe", experts=4, layers=2), model, "F32", threads=1)
    proof.collect(model, TEXT, tmp_path / "m.npz", chunks=2, chunk_size=64)
    with np.load(tmp_path / "m.npz") as found:
        for layer in range(2):
            router = f"blk.{layer}.ffn_gate_inp.weight"
            for kind in ("gate", "up", "down"):
                name = f"blk.{layer}.ffn_{kind}_exps.weight"
                assert found[name].shape[0] == 4
                # Two of four experts for each of 128 tokens.
                assert found[f"{name}#"].sum() == 2 * 128
                assert (found[name][found[f"{name}#"] == 0] == 0).all()
            # Router and experts read the same activations, each token goes to two experts.
            shared = found[f"blk.{layer}.ffn_up_exps.weight"].sum(axis=0)
            np.testing.assert_allclose(shared, 2 * found[router][0], rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        (b"blk.0.attn_q.weight", "blk.0.attn_q.weight"),
        (b"CUDA0#blk.0.attn_q.weight#0", "blk.0.attn_q.weight"),
        (b"CUDA0#blk.0.attn_q.weight", "blk.0.attn_q.weight"),
    ],
)
def test_names_without_what_a_scheduler_adds(name: bytes, plain: str) -> None:
    assert weight_name(name) == plain


def test_windows_are_spread_over_the_text() -> None:
    ids = list(range(100))
    assert [w[:2] for w in cut(ids, [], 10, 4).ids] == [(0, 1), (20, 21), (50, 51), (70, 71)]
    assert cut(ids, [999], 10, None).ids[1][:2] == (999, 9)
    assert len(cut(ids, [999], 10, None).ids) == 11
    with pytest.raises(BadCheckpointError, match="one window takes 101"):
        cut(ids, [], 101, None)
