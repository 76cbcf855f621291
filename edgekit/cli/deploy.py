"""`edgekit deploy`: from a bare machine to a measured endpoint."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.bench import Levels, levels
from edgekit.cli.options import (
    DEFAULT_USERS,
    Ctx,
    DeviceOption,
    FileTypeOption,
    HiddenMirror,
    Host,
    Json,
    Offline,
    Offload,
    Port,
    Source,
    Users,
    keys_option,
)
from edgekit.cli.targets import Target, make, models_wanted

if TYPE_CHECKING:
    from edgekit.deploy import Kept, Proof
    from edgekit.gate import Proven
    from edgekit.machine import Machine
    from edgekit.plan import Plan, Step
    from edgekit.pull import Options
    from edgekit.report.record import LatencyRecord


def register(app: typer.Typer) -> None:
    @app.command(short_help="Deploy a model on this machine and measure it.")
    def deploy(
        model: Annotated[
            list[str] | None,
            typer.Argument(
                help="Models, as `name` or `name:FILETYPE`. Default: [models] in config."
            ),
        ] = None,
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
        verify: Annotated[
            bool, typer.Option(help="Compare the file with the unquantized model, the first time.")
        ] = True,
        force: Annotated[
            bool,
            typer.Option("--force", help="Serve a file that the proof refuses."),
        ] = False,
        stay: Annotated[bool, typer.Option(help="Serve until Ctrl-C after measuring.")] = True,
        offline: Offline = False,
        mirror: HiddenMirror = None,
        json: Json = False,
    ) -> None:
        """Choose a file type, convert, verify, serve and measure models on this machine.

        Several models share the memory and one port, and answer to their names.

        Example: edgekit deploy pocket
        """
        from edgekit.preflight import check_endpoint, check_installed
        from edgekit.pull import Options

        started = time.monotonic()
        load_levels = levels(load)
        keys = list(api_key or ())
        if not dry_run:
            check_installed("numpy", "llama_cpp", "fastapi", "uvicorn", "msgpack", "jinja2")
            check_endpoint(host, port, keys)
        options = Options(mirror=mirror, offline=offline)
        wanted = models_wanted(model or [], source, filetype, users, ctx, offload, options)
        targets, machine, budget = make(wanted, host, port, device, dry_run, tune, verify, offline)
        if dry_run and json:
            from edgekit.plan import as_record

            first, *others = (as_record(target.plan) for target in targets)
            output.emit({**first, "others": others} if others else first)
            return
        if not json:
            describe(targets, machine)
        if dry_run:
            for target in targets:
                show_steps(target.plan.steps, target.plan.card.id if len(targets) > 1 else None)
            return
        run(
            targets,
            machine,
            keys,
            started,
            budget=budget,
            load=load_levels if measure else [],
            requests=requests,
            tune=tune,
            verify=verify,
            force=force,
            stay=stay,
            json=json,
            options=options,
        )


def describe(targets: list[Target], machine: Machine | None) -> None:
    """Print what was found and chosen, why, and the most that can come of it."""
    from edgekit.cli.probe import lines

    if machine is None:
        output.say("Device", targets[0].plan.device.name)
    else:
        for label, text in lines(machine):
            if label in ("Machine", "GPU", "Warning"):
                output.say(label, text)
    for target in targets:
        if target.beside is not None:
            output.say("Model", f"{target.plan.card.id} · {target.beside}")
        describe_choice(target.plan)
    print(flush=True)


def describe_choice(plan: Plan) -> None:
    """Print what was chosen for one model, and why."""
    from edgekit import paths
    from edgekit.licence_policy import read_policy, rulings
    from edgekit.plan import ceiling, others
    from edgekit.report import ceiling_line

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
    output.say("Licence", licence.label + use[licence.commercial_use])
    for ruling in rulings(licence, read_policy(paths.config_dir())):
        output.say("Refused" if ruling.refused else "Warning", ruling.said)
    output.say("Ceiling", ceiling_line(ceiling(plan)))


def show_steps(steps: tuple[Step, ...], model: str | None = None) -> None:
    """Print what would be done, one line a step; `model` where there are several."""
    from edgekit.units import format_bytes

    if model is not None:
        print(model)
    for step in steps:
        size = format_bytes(step.bytes) if step.bytes is not None else ""
        mark = "done" if step.done else "todo"
        first, *rest = output.wrap(step.summary, 70)
        print(f"  {mark}  {step.kind:<10}{first:<70}{size:>10}".rstrip())
        for line in rest:
            print(f"  {'':<4}  {'':<10}{line}")


def run(
    targets: list[Target],
    machine: Machine | None,
    keys: list[str],
    started: float,
    *,
    budget: int | None,
    load: list[int],
    requests: int,
    tune: bool,
    verify: bool,
    force: bool,
    stay: bool,
    json: bool,
    options: Options,
) -> None:
    """Carry out the plans, print the reports, then serve until Ctrl-C."""
    from edgekit import deploy, paths, running
    from edgekit.fetch_step import fetched
    from edgekit.gate import Gate
    from edgekit.serving import Hosted, Server
    from edgekit.store import Store
    from edgekit.store_use import in_use
    from edgekit.this_machine import host_free_bytes

    free = None if machine is None else host_free_bytes(machine)
    gate = Gate(paths.store_dir(), free, force) if verify else None

    store = Store(paths.store_dir())
    with output.StepLines(quiet=json) as watch, contextlib.ExitStack() as held:
        hosted: list[Hosted] = []
        proofs: list[Proof] = []
        for target in targets:
            plan = target.plan
            if target.beside is not None and not json:
                print(plan.card.id)
            plan = fetched(plan, store, watch, options)
            file = deploy.obtain(plan, store, watch)
            held.enter_context(in_use(file))
            proof = deploy.verify(plan, file, watch, gate)
            plan = replace(plan, proven=proof.proven)
            if proof.proven is not None and not json:
                show_proof(proof.proven)
            plan = deploy.informed(plan, machine, proof)
            if tune:
                plan, proof = deploy.tune(plan, machine, proof, file, watch)
                if not json:
                    show_tuning(plan)
            wanted = target.wanted
            hosted.append(Hosted(plan, file, proof.use_extra_bufts, wanted.roles, wanted.pinned))
            proofs.append(proof)
        watch.begin("serve", "loading")
        with Server(hosted, api_keys=keys, memory_budget_bytes=budget) as server:
            server.wait_ready()
            server.first_token()
            ready_s = time.monotonic() - started
            watch.end("serve", f"ready on {server.url}/v1, first token after {ready_s:.1f} s")
            server.hand_over(deploy.head(hosted[0].plan))
            with contextlib.ExitStack() as known:
                # The first one last: who asks for any deployment gets the newest file.
                for number, model in reversed(list(enumerate(hosted))):
                    head = deploy.head(model.plan)
                    here = running.Running(server.process.pid, server.url, head)
                    known.enter_context(running.announced(paths.running_dir(), here, number))
                records: list[dict[str, object]] = []
                for number, (model, proof) in enumerate(zip(hosted, proofs, strict=True)):
                    if not load:
                        records.append(deploy.ready_record(model.plan, server, ready_s))
                        continue
                    if number:
                        server.first_token(model.plan.card.id)
                    record = deploy.measure(
                        model.plan, server, watch, users=load, requests=requests, api_keys=keys
                    )
                    if len(hosted) > 1:  # what was seen is of all models together
                        record = replace(record, peak_memory_bytes=None)
                    kept = deploy.keep(model.plan, proof, record, ready_s=ready_s)
                    if not number:
                        server.hand_over(record)
                    records.append(report(model.plan, record, kept, quiet=json))
                if json:
                    first, *others = records
                    output.emit({**first, "others": others} if others else first)
                if stay:
                    serve_on(server, quiet=json)


def report(plan: Plan, record: LatencyRecord, kept: Kept, *, quiet: bool) -> dict[str, object]:
    """Print what was measured of one model; return it for --json."""
    from edgekit import deploy
    from edgekit.report import render_text, to_json

    if not quiet:
        print("\n" + render_text(record, output.WIDTH))
        output.say("Report", str(kept.html))
        output.say("Receipt", str(kept.receipt))
    quality = plan.proven and plan.proven.as_dict()
    return {**to_json(record), "tuning": deploy.tuning_record(plan), "quality": quality}


def show_proof(proven: Proven) -> None:
    """Print why a file is served that the gate would refuse."""
    if proven.verdict.why is not None:
        show_points([f"served because of --force: {proven.verdict.why}"])


def show_points(lines: Iterable[str]) -> None:
    """Print what belongs to the step above, each line a point."""
    for line in lines:
        first, *rest = output.wrap(line, output.WIDTH - 15)
        print("\n".join(f"  {'':<10} {text}" for text in ("· " + first, *("  " + r for r in rest))))


def show_tuning(plan: Plan) -> None:
    """Print what each setting was worth, when it was measured just now."""
    if plan.tuned is None or plan.tuned.cached:
        return
    show_points((*plan.tuned.reasons.values(), *plan.tuned.left_out))


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
