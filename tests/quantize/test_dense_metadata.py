"""Keys and shapes of the dense architectures, from configs as they are published."""

import copy
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_quantize.architectures import for_config
from edgekit_quantize.errors import BadCheckpointError
from edgekit_quantize.gguf_write import encode_header
from tests.support.dense_models import DENSE

Config = dict[str, Any]

LLAMA3: Config = {"rope_type": "llama3", "rope_theta": 10000.0, "low_freq_factor": 1.0}
VISION: Config = {"model_type": "pixtral", "hidden_size": 1024, "num_hidden_layers": 24}

SMALL_31: Config = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "model_type": "mistral3",
    "text_config": {
        "model_type": "mistral",
        "hidden_size": 5120,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 32768,
        "vocab_size": 131072,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000000.0,
        "sliding_window": None,
    },
    "vision_config": VISION,
}
YARN: Config = {
    "type": "yarn",
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "max_position_embeddings": 262144,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
MINISTRAL_3B: Config = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "model_type": "mistral3",
    "tie_word_embeddings": True,
    "text_config": {
        **SMALL_31["text_config"],
        "model_type": "ministral3",
        "hidden_size": 3072,
        "num_hidden_layers": 26,
        "intermediate_size": 9216,
        "max_position_embeddings": 262144,
        "rope_parameters": YARN,
        "rope_theta": None,
    },
    "vision_config": VISION,
}
DEVSTRAL_2: Config = {
    **SMALL_31,
    "text_config": {
        **SMALL_31["text_config"],
        "model_type": "ministral3",
        "max_position_embeddings": 393216,
        "rope_theta": None,
        "rope_parameters": {
            **YARN,
            "rope_theta": 100000000.0,
            "factor": 48.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "quantization_config": {"quant_method": "fp8", "weight_block_size": None},
}
PHI_4: Config = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "hidden_size": 5120,
    "intermediate_size": 17920,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 10,
    "vocab_size": 100352,
    "max_position_embeddings": 16384,
    "original_max_position_embeddings": 16384,
    "rms_norm_eps": 1e-05,
    "rope_theta": 250000,
    "rope_scaling": None,
    "sliding_window": None,
    "partial_rotary_factor": 1.0,
    "tie_word_embeddings": False,
}
PHI_3_MINI_128K: Config = {
    **PHI_4,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "su", "long_factor": [2.0] * 48, "short_factor": [1.1] * 48},
    "sliding_window": 262144,
}
GEMMA_27B: Config = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 168,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"model_type": "siglip_vision_model"},
}
GEMMA_1B: Config = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "head_dim": 256,
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
QWEN3_4B: Config = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "max_position_embeddings": 40960,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}

# Keys, values and order of llama.cpp's converter on the same configs.
KEYS: list[tuple[Config, list[tuple[str, Any]]]] = [
    (
        SMALL_31,
        [
            ("mistral3.block_count", 40),
            ("mistral3.context_length", 131072),
            ("mistral3.embedding_length", 5120),
            ("mistral3.feed_forward_length", 32768),
            ("mistral3.attention.head_count", 32),
            ("mistral3.attention.head_count_kv", 8),
            ("mistral3.rope.freq_base", 1e9),
            ("mistral3.attention.layer_norm_rms_epsilon", 1e-5),
            ("mistral3.attention.key_length", 128),
            ("mistral3.attention.value_length", 128),
            ("mistral3.vocab_size", 131072),
            ("mistral3.rope.dimension_count", 128),
        ],
    ),
    (
        MINISTRAL_3B,
        [
            ("mistral3.block_count", 26),
            ("mistral3.context_length", 262144),
            ("mistral3.embedding_length", 3072),
            ("mistral3.feed_forward_length", 9216),
            ("mistral3.attention.head_count", 32),
            ("mistral3.attention.head_count_kv", 8),
            ("mistral3.rope.scaling.type", "yarn"),
            ("mistral3.rope.scaling.factor", 16.0),
            ("mistral3.rope.scaling.original_context_length", 16384),
            ("mistral3.rope.scaling.yarn_beta_fast", 32.0),
            ("mistral3.rope.scaling.yarn_beta_slow", 1.0),
            ("mistral3.rope.freq_base", 1e6),
            ("mistral3.attention.layer_norm_rms_epsilon", 1e-5),
            ("mistral3.attention.key_length", 128),
            ("mistral3.attention.value_length", 128),
            ("mistral3.vocab_size", 131072),
            ("mistral3.rope.dimension_count", 128),
            ("mistral3.rope.scaling.yarn_log_multiplier", 1.0),
            ("mistral3.attention.temperature_scale", 0.1),
        ],
    ),
    (
        PHI_4,
        [
            ("phi3.context_length", 16384),
            ("phi3.rope.scaling.original_context_length", 16384),
            ("phi3.embedding_length", 5120),
            ("phi3.feed_forward_length", 17920),
            ("phi3.block_count", 40),
            ("phi3.attention.head_count", 40),
            ("phi3.attention.head_count_kv", 10),
            ("phi3.attention.layer_norm_rms_epsilon", 1e-5),
            ("phi3.rope.dimension_count", 128),
            ("phi3.rope.freq_base", 250000.0),
            ("phi3.attention.sliding_window", 0),
        ],
    ),
    (
        PHI_3_MINI_128K,
        [
            ("phi3.rope.scaling.attn_factor", math.sqrt(1 + math.log(32) / math.log(4096))),
            ("phi3.context_length", 131072),
            ("phi3.rope.scaling.original_context_length", 4096),
            ("phi3.embedding_length", 3072),
            ("phi3.feed_forward_length", 8192),
            ("phi3.block_count", 32),
            ("phi3.attention.head_count", 32),
            ("phi3.attention.head_count_kv", 32),
            ("phi3.attention.layer_norm_rms_epsilon", 1e-5),
            ("phi3.rope.dimension_count", 96),
            ("phi3.rope.freq_base", 10000.0),
            ("phi3.attention.sliding_window", 262144),
        ],
    ),
    (
        GEMMA_27B,
        [
            ("gemma3.block_count", 62),
            ("gemma3.context_length", 131072),
            ("gemma3.embedding_length", 5376),
            ("gemma3.feed_forward_length", 21504),
            ("gemma3.attention.head_count", 32),
            ("gemma3.attention.head_count_kv", 16),
            ("gemma3.rope.scaling.type", "linear"),
            ("gemma3.rope.scaling.factor", 8.0),
            ("gemma3.rope.freq_base", 1e6),
            ("gemma3.rope.freq_base_swa", 1e4),
            ("gemma3.attention.layer_norm_rms_epsilon", 1e-6),
            ("gemma3.attention.key_length", 128),
            ("gemma3.attention.value_length", 128),
            ("gemma3.attention.sliding_window", 1024),
        ],
    ),
    (
        QWEN3_4B,
        [
            ("qwen3.block_count", 36),
            ("qwen3.context_length", 40960),
            ("qwen3.embedding_length", 2560),
            ("qwen3.feed_forward_length", 9728),
            ("qwen3.attention.head_count", 32),
            ("qwen3.attention.head_count_kv", 8),
            ("qwen3.rope.freq_base", 1e6),
            ("qwen3.attention.layer_norm_rms_epsilon", 1e-6),
            ("qwen3.attention.key_length", 128),
            ("qwen3.attention.value_length", 128),
        ],
    ),
]


@pytest.mark.parametrize(("config", "keys"), KEYS)
def test_keys_in_the_converters_order(config: Config, keys: list[tuple[str, Any]]) -> None:
    found = [(entry.key, entry.value) for entry in for_config(config).metadata(config)]
    assert found == keys


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (SMALL_31, 23_572_403_200),
        (DEVSTRAL_2, 23_572_403_200),
        (MINISTRAL_3B, 3_429_006_336),
        (PHI_4, 14_659_507_200),
        # The embedding without its 64 padding rows.
        (GEMMA_27B, 27_009_002_240),
        (GEMMA_1B, 999_885_952),
        (QWEN3_4B, 4_022_468_096),
    ],
)
def test_published_parameter_counts(config: Config, parameters: int) -> None:
    specs = for_config(config).tensors(config)
    assert sum(math.prod(spec.shape) for spec in specs) == parameters


def test_devstral_2_and_gemma_1b() -> None:
    keys = {e.key: e.value for e in for_config(DEVSTRAL_2).metadata(DEVSTRAL_2)}
    assert keys["mistral3.rope.scaling.factor"] == 48.0
    assert keys["mistral3.rope.freq_base"] == 1e8
    keys = {e.key: e.value for e in for_config(GEMMA_1B).metadata(GEMMA_1B)}
    assert keys["gemma3.attention.sliding_window"] == 512
    assert "gemma3.attention.sliding_window_pattern" not in keys
    shapes = {spec.name: spec.shape for spec in for_config(GEMMA_1B).tensors(GEMMA_1B)}
    assert shapes["token_embd.weight"] == (1152, 262144)


def test_gemma_periods_other_than_six_are_written() -> None:
    config = {**GEMMA_1B, "sliding_window_pattern": 2, "num_hidden_layers": 4}
    keys = {e.key: e.value for e in for_config(config).metadata(config)}
    assert keys["gemma3.attention.sliding_window_pattern"] == (True, False, True, False)
    config = {**config, "sliding_window_pattern": 1}
    keys = {e.key: e.value for e in for_config(config).metadata(config)}
    assert "gemma3.attention.sliding_window" not in keys


def test_a_window_that_llama_cpp_does_not_apply_is_said() -> None:
    for config in (DENSE["qwen3"], DENSE["phi3: phi-4"], DENSE["qwen2: yarn, tied"]):
        windowed = {**config, "sliding_window": 1024, "max_position_embeddings": 4096}
        architecture = for_config(windowed)
        assert "1024 tokens" in architecture.notes(windowed, [])[0]
        assert architecture.notes({**windowed, "sliding_window": None}, []) == []
        assert architecture.notes({**windowed, "use_sliding_window": False}, []) == []
        assert architecture.notes({**windowed, "sliding_window": 4096}, []) == []


def test_mistral_small_4_is_refused_in_plain_words() -> None:
    config = {**SMALL_31, "text_config": {**SMALL_31["text_config"], "model_type": "mistral4"}}
    with pytest.raises(BadCheckpointError) as caught:
        for_config(config).tensors(config)
    assert caught.value.code == "unknown_architecture"
    assert "Small 4" in str(caught.value.hint)


def text(config: Config, **changes: Any) -> Config:
    return {**config, "text_config": {**config["text_config"], **changes}}


@pytest.mark.parametrize(
    "config",
    [
        {**SMALL_31, "text_config": []},
        text(SMALL_31, hidden_act="gelu"),
        text(MINISTRAL_3B, rope_parameters=None),
        text(MINISTRAL_3B, rope_parameters={**YARN, "truncate": False}),
        text(MINISTRAL_3B, rope_parameters={**YARN, "rope_type": "default"}),
        text(MINISTRAL_3B, rope_parameters={**YARN, "mscale_all_dim": -1.0}),
        text(MINISTRAL_3B, rope_parameters={**YARN, "llama_4_scaling_beta": "0.1"}),
        {**QWEN3_4B, "attention_bias": True},
        {**QWEN3_4B, "rope_scaling": {**YARN, "llama_4_scaling_beta": None, "beta_fast": 16}},
        {
            **DENSE["llama: linear rope, tied"],
            "rope_parameters": {**LLAMA3, "high_freq_factor": 1e29},
        },
        {**DENSE["llama: linear rope, tied"], "rope_parameters": {**LLAMA3, "rope_theta": 1e-44}},
        {**PHI_4, "head_dim": 64},
        {**PHI_4, "partial_rotary_factor": 1.5},
        {**PHI_4, "partial_rotary_factor": 0.001},
        {**PHI_4, "sliding_window": -1},
        {**PHI_4, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {**PHI_3_MINI_128K, "rope_scaling": {"type": "su", "long_factor": [1.0]}},
        {**PHI_3_MINI_128K, "original_max_position_embeddings": 1},
        text(GEMMA_27B, query_pre_attn_scalar=128),
        text(GEMMA_27B, attn_logit_softcapping=50.0),
        text(GEMMA_27B, use_bidirectional_attention=True),
        text(GEMMA_27B, hidden_activation="silu"),
        text(GEMMA_27B, layer_types=["full_attention"]),
        text(GEMMA_27B, layer_types=[{}] * 62),
        text(GEMMA_27B, layer_types=["chunked_attention"] * 62),
        text(GEMMA_27B, sliding_window_pattern=0),
        text(GEMMA_27B, rope_parameters={"full_attention": 8}),
        text(GEMMA_27B, rope_parameters={"sliding_attention": {"rope_type": "yarn"}}),
        text(GEMMA_27B, rope_scaling={"rope_type": "yarn", "factor": 8.0}),
    ],
)
def test_a_config_that_llama_cpp_has_no_key_for(config: Config) -> None:
    architecture = for_config(config)
    with pytest.raises(BadCheckpointError) as caught:
        (architecture.tensors(config), architecture.metadata(config))
    assert caught.value.code == "bad_config"


def paths(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += paths(inner, (*path, key))
    return found


PUBLISHED = [SMALL_31, MINISTRAL_3B, DEVSTRAL_2, PHI_4, PHI_3_MINI_128K, GEMMA_27B, GEMMA_1B]
STARTS = [*PUBLISHED, QWEN3_4B, *DENSE.values()]
HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, 2, 3, 64, 2**31 - 1, 2**31, 2**64, 10**400]),
    st.floats(),
    st.sampled_from(["", "yarn", "longrope", "llama3", "linear", "dynamic", "\x00", "9" * 5000]),
    st.lists(st.integers(-1, 2**65), max_size=3),
    st.dictionaries(st.sampled_from(["factor", "rope_type", "full_attention"]), st.floats()),
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(STARTS), st.lists(st.tuples(st.randoms(), HOSTILE), min_size=1, max_size=3))
def test_hostile_configs_are_refused_or_converted(start: Config, changes: list[Any]) -> None:
    config = copy.deepcopy(start)
    for choice, value in changes:
        *outer, last = choice.choice(paths(config) or [("architectures",)])
        target = config
        for key in outer:
            target = target[key]
        target[last] = value
    refused: BadCheckpointError | None = None
    try:
        architecture = for_config(config)
        specs = architecture.tensors(config)
        keys = architecture.metadata(config)
        architecture.recipe_params(config)
        architecture.notes(config, [])
    except BadCheckpointError as error:
        refused = error
    if refused is not None:
        assert refused.code in ("bad_config", "unknown_architecture")
        assert len(str(refused)) < 500
        return
    assert len(specs) < 512 * 16 + 8
    assert all(0 < size < 2**66 for spec in specs for size in spec.shape)
    encode_header(keys, [])
    json.dumps([entry.value for entry in keys])
