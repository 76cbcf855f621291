"""gpt-oss: GGUF architecture `gpt-oss`. Its experts are published as MXFP4 and stay as they are.

transformers may save them in plain floats instead, with input and output exchanged; those are
quantized like any other tensor. Gate and up alternate in one tensor in both forms.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
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
    in_order,
    read_experts,
    with_expert_keys,
    without_feed_forward,
)
from edgekit_quantize.architectures.matching import language_part, match
from edgekit_quantize.architectures.rope import rope_parameters
from edgekit_quantize.architectures.views import Swap, Take, View
from edgekit_quantize.metadata import KeyValue, u32

CLASSES = ("GptOssForCausalLM",)
MODEL_TYPES = ("gpt_oss",)

_DENSE = DenseArchitecture(
    name="gpt-oss",
    permuted=False,
    qkv_bias=None,
    head_dim_keys=True,
    vocab_keys=False,
    norms=(("attn_norm", "input_layernorm"), ("post_attention_norm", "post_attention_layernorm")),
)

_BUILT_IN = {"swiglu_alpha": 1.702, "swiglu_limit": 7.0}
"""Constants of the experts' gate in llama.cpp's graph."""


@dataclass(frozen=True, slots=True)
class GptOss:
    """Both sizes."""

    name: str = "gpt-oss"

    def tensors(self, config: Config) -> list[TensorSpec]:
        """Return the GGUF's tensors in the order llama-quantize visits and writes them."""
        settings = config.get("quantization_config")
        packed = isinstance(settings, Mapping) and settings.get("quant_method") == "mxfp4"
        return [source.spec for source in _all(config, None if packed else ())]

    def sources(self, config: Config, stored: Iterable[str]) -> list[TensorSource]:
        """Match the checkpoint's names with the model's; see `Architecture.sources`."""
        names = language_part(stored, wrapped=False).of
        return match(_all(config, names), names)

    def recipe_params(self, config: Config) -> RecipeParams:
        filled, experts = _checked(config)
        return replace(_DENSE.recipe_params(filled), n_expert=experts.count)

    def metadata(self, config: Config) -> list[KeyValue]:
        """Return the `gpt-oss.*` keys in the order of llama.cpp's converter."""
        filled, experts = _checked(config)
        added = [
            u32("gpt-oss.expert_count", experts.count),
            u32("gpt-oss.expert_used_count", experts.used),
        ]
        return [
            *with_expert_keys("gpt-oss", _DENSE.metadata(filled), added),
            u32("gpt-oss.attention.sliding_window", integer(filled, "sliding_window")),
            u32("gpt-oss.expert_feed_forward_length", experts.ffn),
        ]

    def notes(self, config: Config, stored: Iterable[str]) -> list[str]:  # noqa: ARG002
        """Say where llama.cpp answers a little differently."""
        rope = rope_parameters(config)
        if rope["rope_type"] == "yarn" and rope.get("truncate") is False:
            return [
                "config.json asks for YaRN with an unrounded range of dimensions; llama.cpp rounds "
                "it, so answers differ slightly from the original"
            ]
        return []


def _checked(config: Config) -> tuple[Config, Experts]:
    """Return the config with its rotary settings in one place, and the experts.

    Raises BadCheckpointError (code `bad_config`) for what llama.cpp's graph does not do.
    """
    experts = read_experts(config, "intermediate_size", "num_local_experts", "num_experts")
    n_layer = read_shape(config).n_layer
    windowed = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(n_layer)]
    if config.get("layer_types") not in (None, windowed):
        raise bad_config("config.json: layer_types do not alternate, windowed layers first")
    if not flag(config, "attention_bias", True):
        raise bad_config("config.json: attention_bias is off, llama.cpp's gpt-oss needs the biases")
    for key, value in _BUILT_IN.items():
        if number(config, key, value) != value:
            raise bad_config(f"config.json: {key} is not {value}")
    # `truncate` has no key: `notes` says what it changes.
    rope = {k: v for k, v in rope_parameters(config).items() if k != "truncate"}
    filled = {**config, "attention_bias": True, "rope_scaling": None, "rope_parameters": rope}
    return filled, experts


def _all(config: Config, stored: Collection[str] | None) -> list[TensorSource]:
    """Return all tensors, in the form in which `stored` has the experts (None: MXFP4)."""
    filled, experts = _checked(config)
    shape = read_shape(filled)
    found = without_feed_forward(_DENSE.unmatched(filled, output=True))
    for layer in range(shape.n_layer):
        block, prefix = f"blk.{layer}", f"model.layers.{layer}"
        router = f"{prefix}.mlp.router"
        found.append(
            plain(f"{block}.attn_sinks.weight", (shape.n_head,), f"{prefix}.self_attn.sinks")
        )
        found.append(
            plain(f"{block}.ffn_gate_inp.weight", (shape.hidden, experts.count), f"{router}.weight")
        )
        found.append(plain(f"{block}.ffn_gate_inp.bias", (experts.count,), f"{router}.bias"))
        for kind in ("gate", "up", "down"):
            found.extend(_experts(layer, kind, shape.hidden, experts, stored))
    return in_order(found)


def _experts(
    layer: int, kind: str, hidden: int, experts: Experts, stored: Collection[str] | None
) -> list[TensorSource]:
    """Return the weights and biases of one kind of matrix: gate, up or down."""
    theirs = "down_proj" if kind == "down" else "gate_up_proj"
    source = f"model.layers.{layer}.mlp.experts.{theirs}"
    rows, columns = (hidden, experts.ffn) if kind == "down" else (experts.ffn, hidden)
    every_other: View = ()
    if kind != "down":
        every_other = (Take(1, 0 if kind == "gate" else 1, 2 * experts.ffn, 2),)
    packed = stored is None or f"{source}_blocks" in stored
    part = (
        Part(f"{source}_blocks", every_other)
        if packed
        else Part(source, (Swap(1, 2), *every_other))
    )
    name = f"blk.{layer}.ffn_{kind}_exps"
    spec = TensorSpec(
        f"{name}.weight", (columns, rows, experts.count), native="MXFP4" if packed else None
    )
    bias = plain(f"{name}.bias", (rows, experts.count), f"{source}_bias", every_other)
    return [TensorSource(spec, (part,)), bias]


GPT_OSS = GptOss()
