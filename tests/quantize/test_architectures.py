import json
import math
from pathlib import Path

import numpy as np
import pytest

from edgekit_quantize.architectures import for_config
from edgekit_quantize.architectures.rope import rope_factors, rope_parameters
from edgekit_quantize.architectures.views import rope_pairs
from edgekit_quantize.errors import BadCheckpointError
from edgekit_quantize.stored import apply
from tests.support.checkpoints import make_checkpoint, tensor_shapes

MISTRAL: dict[str, object] = {
    "architectures": ["MistralForCausalLM"],
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 768,
    "vocab_size": 4096,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
}


def with_(**changes: object) -> dict[str, object]:
    return {**MISTRAL, **changes}


def stored_names(*, tied: bool = False, qkv_bias: bool = False) -> list[str]:
    return list(
        tensor_shapes(
            hidden=256, layers=2, q_rows=512, kv_rows=128, ffn=768, vocab=4096, tied=tied,
            qkv_bias=qkv_bias,
        )
    )  # fmt: skip


def test_families() -> None:
    assert for_config(MISTRAL).name == "llama"
    assert for_config({"architectures": ["LlamaForCausalLM"]}).name == "llama"
    assert for_config({"architectures": ["Qwen2ForCausalLM"]}).name == "qwen2"
    assert for_config({"model_type": "mistral"}).name == "llama"


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["MambaForCausalLM"], "model_type": "llama"},
        {"architectures": [3]},
        {"model_type": "gemma3"},
        {},
    ],
)
def test_unknown_architecture(config: dict[str, object]) -> None:
    with pytest.raises(BadCheckpointError) as caught:
        for_config(config)
    assert caught.value.code == "unknown_architecture"
    assert "MistralForCausalLM" in str(caught.value.hint)


def test_mistral_tensors() -> None:
    shapes = {spec.name: spec.shape for spec in for_config(MISTRAL).tensors(MISTRAL)}
    assert list(shapes)[:5] == [
        "output.weight",
        "output_norm.weight",
        "token_embd.weight",
        "blk.0.attn_k.weight",
        "blk.0.attn_norm.weight",
    ]
    assert shapes["blk.1.attn_q.weight"] == (256, 512)
    assert shapes["blk.1.attn_v.weight"] == (256, 128)
    assert shapes["blk.1.attn_output.weight"] == (512, 256)
    assert shapes["blk.1.ffn_down.weight"] == (768, 256)
    assert shapes["token_embd.weight"] == (256, 4096)


def test_mistral_metadata_in_the_converters_order() -> None:
    keys = [(entry.key, entry.value) for entry in for_config(MISTRAL).metadata(MISTRAL)]
    assert keys == [
        ("llama.block_count", 2),
        ("llama.context_length", 16384),
        ("llama.embedding_length", 256),
        ("llama.feed_forward_length", 768),
        ("llama.attention.head_count", 8),
        ("llama.attention.head_count_kv", 2),
        ("llama.rope.freq_base", 1000000.0),
        ("llama.attention.layer_norm_rms_epsilon", 1e-5),
        ("llama.attention.key_length", 64),
        ("llama.attention.value_length", 64),
        ("llama.vocab_size", 4096),
        ("llama.rope.dimension_count", 64),
    ]


def test_qwen2_has_biases_and_no_head_dim_keys() -> None:
    config = with_(architectures=["Qwen2ForCausalLM"], head_dim=None, num_attention_heads=4)
    architecture = for_config(config)
    names = [spec.name for spec in architecture.tensors(config)]
    assert "blk.0.attn_q.bias" in names
    assert "blk.0.attn_output.bias" not in names
    assert not any("key_length" in entry.key for entry in architecture.metadata(config))
    sources = architecture.sources(config, stored_names(qkv_bias=True))
    assert all(not part.view for source in sources for part in source.parts)


def test_llama_biases_follow_the_config() -> None:
    config = with_(attention_bias=True, mlp_bias=True)
    names = [spec.name for spec in for_config(config).tensors(config)]
    assert {"blk.0.attn_output.bias", "blk.0.ffn_up.bias"} <= set(names)


def test_tied_embeddings_follow_the_stored_tensors() -> None:
    config = with_(tie_word_embeddings=True)
    architecture = for_config(config)
    assert "output.weight" not in [spec.name for spec in architecture.tensors(config)]
    tied = architecture.sources(config, stored_names(tied=True))
    assert "output.weight" not in [source.spec.name for source in tied]
    untied = architecture.sources(config, stored_names())
    assert "output.weight" in [source.spec.name for source in untied]
    with pytest.raises(BadCheckpointError, match="lm_head"):
        architecture.sources(MISTRAL, stored_names(tied=True))


def test_missing_unknown_and_ignored_tensors() -> None:
    architecture = for_config(MISTRAL)
    names = stored_names()
    architecture.sources(MISTRAL, [*names, "model.layers.0.self_attn.rotary_emb.inv_freq"])
    with pytest.raises(BadCheckpointError, match=r"model\.norm") as caught:
        architecture.sources(MISTRAL, [n for n in names if n != "model.norm.weight"])
    assert caught.value.code == "missing_tensor"
    with pytest.raises(BadCheckpointError, match="vision") as caught:
        architecture.sources(MISTRAL, [*names, "vision_tower.weight"])
    assert caught.value.code == "unknown_tensor"


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": None},
        {"hidden_size": 0},
        {"hidden_size": "256"},
        {"hidden_size": True},
        {"hidden_size": 2**40},
        {"num_hidden_layers": 10**9},
        {"num_key_value_heads": 3},
        {"head_dim": 63},
        {"head_dim": None, "num_attention_heads": 6},
        {"rms_norm_eps": "small"},
        {"rope_theta": -1},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"type": "linear"}},
        {"rope_scaling": "yarn"},
        {"attention_bias": "yes"},
        {"max_position_embeddings": None},
        {"rope_scaling": {"rope_type": "llama3", "low_freq_factor": 4, "high_freq_factor": 4}},
    ],
)
def test_a_config_that_makes_no_sense(changes: dict[str, object]) -> None:
    config = with_(**changes)
    architecture = for_config(config)
    with pytest.raises(BadCheckpointError) as caught:
        (architecture.tensors(config), architecture.metadata(config))
    assert caught.value.code == "bad_config"


def test_yarn_keys() -> None:
    config = with_(
        architectures=["Qwen2ForCausalLM"],
        rope_scaling={
            "type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
            "beta_fast": 32,
        },
    )
    keys = {entry.key: entry.value for entry in for_config(config).metadata(config)}
    assert keys["qwen2.rope.scaling.type"] == "yarn"
    assert keys["qwen2.rope.scaling.factor"] == 4.0
    assert keys["qwen2.rope.scaling.original_context_length"] == 32768
    assert keys["qwen2.rope.scaling.yarn_beta_fast"] == 32.0


def test_rope_parameters_of_transformers_5() -> None:
    new = rope_parameters({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}})
    old = rope_parameters({"rope_theta": 5e5})
    assert new["rope_theta"] == old["rope_theta"] == 5e5


def test_llama3_factors_as_torch_computes_them() -> None:
    torch = pytest.importorskip("torch")
    rope: dict[str, object] = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = []
    for frequency in 1.0 / (500000.0 ** (torch.arange(0, 128, 2, dtype=torch.float32) / 128)):
        wave = 2 * math.pi / frequency
        smooth = (8192 / wave - 1.0) / (4.0 - 1.0)
        middle = 1 / ((1 - smooth) / 8.0 + smooth)
        expected.append(1.0 if wave < 2048 else 8.0 if wave > 8192 else float(middle))
    ours = rope_factors(rope, 128)
    assert list(ours) == expected
    assert len(ours) == 64
    assert ours[0] == 1.0
    assert ours[-1] == 8.0


def test_rope_order_is_the_converters_permutation() -> None:
    heads, size = 3, 8
    rows = np.arange(heads * size)
    expected = [
        head * size + inside // 2 + (inside % 2) * (size // 2)
        for head in range(heads)
        for inside in range(size)
    ]
    np.testing.assert_array_equal(apply(rows, rope_pairs(heads, size)).reshape(-1), expected)


def test_the_synthetic_checkpoint_is_what_the_architecture_expects(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, vocab=300, hidden=64, ffn=64, head_dim=16)
    config = json.loads((folder / "config.json").read_text())
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for_config(config).sources(config, index["weight_map"])
