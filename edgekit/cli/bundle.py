"""`edgekit bundle`: one signed folder for a machine without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.licence import show_licence
from edgekit.cli.options import Json, Offline, device_for

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    from edgekit.bundle.create import Add, Item
    from edgekit.bundle.delta import Base
    from edgekit.bundle.target import Target
    from edgekit.plan import Plan

ACTIONS = ("create", "check", "install", "verify", "push", "keygen")


def register(app: typer.Typer) -> None:
    @app.command(short_help="Carry models to a machine without a network, signed.")
    def bundle(
        action: Annotated[str, typer.Argument(metavar=f"[{'|'.join(ACTIONS)}]")],
        names: Annotated[
            list[str] | None,
            typer.Argument(metavar="[MODEL…|DIR|NAME]", help="Models, a bundle, or a key's name."),
        ] = None,
        directory: Annotated[
            Path | None, typer.Option("--output", help="Where the new bundle goes.")
        ] = None,
        key: Annotated[
            Path | None, typer.Option(help="Private key that signs; made by keygen.")
        ] = None,
        trust: Annotated[
            list[Path] | None,
            typer.Option(help="Public key to trust, besides those in trust.d; may be repeated."),
        ] = None,
        device: Annotated[
            str, typer.Option(help="Device whose file type is chosen where none is named.")
        ] = "this",
        targets: Annotated[
            list[str] | None,
            typer.Option(
                "--for",
                metavar="TARGET",
                help="Carry what runs it: this, or OS-ARCH-PYTHON-BACKEND such as "
                "linux-x86_64-cp311-cpu; may be repeated.",
            ),
        ] = None,
        wheels: Annotated[
            list[str] | None,
            typer.Option(help="Folder or index of wheels for --for; may be repeated."),
        ] = None,
        users: Annotated[int, typer.Option(min=1, help="Users the file type is chosen for.")] = 1,
        ctx: Annotated[int | None, typer.Option(help="Context that must fit.")] = None,
        source: Annotated[
            Path | None, typer.Option(help="Folder with the checkpoint, for one model.")
        ] = None,
        since: Annotated[
            Path | None,
            typer.Option(help="Older bundle, or its SHA256SUMS: carry only what is new since."),
        ] = None,
        in_place: Annotated[
            bool,
            typer.Option("--in-place", help="install: serve from where it lies, copy nothing."),
        ] = False,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Say what would be done and stop.")
        ] = False,
        verify: Annotated[
            bool, typer.Option(help="Compare each file with the unquantized model, once.")
        ] = True,
        offline: Offline = False,
        json: Json = False,
    ) -> None:
        """Create a bundle, check, install or verify one, or make a key pair.

        Example: edgekit bundle create pocket --key ops.pem --output pocket.edgekit
        """
        from edgekit.errors import UsageError

        given = names or []
        if action == "create":
            _create(given, directory, key, device, users, ctx, source, dry_run=dry_run, json=json,
                    verify=verify, offline=offline, targets=targets or (),
                    wheels=wheels or (), since=since, trust=trust or ())  # fmt: skip
        elif action == "check" and len(given) == 1:
            from edgekit.cli.bundle_check import check

            check(Path(given[0]), trust or [], in_place=in_place, json=json)
        elif action == "install" and len(given) == 1:
            from edgekit.cli.bundle_install import install

            install(Path(given[0]), trust or [], in_place=in_place, dry_run=dry_run, json=json)
        elif action == "verify" and len(given) == 1:
            _check(Path(given[0]), trust or [], json=json)
        elif action == "push" and len(given) == 2:
            from edgekit.cli.registry import push

            push(Path(given[0]), given[1], offline=offline, json=json)
        elif action == "keygen" and len(given) == 1:
            _keygen(given[0], json=json)
        else:
            raise UsageError(
                f"edgekit bundle {action} {' '.join(given)} cannot be done",
                code="bad_action",
                hint=f"write one of {', '.join(ACTIONS)}, then models, one folder or one name",
            )


def _create(
    names: Sequence[str],
    directory: Path | None,
    key: Path | None,
    device: str,
    users: int,
    ctx: int | None,
    source: Path | None,
    *,
    dry_run: bool,
    json: bool,
    verify: bool = True,
    offline: bool = False,
    targets: Sequence[str] = (),
    wheels: Sequence[str] = (),
    since: Path | None = None,
    trust: Sequence[Path] = (),
) -> None:
    from edgekit.bundle.create import create
    from edgekit.bundle.keys import read_private
    from edgekit.errors import UsageError
    from edgekit.fetch_step import check_obtainable
    from edgekit.units import format_bytes

    if not names:
        raise UsageError("no model is named", code="no_model", hint="edgekit bundle create MODEL")
    private = read_private(key) if key is not None else None
    base = _base(since, trust, private) if since is not None else None
    runtimes = _targets(targets, wheels)
    plans = _plans(names, device, users, ctx, source)
    target = directory or Path(f"{plans[0].card.id}-{plans[0].choice.filetype}.edgekit")
    if dry_run:
        _show_plan(plans, target, signed=private is not None, json=json)
        return
    for plan in plans:
        check_obtainable(plan, offline=offline)
        if not json:
            show_licence(plan.card)
    with output.StepLines(quiet=json) as lines:
        items = [_item(plan, lines, verify=verify, offline=offline) for plan in plans]
        lines.begin("bundle", str(target))
        adders, texts = _runtimes(runtimes, wheels, plans, items)
        made = create(target, items, private, runtimes=adders, texts=texts, base=base)
        lines.end("bundle", f"{target}, {made.files} files, {format_bytes(made.bytes)}")
    if json:
        output.emit(
            {
                "schema": "edgekit.bundle/1",
                "path": str(target),
                "bytes": made.bytes,
                "files": made.files,
                "signed": made.signed,
                "models": [{"model": i.card.id, "filetype": i.entry.filetype} for i in items],
                "targets": [one.text for one in runtimes],
            }
        )
    elif not made.signed:
        output.say("Warning", "not signed; the other side has to accept that. --key signs it")


def _base(since: Path, trust: Sequence[Path], key: EllipticCurvePrivateKey | None) -> Base:
    """Return the older bundle, which this machine or the signing key itself vouches for."""
    from dataclasses import replace

    from edgekit import paths
    from edgekit.bundle.delta import read_base
    from edgekit.bundle.keys import TrustedKey, load_trust

    known = load_trust(paths.config_dir(), tuple(trust))
    if key is not None:
        own = TrustedKey("this key", key.public_key())
        known = replace(known, keys=(*known.keys, own))
    return read_base(since, known)


def _plans(
    names: Sequence[str], device: str, users: int, ctx: int | None, source: Path | None
) -> list[Plan]:
    """Choose a file type for each model, as a deployment on `device` would."""
    from edgekit import paths
    from edgekit.cli.targets import models_wanted
    from edgekit.plan import make_plan
    from edgekit.several import share
    from edgekit.store import Store

    wanted = models_wanted(list(names), source, None, users, ctx, None)
    on, _ = device_for(device)
    store = Store(paths.store_dir())
    chosen = share([model for model, _ in wanted], on)
    return [
        make_plan(one.wanted.card, on, one.choice, store, host="", port=0, folder=folder)
        for one, (_, folder) in zip(chosen, wanted, strict=True)
    ]


def _item(plan: Plan, lines: output.StepLines, *, verify: bool, offline: bool) -> Item:
    """Fetch and make the model's file, or take it from the store; prove it; write its papers."""
    from edgekit import paths
    from edgekit.bundle.create import Item
    from edgekit.bundle.documents import documents_of
    from edgekit.deploy import obtain
    from edgekit.deploy import verify as prove
    from edgekit.errors import MissingInputError
    from edgekit.fetch_step import fetched
    from edgekit.gate import Gate
    from edgekit.pull import Options
    from edgekit.store import Store

    store = Store(paths.store_dir())
    plan = fetched(plan, store, lines, Options(offline=offline))
    file = obtain(plan, store, lines)
    entry = store.find(plan.card.id, plan.choice.filetype, plan.source)
    if entry is None:
        raise MissingInputError(f"{file} left the store", code="store_changed")
    if verify:
        prove(plan, file, lines, Gate(store.root, _host_free_bytes()))
    papers = documents_of(plan, entry, file, store=store.root, data=paths.data_dir())
    return Item(plan.card, entry, file, papers)


def _targets(texts: Sequence[str], wheels: Sequence[str]) -> list[Target]:
    from edgekit.bundle.target import parse_target
    from edgekit.errors import UsageError

    if wheels and not texts:
        raise UsageError(
            "--wheels without --for", code="no_target", hint="add --for this or another target"
        )
    return list(dict.fromkeys(map(parse_target, texts)))


def _runtimes(
    targets: Sequence[Target], wheels: Sequence[str], plans: Sequence[Plan], items: Sequence[Item]
) -> tuple[list[Add], dict[str, bytes]]:
    """Return what adds the targets' wheels, and the bootstrap's files."""
    from edgekit.bundle.bootstrap import bootstrap_texts
    from edgekit.bundle.runtime import runtime
    from edgekit.bundle.verdict import model_need

    if not targets:
        return [], {}
    needs = [
        model_need(plan.card, item.entry.filetype, item.entry.file_bytes, plan.device)
        for plan, item in zip(plans, items, strict=True)
    ]
    names = [f"{need.model} {need.filetype}" for need in needs]
    texts = bootstrap_texts([target.text for target in targets], names)
    return [runtime(target, wheels, needs) for target in targets], texts


def _host_free_bytes() -> int | None:
    from edgekit.probe import probe
    from edgekit.this_machine import host_free_bytes

    return host_free_bytes(probe())


def _show_plan(plans: Sequence[Plan], target: Path, *, signed: bool, json: bool) -> None:
    from edgekit.units import format_bytes

    rows = [
        {
            "model": plan.card.id,
            "filetype": plan.choice.filetype,
            "file_bytes": plan.choice.candidate.file_bytes,
            "reason": plan.choice.reason,
        }
        for plan in plans
    ]
    if json:
        record = {"schema": "edgekit.bundle-plan/1", "path": str(target), "signed": signed}
        output.emit(record | {"models": rows})
        return
    output.say("Bundle", f"{target}{'' if signed else ', not signed'}")
    for plan in plans:
        size = format_bytes(plan.choice.candidate.file_bytes)
        output.say("Model", f"{plan.card.id} {plan.choice.filetype}, {size}: {plan.choice.reason}")


def _check(root: Path, trust: Sequence[Path], *, json: bool) -> None:
    from edgekit import paths
    from edgekit.bundle.keys import load_trust
    from edgekit.bundle.layout import Layout
    from edgekit.bundle.model import models_of
    from edgekit.bundle.seal import check_bytes, read_seal
    from edgekit.units import format_bytes

    found = read_seal(root, load_trust(paths.config_dir(), tuple(trust)))
    with output.StepLines(quiet=json) as lines:
        lines.begin("verify", str(root))
        check_bytes(root, found.digests)
        lines.end("verify", f"{len(found.digests)} files hold what was listed")
    models = models_of(Layout(root))
    if json:
        output.emit(
            {
                "schema": "edgekit.bundle-check/1",
                "path": str(root),
                "signer": found.signer,
                "reason": found.reason,
                "files": len(found.digests),
                "models": [
                    {
                        "model": model.entry.model,
                        "filetype": model.entry.filetype,
                        "file_bytes": model.file_bytes,
                        "files": len(model.files),
                        "licence": model.licence,
                    }
                    for model in models
                ],
            }
        )
        return
    output.say("Signature", found.reason)
    for model in models:
        size = format_bytes(model.file_bytes)
        output.say("Model", f"{model.entry.model} {model.entry.filetype}, {size}, {model.licence}")


def _keygen(name: str, *, json: bool) -> None:
    from edgekit.bundle.keys import generate

    private, public = Path(f"{name}.pem"), Path(f"{name}.pub")
    made = generate(private, public)
    if json:
        output.emit(
            {
                "schema": "edgekit.bundle-key/1",
                "private": str(private),
                "public": str(public),
                "hint": made.hint,
            }
        )
        return
    output.say("Private", f"{private}: signs bundles; keep it where only you can read it")
    output.say("Public", f"{public}: goes into trust.d of the machines that install them")
    output.say("Hint", f"{made.hint}: the key's name in signatures and in the denied list")
