"""Run a plan: convert what is missing, prove it, serve it, measure it, keep the receipt.

The server runs as a child process that ends with us (its standard input is a pipe we hold).
Everything that a person sees goes through `Watcher`; nothing here prints.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from edgekit import __version__, paths, speed
from edgekit.dryload import Measured, dry_load
from edgekit.errors import BY_EXIT_CODE, EdgekitError, EngineFailedError, MissingInputError
from edgekit.facts import Device
from edgekit.machine import Canary
from edgekit.memory import weights as weights_table
from edgekit.plan import Plan, as_record, hub_source
from edgekit.report.record import Ceiling, Estimate, LatencyRecord, Predicted, PredictedRow
from edgekit.store import Entry, Store, write_durably

READY_TIMEOUT_S = 600.0
PROMPT_TOKENS, OUTPUT_TOKENS = 512, 128
LEVEL_LIMIT_S = 20.0


class Watcher(Protocol):
    """What the person at the terminal sees of a running deployment."""

    def begin(self, kind: str, text: str) -> None: ...
    def progress(self, done: int, total: int) -> None: ...
    def end(self, kind: str, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Proof:
    """What the canary and the dry load said about this file on this machine."""

    canary: Canary
    measured: Measured | None
    note: str | None = None

    @property
    def use_extra_bufts(self) -> bool:
        return self.canary.use_extra_bufts is not False


def obtain(plan: Plan, store: Store, watch: Watcher) -> Path:
    """Return the model file, converting the checkpoint if the store does not hold it.

    Raises:
        MissingInputError: the weights are on a hub and were not given as a folder.
        EdgekitError: what the converter said (bad data, disk full, ...), mapped.
    """
    filetype = plan.choice.filetype
    if plan.entry is not None:
        watch.end("quantize", next(s.summary for s in plan.steps if s.kind == "quantize"))
        return store.path(plan.entry)
    if plan.weights is None:
        hub = hub_source(plan.card)
        where = f"{hub.location} on the hub" if hub else "nowhere that edgekit knows"
        raise MissingInputError(
            f"the weights of {plan.card.id} are not on this machine; they are at {where}",
            code="weights_missing",
            hint="copy the checkpoint here and pass --source DIR; this version does not download",
        )
    from edgekit_quantize import convert

    with store.writing(plan.card.id, filetype) as partial:
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
    watch.end("quantize", f"{filetype}, {made.file_bytes:,} bytes in {made.seconds:.1f} s")
    return path


def verify(plan: Plan, file: Path, watch: Watcher) -> Proof:
    """Decode a few tokens from the file in a child, and ask the engine for its memory figures.

    Raises EngineFailedError when the engine dies with every setting.
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
    watch.end("verify", canary.reason)
    return Proof(canary, measured, note)


class Server:
    """The server process of a deployment: `edgekit serve` with this plan's settings."""

    def __init__(self, plan: Plan, file: Path, proof: Proof, *, api_keys: Sequence[str]) -> None:
        self.url = f"http://{plan.host if plan.host != '0.0.0.0' else '127.0.0.1'}:{plan.port}"  # noqa: S104
        self.log = paths.data_dir() / "logs" / f"{plan.card.id}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "edgekit", "serve", str(file)]
        command += ["--model-id", plan.card.id, "--host", plan.host, "--port", str(plan.port)]
        command += ["--ctx", str(plan.choice.n_ctx), "--users", str(plan.choice.users)]
        command += ["--gpu-layers", str(plan.choice.n_gpu_layers), "--until-stdin-closes"]
        if not proof.use_extra_bufts:
            command.append("--no-extra-bufts")
        # Keys travel in the environment: a command line can be read by every user.
        env = os.environ | ({"EDGEKIT_SERVE_API_KEY": " ".join(api_keys)} if api_keys else {})
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def wait_ready(self) -> None:
        """Return when the model answers.

        Raises the EdgekitError that the server ended with, or EngineFailedError on a time-out.
        """
        import httpx

        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise self._failure()
            try:
                if httpx.get(f"{self.url}/readyz", timeout=2.0).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        self.stop()
        raise EngineFailedError(
            f"the server was not ready after {READY_TIMEOUT_S:.0f} s",
            code="not_ready",
            hint=f"read {self.log}",
        )

    def first_token(self, model: str, api_key: str | None) -> None:
        """Ask for one token, so that "ready" is a fact."""
        import httpx

        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        body = {"model": model, "prompt": "def ", "max_tokens": 1}
        answer = httpx.post(f"{self.url}/v1/completions", json=body, headers=headers, timeout=600)
        if answer.status_code != 200:
            raise EngineFailedError(
                f"the endpoint answered {answer.status_code} to its first request: {answer.text}",
                code="first_token_failed",
                hint=f"read {self.log}",
            )

    def _failure(self) -> EdgekitError:
        last = self.log.read_text(errors="replace").strip().splitlines()[-2:]
        kind = BY_EXIT_CODE.get(self.process.returncode, EngineFailedError)
        message = last[0].removeprefix("error: ") if last else "no message"
        hint = last[1].removeprefix("hint: ") if len(last) > 1 else f"read {self.log}"
        return kind(f"the server did not start: {message}", code="server_failed", hint=hint)

    def stop(self) -> None:
        """End the server and wait for it."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def measure(
    plan: Plan, server: Server, watch: Watcher, *, users: Sequence[int], api_key: str | None
) -> LatencyRecord:
    """Load the endpoint and put what was predicted beside what was measured."""
    from edgekit import latency

    watch.begin("measure", "latency")
    room = plan.choice.n_ctx // max(users)
    record = latency.measure(
        server.url,
        plan.card.id,
        users=users,
        prompt_tokens=min(PROMPT_TOKENS, max(16, room // 2)),
        output_tokens=min(OUTPUT_TOKENS, max(8, room // 4)),
        requests_per_user=3,
        level_limit_s=LEVEL_LIMIT_S,
        api_key=api_key,
        ceiling=ceiling(plan),
        pids=[server.process.pid],
        progress=lambda p: watch.progress(p.done, p.total),
    )
    watch.end("measure", f"{sum(r.requests for r in record.rows)} requests, {record.errors} failed")
    return replace(
        record,
        device=plan.device.name,
        filetype=plan.choice.filetype,
        n_ctx=plan.choice.n_ctx,
        predicted=predicted(plan, users),
        plan_digest=plan.digest,
    )


def ceiling(plan: Plan) -> Ceiling | None:
    """Return decode speed if reading weights were all: bandwidth / bytes per step."""
    from edgekit.report import ceiling as compute

    table = weights_table(plan.card, plan.choice.filetype)
    basis = "measured bandwidth" if plan.device.bandwidth_measured else "nominal bandwidth"
    return compute(plan.device.bandwidth_gb_s, table.read_per_token, basis)


def predicted(plan: Plan, users: Sequence[int]) -> Predicted:
    """Return the plan's own figures for each load level."""
    chosen = plan.choice.candidate
    table = weights_table(plan.card, plan.choice.filetype)
    rows = []
    for n in users:
        # More users than sequences wait in the queue: the speed of all stays, TTFT is open.
        live = min(n, plan.choice.users)
        at = replace(plan.choice.plan, users=live)
        pace = speed.predict(chosen.card, chosen.device, table, at, chosen.filetype)
        each = _estimate(pace.decode)
        together = each and Estimate(
            each.value * live, _times(each.low, live), _times(each.high, live), each.basis
        )
        ttft = _estimate(pace.ttft_ms) if live == n else None
        rows.append(PredictedRow(n, together, _estimate(pace.prefill), ttft))
    own = plan.device.memory_kind != "dedicated"
    return Predicted(plan.choice.plan.total if own else None, tuple(rows))


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
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{datetime.now(UTC):%Y-%m-%dT%H%M%S}-{plan.card.id}"
    receipt = {
        "schema": "edgekit.receipt/1",
        "edgekit": __version__,
        **{k: v for k, v in as_record(plan).items() if k != "schema"},
        "device": _device(plan.device),
        "canary": {"use_extra_bufts": proof.use_extra_bufts, "reason": proof.canary.reason},
        "ready_s": round(ready_s, 3),
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
