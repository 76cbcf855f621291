"""`edgekit doctor`: what is wrong here, and the command that mends it."""

from __future__ import annotations

from typing import Annotated

import typer

from edgekit.cli import output
from edgekit.cli.options import Json, this_machine


def register(app: typer.Typer) -> None:
    @app.command(short_help="Say what is wrong here and how to mend it.")
    def doctor(
        port: Annotated[int, typer.Option(help="Port that you want to serve on.")] = 8484,
        json: Json = False,
    ) -> None:
        """Check this machine and installation; say how to mend what is broken.

        Example: edgekit doctor
        """
        from dataclasses import asdict

        from edgekit import paths
        from edgekit.doctor import diagnose

        findings = diagnose(this_machine(canary=True), paths.store_dir(), port)
        broken = any(f.severity == "error" for f in findings)
        if json:
            rows = [asdict(f) for f in findings]
            output.emit({"schema": "edgekit.doctor/1", "ok": not broken, "rows": rows})
        else:
            for f in findings:
                output.say(f.severity, f.message)
                if f.fix:
                    output.say("", f"→ {f.fix}")
        if broken:
            raise typer.Exit(70)
