"""The record `edgekit.fit/1` with all that a page or a table file shows of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from edgekit.candidate import Candidate
from edgekit.explain import as_dicts, explain
from edgekit.facts import AbsentModel
from edgekit.fit_grid import grid
from edgekit.fit_record import fit_record

MOST_EXPLAINED: Final = 200
"""Verdicts whose figures can all be opened; a page of more stays a table, to open anywhere."""


def report_record(
    groups: Sequence[Sequence[Candidate]], absent: Sequence[AbsentModel] = (), *, work: bool = True
) -> dict[str, object]:
    """The rows of `fit_record`, and for each model on each device (a group) where they are.

    With `work` a group also carries `figures`, each number's formula and inputs, and `grid`,
    contexts × users; beyond `MOST_EXPLAINED` groups they are left out and `shortened` says so.
    """
    rows = [c for group in groups for c in group]
    short = len(groups) > MOST_EXPLAINED
    found, first = [], 0
    for group in groups:
        entry: dict[str, object] = {
            "model": group[0].card.id,
            "device": group[0].device.id,
            "first": first,
            "count": len(group),
        }
        if work and not short:
            entry["figures"] = as_dicts(explain(group[0]))
            if group[0].device.runs_engine and group[0].plan.device.bytes is not None:
                entry["grid"] = grid(group[0])
        found.append(entry)
        first += len(group)
    return {
        **fit_record(rows),
        "models": {c.card.id: {"name": c.card.name} for c in rows},
        "devices": {c.device.id: {"name": c.device.name} for c in rows},
        "absent": [
            {"id": a.id, "name": a.name, "why": a.why, "nearest": list(a.nearest)} for a in absent
        ],
        "groups": found,
        "shortened": short,
    }


def flat_rows(record: Mapping[str, Any]) -> list[Mapping[str, object]]:
    """One flat row for each candidate of a record, for a table file; None is unknown."""
    return [_flat(row) for row in record["rows"]]


def _flat(row: Mapping[str, Any]) -> Mapping[str, object]:
    sizes, main = row["bytes"], row["bytes"]["parts"][0]
    speeds: dict[str, object] = {}
    for name in ("decode_tok_s", "prefill_tok_s", "ttft_ms"):
        found = row[name] or {}
        speeds |= {
            name: found.get("value"),
            f"{name}_low": found.get("low"),
            f"{name}_high": found.get("high"),
            f"{name}_basis": found.get("basis"),
        }
    return {
        **{k: row[k] for k in ("model", "device", "filetype", "n_ctx", "users", "verdict")},
        "binding": row["binding"],
        "file_bytes": row["file_bytes"],
        **{f"{k}_bytes": sizes[k] for k in ("weights", "kv", "compute", "overhead")},
        "total_bytes": sizes["total"],
        "device_needs_bytes": main["total"],
        "device_budget_bytes": main["budget"],
        "budget_basis": sizes["budget_basis"],
        "largest_ctx": row["largest_ctx"],
        "gpu_layers": row["offload"]["n_gpu_layers"],
        "layers": row["offload"]["n_layers"],
        **speeds,
        "ceiling_tok_s": row["ceiling_tok_s"],
        "loss": row["quality"]["loss"],
        "licence": row["licence"],
        "device_usd": row["cost"]["device_usd"],
        "watts": row["cost"]["watts"],
        "usd_per_million_tokens": row["cost"]["usd_per_million_tokens"],
        "reason": row["reason"],
    }
