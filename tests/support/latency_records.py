"""A full and a bare LatencyRecord, for everything that renders one."""

from __future__ import annotations

from edgekit.report.record import (
    Ceiling,
    Estimate,
    LatencyRecord,
    LatencyRow,
    Percentiles,
    Predicted,
    PredictedRow,
)

LEVELS = (
    (1, 412.0, 31.0, 31.8, 31.8, Estimate(33, 30, 36, "bandwidth")),
    (2, 700.0, 33.0, 29.4, 58.1, Estimate(60, 52, 68, "bandwidth")),
    (4, 1190.0, 38.0, 25.9, 104.0, Estimate(98, 84, 112, "bandwidth")),
    (8, 2410.0, 55.0, 17.8, 139.0, Estimate(150, 110, 200, "bandwidth")),
)


def full_record() -> LatencyRecord:
    """A record in which everything is known and two requests of the last level failed."""
    rows = tuple(
        LatencyRow(
            users=users,
            requests=24,
            errors=2 if users == 8 else 0,
            prompt_tokens=512,
            prompt_tokens_min=512,
            prompt_tokens_max=512,
            output_tokens=128,
            output_tokens_min=128,
            output_tokens_max=128,
            cached_tokens_max=0,
            ttft_ms=Percentiles(ttft, ttft * 1.35, None, 24),
            itl_ms=Percentiles(itl, itl * 1.2, itl * 1.6, 3048),
            tpot_ms=Percentiles(itl + 1, itl + 2, None, 24),
            e2e_ms=Percentiles(ttft + 127 * itl, None, None, 24),
            decode_tok_s=together,
            decode_tok_s_each=each,
            prefill_tok_s=1240.5,
            throughput_tok_s=together * 0.9,
            wall_s=100.0,
            error_kinds=(("http_503", 2),) if users == 8 else (),
        )
        for users, ttft, itl, each, together, _ in LEVELS
    )
    return LatencyRecord(
        model="mistral-3-small",
        rows=rows,
        prompt_tokens_asked=512,
        output_tokens_asked=128,
        device="NVIDIA A10",
        filetype="Q5_K_M",
        n_ctx=32768,
        predicted=Predicted(
            22_119_999_999, tuple(PredictedRow(users, guess) for users, *_, guess in LEVELS)
        ),
        peak_memory_bytes=22_226_000_000,
        plan_digest="sha256:3b1f",
        ceiling=Ceiling(600.0, 16_800_000_000, 600 / 16.8, "data sheet"),
        endpoint="http://127.0.0.1:8484/v1",
        created_at="2026-11-24T10:00:00+00:00",
        method=(("TTFT", "Send to first token."),),
        notes=("8 users: 2 of 24 failed (http_503 × 2)",),
    )


def bare_record(model: str = "tiny") -> LatencyRecord:
    """A record in which nothing is known but that one request failed."""
    return LatencyRecord(model, (LatencyRow(1, 1, 1),), 512, 128)
