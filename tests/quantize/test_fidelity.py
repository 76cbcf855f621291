"""Weights in a file against those it was made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit_quantize.convert import convert
from edgekit_quantize.errors import BadGgufError
from edgekit_quantize.fidelity import Fidelity, allowed, compare_weights
from edgekit_quantize.gguf_header import read_header
from edgekit_quantize.llama import Ggml
from edgekit_quantize.tensor_types import TENSOR_TYPES, row_bytes
from tests.support import damage, mixtures
from tests.support.pocket import SOURCE, convert_pocket

KINDS = ("BF16", "Q8_0", "Q6_K", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, Path]:
    return {kind: convert_pocket(folder, kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_file_is_good(kind: str, files: dict[str, Path]) -> None:
    seen: list[tuple[int, int]] = []
    found = compare_weights(files[kind], SOURCE, lambda done, total: seen.append((done, total)))
    assert [f for f in found if not f.good] == []
    assert len(found) == len(read_header(files[kind]).tensors) == len(seen)
    assert {f.error for f in found if f.type in ("F32", "BF16")} <= {0.0}
    # The rule that the limits come from: 2^(1 - bits), within a third.
    for each in found:
        kind_of = TENSOR_TYPES[each.type]
        if kind_of.quantized:
            assert 0.66 < each.error / 2 ** (1 - kind_of.bits_per_weight) < 1.5, each


def test_a_folder_and_its_unquantized_file_say_the_same(files: dict[str, Path]) -> None:
    by_name = {f.name: f for f in compare_weights(files["Q2_K"], SOURCE)}
    again = compare_weights(files["Q2_K"], files["BF16"])
    assert {f.name: f for f in again} == by_name


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M", "Q2_K"])
@pytest.mark.parametrize("name", ["blk.0.attn_k.weight", "blk.3.ffn_down.weight", "output.weight"])
def test_damage_is_found_and_named(
    kind: str, name: str, files: dict[str, Path], tmp_path: Path
) -> None:
    spoilt = tmp_path / "spoilt.gguf"
    other = {"blk.0.attn_k.weight": "blk.1.attn_k.weight"}.get(name)
    cases = {
        "flipped": lambda: damage.flip_scales(files[kind], spoilt, name),
        "partly": lambda: damage.flip_scales(files[kind], spoilt, name, share=0.1),
        "empty": lambda: damage.empty(files[kind], spoilt, name),
    }
    if other:
        cases["swapped"] = lambda: damage.swap(files[kind], spoilt, name, other)
    for what, spoil in cases.items():
        bad = [f.name for f in compare_weights(spoil(), SOURCE) if not f.good]
        assert set(bad) == {name, other} - {None} if what == "swapped" else bad == [name], what


@pytest.mark.parametrize("make", [mixtures.qwen3moe, mixtures.mixtral])
def test_stacked_experts_are_read_back(make: Callable[[Path], Path], tmp_path: Path) -> None:
    source, file = make(tmp_path / "moe"), tmp_path / "m.gguf"
    convert(source, file, "Q8_0", threads=1)
    found = compare_weights(file, source)
    assert [f for f in found if not f.good] == []
    assert any("_exps" in f.name and f.type == "Q8_0" for f in found)
    stacked = "blk.0.ffn_up_exps.weight", "blk.1.ffn_up_exps.weight"
    spoilt = damage.swap(file, tmp_path / "s.gguf", *stacked)
    assert {f.name for f in compare_weights(spoilt, source) if not f.good} == set(stacked)


def test_a_file_of_another_model_is_no_comparison(files: dict[str, Path], tmp_path: Path) -> None:
    raw = files["Q8_0"].read_bytes().replace(b"blk.5.attn_q", b"blk.7.attn_q")
    other = tmp_path / "other.gguf"
    other.write_bytes(raw)
    with pytest.raises(BadGgufError) as caught:
        compare_weights(other, SOURCE)
    assert (caught.value.code, caught.value.exit_code) == ("other_tensors", 65)


def test_what_is_no_number_is_bad() -> None:
    limits = allowed(TENSOR_TYPES["Q4_K"])
    assert Fidelity("a", "Q4_K", 0.08, 0.1, *limits).good
    assert not Fidelity("a", "Q4_K", float("nan"), 0.1, *limits).good
    assert not Fidelity("a", "Q4_K", 0.08, float("nan"), *limits).good


def test_limits_by_type() -> None:
    for kind in TENSOR_TYPES.values():
        limit, row = allowed(kind)
        # A flipped scale has 2, a wrong tensor 1.41.
        assert 0 < limit <= row < 1.41, kind.name
    assert allowed(TENSOR_TYPES["Q8_0"])[0] < 0.02 < allowed(TENSOR_TYPES["Q4_K"])[0] < 0.3


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q5_K", "IQ4_XS", "Q8_0"])
def test_decoding_is_the_inverse_of_encoding(kind: str) -> None:
    ggml, made_of = Ggml(), TENSOR_TYPES[kind]
    values = np.random.default_rng(0).normal(size=(4, 256)).astype(np.float32)
    out = np.empty(4 * row_bytes(made_of, 256), np.uint8)
    ggml.prepare(made_of)
    ggml.quantize(made_of, values, out)
    back = np.empty_like(values)
    ggml.dequantize(made_of, out, back)
    again = np.empty_like(out)
    ggml.quantize(made_of, back, again)
    assert np.abs(back - values).max() < 0.5
    if not made_of.quantized:
        assert np.array_equal(again, out)
