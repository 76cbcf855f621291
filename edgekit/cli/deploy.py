"""`edgekit deploy`: from a bare machine to a measured endpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.options import (
    DEFAULT_USERS,
    Ctx,
    DeviceOption,
    FileTypeOption,
    Json,
    Users,
    device_for,
    model_and_filetype,
)
from edgekit.cli.serve import Host, Keys, Port

if TYPE_CHECKING:
    from edgekit.machine import Machine
    from edgekit.plan import Plan


def register(app: typer.Typer) -> None:
    @app.command()
    def deploy(
        model: Annotated[str, typer.Argument(help="Model, as `name` or `name:FILETYPE`.")],
        source: Annotated[
            Path | None, typer.Option(help="Checkpoint folder to use instead of the catalogue's.")
        ] = None,
        filetype: FileTypeOption = None,
        users: Users = DEFAULT_USERS,
        ctx: Ctx = None,
        host: Host = "127.0.0.1",
        port: Port = 8484,
        api_key: Keys = None,
        device: DeviceOption = "this",
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
        measure: Annotated[bool, typer.Option(help="Measure latency once it runs.")] = True,
        stay: Annotated[bool, typer.Option(help="Serve until Ctrl-C after measuring.")] = True,
        json: Json = False,
    ) -> None:
        """Deploy a model on this machine: choose, convert, verify, serve, measure.

        Example: edgekit deploy pocket
        """
        started = time.monotonic()
        plan, machine = make(model, source, filetype, users, ctx, host, port, device, dry_run)
        if dry_run and json:
            from edgekit.plan import as_record

            output.emit(as_record(plan))
            return
        if not json:
            describe(plan, machine)
        if dry_run:
            return
        run(plan, list(api_key or ()), started, measuring=measure, stay=stay, json=json)


def make(
    model: str,
    source: Path | None,
    filetype: str | None,
    users: int,
    ctx: int | None,
    host: str,
    port: int,
    device: str,
    dry_run: bool,
) -> tuple[Plan, Machine | None]:
    """Choose and plan. Raises UsageError when a foreign device is to be deployed to."""
    from edgekit import paths
    from edgekit.catalogue import find_model
    from edgekit.errors import UsageError
    from edgekit.fit import choose
    from edgekit.plan import make_plan
    from edgekit.store import Store

    name, wanted = model_and_filetype(model, filetype)
    card = find_model(name)
    target, machine = device_for(device)
    if machine is None and not dry_run:
        raise UsageError(
            f"cannot deploy to {target.name} from here",
            code="other_device",
            hint="add --dry-run to see its plan, or leave --device out",
        )
    choice = choose(card, target, users=users, n_ctx=ctx, filetype=wanted)
    store = Store(paths.store_dir())
    return make_plan(card, target, choice, store, host=host, port=port, folder=source), machine


def describe(plan: Plan, machine: Machine | None) -> None:
    """Print what was found and chosen, and the steps."""
    from edgekit.cli.probe import lines
    from edgekit.units import format_bytes

    if machine is None:
        output.say("Device", plan.device.name)
    else:
        for label, text in lines(machine):
            if label in ("Machine", "GPU", "Warning"):
                output.say(label, text)
    choice, licence = plan.choice, plan.card.licence
    users = "1 user" if choice.users == 1 else f"{choice.users} users"
    output.say("Choice", f"{choice.filetype} · context {choice.n_ctx:,} shared by {users}")
    output.say("Why", choice.reason)
    for lost in (*choice.rejected, *choice.runners_up)[:2]:
        output.say("", f"{lost.filetype}: {lost.why}")
    use = {True: ", commercial use allowed", False: ", no commercial use", None: ""}
    output.say("Licence", (licence.spdx or licence.name) + use[licence.commercial_use])
    print()
    for step in plan.steps:
        size = format_bytes(step.bytes) if step.bytes is not None else ""
        mark = "done" if step.done else "plan"
        print(f"  {mark}  {step.kind:<10}{step.summary}{'  ' + size if size else ''}")
    print(flush=True)


def run(
    plan: Plan, keys: list[str], started: float, *, measuring: bool, stay: bool, json: bool
) -> None:
    """Carry out the plan, print the report, then serve until Ctrl-C."""
    from edgekit import deploy, paths
    from edgekit.report import render_text, to_json
    from edgekit.store import Store

    watch = output.StepLines(quiet=json)
    file = deploy.obtain(plan, Store(paths.store_dir()), watch)
    proof = deploy.verify(plan, file, watch)
    watch.begin("serve", "loading")
    server = deploy.Server(plan, file, proof, api_keys=keys)
    try:
        server.wait_ready()
        server.first_token(plan.card.id, keys[0] if keys else None)
        ready_s = time.monotonic() - started
        watch.end("serve", f"ready on {server.url}/v1, first token after {ready_s:.1f} s")
        if measuring:
            levels = [1, 2, 4, 8]
            key = keys[0] if keys else None
            record = deploy.measure(plan, server, watch, users=levels, api_key=key)
            kept = deploy.keep(plan, proof, record, ready_s=ready_s)
            if json:
                output.emit(to_json(record))
            else:
                print("\n" + render_text(record))
                output.say("Report", str(kept.html))
                output.say("Receipt", str(kept.receipt))
        if stay:
            if not json:
                print(f"\nserving on {server.url}/v1 · Ctrl-C stops", flush=True)
            server.process.wait()
    except KeyboardInterrupt:
        if not json:
            print("\nstopped")
    finally:
        server.stop()
