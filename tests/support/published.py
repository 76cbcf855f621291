"""Published llama-bench rows, and the models they were taken with as catalogue cards.

`tests/data/published_speeds.csv` holds rows of public result tables (the `source` column names
each): one device, flash attention or not as published, batch of one.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from edgekit import memory, speed
from edgekit.catalogue import find_device, find_filetype, find_model, load_families
from edgekit.facts import Device, ModelCard

DATA = Path(__file__).parents[1] / "data" / "published_speeds.csv"

# layers, width, heads, KV heads, head size, feed-forward, vocabulary, tied
_SHAPES = {
    "llama-2-7b": ("Llama", 32, 4096, 32, 32, 128, 11008, 32000, False),
    "llama-3-8b": ("Llama", 32, 4096, 32, 8, 128, 14336, 128256, False),
    "llama-3.2-1b": ("Llama", 16, 2048, 32, 8, 64, 8192, 128256, True),
    "llama-3.2-3b": ("Llama", 28, 3072, 24, 8, 128, 8192, 128256, True),
    "mistral-7b-v0.3": ("Mistral", 32, 4096, 32, 8, 128, 14336, 32768, False),
    "mistral-nemo-12b": ("Mistral", 40, 5120, 32, 8, 128, 14336, 131072, False),
    "qwen2.5-coder-7b": ("Qwen2", 28, 3584, 28, 4, 128, 18944, 152064, False),
    "qwen2.5-coder-14b": ("Qwen2", 48, 5120, 40, 8, 128, 13824, 152064, False),
    "qwq-32b": ("Qwen2", 64, 5120, 40, 8, 128, 27648, 152064, False),
}
_SAME_SHAPE = {
    "llama-7b": "llama-2-7b",
    "llama-3.1-8b": "llama-3-8b",
    "deepseek-r1-qwen-7b": "qwen2.5-coder-7b",
    "deepseek-r1-14b": "qwen2.5-coder-14b",
    "deepseek-r1-32b": "qwq-32b",
}
# cores, family, nominal bandwidth in GB/s
_CPUS = {
    "cpu-xeon-8488c-1s": (48, "cpu-amx", 307.2),
    "cpu-xeon-6455b-1s": (32, "cpu-amx", 307.2),
    "cpu-epyc-9r45-1s": (96, "cpu-avx512", 614.4),
    "cpu-graviton3-1s": (64, "cpu-neon", 307.2),
}


@dataclass(frozen=True, slots=True)
class PublishedRow:
    device: str
    model: str
    filetype: str
    test: str
    tokens: int
    tok_s: float


def rows() -> list[PublishedRow]:
    with DATA.open(newline="") as file:
        return [
            PublishedRow(
                r["device"],
                r["model"],
                r["filetype"],
                r["test"],
                int(r["n_prompt"] or r["n_gen"] or 128),
                float(r["tok_s"]),
            )
            for r in csv.DictReader(file)
        ]


@cache
def card(model: str) -> ModelCard:
    name, layers, width, heads, kv, size, ff, vocab, tied = _SHAPES[_SAME_SHAPE.get(model, model)]
    config = {
        "architectures": [f"{name}ForCausalLM"],
        "hidden_size": width,
        "intermediate_size": ff,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": size,
        "vocab_size": vocab,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "tie_word_embeddings": tied,
    }
    return replace(find_model("pocket"), id=model, config=config, n_ctx_train=8192)


@cache
def device(name: str) -> Device:
    if name not in _CPUS:
        return find_device(name)
    cores, family, bandwidth = _CPUS[name]
    return Device(
        id=name,
        name=name,
        vendor="any",
        kind="cpu",
        backend="cpu",
        family=load_families()[family],
        memory_kind="shared",
        memory_bytes=256 * 1024**3,
        bandwidth_gb_s=bandwidth,
        cores=cores,
        source="tests",
    )


def predicted(row: PublishedRow) -> speed.Estimate:
    """Our figure for a row, without our own engine's cost per step."""
    model, on, kind = card(row.model), device(row.device), find_filetype(row.filetype)
    table = memory.weights(model, kind.id)
    plan = memory.predict(model, on, table, n_ctx=8192, users=1)
    prompt, output = (row.tokens, 0) if row.test == "pp" else (0, row.tokens)
    found = speed.predict(
        model, on, table, plan, kind, prompt_tokens=prompt, output_tokens=output, step_s=0.0
    )
    estimate = found.prefill if row.test == "pp" else found.decode
    assert estimate is not None
    return estimate


def errors(found: list[PublishedRow]) -> list[tuple[float, bool]]:
    """Per row: relative error, and whether the published figure lies in the predicted range."""
    estimates = [(row.tok_s, predicted(row)) for row in found]
    return [(abs(e.value / tok_s - 1), e.low <= tok_s <= e.high) for tok_s, e in estimates]
