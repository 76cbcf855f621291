"""Rotary position settings: config.json's two spellings -> GGUF keys and frequency factors."""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Mapping

from edgekit_quantize.architectures.base import Config, bad_config, integer, number
from edgekit_quantize.metadata import KeyValue, f32, string, u32

KINDS = ("default", "linear", "yarn", "llama3")


def rope_parameters(config: Config, kinds: Collection[str] = KINDS) -> Config:
    """Return one mapping with `rope_theta`, `rope_type` and the scaling's own fields.

    `kinds` are the scalings that the caller can carry over. transformers 5 writes
    `rope_parameters`; before, `rope_theta` and `rope_scaling` stood apart
    and the type was also called `type`.
    """
    found: dict[str, object] = {}
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if value is None:
            continue
        if not isinstance(value, Mapping):
            raise bad_config(f"config.json: {key} must be an object, is {value!r:.60}")
        found.update(value)
    if found.get("rope_theta") is None:
        found["rope_theta"] = config.get("rope_theta", 10000.0)
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in kinds:
        raise bad_config(f"config.json: rotary scaling {kind!r:.60} is not supported")
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


def yarn_attention(arch: str, config: Config, *, reads_log: bool) -> list[KeyValue]:
    """Return the keys by which llama.cpp scales attention under YaRN as transformers does.

    `reads_log`: the graph of `arch` reads the log multiplier, the betas and the attention
    temperature (Llama 4's, which Ministral 3 shares). Of a factor that llama.cpp would not arrive
    at by itself, the quotient is written, which its loader multiplies in for every architecture.
    Sources: transformers' `_compute_yarn_parameters`, llama.cpp's `llama_context` constructor.
    """
    rope = rope_parameters(config)
    keys: list[KeyValue] = []
    beta = rope.get("llama_4_scaling_beta")
    if rope["rope_type"] != "yarn":
        if reads_log and beta is not None:
            raise bad_config("config.json: llama_4_scaling_beta comes with yarn scaling only")
        return keys
    if rope.get("truncate") not in (None, True):
        raise bad_config("config.json: yarn scaling without truncation is not in llama.cpp")
    if not reads_log and (
        number(rope, "beta_fast", 32.0) != 32.0 or number(rope, "beta_slow", 1.0) != 1.0
    ):
        raise bad_config(f"config.json: llama.cpp's {arch} takes yarn's betas 32 and 1 only")
    factor = number(rope, "factor")
    every = number(rope, "mscale_all_dim", 0.0, zero=True)
    one = number(rope, "mscale", 0.0, zero=True)
    if reads_log:
        keys.append(f32(f"{arch}.rope.scaling.yarn_log_multiplier", every))
        if beta is not None:
            keys.append(
                f32(f"{arch}.attention.temperature_scale", number(rope, "llama_4_scaling_beta"))
            )
    given = number(rope, "attention_factor", 0.0)
    wanted = _magnitude(factor, one) / _magnitude(factor, every) if one and every else None
    wanted = given or wanted or _magnitude(factor, 1.0)
    reached = _magnitude(factor, 1.0)
    if reads_log and every:
        reached /= _magnitude(factor, every)
    if abs(wanted / reached - 1) > 1e-6:
        keys.append(f32(f"{arch}.rope.scaling.attn_factor", wanted / reached))
    return keys


def _magnitude(factor: float, scale: float) -> float:
    """YaRN's growth of attention logits with the context's stretching."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def rope_factors(rope: Config, head_dim: int, *, sharp: bool = False) -> tuple[float, ...]:
    """Return Llama 3's divisor of each rotary frequency, () for other scalings.

    `sharp` allows equal bounds, as in Llama 4: each wave is then short or long, none is between.

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
    if low == high and not sharp:
        raise bad_config("config.json: low_freq_factor and high_freq_factor are equal")
    pairs = range(0, head_dim, 2)
    try:
        factors = [_llama3_factor(i / head_dim, base, factor, low, high, context) for i in pairs]
    except (OverflowError, ZeroDivisionError):
        factors = [math.inf]
    if not all(map(math.isfinite, factors)):
        raise bad_config("config.json: llama3 scaling gives factors that are no numbers")
    return tuple(factors)


def _llama3_factor(
    where: float, base: float, factor: float, low: float, high: float, context: int
) -> float:
    frequency = _f32(1.0 / _f32(base ** _f32(where)))
    wave = _f32(_f32(1 / frequency) * _f32(2 * math.pi))
    if wave < context / high:
        return 1.0
    if wave > context / low:
        return factor
    smooth = _f32(_f32(_f32(_f32(1 / wave) * context) - low) / (high - low))
    divisor = _f32(_f32(_f32(1 - smooth) / factor) + smooth)
    return _f32(1 / divisor)


def _f32(value: float) -> float:
    """Round to the nearest float32."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded
