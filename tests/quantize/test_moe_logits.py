"""Each mixture of experts: transformers' own class, our GGUF, llama.cpp's logits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgekit_quantize import convert, read_header
from edgekit_quantize.tensor_types import TensorType
from tests.quantize.test_convert import NUMBERS
from tests.support import llama_oracle, logits_oracle
from tests.support.logits_oracle import assert_agree, token_ids
from tests.support.moe_models import (
    MIXTURES,
    YARN,
    floats,
    fp8_blocks,
    packed_experts,
    read_floats,
    save,
    write_like,
)
from tests.support.tiny_models import VOCAB, edit_config

N_TOKENS = 96


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", MIXTURES)
def test_logits_are_transformers_logits(name: str, seed: int, tmp_path: Path) -> None:
    folder = save(name, tmp_path / "c", seed)
    done = convert(folder, tmp_path / "m.gguf", "F32", threads=1)
    apart = assert_agree(done.path, folder, token_ids(N_TOKENS, VOCAB, seed))
    # A lost norm, bias or scale is two orders of magnitude away from summation order.
    assert apart < 5e-5
    whole = name in ("llama4-maverick", "muse-glimmer")
    assert any("vision part" in reason for reason in done.reasons) == whole


@pytest.mark.parametrize("name", ["qwen3moe", "mixtral", "deepseek3"])
def test_stacked_experts_are_the_same_file(name: str, tmp_path: Path) -> None:
    """transformers may save experts stacked, gate and up in one tensor."""
    folder = save(name, tmp_path / "c", 0)
    weights = read_floats(folder)
    stacked = {n: w for n, w in weights.items() if ".experts." not in n and "_moe.gate" not in n}
    gate, up, down = (
        ("w1", "w3", "w2") if name == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    )
    for layer in range(4):
        prefix = f"model.layers.{layer}.{'block_sparse_moe' if name == 'mixtral' else 'mlp'}"
        if f"{prefix}.experts.0.{gate}.weight" not in weights:
            continue
        one = [
            {k: weights[f"{prefix}.experts.{i}.{k}.weight"] for k in (gate, up, down)}
            for i in range(8)
        ]
        ours = f"model.layers.{layer}.mlp"
        stacked[f"{ours}.gate.weight"] = weights[f"{prefix}.gate.weight"]
        stacked[f"{ours}.experts.gate_up_proj"] = np.stack(
            [np.concatenate([e[gate], e[up]]) for e in one]
        )
        stacked[f"{ours}.experts.down_proj"] = np.stack([e[down] for e in one])
    fused = write_like(folder, tmp_path / "f", floats(stacked))
    assert contents(folder, tmp_path / "c.gguf") == contents(fused, tmp_path / "f.gguf")


def contents(folder: Path, out: Path) -> dict[str, tuple[TensorType, bytes]]:
    convert(folder, out, "F32", threads=1)
    header, raw = read_header(out), out.read_bytes()
    return {
        t.name: (t.type, raw[header.data_offset + t.offset :][: t.bytes]) for t in header.tensors
    }


def test_mxfp4_experts_are_kept_and_mean_the_same(tmp_path: Path) -> None:
    import gguf

    folder = save("gpt-oss", tmp_path / "c", 3)
    packed_experts(folder, tmp_path / "packed", tmp_path / "twin", 3)
    ours = contents(tmp_path / "packed", tmp_path / "packed.gguf")
    twin = contents(tmp_path / "twin", tmp_path / "twin.gguf")
    assert ours.keys() == twin.keys()
    for name, (kind, raw) in ours.items():
        if kind.name != "MXFP4":
            assert (kind, raw) == twin[name]
            continue
        blocks = np.frombuffer(raw, np.uint8).reshape(-1, 17)
        values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.MXFP4)
        np.testing.assert_array_equal(values.ravel(), np.frombuffer(twin[name][1], np.float32))
    assert sum(kind.name == "MXFP4" for kind, _ in ours.values()) == 3 * 4
    ids = token_ids(N_TOKENS, VOCAB, 3)
    theirs = logits_oracle.transformers_logits(tmp_path / "twin", ids)
    plain = logits_oracle.llama_logits(tmp_path / "twin.gguf", ids)
    assert logits_oracle.distance(plain, theirs) < 5e-5
    # llama.cpp rounds activations to 8 bits before it multiplies them with MXFP4, so a token may
    # get other experts now and then.
    apart = np.abs(logits_oracle.llama_logits(tmp_path / "packed.gguf", ids) - theirs).max(axis=1)
    assert np.median(apart) < 1e-2 * np.ptp(theirs)
    # llama-quantize takes packed experts for this file type only, and keeps them.
    moe = {"MXFP4_MOE": tmp_path / "theirs.gguf"}
    llama_oracle.quantize(tmp_path / "packed.gguf", moe, NUMBERS)
    done = convert(tmp_path / "packed", tmp_path / "ours.gguf", "MXFP4_MOE", threads=1)
    assert done.path.read_bytes() == moe["MXFP4_MOE"].read_bytes()


@pytest.mark.parametrize(
    "scales", [{"mscale": 1.0, "mscale_all_dim": 0.5}, {"mscale_all_dim": 0.8}, {}], ids=str
)
def test_unequal_yarn_scales(scales: dict[str, object], tmp_path: Path) -> None:
    """No published DeepSeek has them; llama.cpp's graph needs other keys for them."""
    folder = save("deepseek3", tmp_path / "c", 7)
    edit_config(folder, {"rope_scaling": {**YARN, "type": "yarn", **scales}})
    done = convert(folder, tmp_path / "m.gguf", "F32", threads=1)
    assert assert_agree(done.path, folder, token_ids(N_TOKENS, VOCAB, 7)) < 5e-5


def test_a_fp8_checkpoint_is_its_weights_times_scales(tmp_path: Path) -> None:
    folder = save("deepseek3", tmp_path / "c", 4)
    fp8_blocks(folder, tmp_path / "fp8", tmp_path / "twin", 16)
    assert contents(tmp_path / "fp8", tmp_path / "8.gguf") == contents(
        tmp_path / "twin", tmp_path / "f.gguf"
    )
    ids = token_ids(N_TOKENS, VOCAB, 4)
    assert_agree(tmp_path / "8.gguf", tmp_path / "twin", ids)


def test_the_layer_that_predicts_ahead_is_left_out(tmp_path: Path) -> None:
    folder = save("deepseek3", tmp_path / "c", 5)
    weights: Mapping[str, npt.NDArray[np.float32]] = read_floats(folder)
    extra = {
        name.replace(".layers.3.", ".layers.4."): weight
        for name, weight in weights.items()
        if ".layers.3." in name
    } | {"model.layers.4.eh_proj.weight": np.ones((64, 128), np.float32)}
    more = write_like(
        folder, tmp_path / "m", floats({**weights, **extra}), num_nextn_predict_layers=1
    )
    assert contents(folder, tmp_path / "c.gguf") == contents(more, tmp_path / "m.gguf")
    done = convert(more, tmp_path / "m.gguf", "F32", threads=1)
    assert any(f"left out ({len(extra)} tensors)" in reason for reason in done.reasons)


WIDE: dict[str, dict[str, object]] = {
    "qwen3moe": {"moe_intermediate_size": 256},
    "mixtral": {"intermediate_size": 256},
    "llama4-scout": {"intermediate_size": 256, "num_local_experts": 4},
    "llama4-maverick": {},
    "deepseek2-lite": {"kv_lora_rank": 256},
    "deepseek3": {"kv_lora_rank": 256, "q_lora_rank": 256, "qk_nope_head_dim": 32},
    "gpt-oss": {"intermediate_size": 256, "num_local_experts": 4},
    "muse-glimmer": {"intermediate_size": 256},
}
"""Rows of 256 where the family allows it, so that K-quants are K-quants."""

_WIDE: dict[str, object] = {"hidden_size": 256, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("mixtral", "deepseek3") else pytest.mark.slow)
        for name in WIDE
    ],
)
def test_quantized_files_are_llama_quantizes(name: str, tmp_path: Path) -> None:
    folder = save(name, tmp_path / "c", 6, **{**_WIDE, **WIDE[name]})
    convert(folder, tmp_path / "source.gguf", "F32", threads=1)
    kinds = ("Q4_K_M", "Q5_1")
    theirs = {kind: tmp_path / f"theirs-{kind}.gguf" for kind in kinds}
    llama_oracle.quantize(tmp_path / "source.gguf", theirs, NUMBERS)
    for kind in kinds:
        ours = convert(folder, tmp_path / "ours.gguf", kind, threads=1).path
        assert read_header(ours).tensors == read_header(theirs[kind]).tensors
        assert ours.read_bytes() == theirs[kind].read_bytes(), kind
