"""A deployment as data: the steps from nothing to a measured endpoint, and why these.

A plan is made without touching anything, printed by `--dry-run`, and run by `deploy.run`. A step
whose output is already in the store is marked done and skipped.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgekit.errors import MissingInputError
from edgekit.facts import Device, ModelCard, Source
from edgekit.fit import Choice, Lost
from edgekit.store import Entry, Store, fingerprint

Kind = Literal["fetch", "quantize", "verify", "serve", "measure", "receipt"]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do. `bytes` is what it reads or writes; None where it is not known."""

    kind: Kind
    summary: str
    bytes: int | None = None
    done: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything `deploy` will do. `weights` is the checkpoint folder, None if not here yet."""

    card: ModelCard
    device: Device
    choice: Choice
    host: str
    port: int
    weights: Path | None
    source: str | None
    entry: Entry | None
    steps: tuple[Step, ...] = field(default=())

    @property
    def digest(self) -> str:
        """Names this plan in reports and receipts: same inputs, same digest."""
        text = json.dumps(as_record(self, digest=False), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_plan(
    card: ModelCard,
    device: Device,
    choice: Choice,
    store: Store,
    *,
    host: str,
    port: int,
    folder: Path | None = None,
) -> Plan:
    """Plan a deployment from `folder`, or from the model's own source when none is given.

    Raises:
        MissingInputError: `folder` is not a folder.
        BadDataError: the store's entry for this model is damaged.
    """
    if folder is not None and not folder.is_dir():
        raise MissingInputError(
            f"{folder} is not a folder",
            code="source_missing",
            hint="pass the folder that holds config.json and the safetensors files",
        )
    weights = folder or _builtin(card)
    source = fingerprint(weights) if weights else None
    entry = store.find(card.id, choice.filetype, source)
    steps = (
        _fetch_step(card, weights, entry),
        _quantize_step(choice, entry),
        Step("verify", "the engine decodes a few tokens from this file in a child of its own"),
        Step("serve", f"http://{host}:{port}/v1"),
        Step("measure", "latency for 1, 2, 4 and 8 users"),
        Step("receipt", "predicted beside measured, kept with the report"),
    )
    return Plan(card, device, choice, host, port, weights, source, entry, steps)


def hub_source(card: ModelCard) -> Source | None:
    """Return where the model lives on the hub, if it does."""
    return next((s for s in card.sources if s.kind == "hub"), None)


def as_record(plan: Plan, *, digest: bool = True) -> dict[str, object]:
    """Return the object that `deploy --dry-run --json` prints, `edgekit.plan/1`."""
    choice = plan.choice
    record: dict[str, object] = {
        "schema": "edgekit.plan/1",
        "plan": {
            "model": plan.card.id,
            "device": plan.device.id,
            "device_name": plan.device.name,
            "steps": [
                {"kind": s.kind, "summary": s.summary, "bytes": s.bytes, "done": s.done}
                for s in plan.steps
            ],
            "choice": {
                "filetype": choice.filetype,
                "n_ctx": choice.n_ctx,
                "users": choice.users,
                "n_gpu_layers": choice.n_gpu_layers,
                "total_bytes": choice.plan.total,
                "budget_bytes": choice.plan.budget,
            },
            "reason": choice.reason,
            "runners_up": [_lost(x) for x in choice.runners_up],
            "rejected": [_lost(x) for x in choice.rejected],
        },
    }
    if digest:
        record["digest"] = plan.digest
    return record


def _lost(other: Lost) -> dict[str, object]:
    return {
        "filetype": other.filetype,
        "n_ctx": other.n_ctx,
        "verdict": other.verdict,
        "why": other.why,
    }


def _builtin(card: ModelCard) -> Path | None:
    """Return the folder of a model that ships inside edgekit."""
    for source in card.sources:
        if source.kind == "builtin":
            import edgekit_profiles

            return Path(edgekit_profiles.__file__).parent / source.location
    return None


def _fetch_step(card: ModelCard, weights: Path | None, entry: Entry | None) -> Step:
    if entry is not None:
        return Step("fetch", "not needed: the store holds the converted file", done=True)
    if weights is not None:
        size = sum(f.stat().st_size for f in weights.glob("*.safetensors"))
        return Step("fetch", f"{weights}, used where it lies", size, done=True)
    hub = hub_source(card)
    if hub is None:
        return Step("fetch", "no source is known for this model; pass --source DIR")
    revision = f"@{hub.revision[:7]}" if hub.revision else ""
    files = f" ({', '.join(hub.allow)})" if hub.allow else ""
    return Step("fetch", f"{hub.location}{revision}{files}", hub.bytes)


def _quantize_step(choice: Choice, entry: Entry | None) -> Step:
    if entry is not None:
        return Step(
            "quantize",
            f"store hit: {choice.filetype}, sha256 {entry.sha256[:12]}…",
            entry.file_bytes,
            done=True,
        )
    return Step(
        "quantize",
        f"to {choice.filetype} in one pass, no intermediate file",
        choice.candidate.file_bytes,
    )
