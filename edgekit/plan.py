"""A deployment as data: the steps from nothing to a measured endpoint, and why these.

A plan is made without touching anything, printed by `--dry-run`, and run by `deploy.run`. A step
whose output is already in the store is marked done and skipped.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgekit.catalogue import load_filetypes
from edgekit.facts import Device, ModelCard, Source
from edgekit.fit import Choice, Lost
from edgekit.located import Located, locate
from edgekit.ready_gguf import model_bytes
from edgekit.store import Entry, Store

if TYPE_CHECKING:
    from edgekit.gate import Proven
    from edgekit.report.record import Ceiling
    from edgekit.tuned import Tuned

Kind = Literal["fetch", "quantize", "verify", "tune", "serve", "measure", "receipt"]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do. `bytes` is what it reads or writes; None where it is not known."""

    kind: Kind
    summary: str
    bytes: int | None = None
    done: bool = False


VERIFY = (
    "the engine decodes a few tokens; KL divergence, weights and 24 canary prompts against the "
    "unquantized model, kept in the store; --no-verify leaves these out"
)

TUNE_STEP = Step(
    "tune",
    "the fastest engine settings by short trials on this machine, kept for the next time; "
    "--no-tune leaves it out",
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything `deploy` will do. `weights` is the checkpoint folder, None if not here yet;
    `ready` is a finished GGUF that is used instead.

    `tuned` is what the trials of engine settings found, `proven` what came of comparing the file
    with the unquantized model; None before and without it.
    """

    card: ModelCard
    device: Device
    choice: Choice
    host: str
    port: int
    weights: Path | None
    source: str | None
    entry: Entry | None
    steps: tuple[Step, ...] = field(default=())
    tuned: Tuned | None = None
    proven: Proven | None = None
    ready: Path | None = None

    @property
    def digest(self) -> str:
        """Names what is deployed in reports and receipts: the same on the first and second run."""
        choice = self.choice
        parts = (
            (self.card.id, self.source, self.device.id, self.device.name),
            (choice.filetype, choice.n_ctx, choice.users, choice.n_gpu_layers),
        )
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def make_plan(
    card: ModelCard,
    device: Device,
    choice: Choice,
    store: Store,
    *,
    host: str,
    port: int,
    folder: Path | None = None,
    tune: bool = True,
    prove: bool = True,
) -> Plan:
    """Plan a deployment from `folder` (or a GGUF), else from the model's own source.

    Without a folder, a file that the store made of one earlier is taken. `tune`: try engine
    settings before serving. `prove`: compare the file with what it was made from.

    Raises:
        MissingInputError: `folder` cannot be read.
        BadDataError: the store's entry for this model is damaged.
    """
    here = locate(card, folder, store.root)
    entry = None if here.ready else store.find(card.id, choice.filetype, here.source)
    steps = (
        _fetch_step(card, here, entry),
        _quantize_step(choice, here, entry),
        Step("verify", VERIFY if prove else "the engine decodes a few tokens from this file"),
        *((TUNE_STEP,) if tune else ()),
        Step("serve", f"http://{host}:{port}/v1"),
        Step("measure", "latency for 1, 2, 4 and 8 users; --no-measure leaves it out"),
        Step("receipt", "predicted beside measured, kept with the report"),
    )
    return Plan(
        card,
        device,
        choice,
        host,
        port,
        here.weights,
        here.source,
        entry,
        steps,
        ready=here.ready,
    )


def hub_source(card: ModelCard) -> Source | None:
    """Return where the model lives on the hub, if it does."""
    return next((s for s in card.sources if s.kind == "hub"), None)


def ceiling(plan: Plan) -> Ceiling | None:
    """Return decode speed if reading weights were all: bandwidth / bytes per step."""
    from edgekit.memory import weights
    from edgekit.report.statistics import ceiling as compute

    bytes_per_step = weights(plan.card, plan.choice.filetype).read_per_token
    basis = "measured bandwidth" if plan.device.bandwidth_measured else "nominal bandwidth"
    return compute(plan.device.bandwidth_gb_s, bytes_per_step, basis)


def others(choice: Choice) -> list[Lost]:
    """Return what a person would ask about: the next better file type, and a smaller one.

    The better one is left out when the reason of the choice speaks of it already; the smaller is
    the first that loses twice as much, since less of a step is hardly a choice.
    """
    known = load_filetypes()
    own = known[choice.filetype].loss
    lost = [x for x in (*choice.rejected, *choice.runners_up) if known[x.filetype].automatic]
    lost.sort(key=lambda x: known[x.filetype].loss)
    better = [x for x in lost if known[x.filetype].loss < own][-1:]
    smaller = [x for x in lost if known[x.filetype].loss > own and x.verdict == "fits"]
    clear = [x for x in smaller if known[x.filetype].loss >= 2 * own]
    return [*(x for x in better if x.why not in choice.reason), *(clear or smaller)[:1]]


def as_record(plan: Plan) -> dict[str, object]:
    """Return the object that `deploy --dry-run --json` prints, `edgekit.plan/1`."""
    choice = plan.choice
    return {
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
                "file_bytes": choice.candidate.file_bytes,
                "ceiling_tok_s": choice.candidate.speed.ceiling_tok_s,
            },
            "reason": choice.reason,
            "runners_up": [_lost(x) for x in choice.runners_up],
            "rejected": [_lost(x) for x in choice.rejected],
            "fetch": _fetched(plan),
            "licence": plan.card.licence.spdx or plan.card.licence.name,
        },
        "digest": plan.digest,
    }


def _fetched(plan: Plan) -> dict[str, object] | None:
    """What would be fetched from a hub; None when nothing is."""
    hub = hub_source(plan.card)
    here = plan.entry or plan.weights or plan.ready
    if here is not None or hub is None:
        return None
    return {
        "repository": hub.location,
        "revision": hub.revision,
        "files": list(hub.allow),
        "bytes": hub.bytes,
    }


def _lost(other: Lost) -> dict[str, object]:
    return {
        "filetype": other.filetype,
        "n_ctx": other.n_ctx,
        "verdict": other.verdict,
        "why": other.why,
    }


def _fetch_step(card: ModelCard, here: Located, entry: Entry | None) -> Step:
    if entry is not None:
        return Step("fetch", "not needed: the store holds the converted file", done=True)
    if here.ready is not None:
        size = model_bytes(here.ready)
        return Step("fetch", f"used where it lies: {here.ready}", size, done=True)
    if here.weights is not None:
        size = sum(f.stat().st_size for f in here.weights.glob("*.safetensors") if f.is_file())
        return Step("fetch", f"used where it lies: {here.weights}", size, done=True)
    hub = hub_source(card)
    if hub is None:
        return Step("fetch", "no source is known for this model; pass --source DIR")
    revision = f"@{hub.revision[:7]}" if hub.revision else ""
    return Step("fetch", f"{hub.location}{revision} from the hub", hub.bytes)


def _quantize_step(choice: Choice, here: Located, entry: Entry | None) -> Step:
    if here.ready is not None:
        return Step("quantize", f"not needed: a finished GGUF of {choice.filetype}", done=True)
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
