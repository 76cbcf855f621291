"""Candidates as the record `edgekit.fit/1`: what `fit --json` prints and the report renders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgekit import running_cost
from edgekit.candidate import Candidate
from edgekit.price import price_of
from edgekit.running_cost import Assumptions, Cost
from edgekit.speed import OUTPUT_TOKENS, PROMPT_TOKENS, Estimate

ASSUMED: Final = Assumptions()
"""How cost is reckoned: as `compare` and `buy` do where nothing else is asked for."""


def fit_record(rows: Sequence[Candidate]) -> dict[str, object]:
    """The whole record; the first row is the choice when one fits."""
    return {
        "schema": "edgekit.fit/1",
        "assumptions": {
            "n_ctx": "KV cells shared by all users",
            "decode_tok_s": "per user, all users decoding at once",
            "ttft_ms": "median over users who send at once, prompt cache cold",
            "prompt_tokens": PROMPT_TOKENS,
            "output_tokens": OUTPUT_TOKENS,
            "range": "low to high holds about nine in ten published rows of the kind",
            "cost": ASSUMED.as_dict(),
        },
        "rows": [row(candidate) for candidate in rows],
    }


def row(c: Candidate) -> dict[str, object]:
    """One candidate. Bytes are integers; None is unknown.

    `bytes.total` is the sum of the four parts over all memories, `bytes.budget` the device's
    budget and the host memory this plan uses beside it; `bytes.parts` tells them apart.
    """
    plan = c.plan
    return {
        "model": c.card.id,
        "device": c.device.id,
        "filetype": c.filetype.id,
        "n_ctx": plan.n_ctx,
        "users": plan.users,
        "verdict": c.verdict,
        "binding": c.binding,
        "reason": c.reason,
        "file_bytes": c.file_bytes,
        "header_basis": "estimated" if c.card.header_bytes is None else "known",
        "bytes": {
            "weights": plan.weights,
            "kv": plan.kv,
            "compute": plan.compute,
            "overhead": plan.overhead,
            "total": plan.total,
            "budget": plan.budget,
            "budget_basis": plan.device.basis,
            "basis": plan.basis,
            "parts": [
                {
                    "memory": part.memory,
                    "weights": part.weights,
                    "kv": part.kv,
                    "compute": part.compute,
                    "overhead": part.overhead,
                    "total": part.total,
                    "budget": part.budget,
                }
                for part in plan.parts
            ],
        },
        "decode_tok_s": _estimate(c.speed.decode),
        "prefill_tok_s": _estimate(c.speed.prefill),
        "ttft_ms": _estimate(c.speed.ttft_ms),
        "ceiling_tok_s": c.speed.ceiling_tok_s,
        "offload": {"n_gpu_layers": plan.n_gpu_layers, "n_layers": plan.n_layers},
        "largest_ctx": c.largest_ctx,
        "quality": {"loss": c.filetype.loss, "basis": c.filetype.basis},
        "licence": c.card.licence.spdx or c.card.licence.name,
        "cost": _cost(c),
        "notes": list(c.device.notes),
    }


def _estimate(estimate: Estimate | None) -> dict[str, float | str] | None:
    return None if estimate is None else estimate.as_dict()


def cost_of(c: Candidate) -> Cost:
    """What a million tokens cost where the device has a price and its power is known."""
    return running_cost.cost(price_of(c.device).usd, c.device.watts, c.speed, ASSUMED)


def _cost(c: Candidate) -> dict[str, float | None]:
    total = cost_of(c).total
    return {
        "device_usd": price_of(c.device).usd,
        "watts": c.device.watts,
        "usd_per_million_tokens": None if total is None else round(total, 4),
    }
