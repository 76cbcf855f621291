"""`edgekit connect`: point an editor or agent at a running server, and prove that it works."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli import output
from edgekit.cli.options import Json, keys_option

if TYPE_CHECKING:
    from edgekit.connect.connecting import Connection
    from edgekit.connect.files import Change
    from edgekit.connect.selftest import Outcome

SCHEMA = "edgekit.connect/1"
FAILED = 70


def register(app: typer.Typer) -> None:
    @app.command(short_help="Point an editor or coding agent at a running server.")
    def connect(
        client: Annotated[
            str | None, typer.Argument(help="continue, zed, codex, ...; left out: list them.")
        ] = None,
        url: Annotated[
            str | None,
            typer.Option(help="Default: what is deployed here, else http://127.0.0.1:8484."),
        ] = None,
        api_key: Annotated[list[str] | None, keys_option("CONNECT")] = None,
        model: Annotated[str | None, typer.Option(help="Default: the first that can chat.")] = None,
        config: Annotated[Path | None, typer.Option(help="The client's file.")] = None,
        full: Annotated[
            bool, typer.Option("--full", help="Keep all the client's tools and long prompts.")
        ] = False,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Print the changes as a diff; write nothing.")
        ] = False,
        undo: Annotated[
            bool, typer.Option("--undo", help="Put the client's files back, byte for byte.")
        ] = False,
        force: Annotated[
            bool, typer.Option("--force", help="Also if a file was changed since.")
        ] = False,
        test: Annotated[
            bool, typer.Option("--test/--no-test", help="Try what the client needs afterwards.")
        ] = True,
        json: Json = False,
    ) -> None:
        """Write a client's settings for a running server, then try what that client needs.

        Keeps everything else in its files, comments too. --undo puts them back.

        Example: edgekit connect continue
        """
        if client is None:
            _list(json)
            return
        from edgekit.connect.clients import find
        from edgekit.connect.files import EditedError

        known, key = find(client), next(iter(api_key or ()), None)
        try:
            if undo:
                _undo(known.id, force=force, dry_run=dry_run, json=json)
                return
            from edgekit.connect.connecting import connection
            from edgekit.connect.server import ask

            address, reason = _address(url)
            server = ask(address, key, model)
            plan = connection(known, server, config=config, is_full=full)
            _connect(plan, reason, force=force, dry_run=dry_run, test=test, json=json)
        except EditedError as error:
            if not json:
                sys.stderr.write(_masked(error.diff, key))
            raise


def _address(url: str | None) -> tuple[str, str]:
    """Return the root of the server, and why this one."""
    from edgekit import paths
    from edgekit.connect.server import DEFAULT_URL, root
    from edgekit.running import find

    if url is not None:
        return root(url), "as asked"
    running = find(paths.running_dir(), None)
    return (root(running.url), "deployed here") if running else (DEFAULT_URL, "the default")


def _list(json: bool) -> None:
    from edgekit.connect.clients import clients, is_here

    rows = [(c, is_here(c)) for c in clients().values()]
    if json:
        shown = [
            {"client": c.id, "name": c.name, "found": at, "command": f"edgekit connect {c.id}"}
            for c, at in rows
        ]
        output.emit({"schema": "edgekit.clients/1", "rows": shown})
        return
    rows.sort(key=lambda row: row[1] is None)
    cells = [(c.name, "yes" if at else "–", f"edgekit connect {c.id}") for c, at in rows]
    output.table(("client", "here", "command"), cells, "lll")


def _undo(client: str, *, force: bool, dry_run: bool, json: bool) -> None:
    from edgekit.connect import files

    folder = _folder(client)
    with files.locked(folder, only_read=dry_run):
        changes = files.plan_undo(folder, force=force)
        if not dry_run:
            files.undo(changes, folder)
    if json:
        record = {"schema": SCHEMA, "client": client, "files": [_row(c, None) for c in changes]}
        output.emit(record | {"undone": not dry_run})
        return
    if not changes:
        output.say("Nothing", f"edgekit has written no file for {client}")
    for change in changes:
        if dry_run:
            print(change.diff(), end="")
        elif change.after is None:
            output.say("Removed", str(change.path))
        else:
            output.say("Restored", str(change.path))
    kept = sorted(folder.glob("*.edited"))
    if force and kept and not dry_run:
        output.say("Kept", f"what was changed since: {', '.join(map(str, kept))}")


def _connect(
    plan: Connection, reason: str, *, force: bool, dry_run: bool, test: bool, json: bool
) -> None:
    from edgekit.connect import files, selftest

    folder = _folder(plan.client.id)
    with files.locked(folder, only_read=dry_run or not plan.files):
        changes = files.plan(plan.files, folder, secret=plan.secret, force=force)
        if changes and not dry_run:
            files.write(changes, folder)
    if not json:
        _say(plan, changes, reason, dry_run=dry_run)
    outcomes: list[Outcome] = []
    if test and not dry_run:
        if not json:
            print()
        for outcome in selftest.run(plan.server, plan.client):
            outcomes.append(outcome)
            if not json:
                _say_outcome(outcome)
    failed = any(outcome.status == "fail" for outcome in outcomes)
    if json:
        output.emit(_record(plan, changes, outcomes, dry_run=dry_run, ok=not failed))
    if failed:
        raise typer.Exit(FAILED)


def _say(plan: Connection, changes: list[Change], reason: str, *, dry_run: bool) -> None:
    server = plan.server
    if dry_run:
        for change in changes:
            print(_masked(change.diff(), plan.secret), end="")
        if not any(change.is_one for change in changes):
            output.say("Unchanged", "nothing would be written")
        return
    size = f" · context {server.model.n_ctx:,}" if server.model.n_ctx else ""
    output.say("Client", plan.client.name)
    output.say("Server", f"{server.url} ({reason})")
    output.say("Model", f"{server.model.id}{size} ({server.reason})")
    if plan.slim is not None:
        output.say("Slim", f"{plan.slim}; --full keeps everything")
    for warning in plan.warnings:
        output.say("Warning", warning)
    for change in changes:
        verb = "Unchanged" if not change.is_one else "Wrote"
        output.say(verb, str(change.path))
    if changes:
        output.say("", f"edgekit connect {plan.client.id} --undo puts everything back")
    for number, step in enumerate(plan.steps):
        output.say("" if number else "Next", step)


def _say_outcome(outcome: Outcome) -> None:
    word = {"ok": "ok", "warn": "note", "fail": "FAILED", "skip": "–"}[outcome.status]
    first, *rest = output.wrap(outcome.text, output.WIDTH - 24)
    print(f"  {outcome.check:<12}  {word:<6}  {first}", flush=True)
    if outcome.fix:
        rest += output.wrap(f"→ {outcome.fix}", output.WIDTH - 24)
    for line in rest:
        print(f"{'':<24}{line}", flush=True)


def _record(
    plan: Connection, changes: list[Change], outcomes: list[Outcome], *, dry_run: bool, ok: bool
) -> dict[str, Any]:
    from dataclasses import asdict

    server = plan.server
    return {
        "schema": SCHEMA,
        "client": plan.client.id,
        "server": {
            "url": server.url,
            "model": server.model.id,
            "fim_model": server.fim.id if server.fim else None,
            "n_ctx": server.model.n_ctx,
            "reason": server.reason,
        },
        "dry_run": dry_run,
        "files": [_row(change, plan.secret) for change in changes],
        "slim": plan.slim,
        "steps": list(plan.steps),
        "warnings": list(plan.warnings),
        "checks": [asdict(outcome) for outcome in outcomes],
        "ok": ok,
    }


def _row(change: Change, secret: str | None) -> dict[str, object]:
    diff = _masked(change.diff(), secret)
    return {"path": str(change.path), "changed": change.is_one, "diff": diff}


def _masked(text: str, secret: str | None) -> str:
    return text.replace(secret, "•" * 8) if secret else text


def _folder(client: str) -> Path:
    from edgekit import paths

    return paths.data_dir() / "connect" / client
