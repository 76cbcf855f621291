"""Rotary position settings: config.json's two spellings -> GGUF keys and frequency factors."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping

from edgekit_quantize.architectures.base import Config, bad_config, integer, number
from edgekit_quantize.metadata import KeyValue, f32, string, u32


def rope_parameters(config: Config) -> Config:
    """Return one mapping with `rope_theta`, `rope_type` and the scaling's own fields.

    transformers 5 writes `rope_parameters`; before, `rope_theta` and `rope_scaling` stood apart
    and the type was also called `type`.
    """
    found: dict[str, object] = {}
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if value is None:
            continue
        if not isinstance(value, Mapping):
            raise bad_config(f"config.json: {key} must be an object, is {value!r}")
        found.update(value)
    if found.get("rope_theta") is None:
        found["rope_theta"] = config.get("rope_theta", 10000.0)
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in ("default", "linear", "yarn", "llama3"):
        raise bad_config(f"config.json: rotary scaling {kind!r} is not supported")
    found["rope_type"] = kind
    return found


def rope_metadata(arch: str, config: Config) -> list[KeyValue]:
    """Return the `{arch}.rope.*` keys in the order of llama.cpp's converter."""
    rope = rope_parameters(config)
    keys = []
    if rope["rope_type"] in ("linear", "yarn"):
        keys.append(string(f"{arch}.rope.scaling.type", str(rope["rope_type"])))
        keys.append(f32(f"{arch}.rope.scaling.factor", number(rope, "factor")))
    if rope["rope_type"] == "yarn":
        original = integer(
            rope,
            "original_max_position_embeddings",
            default=integer(config, "max_position_embeddings"),
        )
        keys.append(u32(f"{arch}.rope.scaling.original_context_length", original))
        for theirs, ours in (
            ("extrapolation_factor", "yarn_ext_factor"),
            ("attention_factor", "yarn_attn_factor"),
            ("beta_fast", "yarn_beta_fast"),
            ("beta_slow", "yarn_beta_slow"),
        ):
            if rope.get(theirs) is not None:
                keys.append(f32(f"{arch}.rope.scaling.{ours}", number(rope, theirs)))
    keys.append(f32(f"{arch}.rope.freq_base", number(rope, "rope_theta")))
    return keys


def rope_factors(rope: Config, head_dim: int) -> tuple[float, ...]:
    """Return Llama 3's divisor of each rotary frequency, () for other scalings.

    Source: transformers' `_compute_llama3_parameters`. Long waves are divided by `factor`,
    short ones are kept, those between are interpolated. Each step is rounded to float32 as torch
    rounds it (dividing by a tensor is multiplying by its reciprocal), so that the tensor is
    bit-identical to the one llama.cpp's converter writes.
    """
    if rope["rope_type"] != "llama3":
        return ()
    base = number(rope, "rope_theta")
    factor = number(rope, "factor", 8.0)
    low, high = number(rope, "low_freq_factor", 1.0), number(rope, "high_freq_factor", 4.0)
    context = integer(rope, "original_max_position_embeddings", default=8192)
    if low == high:
        raise bad_config("config.json: low_freq_factor and high_freq_factor are equal")
    factors = []
    for i in range(0, head_dim, 2):
        frequency = _f32(1.0 / _f32(base ** _f32(i / head_dim)))
        wave = _f32(_f32(1 / frequency) * _f32(2 * math.pi))
        if wave < context / high:
            factors.append(1.0)
        elif wave > context / low:
            factors.append(factor)
        else:
            smooth = _f32(_f32(_f32(_f32(1 / wave) * context) - low) / (high - low))
            divisor = _f32(_f32(_f32(1 - smooth) / factor) + smooth)
            factors.append(_f32(1 / divisor))
    return tuple(factors)


def _f32(value: float) -> float:
    """Round to the nearest float32."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded
