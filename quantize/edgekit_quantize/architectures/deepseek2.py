"""DeepSeek V2, V2-Lite, V3 and their coders: GGUF architecture `deepseek2`.

Attention keeps one compressed row per token for all heads (MLA). llama.cpp runs it as one
key-value head: the matrix that unpacks keys and values is cut in two, the key's part transposed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from edgekit_quantize.architectures.base import (
    Config,
    RecipeParams,
    TensorSource,
    TensorSpec,
    bad_config,
    flag,
    integer,
    number,
    plain,
)
from edgekit_quantize.architectures.experts import ExpertNames, expert_sources, gated, in_order
from edgekit_quantize.architectures.latent import DeepSeek, read_deepseek
from edgekit_quantize.architectures.matching import has_output, language_part, match
from edgekit_quantize.architectures.rope import rope_metadata, rope_parameters
from edgekit_quantize.architectures.views import Split, Swap, Take
from edgekit_quantize.metadata import KeyValue, boolean, f32, u32

CLASSES = ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM")
MODEL_TYPES = ("deepseek_v2", "deepseek_v3")

_NAMES = ExpertNames(router="mlp.gate", each="mlp.experts.{}", stacked="mlp.experts")


@dataclass(frozen=True, slots=True)
class DeepSeek2:
    """Every model of both classes."""

    name: str = "deepseek2"

    def tensors(self, config: Config) -> list[TensorSpec]:
        """Return the GGUF's tensors in the order llama-quantize visits and writes them."""
        tied = flag(config, "tie_word_embeddings", False)
        return [source.spec for source in _all(config, (), output=not tied)]

    def sources(self, config: Config, stored: Iterable[str]) -> list[TensorSource]:
        """Match the checkpoint's names with the model's; see `Architecture.sources`."""
        names = language_part(stored, wrapped=False).of
        ahead = set(_predicting_ahead(config, names))
        kept = {own: name for own, name in names.items() if own not in ahead}
        return match(_all(config, kept, output=has_output(config, kept)), kept)

    def recipe_params(self, config: Config) -> RecipeParams:
        """All heads share one key-value head, so llama-quantize sees many heads per group."""
        model = read_deepseek(config)
        shape = model.shape
        return RecipeParams(self.name, shape.n_layer, shape.n_head, 1, model.experts.count)

    def metadata(self, config: Config) -> list[KeyValue]:
        """Return the `deepseek2.*` keys in the order of llama.cpp's converter."""
        return _metadata(config)

    def notes(self, config: Config, stored: Iterable[str]) -> list[str]:
        """Say what is left out, and where llama.cpp answers a little differently."""
        found = []
        if ahead := _predicting_ahead(config, list(stored)):
            found.append(
                f"the layer that predicts further tokens is left out ({len(ahead)} tensors): "
                "llama.cpp's deepseek2 does not use it"
            )
        if read_deepseek(config).routing.best_only:
            found.append(
                "the model ranks groups of experts by the best expert of each, llama.cpp by the "
                "best two, so it sometimes chooses other experts than the original"
            )
        return found


def _predicting_ahead(config: Config, stored: Iterable[str]) -> list[str]:
    """Return the names of multi-token prediction layers, which follow the model's own."""
    first = integer(config, "num_hidden_layers")
    extra = integer(config, "num_nextn_predict_layers", "num_mtp_layers", default=1, least=0)
    pattern = re.compile(r"model\.layers\.(\d{1,4})\.")
    return [
        name
        for name in stored
        if (found := pattern.match(name)) and first <= int(found[1]) < first + extra
    ]


def _metadata(config: Config) -> list[KeyValue]:
    model = read_deepseek(config)
    shape, latent, routing = model.shape, model.latent, model.routing
    rope_parameters(config, ("default", "yarn"))
    keys = [
        u32("deepseek2.block_count", shape.n_layer),
        u32("deepseek2.context_length", integer(config, "max_position_embeddings")),
        u32("deepseek2.embedding_length", shape.hidden),
        u32("deepseek2.feed_forward_length", shape.ffn),
        u32("deepseek2.attention.head_count", shape.n_head),
        u32("deepseek2.attention.head_count_kv", 1),
        *rope_metadata("deepseek2", config),
        f32("deepseek2.attention.layer_norm_rms_epsilon", number(config, "rms_norm_eps", 1e-6)),
        u32("deepseek2.expert_count", model.experts.count),
        u32("deepseek2.expert_used_count", model.experts.used),
    ]
    if routing.groups:
        keys.append(u32("deepseek2.expert_group_count", routing.groups))
        keys.append(u32("deepseek2.expert_group_used_count", routing.groups_used))
    keys += [
        u32("deepseek2.expert_gating_func", routing.gating),
        u32("deepseek2.attention.key_length", latent.kv_rank + latent.rope),
        u32("deepseek2.attention.value_length", latent.kv_rank),
        u32("deepseek2.leading_dense_block_count", model.dense_layers),
        u32("deepseek2.vocab_size", shape.vocab),
    ]
    # llama.cpp knows V2-Lite by its layers; any other model without the rank must say 0.
    if latent.q_rank or shape.n_layer not in (26, 27):
        keys.append(u32("deepseek2.attention.q_lora_rank", latent.q_rank))
    keys += [
        u32("deepseek2.attention.kv_lora_rank", latent.kv_rank),
        u32("deepseek2.attention.key_length_mla", latent.nope + latent.rope),
        u32("deepseek2.attention.value_length_mla", latent.value),
        u32("deepseek2.expert_feed_forward_length", model.experts.ffn),
        u32("deepseek2.expert_shared_count", model.shared),
        f32("deepseek2.expert_weights_scale", routing.scale),
    ]
    if routing.normalised:
        keys.append(boolean("deepseek2.expert_weights_norm", True))
    return [*keys, u32("deepseek2.rope.dimension_count", latent.rope), *_yarn(config)]


def _yarn(config: Config) -> list[KeyValue]:
    """Return the keys by which llama.cpp's graph scales attention as transformers does.

    With s = ln(factor) / 10, transformers multiplies all logits by (1 + s mscale_all_dim)^2 and
    rotated values by A, which is 1 where both scales are equal, as published. llama.cpp's graph
    multiplies rotated values by the key attn_factor, and logits by its square times
    (1 + s x)^2, where x is 10 times the key yarn_log_multiplier; x is never 0 here.
    Sources: transformers' `yarn_apply_mscale`, llama.cpp's src/models/deepseek2.cpp.
    """
    rope = rope_parameters(config, ("default", "yarn"))
    if rope["rope_type"] != "yarn":
        return []
    if rope.get("truncate") not in (None, True):
        raise bad_config("config.json: yarn scaling without truncation is not in llama.cpp")
    if number(rope, "beta_fast", 32.0) != 32.0 or number(rope, "beta_slow", 1.0) != 1.0:
        raise bad_config("config.json: llama.cpp's deepseek2 takes yarn's betas 32 and 1 only")
    factor = number(rope, "factor")
    if factor <= 1:
        raise bad_config(f"config.json: yarn scaling by {factor:g} stretches nothing")
    s = 0.1 * math.log(factor)
    one = number(rope, "mscale", 0.0, zero=True)
    every = number(rope, "mscale_all_dim", 0.0, zero=True)
    rotated = (1 + s * one) / (1 + s * every) if one and every else 1 + s
    rotated = number(rope, "attention_factor", rotated)
    if every and abs(rotated - 1) < 1e-9:
        return [f32("deepseek2.rope.scaling.yarn_log_multiplier", 0.1 * every)]
    x = ((1 + s * every) / rotated - 1) / s
    if abs(x) < 1e-9:
        # Without its key, llama.cpp takes 1 + s for rotated values.
        return [f32("deepseek2.rope.scaling.attn_factor", rotated / (1 + s))]
    return [
        f32("deepseek2.rope.scaling.yarn_log_multiplier", 0.1 * x),
        f32("deepseek2.rope.scaling.attn_factor", rotated),
    ]


def _all(config: Config, stored: Collection[str], *, output: bool) -> list[TensorSource]:
    model = read_deepseek(config)
    shape = model.shape
    found = [
        plain("token_embd.weight", (shape.hidden, shape.vocab), "model.embed_tokens.weight"),
        plain("output_norm.weight", (shape.hidden,), "model.norm.weight"),
    ]
    if output:
        found.append(plain("output.weight", (shape.hidden, shape.vocab), "lm_head.weight"))
    for layer in range(shape.n_layer):
        found.extend(_attention(layer, model))
        found.extend(_feed_forward(layer, model))
    mixed = range(model.dense_layers, shape.n_layer)
    found.extend(expert_sources(mixed, shape.hidden, model.experts, _NAMES, stored))
    return in_order(found)


def _attention(layer: int, model: DeepSeek) -> list[TensorSource]:
    shape, latent = model.shape, model.latent
    block, prefix = f"blk.{layer}", f"model.layers.{layer}"
    q_rows = shape.n_head * (latent.nope + latent.rope)
    if latent.q_rank:
        query = [
            ("attn_q_a", "q_a_proj", (shape.hidden, latent.q_rank)),
            ("attn_q_a_norm", "q_a_layernorm", (latent.q_rank,)),
            ("attn_q_b", "q_b_proj", (latent.q_rank, q_rows)),
        ]
    else:
        query = [("attn_q", "q_proj", (shape.hidden, q_rows))]
    found = [
        plain(f"{block}.{ours}.weight", size, f"{prefix}.self_attn.{theirs}.weight")
        for ours, theirs, size in (
            *query,
            ("attn_kv_a_mqa", "kv_a_proj_with_mqa", (shape.hidden, latent.kv_rank + latent.rope)),
            ("attn_kv_a_norm", "kv_a_layernorm", (latent.kv_rank,)),
            ("attn_output", "o_proj", (shape.n_head * latent.value, shape.hidden)),
        )
    ]
    heads = Split(0, (shape.n_head, latent.nope + latent.value))
    unpack = f"{prefix}.self_attn.kv_b_proj.weight"
    key = (latent.nope, latent.kv_rank, shape.n_head)
    value = (latent.kv_rank, latent.value, shape.n_head)
    upto = latent.nope + latent.value
    return [
        *found,
        plain(
            f"{block}.attn_k_b.weight", key, unpack, (heads, Take(1, 0, latent.nope), Swap(1, 2))
        ),
        plain(f"{block}.attn_v_b.weight", value, unpack, (heads, Take(1, latent.nope, upto))),
        plain(f"{block}.attn_norm.weight", (shape.hidden,), f"{prefix}.input_layernorm.weight"),
        plain(
            f"{block}.ffn_norm.weight", (shape.hidden,), f"{prefix}.post_attention_layernorm.weight"
        ),
    ]


def _feed_forward(layer: int, model: DeepSeek) -> list[TensorSource]:
    """Return a dense layer's matrices, or what stands beside the experts of another."""
    hidden, experts = model.shape.hidden, model.experts
    prefix = f"model.layers.{layer}.mlp"
    if layer < model.dense_layers:
        return gated(layer, "", prefix, hidden, model.shape.ffn)
    width = experts.ffn * model.shared
    found = gated(layer, "_shexp", f"{prefix}.shared_experts", hidden, width)
    if model.routing.biased:
        bias = f"{prefix}.gate.e_score_correction_bias"
        found.append(plain(f"blk.{layer}.exp_probs_b.bias", (experts.count,), bias))
    return found


DEEPSEEK2 = DeepSeek2()
