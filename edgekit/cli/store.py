"""`edgekit store`: what is in the store, whether every bit is as it was, what may go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.options import Json

if TYPE_CHECKING:
    from edgekit.store import Store

ACTIONS = ("ls", "verify", "gc", "rollback", "switch")


def register(app: typer.Typer) -> None:
    @app.command(short_help="List the store, check every bit of it, or free room.")
    def store(
        action: Annotated[str, typer.Argument(metavar="[ls|verify|gc|rollback|switch]")] = "ls",
        model: Annotated[
            str | None, typer.Argument(help="rollback, switch: MODEL or MODEL:TYPE.")
        ] = None,
        checkpoints: Annotated[
            bool, typer.Option("--checkpoints", help="gc: fetched checkpoints go too.")
        ] = False,
        unfinished: Annotated[
            bool, typer.Option("--unfinished", help="gc: interrupted fetches go too.")
        ] = False,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Say what gc would remove and stop.")
        ] = False,
        api_key: Annotated[
            str | None, typer.Option(envvar="EDGEKIT_API_KEY", help="switch: the server's key.")
        ] = None,
        json: Json = False,
    ) -> None:
        """List what the store holds (ls), read every byte again (verify), free room (gc).

        gc removes what no entry names and no running server uses. rollback lets the file serve
        again that an installed bundle replaced; a second rollback undoes it. switch lets a
        deployment that runs take what the store names now, without a failed request.

        Example: edgekit store gc --dry-run
        """
        from edgekit import paths
        from edgekit.errors import UsageError
        from edgekit.store import Store

        if action not in ACTIONS:
            raise UsageError(
                f"{action!r} is nothing that can be done with the store",
                code="bad_action",
                hint=f"one of {', '.join(ACTIONS)}",
            )
        here = Store(paths.store_dir())
        if action == "ls":
            show(here, json=json)
        elif action == "rollback":
            go_back(here, model, json=json)
        elif action == "switch":
            switch_over(here, model, api_key, json=json)
        elif action == "verify":
            verify(here, json=json)
        else:
            clear(here, dry_run, checkpoints, unfinished, json=json)


def go_back(store: Store, model: str | None, *, json: bool) -> None:
    """Let what served before serve again. Raises MissingInputError when there is nothing."""
    from edgekit.errors import UsageError
    from edgekit.store_previous import remembered, roll_back

    name, _, filetype = (model or "").partition(":")
    if not name:
        raise UsageError(
            "no model is named", code="no_model", hint="edgekit store rollback MODEL[:TYPE]"
        )
    kinds = {e.filetype for e in remembered(store) if e.model == name}
    if not filetype and len(kinds) > 1:
        raise UsageError(
            f"{name} was replaced at several file types: {', '.join(sorted(kinds))}",
            code="filetype_open",
            hint=f"edgekit store rollback {name}:{min(kinds)}",
        )
    entry = roll_back(store, name, filetype or next(iter(kinds), "any file type"))
    if json:
        record = {"model": entry.model, "filetype": entry.filetype, "sha256": entry.sha256}
        output.emit({"schema": "edgekit.store-rollback/1", **record})
        return
    output.say(
        "Serves", f"{entry.model} {entry.filetype} of sha256 {entry.sha256[:12]}…, as before"
    )
    output.say("", "a running server keeps its file; the next deploy takes this one")


def switch_over(store: Store, model: str | None, api_key: str | None, *, json: bool) -> None:
    """Let the running deployment take the store's file. Raises EdgekitError; the old one stays."""
    from edgekit import paths, running
    from edgekit.errors import MissingInputError
    from edgekit.switch import switch

    name, _, filetype = (model or "").partition(":")
    found = running.find(paths.running_dir(), name or None)
    if found is None:
        raise MissingInputError(
            f"no deployment of {name or 'any model'} runs", code="not_running",
            hint="edgekit deploy takes what the store names",
        )  # fmt: skip
    name = name or found.head.model
    filetype = filetype or (found.head.filetype or "")
    entry = store.find(name, filetype)
    if entry is None:
        raise MissingInputError(
            f"{name} {filetype} is not in the store", code="not_in_store",
            hint="edgekit store shows what there is",
        )  # fmt: skip
    with output.StepLines(quiet=json) as lines:
        lines.begin("switch", name)
        done = switch(store, entry, found, api_key=api_key)
        lines.end("switch", f"{name} {filetype} of sha256 {entry.sha256[:12]}… serves")
    if json:
        record = {"model": name, "filetype": filetype, "sha256": entry.sha256, "url": found.url}
        times = {k: round(getattr(done, k), 3) for k in ("before_s", "after_s", "switch_s")}
        output.emit({"schema": "edgekit.switch/1", **record, **times, "quality": done.quality})
        return
    output.say("Quality", done.quality)
    output.say("Latency", f"a short answer took {done.before_s:.2f} s, now {done.after_s:.2f} s")


def show(store: Store, *, json: bool) -> None:
    """Print one line for each thing."""
    from edgekit.store_care import as_records, list_store
    from edgekit.units import UNKNOWN, format_bytes

    rows = list_store(store)
    total = sum(row.bytes for row in rows)
    if json:
        record = {"path": str(store.root), "bytes": total, "rows": as_records(rows)}
        output.emit({"schema": "edgekit.store/1", **record})
        return
    if not rows:
        output.say("Store", f"{store.root} is empty")
        return
    table = [
        (r.kind, r.name, r.filetype or UNKNOWN, format_bytes(r.bytes), "in use" if r.used else "")
        for r in rows
    ]
    output.table(("kind", "name", "type", "size", ""), table, "lllrl")
    output.say("Store", f"{store.root}, {format_bytes(total)}")
    if any(r.kind == "unfinished" for r in rows):
        output.say("", "an unfinished fetch goes on with the same edgekit pull")


def verify(store: Store, *, json: bool) -> None:
    """Read everything; raise BadDataError when something has changed."""
    from edgekit.errors import BadDataError
    from edgekit.store_care import as_records, verify_store
    from edgekit.units import format_bytes

    with output.StepLines(quiet=json) as lines:
        lines.begin("fetch", "reading the store")
        size, problems = verify_store(store, lines.progress)
        if not problems:
            lines.end("verify", f"{format_bytes(size)}, every bit as it was")
    if json:
        record = {"path": str(store.root), "bytes": size, "problems": as_records(problems)}
        output.emit({"schema": "edgekit.store-verify/1", **record})
        if problems:
            raise typer.Exit(BadDataError.exit_code)
        return
    for problem in problems:
        output.say("Damaged", f"{problem.path}: {problem.what}\n{problem.fix}")
    if problems:
        raise BadDataError(
            f"{len(problems)} of the store's files are not as they were",
            code="store_damaged",
            hint=problems[0].fix,
        )


def clear(store: Store, dry_run: bool, checkpoints: bool, unfinished: bool, *, json: bool) -> None:
    """Remove what may go and say what went."""
    from edgekit.store_care import as_records, collect
    from edgekit.units import format_bytes

    gone = collect(store, dry_run=dry_run, checkpoints=checkpoints, unfinished=unfinished)
    size = sum(item.bytes for item in gone)
    if json:
        record = {"path": str(store.root), "dry_run": dry_run, "bytes": size}
        output.emit({"schema": "edgekit.store-gc/1", **record, "removed": as_records(gone)})
        return
    for item in gone:
        print(f"  {format_bytes(item.bytes):>10}  {item.path}: {item.why}")
    would = "would be freed" if dry_run else "freed"
    output.say("Store", f"{format_bytes(size)} {would}" if gone else "nothing that may go")
