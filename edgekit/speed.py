"""How fast a plan will run: decode, prefill and time to first token, each with an error bar.

Both are sums of physical terms (`speed_terms`): bytes over bandwidth and operations over the peak,
plus what each layer, each unpacked weight and each cell of attention cost. The constants per
device family, and what they were fitted on, are in `families.toml`; where a device's own rows are
published, `published_speeds.toml` says how they lie against its family. Nothing is known of a
device without bandwidth: None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edgekit import speed_terms
from edgekit.facts import Device, FileType, ModelCard
from edgekit.memory import MemoryPlan, Weights
from edgekit.work import Work, work

Basis = Literal["measured", "published", "family", "physics"]

STEP_S = 0.0003
"""What our engine adds to a step outside llama.cpp: sampling, bookkeeping, one message."""

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
    w = work(card, table, filetype.unpack, plan.kv_type)
    if speed_terms.bandwidth(device) is None:
        return unknown(plan.users)
    prefill = prefill_estimate(w, device, prompt_tokens)
    depth = prompt_tokens + output_tokens / 2
    share = _offloaded(plan, device)
    step = share * step_seconds(w, device, depth, plan.users) + step_s
    if share < 1:
        read = w.read_bytes(plan.users) + plan.users * w.cache_bytes(depth)
        step += (1 - share) * read / HOST_BYTES_PER_S
        prefill = None
    decode = _estimate(1 / step, *_decode_spread(device, share))
    return Speed(
        decode,
        prefill,
        time_to_first(prefill, decode, prompt_tokens, plan.users),
        (device.bandwidth_gb_s or 0) * 1e9 / (w.read_bytes() + w.cache_bytes(depth)),
        plan.users,
    )


HOST_BYTES_PER_S = 30e9
"""Assumed for layers that spill to the host of a device from the table: 0.6 of two channels of
DDR4."""


def step_seconds(
    w: Work, device: Device, depth: float, users: int = 1, *, flash: bool = True
) -> float:
    """Seconds of one decode step of `users` sequences, all layers on the device.

    Raises ValueError for a device whose bandwidth is not known.
    """
    base, terms = speed_terms.decode(w, device, depth, users, flash=flash, devices=device.count)
    found = speed_terms.seconds(base, terms, device.family.decode)
    own = _own(device.published.decode if device.published else {}, w.unpack)
    return max(found * own, base)


def prefill_estimate(
    w: Work, device: Device, tokens: int, depth: int = 0, *, flash: bool = True
) -> Estimate | None:
    """Tokens per second of one prompt after `depth` cells, None where no peak is known."""
    found = speed_terms.prefill(w, device, tokens, depth, flash=flash, devices=device.count)
    if found is None:
        return None
    took = speed_terms.seconds(*found, device.family.prefill)
    published = device.published
    if took <= 0:
        return None
    if published is not None and published.prefill:
        took *= _own(published.prefill, w.unpack)
        spread = published.prefill_spread or device.family.prefill_spread
        return _estimate(tokens / took, spread, "published")
    basis: Basis = "physics" if device.bandwidth_measured else _family_basis(device)
    return _estimate(tokens / took, device.family.prefill_spread, basis)


def decode_estimate(
    w: Work, device: Device, depth: float, users: int = 1, *, flash: bool = True
) -> Estimate:
    """Tokens per second of each of `users`, all layers on the device. Raises as `step_seconds`."""
    step = step_seconds(w, device, depth, users, flash=flash)
    return _estimate(1 / step, *_decode_spread(device, 1.0))


def _own(factors: Mapping[str, float], unpack: str) -> float:
    """A device's own factor; for a class nobody measured there, the mean of the others."""
    if not factors:
        return 1.0
    return factors.get(unpack) or sum(factors.values()) / len(factors)


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


def _offloaded(plan: MemoryPlan, device: Device) -> float:
    """Share of the layers that lie on the device."""
    if device.memory_kind == "shared":
        return 1.0
    return min(1.0, plan.n_gpu_layers / plan.n_layers)


def _decode_spread(device: Device, share: float) -> tuple[float, Basis]:
    spread = device.family.decode_spread
    if share < 1:
        return max(spread, 0.5), "physics"
    if device.bandwidth_measured:
        return spread, "physics"
    if device.published is not None and device.published.decode:
        return device.published.decode_spread or spread, "published"
    return spread, _family_basis(device)


def _family_basis(device: Device) -> Basis:
    """ "family" where somebody measured a device of the kind, else "physics"."""
    return "family" if device.family.fitted_on else "physics"


def _estimate(value: float, spread: float, basis: Basis) -> Estimate:
    """`spread` is relative; the high end divides, so that doubling and halving are alike."""
    return Estimate(value, value * (1 - spread), value / (1 - spread), basis)


def _round(value: float) -> float:
    return float(f"{value:.3g}")
