"""A comparison as the record `edgekit.compare/1` and as rows of a table file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from edgekit.compare import Column, Comparison
from edgekit.compare_words import Row, rows
from edgekit.fit_record import fit_record, row
from edgekit.licence import text_of


def compare_record(found: Comparison) -> dict[str, object]:
    """The whole record; `rows` has one entry a model, in the order of the table."""
    assumptions = fit_record([])["assumptions"]
    assert isinstance(assumptions, dict)
    kept = {k: v for k, v in assumptions.items() if k != "cost"}
    return {
        "schema": "edgekit.compare/1",
        "device": {
            "id": found.device.id,
            "name": found.device.name,
            "price_usd": found.price.usd,
            "price_date": found.price.date,
            "price_note": found.price.note,
            "watts": found.device.watts,
        },
        "users": found.users,
        "assumptions": {**kept, **found.assumed.as_dict(), "cost": found.assumed.words},
        "absent": [
            {"id": a.id, "name": a.name, "why": a.why, "nearest": list(a.nearest)}
            for a in found.absent
        ],
        "rows": [_column(column) for column in found.columns],
        "table": [{"label": r.label, "cells": list(r.cells)} for r in rows(found)],
    }


def _column(c: Column) -> dict[str, object]:
    card = c.card
    return {
        "model": card.id,
        "name": card.name,
        "asked_as": c.asked,
        "verdict": c.verdict,
        "why": c.why,
        "conditions": list(c.conditions),
        "fit": {k: v for k, v in row(c.best).items() if k not in ("cost", "licence")},
        "cost": c.cost.as_dict(),
        "sources": [asdict(source) for source in card.sources],
        "params": card.params,
        "params_active": card.params_active,
        "released": card.released,
        "n_ctx_train": card.n_ctx_train,
        "evidence": [asdict(e) for e in card.evidence],
        "evidence_source": card.evidence_source,
        "tools": card.tools,
        "fim": card.fim,
        "vision": card.vision,
        "licence": {**asdict(card.licence), "text_shipped": text_of(card.licence) is not None},
        "gated": card.gated,
        "gate": card.gate,
        "air_gap": asdict(c.air_gap),
        "unverified": list(card.unverified),
    }


def compare_rows(found: Comparison) -> list[Mapping[str, object]]:
    """One flat row for each model: the figures, then every text of the table."""
    table = rows(found)
    return [_flat(found, i, c, table) for i, c in enumerate(found.columns)]


def _flat(found: Comparison, i: int, c: Column, table: list[Row]) -> Mapping[str, object]:
    plan, decode, first = c.best.plan, c.best.speed.decode, c.best.speed.ttft_ms
    return {
        "model": c.card.id,
        "asked_as": c.asked,
        "device": found.device.id,
        "verdict": c.verdict,
        "filetype": c.best.filetype.id,
        "users": plan.users,
        "n_ctx": plan.n_ctx,
        "needs_bytes": plan.parts[0].total,
        "budget_bytes": plan.parts[0].budget,
        "file_bytes": c.best.file_bytes,
        "decode_tok_s": decode and decode.value,
        "decode_tok_s_low": decode and decode.low,
        "decode_tok_s_high": decode and decode.high,
        "ttft_ms": first and first.value,
        "usd_per_million_tokens": c.cost.total,
        **{r.label.lower(): r.cells[i] for r in table if r.label != "Verdict"},
    }
