"""Run a plan: convert what is missing, prove it, serve it, measure it, keep the receipt.

Everything that a person sees goes through `Watcher`; nothing here prints.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from edgekit import __version__, measured_speed, paths, speed
from edgekit.autotune import OBJECTIVE
from edgekit.converter import convert
from edgekit.dryload import Measured, dry_load
from edgekit.errors import EdgekitError, EngineFailedError, MissingInputError, from_os
from edgekit.facts import Device
from edgekit.machine import Canary, Machine
from edgekit.memory import weights as weights_table
from edgekit.plan import Plan, as_record, ceiling, hub_source
from edgekit.preflight import check_room
from edgekit.report.record import Estimate, LatencyRecord, Predicted, PredictedRow
from edgekit.serving import Server
from edgekit.store import Entry, Store, write_durably
from edgekit.store_check import quick_check
from edgekit.units import MIB, format_bytes

if TYPE_CHECKING:
    from edgekit.autotune import Setting
    from edgekit.gate import Gate, Proven

LEVELS: Final = (1, 2, 4, 8)
PROMPT_TOKENS: Final = 512
OUTPUT_TOKENS: Final = 128
REQUESTS: Final = 20
"""Of each level at least; fewer leave p95 unknown."""

LEVEL_LIMIT_S: Final = 90.0
"""Twenty answers of one user at 30 tok/s take 85 s; a slower device gets fewer and a note."""

FRONT_BYTES: Final = 56 * MIB
"""Resident memory of the HTTP front beside the engine: 56 MiB measured on x86-64 Linux."""


class Watcher(Protocol):
    """What the person at the terminal sees of a running deployment."""

    def begin(self, kind: str, text: str) -> None: ...
    def progress(self, done: int, total: int) -> None: ...
    def end(self, kind: str, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Proof:
    """What the canary and the dry load said about this file on this machine.

    `proven` is what came of comparing it with the unquantized model; None where that was left out.
    """

    canary: Canary
    measured: Measured | None
    note: str | None = None
    proven: Proven | None = None

    @property
    def use_extra_bufts(self) -> bool:
        return self.canary.use_extra_bufts is not False


def obtain(plan: Plan, store: Store, watch: Watcher) -> Path:
    """Return the model file, converting the checkpoint if the store does not hold it.

    Raises:
        MissingInputError: the weights are not here: `fetch_step.fetched` brings them.
        EdgekitError: what the converter said (bad data, disk full, ...), mapped.
    """
    filetype = plan.choice.filetype
    if plan.entry is not None:
        watch.begin("quantize", "store hit")
        quick_check(store, plan.entry)
        watch.end("quantize", next(s.summary for s in plan.steps if s.kind == "quantize"))
        return store.path(plan.entry)
    if plan.ready is not None:
        return plan.ready
    if plan.weights is None:
        raise weights_missing(plan)
    check_room(store.root, plan.choice.candidate.file_bytes)
    with store.writing(plan.card.id, filetype) as partial:
        # Whoever held the lock until now may have made this very file.
        if (entry := store.find(plan.card.id, filetype, plan.source)) is not None:
            return store.path(entry)
        watch.begin("quantize", f"{plan.weights.name} → {filetype}")
        made = convert(plan.weights, partial, filetype, progress=watch.progress)
        entry = Entry(
            model=plan.card.id,
            filetype=filetype,
            sha256=made.sha256,
            file_bytes=made.file_bytes,
            tensor_bytes=made.tensor_bytes,
            source=plan.source or "",
            made_by=f"edgekit {__version__}",
        )
        path = store.add(partial, entry)
    watch.end("quantize", f"{plan.weights.name} → {filetype}, {format_bytes(made.file_bytes)}")
    return path


def weights_missing(plan: Plan) -> MissingInputError:
    """Say where the weights are, since they are not here."""
    hub = hub_source(plan.card)
    where = f"{hub.location} on the hub" if hub else "nowhere that edgekit knows"
    return MissingInputError(
        f"the weights of {plan.card.id} are not on this machine; they are at {where}",
        code="weights_missing",
        hint=f"edgekit pull {plan.card.id}, or copy the checkpoint here and pass --source DIR",
    )


def verify(plan: Plan, file: Path, watch: Watcher, gate: Gate | None = None) -> Proof:
    """Decode a few tokens from the file in a child, and ask the engine for its memory figures.

    With a gate, compare it with what it was made from too.

    Raises:
        EngineFailedError: the engine dies with every setting.
        BadDataError: the gate refuses the file.
    """
    from edgekit.probe import run_canary

    watch.begin("verify", "engine canary")
    layers = plan.choice.n_gpu_layers
    canary = run_canary(file, n_gpu_layers=layers)
    if canary.ok is not True:
        raise EngineFailedError(
            f"the engine does not run this file here: {canary.reason}",
            code="canary_failed",
            hint="edgekit doctor says what is wrong with the engine and how to mend it",
        )
    measured, note = None, None
    try:
        measured = dry_load(
            file,
            n_ctx=plan.choice.n_ctx,
            n_seq_max=plan.choice.users,
            n_gpu_layers=layers,
            use_extra_bufts=canary.use_extra_bufts is not False,
        )
    except EdgekitError as error:
        note = f"memory not measured: {error.message}"
    proven = None
    if gate is not None:
        from edgekit.evaluation import Setting
        from edgekit.gate import prove

        setting = Setting(canary.use_extra_bufts is not False, layers)
        proven = prove(plan, file, gate, setting, watch.progress)
    faulty = proven is not None and canary.use_extra_bufts is False
    said = f"{proven.summary}{f' · {canary.reason}' if faulty else ''}" if proven else canary.reason
    watch.end("verify", said)
    return Proof(canary, measured, note, proven)


def informed(plan: Plan, machine: Machine | None, proof: Proof) -> Plan:
    """Return the plan for the device as the canary found it: a build without AMX is slower."""
    from edgekit.this_machine import device_from_machine

    if machine is None or machine.accelerators:
        return plan
    engine = replace(machine.engine, canary=proof.canary)
    return replace(plan, device=device_from_machine(replace(machine, engine=engine)))


def tune(
    plan: Plan, machine: Machine | None, proof: Proof, file: Path, watch: Watcher
) -> tuple[Plan, Proof]:
    """Find the fastest engine settings, or take those found earlier; return plan and proof anew.

    Memory is asked for again when the settings change it. Nothing changes if no trial ran.
    """
    from edgekit import tuning

    watch.begin("tune", "trials")
    found = tuning.tune(
        plan, machine, file, extra_bufts=proof.use_extra_bufts, progress=watch.progress
    )
    plan = tuning.applied(plan, found)
    if found is not None and found.setting != found.default.setting and proof.measured is not None:
        proof = replace(proof, measured=_asked(plan, file, found.setting))
    watch.end("tune", found.summary if found else "no trial could be run: the engine's defaults")
    return plan, proof


def _asked(plan: Plan, file: Path, setting: Setting) -> Measured | None:
    try:
        return dry_load(
            file,
            n_ctx=plan.choice.n_ctx,
            n_seq_max=plan.choice.users,
            n_ubatch=setting.n_ubatch,
            n_gpu_layers=plan.choice.n_gpu_layers,
            use_extra_bufts=setting.extra_bufts,
            flash_attn=setting.flash_attn,
            streams=setting.streams,
        )
    except EdgekitError:
        return None


def ready_record(plan: Plan, server: Server, ready_s: float) -> dict[str, object]:
    """Return what `deploy --json --no-measure` prints, `edgekit.deploy/1`."""
    return {
        "schema": "edgekit.deploy/1",
        "url": f"{server.url}/v1",
        "model": plan.card.id,
        "filetype": plan.choice.filetype,
        "n_ctx": plan.choice.n_ctx,
        "store_hit": plan.entry is not None,
        "ready_s": round(ready_s, 3),
        "pid": server.process.pid,
        "log": str(server.log),
        "plan_digest": plan.digest,
        "tuning": tuning_record(plan),
        "quality": plan.proven and plan.proven.as_dict(),
    }


def tuning_record(plan: Plan) -> dict[str, object] | None:
    """Return the engine settings that were taken, and why; None without tuning."""
    from edgekit.tuned import to_json

    return None if plan.tuned is None else to_json(plan.tuned)


def measure(
    plan: Plan,
    server: Server,
    watch: Watcher,
    *,
    users: Sequence[int] = LEVELS,
    requests: int = REQUESTS,
    api_keys: Sequence[str] = (),
) -> LatencyRecord:
    """Load the endpoint and put what was predicted beside what was measured.

    Raises what `latency.measure` raises.
    """
    from edgekit import latency

    watch.begin("measure", "latency")
    # No more requests than sequences are in the context at the same time.
    room = plan.choice.n_ctx // min(max(users), plan.choice.users)
    record = latency.measure(
        server.url,
        plan.card.id,
        users=users,
        prompt_tokens=min(PROMPT_TOKENS, max(16, room // 2)),
        output_tokens=min(OUTPUT_TOKENS, max(8, room // 4)),
        requests_per_user=1,
        min_requests=requests,
        level_limit_s=LEVEL_LIMIT_S,
        api_key=api_keys[0] if api_keys else None,
        ceiling=ceiling(plan),
        pids=[server.process.pid],
        progress=lambda p: watch.progress(p.done, p.total),
    )
    watch.end("measure", f"{sum(r.requests for r in record.rows)} requests, {record.errors} failed")
    return with_plan(record, plan, users)


def head(plan: Plan) -> LatencyRecord:
    """Return the report without rows: what the plan says about the deployment that runs."""
    record = LatencyRecord(
        model=plan.card.id,
        rows=(),
        prompt_tokens_asked=PROMPT_TOKENS,
        output_tokens_asked=OUTPUT_TOKENS,
        ceiling=ceiling(plan),
    )
    return with_plan(record, plan, LEVELS)


def with_plan(record: LatencyRecord, plan: Plan, users: Sequence[int]) -> LatencyRecord:
    """Add to a measured record what only the plan knows."""
    return replace(
        record,
        device=plan.device.name,
        filetype=plan.choice.filetype,
        n_ctx=plan.choice.n_ctx,
        predicted=predicted(plan, users),
        plan_digest=plan.digest,
        method=(*record.method, *(plan.proven.method if plan.proven else ()), *how_tuned(plan)),
    )


def how_tuned(plan: Plan) -> tuple[tuple[str, str], ...]:
    """Return what a report says of the engine settings: one line each."""
    if plan.tuned is None:
        return ()
    reasons = "; ".join(plan.tuned.reasons.values())
    return (("Engine settings", f"{plan.tuned.summary}. By {OBJECTIVE}: {reasons}"),)


def predicted(plan: Plan, users: Sequence[int]) -> Predicted:
    """Return the plan's own figures for each load level."""
    chosen = plan.choice.candidate
    table = weights_table(plan.card, plan.choice.filetype)
    rows = []
    for n in users:
        # More users than sequences wait in the queue: the speed of all stays, TTFT is open.
        live = min(n, plan.choice.users)
        at = replace(plan.choice.plan, users=live)
        if plan.tuned is not None:
            pace = measured_speed.predict(plan.tuned, live)
        else:
            pace = speed.predict(chosen.card, plan.device, table, at, chosen.filetype)
        each = _estimate(pace.decode)
        together = each and Estimate(
            each.value * live, _times(each.low, live), _times(each.high, live), each.basis
        )
        ttft = _estimate(pace.ttft_ms) if live == n else None
        rows.append(PredictedRow(n, together, _estimate(pace.prefill), ttft))
    own = plan.device.memory_kind != "dedicated"
    # On an accelerator of its own the plan's bytes and the host's resident bytes are not one thing.
    return Predicted(plan.choice.plan.resident + FRONT_BYTES if own else None, tuple(rows))


def _times(value: float | None, n: int) -> float | None:
    return None if value is None else value * n


def _estimate(found: speed.Estimate | None) -> Estimate | None:
    return None if found is None else Estimate(found.value, found.low, found.high, found.basis)


@dataclass(frozen=True, slots=True)
class Kept:
    """Where the report and the receipt of a deployment were written."""

    html: Path
    receipt: Path


def keep(plan: Plan, proof: Proof, record: LatencyRecord, *, ready_s: float) -> Kept:
    """Write the HTML report and the receipt (predicted beside measured) under the data folder."""
    from edgekit.report import render_html, to_json

    folder = paths.reports_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os(error) from error
    stem = f"{datetime.now(UTC):%Y-%m-%dT%H%M%S}-{plan.card.id}"
    receipt = {
        "schema": "edgekit.receipt/1",
        "edgekit": __version__,
        **{k: v for k, v in as_record(plan).items() if k != "schema"},
        "device": _device(plan.device),
        "canary": {"use_extra_bufts": proof.use_extra_bufts, "reason": proof.canary.reason},
        "quality": plan.proven and plan.proven.as_dict(),
        "ready_s": round(ready_s, 3),
        "tuning": tuning_record(plan),
        "memory": {
            "predicted_bytes": plan.choice.plan.total,
            "predicted_weights_bytes": plan.choice.plan.weights,
            "predicted_kv_bytes": plan.choice.plan.kv,
            "predicted_compute_bytes": plan.choice.plan.compute,
            "engine": _measured(proof.measured),
            "peak_resident_bytes": record.peak_memory_bytes,
        },
        "bench": to_json(record),
    }
    html, path = folder / f"{stem}.html", folder / f"{stem}.json"
    write_durably(html, render_html(record).encode())
    write_durably(path, (json.dumps(receipt, indent=2) + "\n").encode())
    return Kept(html, path)


def _device(device: Device) -> dict[str, object]:
    return {"id": device.id, "name": device.name, "bandwidth_gb_s": device.bandwidth_gb_s}


def _measured(found: Measured | None) -> dict[str, object] | None:
    if found is None:
        return None
    return {
        "weights_bytes": dict(found.weights),
        "kv_bytes": found.kv,
        "compute_bytes": dict(found.compute),
        "output_bytes": found.output,
    }
