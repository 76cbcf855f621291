"""`edgekit engine`: build the inference engine for this machine, show it, put the old one back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.options import Json

if TYPE_CHECKING:
    from edgekit.engine_install import Draft
    from edgekit.engine_verify import Verdict

ACTIONS = ("show", "build", "rollback")


def register(app: typer.Typer) -> None:
    @app.command(short_help="Build llama.cpp for this machine, or put the old build back.")
    def engine(
        action: Annotated[str, typer.Argument(metavar="[show|build|rollback]")] = "show",
        sdist: Annotated[
            Path | None,
            typer.Option(
                help="Source archive of llama-cpp-python, or a folder with it and the wheels "
                "that its build needs: then nothing is downloaded."
            ),
        ] = None,
        model: Annotated[
            Path | None,
            typer.Option(help="A GGUF file to try the builds on, besides the embedded model."),
        ] = None,
        rebuild: Annotated[
            bool, typer.Option("--rebuild", help="Compile even if this build was made before.")
        ] = False,
        force: Annotated[
            bool, typer.Option("--force", help="Install it even if it fails or is slower.")
        ] = False,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Say what would be done and stop.")
        ] = False,
        json: Json = False,
    ) -> None:
        """Show the engine; compile it for this machine (build); put the old one back (rollback).

        A new build is installed only when it decodes without dying and is no slower than the
        installed one, which is kept.

        Example: edgekit engine build --dry-run
        """
        from edgekit.errors import MissingInputError, UsageError

        if model is not None and not model.is_file():
            raise MissingInputError(f"there is no file {model}", code="model_missing")
        if action not in ACTIONS:
            raise UsageError(
                f"{action!r} is nothing that can be done with the engine",
                code="bad_action",
                hint=f"one of {', '.join(ACTIONS)}",
            )
        if action == "show":
            show(json=json)
        elif action == "build":
            build(sdist, model, rebuild=rebuild, force=force, dry_run=dry_run, json=json)
        else:
            rollback(dry_run=dry_run, json=json)


def show(*, json: bool) -> None:
    """Print what is installed and what can come back."""
    from edgekit import engine_install
    from edgekit.units import UNKNOWN

    record = engine_install.show()
    if json:
        output.emit(record)
        return
    version, pinned = record["version"], record["pinned_version"]
    text = f"llama-cpp-python {version or 'is not installed'}"
    output.say("Engine", text if version in (pinned, None) else f"{text}; made for {pinned}")
    output.say("Built", str(record["reason"] or "not by `edgekit engine build`"))
    if record["installed_at"]:
        output.say("Since", str(record["installed_at"]))
    output.say("Kept", str(record["previous"] or UNKNOWN))


def build(
    sdist: Path | None,
    model: Path | None,
    *,
    rebuild: bool,
    force: bool,
    dry_run: bool,
    json: bool,
) -> None:
    """Compile, verify and install; or say what would be done."""
    from edgekit import engine_install, engine_verify

    plan = engine_install.draft(sdist)
    kept = plan.wheel is not None and not rebuild
    if not json:
        describe(plan, kept=kept)
    if dry_run:
        if json:
            output.emit(_record(plan, kept=kept, verdict=None, installed=False, previous=None))
        return
    with output.StepLines(quiet=json) as watch:
        watch.begin("build", "compiling")
        wheel = engine_install.make_wheel(plan, rebuild=rebuild)
        watch.end("build", f"{wheel.name}{', made earlier' if kept else ''}")
        watch.begin("verify", "canary and trial")
        verdict = engine_install.check(wheel, model)
        watch.end("verify", verdict.reason)
        if not json:
            compare(verdict)
        if not verdict.install and not force:
            raise engine_verify.refused(verdict)
        watch.begin("install", "pip")
        record = engine_install.record_of(plan, verdict)
        kept_at = engine_install.install(wheel, record, must_keep=not force)
        words = (
            f"the old one is kept: {kept_at}" if kept_at else "there is no old one to go back to"
        )
        watch.end("install", words)
    if json:
        output.emit(_record(plan, kept=kept, verdict=verdict, installed=True, previous=kept_at))


def rollback(*, dry_run: bool, json: bool) -> None:
    """Swap the installed engine and the one kept before it."""
    from edgekit import engine_install

    wheel = engine_install.previous_wheel() if dry_run else engine_install.rollback()
    if json:
        record = {"schema": engine_install.SCHEMA, "action": "rollback", "dry_run": dry_run}
        output.emit({**record, "wheel": str(wheel) if wheel else None})
    else:
        words = "would be put back" if dry_run else "is back; the other one is kept in its place"
        output.say("Engine", f"{wheel.name} {words}" if wheel else "no earlier engine is kept")


def describe(plan: Draft, *, kept: bool) -> None:
    """Print what would be built, with what, and why."""
    output.say("Engine", f"llama-cpp-python {plan.version}")
    output.say("Why", plan.build.reason)
    output.say("Flags", " ".join(f"{k}={v}" for k, v in plan.build.env) or "the compiler's own")
    output.say("Source", str(plan.sdist or "the package index"))
    output.say("Wheel", f"{plan.folder}, {'made earlier' if kept else 'some minutes to compile'}")
    print(flush=True)


def compare(verdict: Verdict) -> None:
    """Print speeds of both builds, file by file."""
    from edgekit.units import UNKNOWN

    def cell(value: float | None) -> str:
        return UNKNOWN if value is None else f"{value:,.0f}"

    rows = [
        (
            f"  {c.file}",
            cell(c.old.prefill_tok_s if c.old else None),
            cell(c.new.prefill_tok_s if c.new else None),
            cell(c.old.decode_tok_s if c.old else None),
            cell(c.new.decode_tok_s if c.new else None),
        )
        for c in verdict.compared
    ]
    if rows:
        heads = ("  tok/s", "prefill old", "new", "decode old", "new")
        output.table(heads, rows, "lrrrr")


def _record(
    plan: Draft, *, kept: bool, verdict: Verdict | None, installed: bool, previous: Path | None
) -> dict[str, object]:
    from edgekit import engine_install

    return {
        "schema": engine_install.SCHEMA,
        "action": "build",
        "version": plan.version,
        "wheel": str(plan.wheel) if plan.wheel else None,
        "made_earlier": kept,
        **engine_install.record_of(plan, verdict),
        "installed": installed,
        "previous": str(previous) if previous else None,
    }
