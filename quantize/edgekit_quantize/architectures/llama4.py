"""Llama 4 Scout and Maverick, text part: GGUF architecture `llama4`.

llama.cpp's graph fixes what a config could vary: attention in chunks of 8192 tokens, every fourth
layer without rotary positions and without chunks, attention temperature from 8192 tokens on,
normalised Q and K unless there are 128 experts. A config that differs is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from edgekit_quantize.architectures.base import (
    Config,
    Part,
    RecipeParams,
    TensorSource,
    TensorSpec,
    bad_config,
    flag,
    integer,
    number,
    plain,
)
from edgekit_quantize.architectures.dense import DenseArchitecture, read_shape
from edgekit_quantize.architectures.experts import (
    Experts,
    gated,
    in_order,
    read_experts,
    with_expert_keys,
    without_feed_forward,
)
from edgekit_quantize.architectures.matching import (
    has_output,
    language_part,
    match,
    may_be_tied,
    text_config,
    vision_note,
)
from edgekit_quantize.architectures.rope import rope_factors, rope_parameters
from edgekit_quantize.architectures.views import Swap, Take
from edgekit_quantize.metadata import KeyValue, u32

CLASSES = ("Llama4ForConditionalGeneration", "Llama4ForCausalLM")
MODEL_TYPES = ("llama4", "llama4_text")

CHUNK = 8192
FULL_EVERY = 4
NO_QK_NORM = 128
"""The number of experts by which llama.cpp knows Maverick, whose Q and K are not normalised."""

_DENSE = DenseArchitecture(
    name="llama4", permuted=False, qkv_bias=False, head_dim_keys=True, vocab_keys=True
)


@dataclass(frozen=True, slots=True)
class Llama4:
    """Scout (experts in every layer) and Maverick (in every second)."""

    name: str = "llama4"

    def tensors(self, config: Config) -> list[TensorSpec]:
        """Return the GGUF's tensors in the order llama-quantize visits and writes them."""
        return [source.spec for source in _all(config, output=not may_be_tied(config))]

    def sources(self, config: Config, stored: Iterable[str]) -> list[TensorSource]:
        """Match the checkpoint's names with the model's; see `Architecture.sources`."""
        names = language_part(stored, wrapped=True).of
        return match(_all(config, output=has_output(config, names)), names)

    def recipe_params(self, config: Config) -> RecipeParams:
        text, experts, _ = _checked(config)
        return replace(_DENSE.recipe_params(text), n_expert=experts.count)

    def metadata(self, config: Config) -> list[KeyValue]:
        """Return the `llama4.*` keys in the order of llama.cpp's converter."""
        text, experts, step = _checked(config)
        added = [
            u32("llama4.expert_count", experts.count),
            u32("llama4.expert_used_count", experts.used),
        ]
        return [
            *with_expert_keys("llama4", _DENSE.metadata(text), added),
            u32("llama4.interleave_moe_layer_step", step),
            u32("llama4.expert_feed_forward_length", experts.ffn),
        ]

    def notes(self, config: Config, stored: Iterable[str]) -> list[str]:
        """Say what is left out, and where llama.cpp answers differently."""
        found = vision_note(language_part(stored, wrapped=True).left_out)
        if not text_config(config).get("attn_temperature_tuning", True):
            found.append(
                f"config.json turns the attention temperature off; llama.cpp always applies it, "
                f"so answers differ from the original beyond {CHUNK} tokens"
            )
        return found


def _checked(config: Config) -> tuple[Config, Experts, int]:
    """Return the text part with the dense width under its usual key, the experts, their step.

    Raises BadCheckpointError (code `bad_config`) for what llama.cpp's graph does not do.
    """
    outer = text_config(config)
    experts = read_experts(outer, "intermediate_size", "num_local_experts", "num_experts")
    dense = integer(outer, "intermediate_size_mlp")
    text = {k: v for k, v in outer.items() if k != "text_config"} | {"intermediate_size": dense}
    n_layer = read_shape(text).n_layer
    rope_parameters(text, ("default", "llama3"))
    step = integer(text, "interleave_moe_layer_step", default=1)
    if text.get("moe_layers") not in (None, list(range(step - 1, n_layer, step))):
        raise bad_config(f"config.json: moe_layers are not each layer {step} of {step}")
    rotary = [int((layer + 1) % FULL_EVERY != 0) for layer in range(n_layer)]
    if text.get("no_rope_layers") not in (None, [], rotary):
        raise bad_config("config.json: no_rope_layers leave out other layers than each fourth")
    if integer(text, "no_rope_layer_interval", default=FULL_EVERY) != FULL_EVERY:
        raise bad_config("config.json: no_rope_layer_interval is not 4")
    kinds = ["chunked_attention" if rope else "full_attention" for rope in rotary]
    if text.get("layer_types") not in (None, kinds):
        raise bad_config("config.json: layer_types are not three chunked layers, then a full one")
    if integer(text, "attention_chunk_size", default=CHUNK) != CHUNK:
        raise bad_config(f"config.json: attention_chunk_size is not {CHUNK}")
    if number(text, "floor_scale", float(CHUNK)) != CHUNK or number(text, "attn_scale", 0.1) != 0.1:
        raise bad_config("config.json: floor_scale is not 8192 or attn_scale is not 0.1")
    if flag(text, "use_qk_norm", True) is (experts.count == NO_QK_NORM):
        raise bad_config(
            f"config.json: use_qk_norm with {experts.count} experts; llama.cpp normalises Q and K "
            f"unless there are {NO_QK_NORM}"
        )
    return text, experts, step


def _all(config: Config, *, output: bool) -> list[TensorSource]:
    text, experts, step = _checked(config)
    shape = read_shape(text)
    found = without_feed_forward(_DENSE.unmatched(text, output=output))
    factors = rope_factors(rope_parameters(text), shape.head_dim, sharp=True)
    if factors:
        found.append(TensorSource(TensorSpec("rope_freqs.weight", (len(factors),)), values=factors))
    for layer in range(shape.n_layer):
        prefix = f"model.layers.{layer}.feed_forward"
        if (layer + 1) % step:
            found.extend(gated(layer, "", prefix, shape.hidden, shape.ffn))
            continue
        found.extend(gated(layer, "_shexp", f"{prefix}.shared_expert", shape.hidden, experts.ffn))
        found.extend(_experts(layer, shape.hidden, experts))
    return in_order(found)


def _experts(layer: int, hidden: int, experts: Experts) -> list[TensorSource]:
    """Return the router and the experts, which are stored with input and output exchanged."""
    block, prefix = f"blk.{layer}", f"model.layers.{layer}.feed_forward"
    wide = (hidden, experts.ffn, experts.count)
    ffn = experts.ffn
    gate = Part(f"{prefix}.experts.gate_up_proj", (Take(2, 0, ffn), Swap(1, 2)))
    up = Part(f"{prefix}.experts.gate_up_proj", (Take(2, ffn, 2 * ffn), Swap(1, 2)))
    down = Part(f"{prefix}.experts.down_proj", (Swap(1, 2),))
    return [
        plain(f"{block}.ffn_gate_inp.weight", (hidden, experts.count), f"{prefix}.router.weight"),
        TensorSource(TensorSpec(f"{block}.ffn_gate_exps.weight", wide), (gate,)),
        TensorSource(TensorSpec(f"{block}.ffn_up_exps.weight", wide), (up,)),
        TensorSource(
            TensorSpec(f"{block}.ffn_down_exps.weight", (ffn, hidden, experts.count)), (down,)
        ),
    ]


LLAMA4 = Llama4()
