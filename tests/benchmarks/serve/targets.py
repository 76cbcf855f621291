"""What the engine is meant to reach. Printed beside the figures, never asserted."""

from __future__ import annotations

from tests.benchmarks.serve.figures import Target

_RATES = {1: 1.00, 4: 1.00, 8: 1.03, 16: 1.03}

TARGETS = (
    *(
        Target(f"tokens/s, {n} user{'s' * (n > 1)}", f"users-{n}", "tokens_per_s", ">=", limit)
        for n, limit in _RATES.items()
    ),
    Target(
        "tokens/s, 8 users", "users-8", "tokens_per_s", ">=", 3.0, peer="llama_cpp.server"
    ),
    Target("TTFT p95, 8 users share a 2k prefix", "shared-prefix", "ttft_p95_s", "<=", 0.35),
    Target("ITL p99 while a 4k prompt arrives", "long-arrival", "itl_p99_s", "<=", 0.35),
    Target("tokens/s while a 4k prompt arrives", "long-arrival", "tokens_per_s", ">=", 0.97),
    Target("JSON-schema output, share lost", "json-cost", "cost", "<=", 0.05, how="value"),
    Target("JSON-schema output, share valid", "json-valid", "valid", ">=", 1.0, how="value"),
    Target(
        "prompt lookup, edit this file", "edit", "tokens_per_s", ">=", 1.5,
        peer="edgekit:speculation=off",
    ),
    Target(
        "prompt lookup, free text", "free-text", "tokens_per_s", ">=", 0.97,
        peer="edgekit:speculation=off",
    ),
    Target("compute buffer", "memory", "compute_bytes", "<=", 1.0),
    Target("weights, KV, compute and output", "memory", "total_bytes", "<=", 1.0),
    Target("cold start, seconds more", "cold-start", "ready_s", "<=", 0.5, how="difference"),
    Target("share of steps outside llama_decode", "users-8", "overhead", "<=", 0.05, how="value"),
)  # fmt: skip
