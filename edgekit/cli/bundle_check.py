"""`edgekit bundle check`: may this machine use a bundle? Asked before a byte is copied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgekit.cli import output

if TYPE_CHECKING:
    from edgekit.bundle.model import BundledModel
    from edgekit.bundle.requirements import Problem, Requirements
    from edgekit.bundle.seal import Seal
    from edgekit.bundle.verdict import Verdict


def check(root: Path, trust: Sequence[Path], *, in_place: bool = False, json: bool) -> None:
    """Prove the signature and every byte, then judge this machine; exit 65, 69 or 73 says no."""
    from edgekit import paths
    from edgekit.bundle.delta import check_needs
    from edgekit.bundle.install import room_for
    from edgekit.bundle.keys import load_trust
    from edgekit.bundle.opened import open_bundle
    from edgekit.bundle.runtime import look_here, runtimes_of
    from edgekit.bundle.seal import check_bytes
    from edgekit.bundle.verdict import judge
    from edgekit.cli.options import this_machine
    from edgekit.store import Store

    found = open_bundle(root, load_trust(paths.config_dir(), tuple(trust)))
    seal, models, store = found.seal, found.models, Store(paths.store_dir())
    with output.StepLines(quiet=json) as lines:
        lines.begin("verify", str(root))
        check_bytes(root, seal.digests)
        check_needs(found.needs, store)
        lines.end("verify", f"{len(seal.digests)} files hold what was listed")
    runtimes = runtimes_of(found.layout)
    room = room_for(found, store, in_place=in_place)
    here = look_here(this_machine(), store.root, runtimes, room.needed_bytes)
    runtime, verdicts, problems = judge(models, runtimes, here)
    if json:
        output.emit(_record(root, seal, models, runtime, verdicts, problems))
    else:
        _show(seal, models, runtime, verdicts, problems)
    if problems:
        raise typer.Exit(problems[0].exit_code)


def _show(
    seal: Seal,
    models: Sequence[BundledModel],
    runtime: Requirements | None,
    verdicts: Sequence[Verdict],
    problems: Sequence[Problem],
) -> None:
    import sys

    from edgekit.units import format_bytes

    output.say("Signature", seal.reason)
    for model in models:
        size = format_bytes(model.file_bytes)
        output.say("Model", f"{model.entry.model} {model.entry.filetype}, {size}, {model.licence}")
    output.say("Runtime", runtime.target if runtime else "none in the bundle: this edgekit runs it")
    for verdict in verdicts:
        output.say("Fit", f"{verdict.model} {verdict.filetype}: {verdict.reason}")
    if not problems:
        output.say("Check", "this machine can run it")
    sys.stdout.flush()
    for problem in problems:
        sys.stderr.write(f"error: {problem.sentence}\nhint: {problem.hint}\n")


def _record(
    root: Path,
    seal: Seal,
    models: Sequence[BundledModel],
    runtime: Requirements | None,
    verdicts: Sequence[Verdict],
    problems: Sequence[Problem],
) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "schema": "edgekit.bundle-check/1",
        "path": str(root),
        "signer": seal.signer,
        "reason": seal.reason,
        "files": len(seal.digests),
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
        "runtime": runtime.as_dict() if runtime else None,
        "fit": [asdict(verdict) for verdict in verdicts],
        "ok": not problems,
        "problems": [
            {"code": p.code, "message": p.sentence, "hint": p.hint, "exit_code": p.exit_code}
            for p in problems
        ],
    }
