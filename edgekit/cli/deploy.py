"""`edgekit deploy`: from a bare machine to a measured endpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.bench import Levels, levels
from edgekit.cli.options import (
    DEFAULT_USERS,
    Ctx,
    DeviceOption,
    FileTypeOption,
    Host,
    Json,
    Offload,
    Port,
    Source,
    Users,
    device_for,
    keys_option,
    model_and_filetype,
)

if TYPE_CHECKING:
    from edgekit.machine import Machine
    from edgekit.plan import Plan, Step


def register(app: typer.Typer) -> None:
    @app.command(short_help="Deploy a model on this machine and measure it.")
    def deploy(
        model: Annotated[str, typer.Argument(help="Model, as `name` or `name:FILETYPE`.")],
        source: Source = None,
        filetype: FileTypeOption = None,
        users: Users = DEFAULT_USERS,
        ctx: Ctx = None,
        offload: Offload = None,
        host: Host = "127.0.0.1",
        port: Port = 8484,
        api_key: Annotated[list[str] | None, keys_option("DEPLOY")] = None,
        device: DeviceOption = "this",
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Print the plan and stop.")
        ] = False,
        measure: Annotated[bool, typer.Option(help="Measure latency once it runs.")] = True,
        load: Levels = "1,2,4,8",
        requests: Annotated[
            int, typer.Option(min=1, help="Requests at each load level; p95 needs 20.")
        ] = 20,
        tune: Annotated[
            bool,
            typer.Option(
                envvar=["EDGEKIT_DEPLOY_TUNE", "EDGEKIT_TUNE"],
                help="Find the fastest engine settings by short trials, the first time.",
            ),
        ] = True,
        stay: Annotated[bool, typer.Option(help="Serve until Ctrl-C after measuring.")] = True,
        json: Json = False,
    ) -> None:
        """Choose a file type, convert, verify, serve and measure a model on this machine.

        Example: edgekit deploy pocket
        """
        from edgekit.preflight import check_endpoint, check_installed

        started = time.monotonic()
        load_levels = levels(load)
        keys = list(api_key or ())
        if not dry_run:
            check_installed("numpy", "llama_cpp", "fastapi", "uvicorn", "msgpack", "jinja2")
            check_endpoint(host, port, keys)
        plan, machine = make(
            model, source, filetype, users, ctx, offload, host, port, device, dry_run, tune
        )
        if dry_run and json:
            from edgekit.plan import as_record

            output.emit(as_record(plan))
            return
        if not json:
            describe(plan, machine)
        if dry_run:
            show_steps(plan.steps)
            return
        run(
            plan,
            machine,
            keys,
            started,
            load=load_levels if measure else [],
            requests=requests,
            tune=tune,
            stay=stay,
            json=json,
        )


def make(
    model: str,
    source: Path | None,
    filetype: str | None,
    users: int,
    ctx: int | None,
    offload: int | None,
    host: str,
    port: int,
    device: str,
    dry_run: bool,
    tune: bool,
) -> tuple[Plan, Machine | None]:
    """Choose and plan. Raises UsageError when a foreign device is to be deployed to."""
    from edgekit import deploy, paths
    from edgekit.catalogue import find_device
    from edgekit.errors import UsageError
    from edgekit.fit import choose
    from edgekit.plan import make_plan
    from edgekit.source import card_for
    from edgekit.store import Store

    name, wanted = model_and_filetype(model, filetype)
    card = card_for(name, source)
    if not dry_run and find_device(device).id != "this":
        raise UsageError(
            f"cannot deploy to {find_device(device).name} from here",
            code="other_device",
            hint="add --dry-run to see its plan, or leave --device out",
        )
    target, machine = device_for(device)
    choice = choose(card, target, users=users, n_ctx=ctx, filetype=wanted, n_gpu_layers=offload)
    store = Store(paths.store_dir())
    plan = make_plan(card, target, choice, store, host=host, port=port, folder=source, tune=tune)
    if not dry_run and plan.entry is None and plan.weights is None:
        raise deploy.weights_missing(plan)
    return plan, machine


def describe(plan: Plan, machine: Machine | None) -> None:
    """Print what was found and chosen, why, and the most that can come of it."""
    from edgekit.cli.probe import lines
    from edgekit.plan import ceiling, others
    from edgekit.report import ceiling_line

    if machine is None:
        output.say("Device", plan.device.name)
    else:
        for label, text in lines(machine):
            if label in ("Machine", "GPU", "Warning"):
                output.say(label, text)
    choice, licence = plan.choice, plan.card.licence
    text = f"{choice.filetype} · {output.context(choice.n_ctx, choice.users)}"
    if plan.device.memory_kind != "shared":
        layers = choice.plan.n_layers
        whole = choice.n_gpu_layers >= layers
        text += f" · {'all ' if whole else f'{choice.n_gpu_layers} of '}{layers} layers on the GPU"
    output.say("Choice", text)
    output.say("Why", choice.reason)
    for lost in others(choice):
        # Some reasons begin with the name already.
        named = lost.why.startswith(lost.filetype)
        output.say("", lost.why if named else f"{lost.filetype}: {lost.why}")
    if plan.card.sources:
        output.say("", f"edgekit fit {plan.card.id} shows all")
    use = {True: ", commercial use allowed", False: ", no commercial use", None: ""}
    output.say("Licence", (licence.spdx or licence.name) + use[licence.commercial_use])
    output.say("Ceiling", ceiling_line(ceiling(plan)))
    print(flush=True)


def show_steps(steps: tuple[Step, ...]) -> None:
    """Print what would be done, one line a step."""
    from edgekit.units import format_bytes

    for step in steps:
        size = format_bytes(step.bytes) if step.bytes is not None else ""
        mark = "done" if step.done else "todo"
        first, *rest = output.wrap(step.summary, 70)
        print(f"  {mark}  {step.kind:<10}{first:<70}{size:>10}".rstrip())
        for line in rest:
            print(f"  {'':<4}  {'':<10}{line}")


def run(
    plan: Plan,
    machine: Machine | None,
    keys: list[str],
    started: float,
    *,
    load: list[int],
    requests: int,
    tune: bool,
    stay: bool,
    json: bool,
) -> None:
    """Carry out the plan, print the report, then serve until Ctrl-C."""
    from edgekit import deploy, paths, running
    from edgekit.report import render_text, to_json
    from edgekit.serving import Server
    from edgekit.store import Store

    with output.StepLines(quiet=json) as watch:
        file = deploy.obtain(plan, Store(paths.store_dir()), watch)
        proof = deploy.verify(plan, file, watch)
        plan = deploy.informed(plan, machine, proof)
        if tune:
            plan, proof = deploy.tune(plan, machine, proof, file, watch)
            if not json:
                show_tuning(plan)
        watch.begin("serve", "loading")
        with Server(plan, file, use_extra_bufts=proof.use_extra_bufts, api_keys=keys) as server:
            server.wait_ready()
            server.first_token()
            ready_s = time.monotonic() - started
            watch.end("serve", f"ready on {server.url}/v1, first token after {ready_s:.1f} s")
            here = running.Running(server.process.pid, server.url, deploy.head(plan))
            with running.announced(paths.running_dir(), here):
                if load:
                    record = deploy.measure(
                        plan, server, watch, users=load, requests=requests, api_keys=keys
                    )
                    kept = deploy.keep(plan, proof, record, ready_s=ready_s)
                    if json:
                        output.emit({**to_json(record), "tuning": deploy.tuning_record(plan)})
                    else:
                        print("\n" + render_text(record, output.WIDTH))
                        output.say("Report", str(kept.html))
                        output.say("Receipt", str(kept.receipt))
                elif json:
                    output.emit(deploy.ready_record(plan, server, ready_s))
                if stay:
                    serve_on(server, quiet=json)


def show_tuning(plan: Plan) -> None:
    """Print what each setting was worth, when it was measured just now."""
    if plan.tuned is None or plan.tuned.cached:
        return
    for line in (*plan.tuned.reasons.values(), *plan.tuned.left_out):
        first, *rest = output.wrap(line, output.WIDTH - 15)
        print("\n".join(f"  {'':<10} {text}" for text in ("· " + first, *("  " + r for r in rest))))


def serve_on(server: object, *, quiet: bool) -> None:
    """Wait for Ctrl-C. Raises the error that the server dies of, should it die first."""
    from edgekit.serving import Server

    assert isinstance(server, Server)
    try:
        if not quiet:
            print(f"\nserving on {server.url}/v1 · Ctrl-C stops · log {server.log}", flush=True)
        server.wait()
    except KeyboardInterrupt:
        if not quiet:
            print("\nstopped", flush=True)
