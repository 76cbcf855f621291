"""Seconds of a step as a sum of physical terms, each with one constant of the device's family.

A step takes the time of its bytes at full bandwidth plus, for every cause that keeps a device from
reaching it, a quantity that grows with that cause. `families.toml` holds the constants; this
module holds the quantities. Because the time is a plain sum, the constants can be fitted by least
squares, and a report can say how much each cause costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from edgekit.facts import Device, Family

if TYPE_CHECKING:
    from edgekit.work import Work

DECODE_TERMS: Final = (
    *("layer", "sparse_layer", "recurrent", "step", "split", "barrier"),
    *("read_k", "read_q4", "read_q8", "read_float"),
    *("unpack_k", "unpack_q4", "unpack_q8", "unpack_float"),
    *("cache", "cache_plain", "numa", "cell"),
)
"""layer: each layer costs a fixed time (launching kernels), a sparse or recurrent
one more; split: each layer
again where several devices share the model; barrier: threads meet at each layer. read: what is
missing of the bandwidth, by class of file type. unpack: turning weights into numbers and
multiplying them, by the device's arithmetic (GPU: fp32 peak; CPU: cores). cache: reading keys and
values, with flash attention or plain. numa: bytes over two sockets. cell: attention on a CPU."""

PREFILL_TERMS: Final = (
    *("layer", "barrier", "read", "token"),
    *("multiply_k", "multiply_q4", "multiply_q8", "multiply_float", "experts"),
    *("attention", "attention_plain", "numa"),
)
"""layer, barrier, read: once per micro-batch; token: moving each token's activations through
memory; multiply, experts: the products at the device's peak; attention likewise."""

N_UBATCH: Final = 512

SPLIT_OVERLAP: Final = 0.5
"""Of the time that several devices could save on a long prompt by working on micro-batches in
turn, the share they do save: two cards gain x1.0 to 1.7 at 4,096 tokens in published runs."""

VECTOR_BATCH: Final = 8
"""Up to so many sequences llama.cpp multiplies with its kernels for vectors, beyond with those
for matrices, which take about a tenth as long for each."""

_MICRO: Final = 1e-6


def clock_share(device: Device) -> float:
    """Which share of its peak clock a device sustains under its power limit.

    A card of a family does so much arithmetic per watt at full clock; one sold with less power per
    TFLOP/s (T4, L4, A10) cannot hold its boost clock under load.
    """
    per_watt = device.family.tflops_per_watt
    if per_watt is None or device.watts is None or not device.fp32_tflops:
        return 1.0
    return min(1.0, per_watt * device.watts / device.count / device.fp32_tflops)


def bandwidth(device: Device) -> float | None:
    """Bytes per second that one process can count on at most.

    Two sockets do not add up: one memory node serves a thread. A measured bandwidth is scaled by
    what copies reach of the nominal one, 0.8, so that both kinds mean the same.
    """
    if device.bandwidth_gb_s is None:
        return None
    rate = device.bandwidth_gb_s
    if device.bandwidth_measured:
        rate /= 0.8
    elif device.measured_gb_s is not None and device.memory_kind == "shared":
        rate = device.measured_gb_s / 0.8
    return rate * 1e9 / device.sockets


def peak_flops(device: Device) -> float | None:
    """Operations per second of matrix products, as far as the power limit lets them."""
    per_core = device.family.gflops_per_core
    if device.peak_tflops is not None:
        return device.peak_tflops * 1e12 * float(clock_share(device) ** 0.5)
    if per_core is not None and device.cores:
        return per_core * 1e9 * device.cores
    return None


def decode(
    w: Work, device: Device, depth: float, users: int = 1, *, flash: bool = True, devices: int = 1
) -> tuple[float, dict[str, float]]:
    """Seconds of bytes at full bandwidth, and the terms of one decode step of `users` sequences.

    `depth` is the mean number of cells before each new token. Raises ValueError for a device
    whose bandwidth is not known.
    """
    rate = bandwidth(device)
    if rate is None:
        raise ValueError("a step needs a bandwidth")
    read = w.read_bytes(users) / rate
    cache = users * w.cache_bytes(depth) / rate
    flops = 2.0 * w.used_params * (min(users, VECTOR_BATCH) + max(0, users - VECTOR_BATCH) / 10)
    terms = {
        "layer": w.layers * _MICRO,
        "step": _MICRO,
        f"read_{w.unpack}": read,
        "cache" if flash else "cache_plain": cache,
    }
    if w.n_experts:
        terms["sparse_layer"] = w.layers * _MICRO
    if w.recurrent:
        terms["recurrent"] = w.recurrent * _MICRO
    if devices > 1:
        terms["split"] = w.layers * _MICRO
    if device.fp32_tflops:
        reached = device.fp32_tflops * 1e12 * clock_share(device)
        terms[f"unpack_{w.unpack}"] = flops / reached * device.family.unpack_cost
    elif device.cores:
        terms["barrier"] = w.layers * device.cores * _MICRO
        # Unpacked weights serve all sequences of the step; multiplying them does not.
        batch = 1 + 0.15 * (users - 1)
        terms[f"unpack_{w.unpack}"] = w.read_bytes(users) * batch / (device.cores * 1e9)
        terms["cell"] = users * w.attention_flops(depth) / 4 * 1e-9 / device.cores
    if device.sockets > 1:
        terms["numa"] = read
    return read + cache, terms


def prefill(
    w: Work, device: Device, tokens: int, depth: int = 0, *, flash: bool = True, devices: int = 1
) -> tuple[float, dict[str, float]] | None:
    """The terms of one prompt of `tokens` after `depth` cells; None where no peak is known.

    Logits are computed for the last token only.
    """
    rate, peak = bandwidth(device), peak_flops(device)
    if rate is None or peak is None or tokens < 1:
        return None
    batches = -(-tokens // N_UBATCH)
    attention = tokens * w.attention_flops(depth + tokens / 2) / peak
    terms = {
        "layer": w.layers * batches * _MICRO,
        "read": w.read_bytes(min(tokens, N_UBATCH)) * batches / rate,
        "token": w.n_embd * w.layers * tokens / rate,
        f"multiply_{w.unpack}": 2.0 * w.params.dense * tokens / peak,
        "attention" if flash else "attention_plain": attention,
    }
    if w.n_experts:
        terms["experts"] = 2.0 * w.expert_params * tokens / peak
    if device.cores and not device.fp32_tflops:
        terms["barrier"] = w.layers * batches * device.cores * _MICRO
        if device.sockets > 1:
            terms["numa"] = terms[f"multiply_{w.unpack}"]
    if devices > 1 and batches > 1:
        in_turn = (batches + devices - 1) / (batches * devices)
        gain = 1 - SPLIT_OVERLAP * (1 - in_turn)
        terms = {name: value * gain for name, value in terms.items()}
    return 0.0, terms


def seconds(base: float, terms: Mapping[str, float], constants: Mapping[str, float]) -> float:
    """The sum; a term without a constant in the family costs nothing there."""
    return base + sum(value * constants.get(name, 0.0) for name, value in terms.items())


def family_for(family: Family, backend: str, families: Mapping[str, Family]) -> Family:
    """The family that holds for a device under another backend than its own."""
    return families[family.other_backends[backend]] if backend in family.other_backends else family
