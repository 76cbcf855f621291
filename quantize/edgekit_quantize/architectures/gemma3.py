"""Gemma 3, text part: GGUF architecture `gemma3`.

The config on the hub names only what differs from the class's defaults, so they stand here too
(transformers' Gemma3TextConfig).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
)
from edgekit_quantize.architectures.dense import DenseArchitecture, Shape, read_shape
from edgekit_quantize.architectures.matching import language_part, text_config, vision_note
from edgekit_quantize.architectures.rope import rope_metadata, rope_parameters
from edgekit_quantize.architectures.views import Take
from edgekit_quantize.metadata import KeyValue, booleans, f32, u32

CLASSES = ("Gemma3ForConditionalGeneration", "Gemma3ForCausalLM")
MODEL_TYPES = ("gemma3_text",)

ACTIVATION = "gelu_pytorch_tanh"
PERIOD = 6
"""Every 6th layer looks at all tokens; llama.cpp's default for this architecture."""

PADDED_VOCAB, TRUE_VOCAB = 262208, 262144
"""The class pads the embedding; the last 64 rows belong to no token of the vocabulary."""

_SCALED_BY_WIDTH = 62
"""Layers of the one size (27B) whose attention llama.cpp scales by hidden_size / heads."""

_DEFAULTS: Config = {
    "vocab_size": PADDED_VOCAB,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "hidden_activation": ACTIVATION,
}

_DENSE = DenseArchitecture(
    name="gemma3",
    permuted=False,
    qkv_bias=None,
    head_dim_keys=True,
    vocab_keys=False,
    qk_norm=True,
    wrapped=True,
    activation=ACTIVATION,
    norms=(
        ("attn_norm", "input_layernorm"),
        ("post_attention_norm", "post_attention_layernorm"),
        ("ffn_norm", "pre_feedforward_layernorm"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
    ),
    norm_add=1.0,
)


@dataclass(frozen=True, slots=True)
class Gemma3:
    """Every size of the family."""

    name: str = "gemma3"

    def tensors(self, config: Config) -> list[TensorSpec]:
        """Return the GGUF's tensors in the order llama-quantize visits and writes them."""
        filled = _filled(config)
        return [_cut_spec(spec, filled) for spec in _DENSE.tensors(filled)]

    def sources(self, config: Config, stored: Iterable[str]) -> list[TensorSource]:
        """Match the checkpoint's names with the model's; see `Architecture.sources`."""
        filled = _filled(config)
        return [_cut(source, filled) for source in _DENSE.sources(filled, stored)]

    def recipe_params(self, config: Config) -> RecipeParams:
        return _DENSE.recipe_params(_filled(config))

    def metadata(self, config: Config) -> list[KeyValue]:
        """Return the `gemma3.*` keys in the order of llama.cpp's converter."""
        filled = _filled(config)
        shape = read_shape(filled, ACTIVATION)
        _check_scale(filled, shape)
        full, local = _rotary(filled)
        keys = [
            u32("gemma3.block_count", shape.n_layer),
            u32("gemma3.context_length", integer(filled, "max_position_embeddings")),
            u32("gemma3.embedding_length", shape.hidden),
            u32("gemma3.feed_forward_length", shape.ffn),
            u32("gemma3.attention.head_count", shape.n_head),
            u32("gemma3.attention.head_count_kv", shape.n_head_kv),
            *rope_metadata("gemma3", full),
            f32("gemma3.rope.freq_base_swa", number(local, "rope_theta")),
            f32("gemma3.attention.layer_norm_rms_epsilon", number(filled, "rms_norm_eps")),
            u32("gemma3.attention.key_length", shape.head_dim),
            u32("gemma3.attention.value_length", shape.head_dim),
        ]
        if filled.get("final_logit_softcapping") is not None:
            cap = number(filled, "final_logit_softcapping")
            keys.append(f32("gemma3.final_logit_softcapping", cap))
        windowed = _windowed(filled, shape.n_layer)
        if any(windowed):
            keys.append(u32("gemma3.attention.sliding_window", integer(filled, "sliding_window")))
            if windowed != _periodic(PERIOD, shape.n_layer):
                keys.append(booleans("gemma3.attention.sliding_window_pattern", windowed))
        return keys

    def notes(self, config: Config, stored: Iterable[str]) -> list[str]:  # noqa: ARG002
        """Say what is left out: a vision part."""
        return vision_note(language_part(stored, wrapped=True).left_out)


def _filled(config: Config) -> Config:
    """Return the text part's settings, defaults included, checked for what has no GGUF key."""
    given = {key: value for key, value in text_config(config).items() if value is not None}
    given.pop("text_config", None)
    filled = {**_DEFAULTS, **given, "hidden_act": given.get("hidden_activation", ACTIVATION)}
    if given.get("attn_logit_softcapping") is not None:
        raise bad_config("config.json: attn_logit_softcapping, which llama.cpp's gemma3 lacks")
    if flag(filled, "use_bidirectional_attention", False):
        raise bad_config("config.json: use_bidirectional_attention: this is an embedding model")
    return filled


def _check_scale(filled: Config, shape: Shape) -> None:
    """llama.cpp knows the attention scale from the number of layers, not from a key."""
    width = shape.hidden // shape.n_head if shape.n_layer == _SCALED_BY_WIDTH else shape.head_dim
    scalar = number(filled, "query_pre_attn_scalar")
    if scalar != width:
        raise bad_config(
            f"config.json: query_pre_attn_scalar is {scalar:g}, llama.cpp takes {width} for a "
            f"gemma3 of {shape.n_layer} layers"
        )


def _rotary(filled: Config) -> tuple[Config, Config]:
    """Return the rotary settings of full layers and of windowed ones, as configs of their own.

    transformers 5 writes one object per kind of layer, before `rope_local_base_freq` stood alone.
    """
    context = {"max_position_embeddings": filled["max_position_embeddings"]}
    both = filled.get("rope_parameters")
    if isinstance(both, Mapping) and ("full_attention" in both or "sliding_attention" in both):
        full, local = both.get("full_attention"), both.get("sliding_attention")
    else:
        full, local = both, {"rope_theta": filled.get("rope_local_base_freq")}
    full = full or filled.get("rope_scaling") or {}
    local = local or {}
    if not isinstance(full, Mapping) or not isinstance(local, Mapping):
        raise bad_config("config.json: rope_parameters must hold objects")
    if local.get("rope_type", "default") != "default":
        raise bad_config("config.json: windowed layers with scaled rotary positions")
    theta = full.get("rope_theta", filled.get("rope_theta"))
    full = {**full, "rope_theta": 1e6 if theta is None else theta}
    local_theta = local.get("rope_theta")
    local = {"rope_theta": 1e4 if local_theta is None else local_theta}
    scaled = {**context, "rope_parameters": full}
    rope_parameters(scaled, ("default", "linear"))
    return scaled, local


def _periodic(period: int, n_layer: int) -> tuple[bool, ...]:
    return tuple((layer + 1) % period != 0 for layer in range(n_layer))


def _windowed(filled: Config, n_layer: int) -> tuple[bool, ...]:
    """Say of each layer whether it looks at a window only."""
    kinds = filled.get("layer_types")
    if kinds is None:
        period = integer(filled, "sliding_window_pattern", "_sliding_window_pattern", default=6)
        return _periodic(period, n_layer)
    if not isinstance(kinds, list) or len(kinds) != n_layer:
        raise bad_config(f"config.json: layer_types must name {n_layer} layers")
    if any(kind not in ("sliding_attention", "full_attention") for kind in kinds):
        raise bad_config("config.json: layer_types has a kind that gemma3 does not know")
    return tuple(kind == "sliding_attention" for kind in kinds)


def _cut(source: TensorSource, filled: Config) -> TensorSource:
    spec = _cut_spec(source.spec, filled)
    if spec == source.spec:
        return source
    view = (Take(0, 0, spec.shape[1]),)
    return replace(source, spec=spec, parts=tuple(Part(p.source, view) for p in source.parts))


def _cut_spec(spec: TensorSpec, filled: Config) -> TensorSpec:
    if filled["vocab_size"] != PADDED_VOCAB or not spec.name.startswith(("token_embd", "output.")):
        return spec
    return replace(spec, shape=(spec.shape[0], TRUE_VOCAB))


GEMMA3 = Gemma3()
