"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: GGUF architecture `phi3`, whose matrices stay fused."""

from __future__ import annotations

import math
from collections.abc import Iterable
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
    quantize_order,
)
from edgekit_quantize.architectures.dense import Shape, read_shape, window_note
from edgekit_quantize.architectures.matching import has_output, language_part, match
from edgekit_quantize.architectures.rope import rope_parameters
from edgekit_quantize.metadata import KeyValue, f32, u32

CLASSES = ("Phi3ForCausalLM",)
MODEL_TYPES = ("phi3",)


@dataclass(frozen=True, slots=True)
class LongRope:
    """Phi's rotary settings. `magnitude` multiplies cosine and sine, 1.0 without factors."""

    theta: float
    dimensions: int
    original_context: int
    long: tuple[float, ...] = ()
    short: tuple[float, ...] = ()
    magnitude: float = 1.0


@dataclass(frozen=True, slots=True)
class Phi3:
    """Every model of the class."""

    name: str = "phi3"

    def tensors(self, config: Config) -> list[TensorSpec]:
        """Return the GGUF's tensors in the order llama-quantize visits and writes them."""
        tied = flag(config, "tie_word_embeddings", False)
        return [source.spec for source in _all(config, output=not tied)]

    def sources(self, config: Config, stored: Iterable[str]) -> list[TensorSource]:
        """Match the checkpoint's names with the model's; see `Architecture.sources`."""
        names = language_part(stored, wrapped=False).of
        return match(_all(config, output=has_output(config, names)), names)

    def recipe_params(self, config: Config) -> RecipeParams:
        shape = _shape(config)
        return RecipeParams(self.name, shape.n_layer, shape.n_head, shape.n_head_kv)

    def metadata(self, config: Config) -> list[KeyValue]:
        """Return the `phi3.*` keys in the order of llama.cpp's converter.

        A window of 0 is how llama.cpp tells Phi-4 from the others.
        """
        shape, rope = _shape(config), _rope(config)
        window = config.get("sliding_window")
        keys = [f32("phi3.rope.scaling.attn_factor", rope.magnitude)] if rope.long else []
        return [
            *keys,
            u32("phi3.context_length", integer(config, "max_position_embeddings")),
            u32("phi3.rope.scaling.original_context_length", rope.original_context),
            u32("phi3.embedding_length", shape.hidden),
            u32("phi3.feed_forward_length", shape.ffn),
            u32("phi3.block_count", shape.n_layer),
            u32("phi3.attention.head_count", shape.n_head),
            u32("phi3.attention.head_count_kv", shape.n_head_kv),
            f32("phi3.attention.layer_norm_rms_epsilon", number(config, "rms_norm_eps", 1e-5)),
            u32("phi3.rope.dimension_count", rope.dimensions),
            f32("phi3.rope.freq_base", rope.theta),
            u32(
                "phi3.attention.sliding_window",
                0 if window is None else integer(config, "sliding_window", least=0),
            ),
        ]

    def notes(self, config: Config, stored: Iterable[str]) -> list[str]:  # noqa: ARG002
        """Say that llama.cpp does not apply a sliding window to this architecture."""
        return window_note(config)


def _shape(config: Config) -> Shape:
    shape = read_shape(config)
    if shape.head_dim * shape.n_head != shape.hidden:
        raise bad_config("config.json: llama.cpp's phi3 takes heads of hidden_size / heads only")
    return shape


def _rope(config: Config) -> LongRope:
    rope = rope_parameters(config, ("default", "longrope", "su"))
    context = integer(config, "max_position_embeddings")
    original = integer(
        {**config, **rope}, "original_max_position_embeddings", default=context, least=2
    )
    part = number({**config, **rope}, "partial_rotary_factor", 1.0)
    shape = _shape(config)
    dimensions = int(min(part, 1.0) * shape.head_dim)
    if part > 1 or dimensions < 2 or dimensions % 2:
        raise bad_config(f"config.json: partial_rotary_factor {part} of heads of {shape.head_dim}")
    theta = number(rope, "rope_theta")
    if rope["rope_type"] == "default":
        return LongRope(theta, dimensions, original)
    stretch = number(rope, "factor", context / original)
    default = 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))
    return LongRope(
        theta=theta,
        dimensions=dimensions,
        original_context=original,
        long=_factors(rope, "long_factor", dimensions // 2),
        short=_factors(rope, "short_factor", dimensions // 2),
        magnitude=number(rope, "attention_factor", default),
    )


def _factors(rope: Config, key: str, length: int) -> tuple[float, ...]:
    values = rope.get(key)
    if not isinstance(values, list) or len(values) != length:
        raise bad_config(f"config.json: {key} must be a list of {length} numbers")
    return tuple(number({key: value}, key) for value in values)


def _all(config: Config, *, output: bool) -> list[TensorSource]:
    shape, rope = _shape(config), _rope(config)
    matrix = (shape.hidden, shape.vocab)
    found = [
        plain("token_embd.weight", matrix, "model.embed_tokens.weight"),
        plain("output_norm.weight", (shape.hidden,), "model.norm.weight"),
    ]
    if output:
        found.append(plain("output.weight", matrix, "lm_head.weight"))
    for kind, values in (("long", rope.long), ("short", rope.short)):
        if values:
            spec = TensorSpec(f"rope_factors_{kind}.weight", (len(values),))
            found.append(TensorSource(spec, values=values))
    qkv_rows = (shape.n_head + 2 * shape.n_head_kv) * shape.head_dim
    for layer in range(shape.n_layer):
        for ours, theirs, size in (
            ("attn_norm", "input_layernorm", (shape.hidden,)),
            ("attn_qkv", "self_attn.qkv_proj", (shape.hidden, qkv_rows)),
            ("attn_output", "self_attn.o_proj", (shape.hidden, shape.hidden)),
            ("ffn_norm", "post_attention_layernorm", (shape.hidden,)),
            ("ffn_up", "mlp.gate_up_proj", (shape.hidden, 2 * shape.ffn)),
            ("ffn_down", "mlp.down_proj", (shape.ffn, shape.hidden)),
        ):
            name, source = f"blk.{layer}.{ours}.weight", f"model.layers.{layer}.{theirs}.weight"
            found.append(plain(name, size, source))
    return sorted(found, key=lambda source: quantize_order(source.spec.name))


PHI3 = Phi3()
