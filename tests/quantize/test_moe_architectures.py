"""Mixtures of experts by their published configs: parameters, GGUF keys, and what is refused."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_quantize.architectures import for_config
from edgekit_quantize.architectures.base import Config
from edgekit_quantize.errors import BadCheckpointError
from tests.support.published_configs import (
    GPT_OSS,
    MAVERICK,
    MIXTRAL,
    MUSE,
    QWEN3_CODER,
    SCOUT,
    V2,
    V2_LITE,
    V3,
)

PUBLISHED = {
    "qwen3-coder-30b-a3b": (QWEN3_CODER, 30532122624),
    "mixtral-8x7b": (MIXTRAL, 46702792704),
    "llama-4-scout": (SCOUT, 107769861120),
    "llama-4-maverick": (MAVERICK, 400711848960),
    "deepseek-coder-v2-lite": (V2_LITE, 15706484224),
    "deepseek-coder-v2": (V2, 235741434880),
    "deepseek-v3": (V3, 671026419200),
    "gpt-oss-20b": (GPT_OSS, 20914757184),
    "muse-glimmer-30b": (MUSE, 27854780928),
}
_SYNTHESIZED = ("rope_freqs.weight", "attn_q_norm.weight", "attn_k_norm.weight")


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_count(name: str) -> None:
    config, expected = PUBLISHED[name]
    made = _SYNTHESIZED if name.startswith(("llama", "muse")) else ()
    tensors = for_config(config).tensors(config)
    assert expected == sum(math.prod(t.shape) for t in tensors if not t.name.endswith(made))
    names = [tensor.name for tensor in tensors]
    assert len(names) == len(set(names))


def keys(config: Config) -> dict[str, object]:
    """The keys below the architecture's name, without it."""
    architecture = for_config(config)
    return {
        entry.key.removeprefix(f"{architecture.name}."): entry.value
        for entry in architecture.metadata(config)
    }


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor in for_config(config).tensors(config)}


def test_qwen3moe_keys_in_the_converters_order() -> None:
    assert list(keys(QWEN3_CODER).items()) == [
        ("block_count", 48),
        ("context_length", 262144),
        ("embedding_length", 2048),
        ("feed_forward_length", 5472),
        ("attention.head_count", 32),
        ("attention.head_count_kv", 4),
        ("rope.freq_base", 10000000.0),
        ("attention.layer_norm_rms_epsilon", 1e-6),
        ("expert_count", 128),
        ("expert_used_count", 8),
        ("attention.key_length", 128),
        ("attention.value_length", 128),
        ("expert_feed_forward_length", 768),
    ]
    assert shapes(QWEN3_CODER)["blk.47.ffn_down_exps.weight"] == (768, 2048, 128)
    assert shapes(QWEN3_CODER)["blk.47.ffn_gate_inp.weight"] == (2048, 128)


def test_mixtral_is_a_llama_with_experts() -> None:
    assert for_config(MIXTRAL).name == "llama"
    assert for_config(MIXTRAL).recipe_params(MIXTRAL).n_expert == 8
    found = keys(MIXTRAL)
    assert (found["expert_count"], found["expert_used_count"]) == (8, 2)
    assert "expert_feed_forward_length" not in found
    assert shapes(MIXTRAL)["blk.0.ffn_up_exps.weight"] == (4096, 14336, 8)


def test_llama4_keys_and_layers() -> None:
    scout, maverick = keys(SCOUT), keys(MAVERICK)
    assert list(scout) == [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "rope.freq_base",
        "attention.layer_norm_rms_epsilon",
        "expert_count",
        "expert_used_count",
        "attention.key_length",
        "attention.value_length",
        "vocab_size",
        "rope.dimension_count",
        "interleave_moe_layer_step",
        "expert_feed_forward_length",
    ]
    assert (scout["feed_forward_length"], scout["expert_feed_forward_length"]) == (16384, 8192)
    assert (scout["interleave_moe_layer_step"], maverick["interleave_moe_layer_step"]) == (1, 2)
    ours = shapes(MAVERICK)
    assert ours["blk.0.ffn_up.weight"] == (5120, 16384)
    assert ours["blk.1.ffn_up_exps.weight"] == (5120, 8192, 128)
    assert ours["blk.1.ffn_up_shexp.weight"] == (5120, 8192)
    assert "blk.0.ffn_gate_inp.weight" not in ours
    assert "rope_freqs.weight" not in ours
    assert shapes(SCOUT)["rope_freqs.weight"] == (64,)


def test_deepseek_keys_in_the_converters_order() -> None:
    assert list(keys(V3).items()) == [
        ("block_count", 61),
        ("context_length", 163840),
        ("embedding_length", 7168),
        ("feed_forward_length", 18432),
        ("attention.head_count", 128),
        ("attention.head_count_kv", 1),
        ("rope.scaling.type", "yarn"),
        ("rope.scaling.factor", 40.0),
        ("rope.scaling.original_context_length", 4096),
        ("rope.scaling.yarn_beta_fast", 32.0),
        ("rope.scaling.yarn_beta_slow", 1.0),
        ("rope.freq_base", 10000.0),
        ("attention.layer_norm_rms_epsilon", 1e-6),
        ("expert_count", 256),
        ("expert_used_count", 8),
        ("expert_group_count", 8),
        ("expert_group_used_count", 4),
        ("expert_gating_func", 2),
        ("attention.key_length", 576),
        ("attention.value_length", 512),
        ("leading_dense_block_count", 3),
        ("vocab_size", 129280),
        ("attention.q_lora_rank", 1536),
        ("attention.kv_lora_rank", 512),
        ("attention.key_length_mla", 192),
        ("attention.value_length_mla", 128),
        ("expert_feed_forward_length", 2048),
        ("expert_shared_count", 1),
        ("expert_weights_scale", 2.5),
        ("expert_weights_norm", True),
        ("rope.dimension_count", 64),
        ("rope.scaling.yarn_log_multiplier", 0.1),
    ]
    lite = keys(V2_LITE)
    assert lite["rope.scaling.yarn_log_multiplier"] == pytest.approx(0.0707)
    assert lite["expert_gating_func"] == 1
    assert not lite.keys() & {"attention.q_lora_rank", "expert_weights_norm"}
    assert keys({**V2_LITE, "num_hidden_layers": 4})["attention.q_lora_rank"] == 0


def test_deepseek_layers() -> None:
    ours = shapes(V3)
    assert ours["blk.0.attn_k_b.weight"] == (128, 512, 128)
    assert ours["blk.0.attn_v_b.weight"] == (512, 128, 128)
    assert ours["blk.0.attn_kv_a_mqa.weight"] == (7168, 576)
    assert ours["blk.2.ffn_up.weight"] == (7168, 18432)
    assert ours["blk.3.exp_probs_b.bias"] == (256,)
    lite = shapes(V2_LITE)
    assert lite["blk.1.ffn_up_shexp.weight"] == (2048, 2816)
    assert lite["blk.1.attn_q.weight"] == (2048, 3072)
    assert "blk.1.exp_probs_b.bias" not in lite


def test_deepseek_classes_differ_in_what_a_config_leaves_out() -> None:
    silent = {
        key: value
        for key, value in V3.items()
        if key not in ("scoring_func", "topk_method", "norm_topk_prob", "n_group", "topk_group")
    }
    assert keys(silent) == keys(V3)
    as_v2 = keys({**silent, "architectures": ["DeepseekV2ForCausalLM"]})
    assert as_v2["expert_gating_func"] == 1
    assert "expert_weights_norm" not in as_v2


@pytest.mark.parametrize(
    ("changes", "groups"),
    [
        ({}, (8, 3)),
        ({"topk_group": 8}, (None, None)),
        ({"topk_method": "greedy"}, (None, None)),
        ({"n_group": 1, "topk_group": 1}, (1, 1)),
    ],
)
def test_deepseek_groups_are_written_when_they_matter(
    changes: dict[str, object], groups: tuple[int | None, int | None]
) -> None:
    found = keys({**V2, **changes})
    assert (found.get("expert_group_count"), found.get("expert_group_used_count")) == groups
    notes = for_config(V2).notes({**V2, **changes}, [])
    assert bool(notes) == (changes == {})


def _reached(found: dict[str, object], factor: float) -> tuple[float, float]:
    """What llama.cpp makes of the keys: how rotated values and all logits are multiplied."""
    s = 0.1 * math.log(factor)
    x = 10 * float(str(found.get("rope.scaling.yarn_log_multiplier", 0.0)))
    attn_factor = float(str(found.get("rope.scaling.attn_factor", 1.0)))
    rotated = attn_factor if x else attn_factor * (1 + s)
    return rotated, (rotated * (1 + s * x)) ** 2


@pytest.mark.parametrize(
    "scaling",
    [
        {"mscale": 1.0, "mscale_all_dim": 1.0},
        {"mscale": 0.707, "mscale_all_dim": 0.707},
        {"mscale": 1.0, "mscale_all_dim": 0.5},
        {"mscale_all_dim": 0.8},
        {"mscale_all_dim": 1.0},
        {"mscale": 0.7},
        {},
        {"attention_factor": 1.2, "mscale_all_dim": 1.0},
        {"attention_factor": 1.0},
    ],
)
def test_deepseek_attention_is_scaled_as_in_transformers(scaling: dict[str, object]) -> None:
    """Against `_compute_yarn_parameters` and `yarn_apply_mscale`, written out."""
    factor = 40.0
    rope = {"type": "yarn", "factor": factor, "original_max_position_embeddings": 4096, **scaling}
    found = keys({**V3, "rope_scaling": rope})

    def magnitude(scale: object) -> float:
        return 0.1 * float(str(scale)) * math.log(factor) + 1

    one, every = scaling.get("mscale"), scaling.get("mscale_all_dim")
    rotated = magnitude(one) / magnitude(every) if one and every else magnitude(1)
    rotated = float(str(scaling.get("attention_factor", rotated)))
    logits = magnitude(every) ** 2 if every else 1.0
    assert _reached(found, factor) == pytest.approx((rotated, logits))


def test_gpt_oss_keeps_its_experts() -> None:
    assert keys(GPT_OSS) == {
        "block_count": 24,
        "context_length": 131072,
        "embedding_length": 2880,
        "feed_forward_length": 2880,
        "attention.head_count": 64,
        "attention.head_count_kv": 8,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 32.0,
        "rope.scaling.original_context_length": 4096,
        "rope.scaling.yarn_beta_fast": 32.0,
        "rope.scaling.yarn_beta_slow": 1.0,
        "rope.freq_base": 150000.0,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "expert_count": 32,
        "expert_used_count": 4,
        "attention.key_length": 64,
        "attention.value_length": 64,
        "attention.sliding_window": 128,
        "expert_feed_forward_length": 2880,
    }
    native = {t.name for t in for_config(GPT_OSS).tensors(GPT_OSS) if t.native == "MXFP4"}
    assert len(native) == 3 * 24
    plain = {**GPT_OSS, "quantization_config": None}
    assert all(tensor.native is None for tensor in for_config(plain).tensors(plain))
    ours = shapes(GPT_OSS)
    assert ours["blk.3.attn_sinks.weight"] == (64,)
    assert ours["blk.3.ffn_gate_exps.bias"] == (2880, 32)
    assert any("YaRN" in note for note in for_config(GPT_OSS).notes(GPT_OSS, []))


def test_llama4_says_that_llama_cpp_warms_up_attention() -> None:
    off = text(SCOUT, attn_temperature_tuning=False)
    assert "8192 tokens" in for_config(off).notes(off, [])[0]
    vision = ["vision_model.class_embedding", "multi_modal_projector.linear_1.weight"]
    assert "2 tensors" in for_config(SCOUT).notes(SCOUT, vision)[0]


def test_muse_glimmer_keys() -> None:
    found = keys(MUSE)
    assert found["attention.sliding_window_pattern"] == (True, True, True, False) * 13
    assert found["final_logit_softcapping"] == 20.0
    assert found["logit_scale"] == pytest.approx(0.196116)
    assert "rope.dimension_count" not in found


def text(config: dict[str, object], **changes: object) -> dict[str, object]:
    inner = config["text_config"]
    assert isinstance(inner, dict)
    return {**config, "text_config": {**inner, **changes}}


REFUSED: dict[str, dict[str, object]] = {
    "one expert": {**QWEN3_CODER, "num_experts": 1},
    "no experts": {**QWEN3_CODER, "num_experts": None},
    "experts as text": {**QWEN3_CODER, "num_experts": "128"},
    "negative experts": {**QWEN3_CODER, "num_experts": -128},
    "a million experts": {**QWEN3_CODER, "num_experts": 10**6},
    "more chosen than there are": {**QWEN3_CODER, "num_experts_per_tok": 129},
    "none chosen": {**QWEN3_CODER, "num_experts_per_tok": 0},
    "no expert width": {**QWEN3_CODER, "moe_intermediate_size": None},
    "weights not normalised": {**QWEN3_CODER, "norm_topk_prob": False},
    "a dense layer": {**QWEN3_CODER, "mlp_only_layers": [3]},
    "every second layer dense": {**QWEN3_CODER, "decoder_sparse_step": 2},
    "mixtral, true experts": {**MIXTRAL, "num_local_experts": True},
    "no dense width": text(SCOUT, intermediate_size_mlp=None),
    "text_config is a list": {**SCOUT, "text_config": [1]},
    "other chunks": text(SCOUT, attention_chunk_size=4096),
    "other rotary layers": text(SCOUT, no_rope_layers=[1] * 48),
    "other layer types": text(SCOUT, layer_types=["full_attention"] * 48),
    "other experts' layers": text(MAVERICK, moe_layers=[0, 1]),
    "Q and K norms with 128 experts": text(MAVERICK, use_qk_norm=True),
    "no Q and K norms with 16": text(SCOUT, use_qk_norm=False),
    "other temperature": text(SCOUT, attn_scale=0.2),
    "yarn": text(SCOUT, rope_scaling={"rope_type": "yarn", "factor": 4.0}),
    "step of nothing": text(SCOUT, interleave_moe_layer_step=0),
    "deepseek without experts": {**V3, "n_routed_experts": None},
    "all but one layer dense, and two more": {**V3, "first_k_dense_replace": 63},
    "negative dense layers": {**V3, "first_k_dense_replace": -1},
    "experts in every second layer": {**V3, "moe_layer_freq": 2},
    "uneven groups": {**V3, "n_group": 7},
    "more groups than there are": {**V3, "topk_group": 9},
    "groups of one": {**V3, "n_group": 256},
    "groups too small": {**V3, "n_group": 128, "topk_group": 2},
    "unknown scores": {**V3, "scoring_func": "sqrtsoftplus"},
    "scores are a list": {**V3, "scoring_func": ["sigmoid"]},
    "halves rotated": {**V3, "rope_interleave": False},
    "odd rotary size": {**V3, "qk_rope_head_dim": 63},
    "rank as text": {**V3, "kv_lora_rank": "512"},
    "rank of nothing": {**V3, "q_lora_rank": 0},
    "no shared experts": {**V3, "n_shared_experts": 0},
    "biases": {**V3, "attention_bias": True},
    "linear rope": {**V3, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "other betas": {**V3, "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 16}},
    "yarn by one": {**V3, "rope_scaling": {"type": "yarn", "factor": 1}},
    "windows everywhere": {**GPT_OSS, "layer_types": ["sliding_attention"] * 24},
    "no biases": {**GPT_OSS, "attention_bias": False},
    "other gate": {**GPT_OSS, "swiglu_limit": 5.0},
    "no window": {**GPT_OSS, "sliding_window": None},
    "layer types are no list": text(MUSE, layer_types="sliding_attention"),
    "an unknown layer type": text(MUSE, layer_types=["linear_attention"] * 52),
    "other rotary base": text(MUSE, layer_rope_theta=[1.0] * 52),
    "other epsilon": text(MUSE, post_norm_eps=1e-5),
    "scale as text": text(MUSE, qk_scale_factor="3.87"),
    "no multiplier": text(MUSE, output_multiplier=None),
}


def everything(config: Config) -> None:
    architecture = for_config(config)
    architecture.tensors(config)
    architecture.metadata(config)
    architecture.recipe_params(config)
    architecture.notes(config, ["model.layers.61.eh_proj.weight"])


@pytest.mark.parametrize("case", REFUSED)
def test_refused_configs(case: str) -> None:
    with pytest.raises(BadCheckpointError) as caught:
        everything(REFUSED[case])
    assert caught.value.code == "bad_config"
    assert caught.value.hint


def test_far_too_many_experts_are_missed_early() -> None:
    config = {**QWEN3_CODER, "num_hidden_layers": 512, "num_experts": 1024}
    with pytest.raises(BadCheckpointError, match="1572864") as caught:
        for_config(config).sources(config, ["lm_head.weight"])
    assert caught.value.code == "missing_tensor"


def test_a_missing_expert_is_named() -> None:
    config = {**QWEN3_CODER, "num_hidden_layers": 1}
    layer = "model.layers.0.mlp.experts"
    stored = ["lm_head.weight", *(f"{layer}.{i}.up_proj.weight" for i in range(200))]
    with pytest.raises(BadCheckpointError, match=r"experts\.0\.down_proj"):
        for_config(config).sources(config, stored)


def flat(config: Mapping[str, object]) -> dict[str, object]:
    inner = config.get("text_config")
    return dict(inner) if isinstance(inner, dict) else dict(config)


JUNK: tuple[object, ...] = (
    None, -1, 0, 1, 3, 2**40, 1.5, float("nan"), "", "x", True, [], [1], {}, {"type": "yarn"}
)  # fmt: skip


@given(st.sampled_from(sorted(PUBLISHED)), st.data())
@settings(max_examples=150, deadline=None)
def test_a_config_is_taken_or_refused(name: str, data: st.DataObject) -> None:
    config, _ = PUBLISHED[name]
    own = flat(config)
    own["num_hidden_layers"] = 4
    names = st.sampled_from(sorted(own.keys() - {"architectures", "text_config"}))
    changes = data.draw(st.dictionaries(names, st.sampled_from(JUNK), min_size=1, max_size=3))
    changed = {**own, **changes}
    wrapped = {**config, "text_config": changed} if "text_config" in config else changed
    with contextlib.suppress(BadCheckpointError):
        everything(wrapped)
