"""Muse Glimmer, text part: GGUF architecture `muse-glimmer`.

Q and K are normalised without weights and Q is scaled; llama.cpp has norms with weights there, so
the scale becomes a norm's weight. The four norms of a layer are stored less one, the last is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from edgekit_quantize.architectures.base import (
    Config,
    RecipeParams,
    TensorSource,
    TensorSpec,
    bad_config,
    integer,
    number,
    plain,
)
from edgekit_quantize.architectures.dense import DenseArchitecture, read_shape
from edgekit_quantize.architectures.experts import in_order
from edgekit_quantize.architectures.matching import (
    language_part,
    match,
    text_config,
    vision_note,
)
from edgekit_quantize.architectures.rope import rope_parameters
from edgekit_quantize.metadata import KeyValue, booleans, f32, u32

CLASSES = ("MuseGlimmerForConditionalGeneration",)
MODEL_TYPES = ("muse_glimmer", "muse_glimmer_text")

_DENSE = DenseArchitecture(
    name="muse-glimmer",
    permuted=True,
    qkv_bias=False,
    head_dim_keys=True,
    vocab_keys=False,
    norms=(
        ("attn_norm", "input_layernorm"),
        ("post_attention_norm", "post_attention_layernorm"),
        ("ffn_norm", "pre_feedforward_layernorm"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
    ),
)

_POST_NORM_EPS = 1e-8
"""Built into llama.cpp's graph."""


@dataclass(frozen=True, slots=True)
class MuseGlimmer:
    """The dense language model."""

    name: str = "muse-glimmer"

    def tensors(self, config: Config) -> list[TensorSpec]:
        """Return the GGUF's tensors in the order llama-quantize visits and writes them."""
        return [source.spec for source in _all(config)]

    def sources(self, config: Config, stored: Iterable[str]) -> list[TensorSource]:
        """Match the checkpoint's names with the model's; see `Architecture.sources`.

        llama.cpp wants an output matrix of its own, so a tied checkpoint lacks a tensor.
        """
        return match(_all(config), language_part(stored, wrapped=True).of)

    def recipe_params(self, config: Config) -> RecipeParams:
        return _DENSE.recipe_params(_checked(config))

    def metadata(self, config: Config) -> list[KeyValue]:
        """Return the `muse-glimmer.*` keys in the order of llama.cpp's converter."""
        text = _checked(config)
        windowed = tuple(kind == "sliding_attention" for kind in _kinds(text))
        cap = number(text, "final_logit_softcapping", 20.0)
        return [
            *_DENSE.metadata(text),
            f32("muse-glimmer.final_logit_softcapping", cap),
            f32("muse-glimmer.logit_scale", number(text, "output_multiplier")),
            u32("muse-glimmer.attention.sliding_window", integer(text, "sliding_window")),
            booleans("muse-glimmer.attention.sliding_window_pattern", windowed),
        ]

    def notes(self, config: Config, stored: Iterable[str]) -> list[str]:  # noqa: ARG002
        """Say what is left out: a vision part."""
        return vision_note(language_part(stored, wrapped=True).left_out)


def _kinds(text: Config) -> list[str]:
    """Return each layer's kind of attention; the class counts full layers from the end."""
    n_layer = integer(text, "num_hidden_layers")
    kinds = text.get("layer_types")
    if kinds is None:
        return [
            "sliding_attention" if (n_layer - 1 - layer) % 4 else "full_attention"
            for layer in range(n_layer)
        ]
    if not isinstance(kinds, list) or len(kinds) != n_layer:
        raise bad_config(f"config.json: layer_types must name {n_layer} layers")
    if any(kind not in ("sliding_attention", "full_attention") for kind in kinds):
        raise bad_config("config.json: layer_types has a kind that muse-glimmer does not know")
    return kinds


def _checked(config: Config) -> Config:
    """Return the text part's settings.

    Raises BadCheckpointError (code `bad_config`) for what llama.cpp's graph does not do.
    """
    text = {k: v for k, v in text_config(config).items() if k != "text_config"}
    text["hidden_act"] = text.get("hidden_activation", "silu")
    n_layer = read_shape(text).n_layer
    rope = rope_parameters(text, ("default",))
    thetas = text.get("layer_rope_theta")
    theta = number(rope, "rope_theta")
    wanted = [theta if kind == "sliding_attention" else 0 for kind in _kinds(text)]
    if thetas is not None and thetas != wanted:
        raise bad_config(
            f"config.json: layer_rope_theta; llama.cpp turns windowed layers by {theta:g} and "
            f"full ones not at all, in all {n_layer}"
        )
    if number(text, "post_norm_eps", _POST_NORM_EPS) != _POST_NORM_EPS:
        raise bad_config(f"config.json: post_norm_eps is not {_POST_NORM_EPS:g}")
    return text


def _all(config: Config) -> list[TensorSource]:
    text = _checked(config)
    shape = read_shape(text)
    scale = number(text, "qk_scale_factor", 3.87)
    layer_norms = tuple(f".{ours}.weight" for ours, _ in _DENSE.norms)
    found = [
        replace(source, add=1.0) if source.spec.name.endswith(layer_norms) else source
        for source in _DENSE.unmatched(text, output=True)
    ]
    ones = (1.0,) * shape.head_dim
    for layer in range(shape.n_layer):
        block = f"blk.{layer}"
        gate = f"model.layers.{layer}.self_attn.gate_proj.weight"
        size = (shape.hidden, shape.n_head * shape.head_dim)
        found.append(plain(f"{block}.attn_gate.weight", size, gate))
        for kind, factor in (("q", scale), ("k", 1.0)):
            spec = TensorSpec(f"{block}.attn_{kind}_norm.weight", (shape.head_dim,))
            found.append(TensorSource(spec, values=tuple(factor * one for one in ones)))
    return in_order(found)


MUSE_GLIMMER = MuseGlimmer()
