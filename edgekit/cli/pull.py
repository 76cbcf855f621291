"""`edgekit pull`: weights into the store, with no conversion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.options import Json, Mirror, Offline

if TYPE_CHECKING:
    from edgekit.checkpoints import Checkpoint
    from edgekit.hub import Listing
    from edgekit.origin import Want
    from edgekit.pull import Pulled
    from edgekit.ready_gguf import ReadyGguf


def register(app: typer.Typer) -> None:
    @app.command(short_help="Fetch weights into the store; resumes after any interruption.")
    def pull(
        model: Annotated[
            str,
            typer.Argument(
                help="A model of `edgekit models`, org/name[@COMMIT], a .gguf, or oci://…."
            ),
        ],
        revision: Annotated[
            str | None, typer.Option(help="Commit or branch. Default: the pinned one.")
        ] = None,
        mirror: Mirror = None,
        offline: Offline = False,
        connections: Annotated[
            int, typer.Option(min=1, max=32, help="Ranges fetched at the same time.")
        ] = 4,
        chunk: Annotated[str, typer.Option(hidden=True)] = "64MiB",
        directory: Annotated[
            Path | None, typer.Option("--output", help="oci://: where the bundle's folder goes.")
        ] = None,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="List what would be fetched and stop.")
        ] = False,
        json: Json = False,
    ) -> None:
        """Fetch the weights of a model: checked, resumable, into the store.

        HF_TOKEN opens gated repositories; HF_ENDPOINT or --mirror names an internal mirror.
        A GGUF, in a repository or on this machine, is checked and described.

        Example: edgekit pull mistral-3-small --dry-run
        """
        from edgekit import paths
        from edgekit.bundle.oci_address import is_address
        from edgekit.pull import Options, find_settled, look
        from edgekit.units import parse_bytes

        if is_address(model):
            from edgekit.cli.registry import pull as pull_bundle

            pull_bundle(model, directory, offline=offline, json=json)
            return
        local = Path(model)
        if local.suffix == ".gguf" and local.is_file():
            report_gguf(local, json=json)
            return
        want = wanted(model, revision)
        options = Options(mirror, offline, connections, parse_bytes(chunk))
        store = paths.store_dir()
        if dry_run:
            here = find_settled(want, store, options)
            show_listing(None if here else look(want, options), here, json=json)
            return
        with output.StepLines(quiet=json) as lines:
            lines.begin("fetch", want.repository)
            pulled, notes = fetch(want, store, options, lines)
        report(pulled, notes, want, json=json)


def wanted(model: str, revision: str | None) -> Want:
    """Return what to fetch of a model of the catalogue or a repository; its licence is accepted.

    Raises MissingInputError for an unknown name or one on no hub, DeniedError for the licence.
    """
    import sys
    from dataclasses import replace

    from edgekit import paths
    from edgekit.catalogue import find_model
    from edgekit.errors import MissingInputError
    from edgekit.licence_policy import check_allowed
    from edgekit.origin import hub_reference, want_of

    reference = hub_reference(model)
    name = model if reference is None else reference.repository
    try:
        card = find_model(name)
    except MissingInputError as error:
        if reference is None or error.code != "model_unknown":
            raise
        return replace(reference, revision=revision or reference.revision)
    warnings = check_allowed(card, paths.data_dir(), paths.config_dir())
    asks = f": {card.licence.conditions}" if card.licence.conditions else ""
    for line in (f"licence: {card.licence.name}{asks}", *(f"warning: {w}" for w in warnings)):
        sys.stderr.write(f"{line}\n")
    if reference is not None and reference.file:
        return replace(reference, revision=revision or reference.revision)
    asked = revision or (reference.revision if reference else None)
    want = want_of(card, asked)
    if want is None:
        raise MissingInputError(
            f"{card.id} is on no hub that edgekit knows",
            code="nothing_to_fetch",
            hint=f"edgekit deploy {card.id} uses it where it lies",
        )
    return want


def fetch(
    want: Want, store: Path, options: object, lines: output.StepLines
) -> tuple[Pulled, list[str]]:
    """Fetch with a bar; what is to be said is collected and printed at once where possible."""
    import sys

    from edgekit.pull import Options
    from edgekit.pull import pull as bring

    assert isinstance(options, Options)
    notes: list[str] = []

    def notice(text: str) -> None:
        notes.append(text)
        if not lines.quiet:
            sys.stderr.write(f"note: {text}\n")

    pulled = bring(want, store, options, progress=lines.progress, notice=notice)
    from edgekit.fetch_step import said

    lines.end("fetch", said(pulled))
    return pulled, notes


def show_listing(listing: Listing | None, here: Checkpoint | None, *, json: bool) -> None:
    """Print what would be fetched; nothing when it is all in the store."""
    from edgekit.hub import iterate
    from edgekit.units import format_bytes

    if listing is None:
        assert here is not None
        manifest = here.manifest
        rows = [{"name": f.name, "bytes": f.bytes, "sha256": f.sha256} for f in manifest.files]
        repository, revision, left = manifest.repository, manifest.revision, []
    else:
        rows = [{"name": f.name, "bytes": f.size, "sha256": f.sha256} for f in iterate(listing)]
        repository, revision = listing.repository, listing.revision
        left = [{"name": x.name, "why": x.why} for x in listing.left_out]
    total = sum(int(str(row["bytes"])) for row in rows)
    if json:
        record = {"repository": repository, "revision": revision, "here": here is not None}
        record |= {"bytes": total, "files": rows, "left_out": left}
        output.emit({"schema": "edgekit.pull-plan/1", **record})
        return
    output.say("From", f"{repository}@{revision[:12]}")
    output.say("Fetch", "nothing: it is in the store" if here else format_bytes(total))
    for row in rows:
        print(f"  {format_bytes(int(str(row['bytes']))):>10}  {row['name']}")
    for reason in dict.fromkeys(x["why"] for x in left):
        names = [x["name"] for x in left if x["why"] == reason]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        output.say("Left out", f"{shown}: {reason}")


def report(pulled: Pulled, notes: list[str], want: Want, *, json: bool) -> None:
    """Print where the weights are and how they were checked."""
    from edgekit.located import of_checkpoint
    from edgekit.ready_gguf import as_record, inspect

    here, result = pulled.checkpoint, pulled.result
    gguf = of_checkpoint(here, want).ready
    found = inspect(gguf) if gguf else None
    manifest = here.manifest
    if json:
        output.emit(
            {
                "schema": "edgekit.pull/1",
                "repository": manifest.repository,
                "revision": manifest.revision,
                "path": str(here.folder),
                "bytes": manifest.bytes,
                "store_hit": result is None,
                "fetched_bytes": result.new_bytes if result else 0,
                "resumed_bytes": result.resumed_bytes if result else 0,
                "seconds": round(result.seconds, 3) if result else 0.0,
                "files": [
                    {"name": f.name, "bytes": f.bytes, "sha256": f.sha256, "check": f.check}
                    for f in manifest.files
                ],
                "notes": notes,
                "gguf": as_record(found) if found else None,
            }
        )
        return
    unchecked = [f.name for f in manifest.files if f.check == "none"]
    if unchecked:
        output.say("Note", f"the hub gives no digest of {', '.join(unchecked)}")
    output.say("Weights", str(here.folder))
    if found is not None:
        describe_gguf(found)


def report_gguf(path: Path, *, json: bool) -> None:
    """Check and describe a GGUF of this machine; nothing is copied."""
    from edgekit.ready_gguf import as_record, inspect

    found = inspect(path)
    if json:
        output.emit({"schema": "edgekit.gguf/1", **as_record(found)})
        return
    output.say("File", f"{found.path}, used where it lies")
    describe_gguf(found)


def describe_gguf(found: ReadyGguf) -> None:
    """Print what a GGUF says of itself."""
    from edgekit.units import format_bytes, format_count

    output.say("GGUF", found.summary)
    files = f" in {len(found.parts)} files" if len(found.parts) > 1 else ""
    output.say("Size", f"{format_bytes(found.file_bytes)}{files}")
    for name, size, count in found.types:
        output.say("", f"{name:<8} {count:>5} tensors {format_bytes(size):>10}")
    output.say("Context", f"{format_count(found.n_ctx_train)} tokens")
    if found.template_sha256:
        output.say("Template", f"sha256 {found.template_sha256[:16]}…")
