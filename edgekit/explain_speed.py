"""The speed figures of a verdict, filled in: a step's time as the sum of its causes."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit import speed, speed_terms
from edgekit.candidate import Candidate
from edgekit.explained import Figure, Input
from edgekit.memory import Weights
from edgekit.speed import OUTPUT_TOKENS, PROMPT_TOKENS, STEP_S, Estimate
from edgekit.units import UNKNOWN, format_bytes, format_gb_s, format_ms, format_tok_s
from edgekit.work import Work, work

WORDS: Mapping[str, str] = {
    "layer": "starting each layer's kernels",
    "sparse_layer": "routing experts in each layer",
    "recurrent": "recurrent layers",
    "step": "starting the step",
    "split": "crossing between devices",
    "barrier": "threads meeting at each layer",
    "read": "bandwidth that is not reached",
    "unpack": "unpacking and multiplying weights",
    "cache": "reading keys and values",
    "numa": "crossing between two sockets",
    "cell": "attention on the CPU",
    "token": "moving activations",
    "multiply": "matrix products",
    "experts": "matrix products of the experts",
    "attention": "attention",
}
_BASIS = {
    "measured": "measured on this machine",
    "published": "published measurements of this very device, fitted",
    "family": "published measurements of devices of its kind, fitted",
    "physics": "bandwidth and arithmetic alone; nobody published a measurement of its kind",
}


def figures(c: Candidate, table: Weights) -> list[Figure]:
    """Decode, prefill, time to first token and the ceiling."""
    w = work(c.card, table, c.filetype.unpack, c.plan.kv_type)
    return [_decode(c, w), _prefill(c, w), _first(c), _ceiling(c, w)]


def words(basis: str) -> str:
    """What a basis stands for."""
    return _BASIS.get(basis, basis)


def _decode(c: Candidate, w: Work) -> Figure:
    found, device, plan = c.speed.decode, c.device, c.plan
    depth = PROMPT_TOKENS + OUTPUT_TOKENS / 2
    filled: list[str] = []
    if found is not None:
        base, terms = speed_terms.decode(w, device, depth, plan.users, devices=device.count)
        step = 1 / found.value
        lines = [("bytes at full bandwidth", base)]
        lines += _lines(terms, device.family.decode)
        own = speed.step_seconds(w, device, depth, plan.users)
        plainly = sum(size for _, size in lines)
        if abs(own - plainly) > 1e-9:
            lines.append((f"this device's own rows against its kind (× {own / plainly:.3f})",
                          own - plainly))  # fmt: skip
        share = plan.n_gpu_layers / plan.n_layers if device.memory_kind != "shared" else 1.0
        if share < 1:
            lines = [(f"the device's {share:.0%} of the layers", share * own)]
            lines.append(("layers in host memory", step - STEP_S - share * own))
        lines.append(("our engine outside llama.cpp", STEP_S))
        if abs(sum(size for _, size in lines) - step) < 1e-6:
            filled += [f"{name}: {_ms(size)}" for name, size in lines]
        filled.append(f"1 ÷ {_ms(step)} a step = {format_tok_s(found.value)} for each user")
        filled.append(_range(found))
    return Figure(
        "decode",
        "Decode speed, each user",
        _shown(found),
        "1 ÷ seconds of a step; a step = bytes read ÷ bandwidth + what every cause adds; all "
        "users take part in each step",
        tuple(filled),
        (
            Input("weights read a step", format_bytes(w.read_bytes(plan.users)),
                  "the recipe, embeddings left out; of experts those that are used"),
            Input("keys and values read a step",
                  format_bytes(plan.users * w.cache_bytes(depth)),
                  f"{plan.users} users at a depth of {depth:.0f} tokens"),
            Input("bandwidth", format_gb_s(device.bandwidth_gb_s), device.source),
            Input("constants", device.family.id, _family(c)),
            Input("users", f"{plan.users}", "asked for"),
        ),
        UNKNOWN if found is None else words(found.basis),
    )  # fmt: skip


def _prefill(c: Candidate, w: Work) -> Figure:
    found, device = c.speed.prefill, c.device
    filled: list[str] = []
    parts = speed_terms.prefill(w, device, PROMPT_TOKENS, devices=device.count)
    if found is not None and parts is not None:
        took = PROMPT_TOKENS / found.value
        lines = _lines(parts[1], device.family.prefill)
        plainly = sum(size for _, size in lines)
        if plainly > 0 and abs(took - plainly) > 1e-9:
            lines.append((f"this device's own rows against its kind (× {took / plainly:.3f})",
                          took - plainly))  # fmt: skip
        filled += [f"{name}: {_ms(size)}" for name, size in lines]
        filled.append(f"{PROMPT_TOKENS} tokens ÷ {_ms(took)} = {format_tok_s(found.value)}")
        filled.append(_range(found))
    peak = speed_terms.peak_flops(device)
    return Figure(
        "prefill",
        "Prefill speed",
        _shown(found),
        "prompt tokens ÷ seconds; seconds = operations ÷ the device's peak × what is reached of "
        "it + reading the weights once",
        tuple(filled),
        (
            Input("prompt", f"{PROMPT_TOKENS} tokens", "the load that the report after deploy "
                  "measures"),
            Input("operations", f"{2 * (w.params.dense + w.expert_params) * PROMPT_TOKENS:.3g}",
                  "2 × parameters that each token passes × tokens"),
            Input("peak", UNKNOWN if peak is None else f"{peak / 1e12:,.1f} TFLOP/s",
                  f"{device.source}; as far as the power limit lets it"),
            Input("constants", device.family.id, _family(c)),
        ),
        UNKNOWN if found is None else words(found.basis),
    )  # fmt: skip


def _first(c: Candidate) -> Figure:
    found, prefill, decode = c.speed.ttft_ms, c.speed.prefill, c.speed.decode
    users = c.plan.users
    filled: list[str] = []
    if found is not None and prefill is not None and decode is not None:
        filled = [
            f"1,000 × (({users} + 1) ÷ 2 × {PROMPT_TOKENS} tokens ÷ {prefill.value:,.1f} tok/s + "
            f"1 ÷ {decode.value:,.2f} tok/s) = {format_ms(found.value)}",
            f"low to high: {format_ms(found.low)} to {format_ms(found.high)}",
        ]
    return Figure(
        "ttft",
        "Time to first token",
        UNKNOWN if found is None else format_ms(found.value),
        "(users + 1) ÷ 2 prompts one after another + one step: the median user, when all send at "
        "once and nothing is cached",
        tuple(filled),
        (
            Input("prompt", f"{PROMPT_TOKENS} tokens", "assumed"),
            Input("prefill", _shown(prefill), "above"),
            Input("decode", _shown(decode), "above"),
        ),
        UNKNOWN if found is None else words(found.basis),
    )


def _ceiling(c: Candidate, w: Work) -> Figure:
    depth = PROMPT_TOKENS + OUTPUT_TOKENS / 2
    read = w.read_bytes() + w.cache_bytes(depth)
    found = c.speed.ceiling_tok_s
    filled: tuple[str, ...] = ()
    if found is not None:
        line = f"{format_gb_s(c.device.bandwidth_gb_s)} ÷ {format_bytes(read)} = "
        filled = (line + format_tok_s(found),)
    return Figure(
        "ceiling",
        "Ceiling, one user",
        format_tok_s(found),
        "bandwidth ÷ bytes read a step: no engine can be faster",
        filled,
        (Input("bandwidth", format_gb_s(c.device.bandwidth_gb_s), c.device.source),),
        "physics",
    )


def _lines(terms: Mapping[str, float], constants: Mapping[str, float]) -> list[tuple[str, float]]:
    """Seconds of each cause that the family has a constant for."""
    found = []
    for name, quantity in terms.items():
        size = quantity * constants.get(name, 0.0)
        if size:
            key = name if name in WORDS else name.split("_")[0]
            found.append((WORDS[key], size))
    return found


def _family(c: Candidate) -> str:
    family = c.device.family
    return f"families.toml: {family.source}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.3f} ms"


def _shown(found: Estimate | None) -> str:
    return UNKNOWN if found is None else format_tok_s(found.value)


def _range(found: Estimate) -> str:
    return (
        f"low to high: {format_tok_s(found.low)} to {format_tok_s(found.high)}, which holds about "
        "nine in ten published rows of the kind"
    )
