"""Mistral's own layout against its Hugging Face twin: the same tensors, the same keys."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit_quantize import convert, read_header
from edgekit_quantize.architectures import for_config
from edgekit_quantize.architectures.native import to_config, twin_name
from edgekit_quantize.checkpoint import Checkpoint
from edgekit_quantize.errors import BadCheckpointError
from tests.support import tiny_models
from tests.support.checkpoints import write_safetensors
from tests.support.dense_models import DENSE
from tests.support.logits_oracle import assert_agree, token_ids
from tests.support.native_layout import read_tensors, write_native

PARAMS: dict[str, Any] = {
    "dim": 64,
    "n_layers": 3,
    "head_dim": 32,
    "hidden_dim": 96,
    "n_heads": 4,
    "n_kv_heads": 2,
    "rope_theta": 10000.0,
    "norm_eps": 1e-05,
    "vocab_size": tiny_models.VOCAB,
    "max_position_embeddings": 262144,
}
YARN = {
    "original_max_position_embeddings": 32,
    "factor": 4.0,
    "apply_scale": False,
    "beta": 32.0,
    "alpha": 1.0,
}
VISION = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}

TWINS: dict[str, tuple[str, dict[str, Any]]] = {
    "text only": (
        "mistral",
        {**PARAMS, "max_seq_len": 2048, "max_position_embeddings": None},
    ),
    "vision": (
        "mistral3: plain text part, vision",
        {**PARAMS, "vision_encoder": VISION, "max_position_embeddings": 131072},
    ),
    "yarn and temperature, tied": (
        "mistral3: ministral, tied, vision",
        {
            **PARAMS,
            "vision_encoder": VISION,
            "tied_embeddings": True,
            "yarn": YARN,
            "llama_4_scaling": {"original_max_position_embeddings": 32, "beta": 0.1},
        },
    ),
}
MISTRAL = {
    **DENSE["mistral: yarn with a factor of its own"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}


def twin_config(name: str) -> dict[str, Any]:
    if name == "mistral":
        return MISTRAL
    config = dict(DENSE[name])
    config["text_config"] = {"rms_norm_eps": 1e-5, **config["text_config"]}
    config["text_config"].setdefault("rope_parameters", MISTRAL["rope_parameters"])
    context = 262144 if "ministral" in name else 131072
    config["text_config"]["max_position_embeddings"] = context
    return config


def tensor_bytes(path: Path) -> dict[str, bytes]:
    header, raw = read_header(path), path.read_bytes()
    found = {}
    for tensor in header.tensors:
        start = header.data_offset + tensor.offset
        found[tensor.name] = raw[start : start + tensor.bytes]
    return found


@pytest.mark.parametrize("kind", TWINS)
def test_both_layouts_give_one_gguf(kind: str, tmp_path: Path) -> None:
    name, params = TWINS[kind]
    twin = tiny_models.save(twin_config(name), tmp_path / "hf", 3, dtype="bfloat16")
    native = write_native(twin, tmp_path / "native", params)
    one = convert(twin, tmp_path / "hf.gguf", "Q8_0", threads=1, name="Same")
    other = convert(native, tmp_path / "native.gguf", "Q8_0", threads=1, name="Same")
    assert tensor_bytes(one.path) == tensor_bytes(other.path)
    ours, theirs = read_header(one.path).metadata, read_header(other.path).metadata
    differs = {key: (ours.get(key), theirs.get(key)) for key in ours | theirs}
    differs = {key: pair for key, pair in differs.items() if pair[0] != pair[1]}
    # Other bytes; tekken.json always says no to an end token, and knows no pairs of texts.
    digests = differs.pop("edgekit.source.digest")
    assert None not in digests
    assert differs.pop("tokenizer.ggml.add_eos_token") == (None, False)
    assert differs.pop("tokenizer.ggml.add_sep_token")[1] is None
    assert differs == {}
    assert any("vision part" in reason for reason in other.reasons) == ("vision" in name)


def test_fp8_in_both_layouts_and_undone(tmp_path: Path) -> None:
    """Devstral Small 2: FP8 weights, one scale for each tensor, scales of activations unused."""
    from edgekit_quantize.stored import FP8_VALUES

    rng = np.random.default_rng(7)
    plain = tiny_models.save(
        twin_config("mistral3: ministral, tied, vision"), tmp_path / "plain", 7, dtype="bfloat16"
    )
    packed, undone = {}, {}
    for name, (dtype, shape, data) in read_tensors(plain).items():
        packed[name] = undone[name] = (dtype, shape, data)
        if "language_model" in name and "proj" in name:
            codes = rng.integers(0, 0x70, np.prod(shape)).astype(np.uint8)
            codes |= rng.integers(0, 2, codes.size).astype(np.uint8) << 7
            scale = np.float32(rng.uniform(0.001, 0.003))
            values = FP8_VALUES["F8_E4M3"][codes] * scale
            undone[name] = ("F32", shape, values.tobytes())
            packed[name] = ("F8_E4M3", shape, codes.tobytes())
            packed[f"{name}_scale_inv"] = ("F32", (), scale.tobytes())
            packed[name.removesuffix("weight") + "activation_scale"] = ("F32", (), bytes(4))
    write_safetensors(plain / "model.safetensors", undone)
    hf = tmp_path / "hf"
    hf.mkdir()
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (hf / file).write_bytes((plain / file).read_bytes())
    write_safetensors(hf / "model.safetensors", packed)
    tiny_models.edit_config(
        hf, {"quantization_config": {"quant_method": "fp8", "weight_block_size": None}}
    )
    params = {**TWINS["yarn and temperature, tied"][1]}
    params["quantization"] = {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}
    native = write_native(hf, tmp_path / "native", params)
    made = {
        folder.name: convert(folder, tmp_path / f"{folder.name}.gguf", "F32", threads=1).path
        for folder in (plain, hf, native)
    }
    assert tensor_bytes(made["hf"]) == tensor_bytes(made["plain"])
    assert tensor_bytes(made["native"]) == tensor_bytes(made["plain"])
    assert_agree(made["native"], plain, token_ids(96, 296, 7))


def test_the_config_of_devstral_small_2() -> None:
    config = to_config(
        {
            **PARAMS,
            "yarn": {**YARN, "factor": 48.0, "original_max_position_embeddings": 8192},
            "llama_4_scaling": {"original_max_position_embeddings": 8192, "beta": 0.1},
            "vision_encoder": VISION,
        }
    )
    keys = {entry.key: entry.value for entry in for_config(config).metadata(config)}
    assert keys["mistral3.rope.scaling.factor"] == 48.0
    assert keys["mistral3.rope.scaling.original_context_length"] == 8192
    assert keys["mistral3.rope.scaling.yarn_log_multiplier"] == 1.0
    assert keys["mistral3.attention.temperature_scale"] == 0.1
    scaled = to_config({**PARAMS, "yarn": {**YARN, "apply_scale": True}})
    keys = {entry.key: entry.value for entry in for_config(scaled).metadata(scaled)}
    assert keys["mistral3.rope.scaling.yarn_log_multiplier"] == 0.0
    assert "mistral3.rope.scaling.attn_factor" not in keys
    assert for_config(to_config(PARAMS)).name == "llama"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"moe": {"num_experts": 128}}, "unknown_architecture"),
        ({"kv_lora_rank": 256}, "unknown_architecture"),
        ({"model_type": "mamba"}, "unknown_architecture"),
        ({"dim": None}, "bad_config"),
        ({"dim": -64}, "bad_config"),
        ({"dim": "64"}, "bad_config"),
        ({"n_layers": 10**9}, "bad_config"),
        ({"norm_eps": None}, "bad_config"),
        ({"rope_theta": None}, "bad_config"),
        ({"rope_theta": 10**400}, "bad_config"),
        ({"max_position_embeddings": None}, "bad_config"),
        ({"activation": "gelu"}, "bad_config"),
        ({"activation": ["silu"]}, "bad_config"),
        ({"yarn": 4}, "bad_config"),
        ({"yarn": {}}, "bad_config"),
        ({"yarn": {**YARN, "apply_scale": None}}, "bad_config"),
        ({"yarn": {**YARN, "factor": 0}}, "bad_config"),
        ({"llama_4_scaling": {"beta": 0.1}}, "bad_config"),
        (
            {"yarn": YARN, "llama_4_scaling": {"beta": 0.1, "original_max_position_embeddings": 7}},
            "bad_config",
        ),
        ({"quantization": "fp8"}, "bad_config"),
        ({"tied_embeddings": 1}, "bad_config"),
    ],
)
def test_params_that_make_no_sense(changes: dict[str, Any], code: str) -> None:
    def plan() -> None:
        config = to_config({**PARAMS, **changes})
        architecture = for_config(config)
        (architecture.tensors(config), architecture.metadata(config))

    with pytest.raises(BadCheckpointError) as caught:
        plan()
    assert caught.value.code == code


def test_other_quantizations_are_refused(tmp_path: Path) -> None:
    twin = tiny_models.save(MISTRAL, tmp_path / "hf", 0)
    params = {**PARAMS, "quantization": {"qformat_weight": "nvfp4"}}
    native = write_native(twin, tmp_path / "native", params)
    with pytest.raises(BadCheckpointError, match="nvfp4") as caught:
        convert(native, tmp_path / "m.gguf", "F16", threads=1)
    assert caught.value.code == "quantized_checkpoint"


def test_names_that_do_not_fit(tmp_path: Path) -> None:
    config = to_config(PARAMS)
    architecture = for_config(config)
    twin = tiny_models.save(MISTRAL, tmp_path / "hf", 0)
    native = write_native(twin, tmp_path / "native", PARAMS)
    names = list(read_tensors(native))
    architecture.sources(config, names)
    with pytest.raises(BadCheckpointError, match="adapter") as caught:
        architecture.sources(config, [*names, "layers.0.adapter.weight"])
    assert caught.value.code == "unknown_tensor"
    with pytest.raises(BadCheckpointError) as caught:
        architecture.sources(config, [*names, "model.norm.weight"])
    assert caught.value.code == "duplicate_tensor"
    with pytest.raises(BadCheckpointError) as caught:
        architecture.sources(config, names[:-1])
    assert caught.value.code == "missing_tensor"
    assert twin_name("layers.12.attention.wo.weight") == "model.layers.12.self_attn.o_proj.weight"


def test_which_layout_a_folder_has(tmp_path: Path) -> None:
    twin = tiny_models.save(MISTRAL, tmp_path / "hf", 0)
    native = write_native(twin, tmp_path / "native", PARAMS)
    with Checkpoint(native) as checkpoint:
        assert checkpoint.is_native
        names = [path.name for path in checkpoint.files()]
    assert {"params.json", "consolidated.safetensors", "tekken.json"} <= set(names)
    # An unfiltered download holds both: Hugging Face's is taken.
    for name in ("config.json", "model.safetensors"):
        (native / name).write_bytes((twin / name).read_bytes())
    with Checkpoint(native) as checkpoint:
        assert not checkpoint.is_native
        assert "consolidated.safetensors" not in [path.name for path in checkpoint.files()]


def test_native_shards_and_their_index(tmp_path: Path) -> None:
    twin = tiny_models.save(MISTRAL, tmp_path / "hf", 0)
    native = write_native(twin, tmp_path / "native", PARAMS)
    whole = convert(native, tmp_path / "a.gguf", "F16", threads=1)
    tensors = list(read_tensors(native).items())
    (native / "consolidated.safetensors").unlink()
    parts = {
        "consolidated-00001-of-00002.safetensors": dict(tensors[:9]),
        "consolidated-00002-of-00002.safetensors": dict(tensors[9:]),
    }
    for file, part in parts.items():
        write_safetensors(native / file, part)
    weight_map = {name: file for file, part in parts.items() for name in part}
    convert(native, tmp_path / "b.gguf", "F16", threads=1)
    index = native / "consolidated.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    split = convert(native, tmp_path / "c.gguf", "F16", threads=1)
    assert tensor_bytes(split.path) == tensor_bytes(whole.path)
    index.write_text(json.dumps({"weight_map": weight_map | {"norm.weight": next(iter(parts))}}))
    with pytest.raises(BadCheckpointError, match="consolidated") as caught:
        Checkpoint(native)
    assert caught.value.code == "index_mismatch"
    index.unlink()
    (native / "consolidated-00002-of-00002.safetensors").unlink()
    with pytest.raises(Exception, match="consolidated-00002-of-00002") as missing:
        Checkpoint(native)
    assert getattr(missing.value, "code", None) == "missing_shard"
