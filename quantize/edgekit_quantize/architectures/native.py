"""Mistral's own checkpoint layout: params.json -> the config and the names of its twin.

Rows of Q and K are already in llama.cpp's rotary order here, so nothing is permuted. The rest is
the model that the Hugging Face layout of the same repository holds, and the GGUF is the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from edgekit_quantize.architectures.base import (
    Architecture,
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
from edgekit_quantize.architectures.matching import vision_note
from edgekit_quantize.errors import BadCheckpointError
from edgekit_quantize.metadata import KeyValue

LAYOUT = "params.json"
"""Key that marks a config made here, and the file it was made from."""

_SHAPE_KEYS = (
    ("dim", "hidden_size"),
    ("n_layers", "num_hidden_layers"),
    ("n_heads", "num_attention_heads"),
    ("n_kv_heads", "num_key_value_heads"),
    ("head_dim", "head_dim"),
    ("hidden_dim", "intermediate_size"),
    ("vocab_size", "vocab_size"),
)

_NAMES = (
    (r"tok_embeddings\.", "model.embed_tokens."),
    (r"norm\.", "model.norm."),
    (r"output\.", "lm_head."),
    (r"layers\.(\d+)\.attention\.w([qkvo])\.", r"model.layers.\1.self_attn.\2_proj."),
    (r"layers\.(\d+)\.attention_norm\.", r"model.layers.\1.input_layernorm."),
    (r"layers\.(\d+)\.ffn_norm\.", r"model.layers.\1.post_attention_layernorm."),
    (r"layers\.(\d+)\.feed_forward\.w1\.", r"model.layers.\1.mlp.gate_proj."),
    (r"layers\.(\d+)\.feed_forward\.w2\.", r"model.layers.\1.mlp.down_proj."),
    (r"layers\.(\d+)\.feed_forward\.w3\.", r"model.layers.\1.mlp.up_proj."),
)

_VISION = ("vision_encoder.", "vision_language_adapter.", "patch_merger.", "pre_mm_projector_norm.")

_NOT_DENSE = ("moe", "q_lora_rank", "kv_lora_rank")


@dataclass(frozen=True, slots=True)
class Native:
    """The architecture of the twin, with the names of this layout."""

    twin: Architecture

    @property
    def name(self) -> str:
        return self.twin.name

    def tensors(self, config: Config) -> list[TensorSpec]:
        return self.twin.tensors(config)

    def sources(self, config: Config, stored: Iterable[str]) -> list[TensorSource]:
        """Match the checkpoint's names with the model's; see `Architecture.sources`."""
        own: dict[str, str] = {}
        for name in stored:
            if not name.startswith(_VISION) and own.setdefault(twin_name(name), name) != name:
                raise BadCheckpointError(
                    f"{own[twin_name(name)]!r} and {name!r} are the same tensor",
                    code="duplicate_tensor",
                )
        return [
            replace(source, parts=tuple(Part(own[part.source]) for part in source.parts))
            for source in self.twin.sources(config, own.keys())
        ]

    def recipe_params(self, config: Config) -> RecipeParams:
        return self.twin.recipe_params(config)

    def metadata(self, config: Config) -> list[KeyValue]:
        return self.twin.metadata(config)

    def notes(self, config: Config, stored: Iterable[str]) -> list[str]:
        """Say what is left out: a vision part, and what the twin leaves out."""
        names = list(stored)
        left_out = [name for name in names if name.startswith(_VISION)]
        return [*vision_note(left_out), *self.twin.notes(config, [])]


def twin_name(name: str) -> str:
    """Return the Hugging Face name of a tensor, or `name` itself when it is none of ours."""
    for pattern, instead in _NAMES:
        if match := re.match(pattern, name):
            return match.expand(instead) + name[match.end() :]
    return name


def to_config(params: Config) -> Config:
    """Return params.json as the config.json of its twin would say it.

    Raises BadCheckpointError: `unknown_architecture` for what is no dense text model,
    `bad_config` for what is missing or makes no sense.
    """
    kind = params.get("model_type", "transformer")
    others = [key for key in _NOT_DENSE if params.get(key) is not None]
    if others or kind not in ("transformer", None):
        raise BadCheckpointError(
            f"params.json describes no dense model ({', '.join(others) or kind!s:.60})",
            code="unknown_architecture",
            hint="fetch the repository's model*.safetensors and config.json instead",
        )
    config: dict[str, object] = {LAYOUT: True}
    for theirs, ours in _SHAPE_KEYS:
        if params.get(theirs) is not None:
            config[ours] = integer(params, theirs)
    config["max_position_embeddings"] = integer(params, "max_position_embeddings", "max_seq_len")
    config["rms_norm_eps"] = number(params, "norm_eps")
    config["tie_word_embeddings"] = flag(params, "tied_embeddings", False)
    config["hidden_act"] = params.get("activation", "silu")
    config["sliding_window"] = params.get("sliding_window")
    config["rope_parameters"] = _rope(params)
    if (method := _quantization(params)) is not None:
        config["quantization_config"] = method
    if (vision := _object(params, "vision_encoder")) is not None:
        merged = vision.get("mm_projector_id") == "patch_merge"
        config["spatial_merge_size"] = integer(vision, "spatial_merge_size") if merged else 1
        config["multimodal_projector_bias"] = flag(vision, "adapter_bias", False)
        config["vision_config"] = {
            **vision,
            "model_type": "pixtral",
            "hidden_act": "silu",
            "layer_norm_eps": config["rms_norm_eps"],
        }
    newer = any(params.get(key) is not None for key in ("vision_encoder", "yarn"))
    config["architectures"] = [
        "Mistral3ForConditionalGeneration" if newer else "MistralForCausalLM"
    ]
    return config


def _rope(params: Config) -> dict[str, object]:
    rope: dict[str, object] = {"rope_type": "default", "rope_theta": number(params, "rope_theta")}
    yarn = _object(params, "yarn")
    temperature = _object(params, "llama_4_scaling")
    if yarn is None:
        if temperature is not None:
            raise bad_config("params.json: llama_4_scaling comes with yarn only")
        return rope
    original = integer(yarn, "original_max_position_embeddings")
    if not isinstance(yarn.get("apply_scale"), bool):
        raise bad_config("params.json: yarn does not say apply_scale")
    rope |= {
        "rope_type": "yarn",
        "factor": number(yarn, "factor"),
        "beta_fast": number(yarn, "beta"),
        "beta_slow": number(yarn, "alpha"),
        "original_max_position_embeddings": original,
        # Equal magnitudes cancel: attention is then not scaled, as apply_scale says.
        "mscale": 1.0,
        "mscale_all_dim": 0.0 if yarn["apply_scale"] else 1.0,
    }
    if temperature is not None:
        if integer(temperature, "original_max_position_embeddings") != original:
            raise bad_config("params.json: yarn and llama_4_scaling name two original contexts")
        rope["llama_4_scaling_beta"] = number(temperature, "beta")
    return rope


def _quantization(params: Config) -> object:
    if params.get("quantization_config") is not None:
        return params["quantization_config"]
    settings = _object(params, "quantization")
    if settings is None:
        return None
    form = settings.get("qformat_weight")
    return {"quant_method": "fp8" if form == "fp8_e4m3" else form}


def _object(params: Config, key: str) -> Config | None:
    value = params.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise bad_config(f"params.json: {key} must be an object, is {value!r:.60}")
    return value
