"""How fast a plan will run: decode, prefill and time to first token, each with an error bar.

Decode reads every weight once per step: t = layers x c + bytes / (e x bandwidth), and on a CPU
the attention besides. Prefill is bound by arithmetic: t = flops / (e x peak). The constants per
device family, and where they were fitted, are in `families.toml`. Nothing is known of a device
without bandwidth or peak: None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgekit.facts import Device, FileType, ModelCard, Rate
from edgekit.memory import MemoryPlan, Shape, Weights, kv_bytes_per_token, shape

Basis = Literal["measured", "published", "family", "physics"]

STEP_S = 0.0003
"""What our engine adds to a step outside llama.cpp: sampling, bookkeeping, one message."""

BATCH_COST = 0.03
"""Each further sequence in a decode step costs this share more than its bytes say; GB10 with a
dense 7B at 8 bits: x1.9, x3.6, x6.7 of one stream at 2, 4, 8."""

PROMPT_TOKENS = 512
OUTPUT_TOKENS = 128
"""The load that the report after `deploy` measures; predictions are for the same."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with the range that about nine in ten published rows of its kind fall into.

    `basis`: "published" = constants fitted on this very device; "family" = on devices of its
    kind; "physics" = from bandwidth or core count alone; "measured" = on this machine.
    """

    value: float
    low: float
    high: float
    basis: Basis

    def as_dict(self) -> dict[str, float | str]:
        """JSON form, three significant figures."""
        return {
            "value": _round(self.value),
            "low": _round(self.low),
            "high": _round(self.high),
            "basis": self.basis,
        }


@dataclass(frozen=True, slots=True)
class Speed:
    """Predicted speeds of one plan. `decode` is per user while all users decode at once."""

    decode: Estimate | None
    prefill: Estimate | None
    ttft_ms: Estimate | None
    ceiling_tok_s: float | None
    """Bandwidth over bytes per step, one user: no engine can be faster."""
    users: int

    @property
    def all_users_tok_s(self) -> float | None:
        return None if self.decode is None else self.decode.value * self.users


def unknown(users: int) -> Speed:
    """Nothing can be said."""
    return Speed(None, None, None, None, users)


def predict(
    card: ModelCard,
    device: Device,
    table: Weights,
    plan: MemoryPlan,
    filetype: FileType,
    *,
    prompt_tokens: int = PROMPT_TOKENS,
    output_tokens: int = OUTPUT_TOKENS,
    step_s: float = STEP_S,
) -> Speed:
    """Speeds of `plan`, for `plan.users` sending prompts of the given length at once.

    A partial offload adds the host's share at an assumed desktop memory bandwidth and widens
    the range; the device's own host is not in its table.
    """
    s = shape(card.config)
    depth = prompt_tokens + output_tokens // 2
    kv = depth * kv_bytes_per_token(card.config, plan.kv_type)
    prefill = _prefill(device, s, prompt_tokens)
    rate = _rate(device, filetype)
    if rate is None:
        return Speed(None, prefill, None, None, plan.users)
    one = table.read_per_token + kv
    share = _offloaded(s, plan, device)
    step = _step_s(device, s, table, filetype, kv, plan.users, share, prefill) + step_s
    step += plan.users * depth * _attention_s(device, s)
    spread, basis = _decode_spread(device, share)
    decode = _estimate(1 / step, spread, basis)
    return Speed(
        decode,
        prefill if share == 1 else None,
        time_to_first(prefill if share == 1 else None, decode, prompt_tokens, plan.users),
        (device.bandwidth_gb_s or 0) * 1e9 / one if device.bandwidth_gb_s else None,
        plan.users,
    )


def matmul_params(s: Shape, *, logits: bool = True) -> int:
    """Parameters that each token is multiplied with: all matrices but the embedding table."""
    attention = s.n_embd * s.head_dim * (2 * s.n_head + 2 * s.n_head_kv)
    per_layer = attention + 3 * s.n_embd * s.n_ff
    return s.n_layer * per_layer + (s.n_embd * s.n_vocab if logits else 0)


HOST_BANDWIDTH_GB_S = 50.0
"""Assumed for layers that spill to the host of a device from the table: two channels of DDR4."""


def _rate(device: Device, filetype: FileType) -> float | None:
    """Bytes per second that decode reaches, memory and unpacking considered."""
    if device.bandwidth_gb_s is None:
        return None
    own = device.decode or device.family.decode
    efficiency = own.efficiency[filetype.unpack]
    if device.bandwidth_measured:
        efficiency = device.family.decode_of_measured
    rate = efficiency * device.bandwidth_gb_s
    per_core = device.family.unpack_gb_s_per_core.get(filetype.unpack)
    if per_core is not None and device.cores:
        rate = min(rate, per_core * device.cores)
    return rate * 1e9


def _step_s(
    device: Device,
    s: Shape,
    table: Weights,
    filetype: FileType,
    kv: int,
    users: int,
    share: float,
    prefill: Estimate | None,
) -> float:
    """Seconds of one decode step of `users` sequences."""
    rate = _rate(device, filetype)
    if rate is None:
        raise ValueError("a step needs a bandwidth")
    family = device.family
    layer_us = family.layer_us + family.layer_us_per_core * (device.cores or 0)
    read = table.read_per_token + users * kv
    bytes_s = share * read / rate
    if share < 1:
        bytes_s += (1 - share) * read / (HOST_BANDWIDTH_GB_S * 0.6e9)
    elif users > 1 and prefill is not None:
        # A batch of a few tokens multiplies far below the prefill rate.
        bytes_s = max(bytes_s, users / (prefill.value * family.small_batch))
    return (s.n_layer * layer_us * 1e-6 + bytes_s) * (1 + BATCH_COST * (users - 1))


def _attention_s(device: Device, s: Shape) -> float:
    """Seconds per cell of one sequence where attention is no matter of bandwidth (CPUs)."""
    values = s.n_layer * s.n_head * s.head_dim
    return device.family.attention_ns * 1e-9 * values / max(1, device.cores or 1)


def _prefill(device: Device, s: Shape, tokens: int) -> Estimate | None:
    """Tokens per second of one prompt; logits are computed for its last token only."""
    if tokens < 1:
        return None
    # 2 operations per parameter, and per layer 2 x 2 x width x mean depth for the attention.
    flops = 2 * matmul_params(s, logits=False) + 2 * s.n_layer * s.n_head * s.head_dim * tokens
    own, family = device.prefill, device.family
    basis: Basis = "family"
    if own is not None and device.peak_tflops is not None:
        reached, spread = own.efficiency[""] * device.peak_tflops * 1e12, own.spread
    elif family.prefill_efficiency is not None and device.peak_tflops is not None:
        reached = family.prefill_efficiency * device.peak_tflops * 1e12
        spread = family.prefill_spread
    elif family.prefill_gflops_per_core is not None and device.cores:
        reached, spread = family.prefill_gflops_per_core * device.cores * 1e9, family.prefill_spread
        basis = "physics"
    else:
        return None
    seconds = tokens * flops / reached + (s.n_layer * family.layer_us * 1e-6)
    return _estimate(tokens / seconds, spread, basis)


def time_to_first(
    prefill: Estimate | None, decode: Estimate, prompt_tokens: int, users: int
) -> Estimate | None:
    """Milliseconds to the first token, median over users who all send at once.

    Their prompts run one after another, so the median user waits for (users + 1) / 2 of them.
    """
    if prefill is None:
        return None
    prompts = (users + 1) / 2 * prompt_tokens
    return Estimate(
        1000 * (prompts / prefill.value + 1 / decode.value),
        1000 * (prompts / prefill.high + 1 / decode.high),
        1000 * (prompts / prefill.low + 1 / decode.low),
        prefill.basis,
    )


def _offloaded(s: Shape, plan: MemoryPlan, device: Device) -> float:
    """Share of the layers that lie on the device."""
    if device.memory_kind == "shared":
        return 1.0
    return min(1.0, plan.n_gpu_layers / (s.n_layer + 1))


def _decode_spread(device: Device, share: float) -> tuple[float, Basis]:
    rate: Rate = device.decode or device.family.decode
    if share < 1:
        return max(rate.spread, 0.5), "physics"
    if device.bandwidth_measured:
        return rate.spread, "physics"
    return rate.spread, "published" if device.id in device.family.fitted_on else "family"


def _estimate(value: float, spread: float, basis: Basis) -> Estimate:
    """`spread` is relative; the high end divides, so that doubling and halving are alike."""
    return Estimate(value, value * (1 - spread), value / (1 - spread), basis)


def _round(value: float) -> float:
    return float(f"{value:.3g}")
