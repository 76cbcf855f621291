"""`edgekit fit`: what runs where, at which file type and context, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.options import (
    DEFAULT_USERS,
    Ctx,
    DeviceOption,
    FileTypeOption,
    Json,
    Offload,
    Source,
    Users,
    device_for,
    model_and_filetype,
)

if TYPE_CHECKING:
    from edgekit.candidate import Candidate
    from edgekit.facts import AbsentModel, Device, ModelCard


def register(app: typer.Typer) -> None:
    @app.command(short_help="Say what fits a device, and why.")
    def fit(
        models: Annotated[list[str], typer.Argument(help="Models, as `name` or `name:FILETYPE`.")],
        device: DeviceOption = "this",
        all_devices: Annotated[
            bool, typer.Option("--all-devices", help="Try every device.")
        ] = False,
        gpus: Annotated[
            int, typer.Option(min=1, max=16, help="So many of that device side by side.")
        ] = 1,
        users: Users = DEFAULT_USERS,
        ctx: Ctx = None,
        offload: Offload = None,
        source: Source = None,
        filetype: FileTypeOption = None,
        json: Json = False,
    ) -> None:
        """Say whether a model fits a device: file type, context, memory and speed, with reasons.

        Example: edgekit fit mistral-3-small --device a10 --users 4
        """
        from edgekit.catalogue import load_devices
        from edgekit.errors import UsageError
        from edgekit.fit import candidates, fit_record
        from edgekit.source import cards_for

        if source is not None and len(models) > 1:
            raise UsageError(
                "--source belongs to one model", code="usage", hint="name one model with --source"
            )

        devices = (
            [d for d in load_devices().values() if d.id != "this"]
            if all_devices
            else [device_for(device if gpus == 1 else f"{device}*{gpus}")[0]]
        )
        rows: list[Candidate] = []
        absent: list[AbsentModel] = []
        for text in models:
            name, wanted = model_and_filetype(text, filetype)
            missing, cards = cards_for(name, source)
            if missing is not None:
                absent.append(missing)
                if not json:
                    show_absent(missing)
            for card in cards:
                for d in devices:
                    found = candidates(
                        card, d, users=users, n_ctx=ctx, filetype=wanted, n_gpu_layers=offload
                    )
                    rows += found
                    if not json:
                        show(card, d, found)
        if json:
            named = [{"id": a.id, "why": a.why, "nearest": list(a.nearest)} for a in absent]
            output.emit({**fit_record(rows), **({"absent": named} if named else {})})


def show_absent(absent: AbsentModel) -> None:
    """Head the verdicts on the nearest real models of a name that has no weights."""
    output.say("Name", f"{absent.name}: none published under it. {absent.why}")
    output.say("Nearest", " · ".join(absent.nearest))
    print()


def show(card: ModelCard, device: Device, rows: list[Candidate]) -> None:
    """Print the verdict on one model and device: the choice first, then the others."""
    from edgekit.cli.model_facts import licence_lines
    from edgekit.units import UNKNOWN, format_gib

    best = rows[0]
    plan = best.plan
    output.say("Model", f"{card.id} on {device.name}")
    if best.verdict == "no":
        output.say("Verdict", f"does not fit: even {best.filetype.id} {best.reason}")
    else:
        text = f"{best.filetype.id} · {output.context(plan.n_ctx, plan.users)}"
        output.say("Choice" if best.verdict == "fits" else "Tight", text)
        output.say("Why", best.reason)
    output.say("Licence", licence_lines(card.licence)[0][1])
    print()
    partial = any(c.plan.n_gpu_layers < c.plan.n_layers for c in rows if len(c.plan.parts) > 1)
    body = [
        (
            c.filetype.id,
            c.verdict,
            # The first part is the memory that decides; what stays on the host is beside it.
            format_gib(c.plan.parts[0].total),
            format_gib(c.plan.parts[0].budget),
            *([f"{c.plan.n_gpu_layers}/{c.plan.n_layers}"] if partial else []),
            f"{c.largest_ctx:,}" if c.largest_ctx else UNKNOWN,
            _range(c.speed.decode),
            f"{c.speed.ttft_ms.value:,.0f} ms" if c.speed.ttft_ms else UNKNOWN,
        )
        for c in rows
    ]
    layers = ["on GPU"] if partial else []
    heads = ("file type", "verdict", "needs", "budget", *layers, "most ctx", "tok/s a user", "TTFT")
    output.table(heads, body, "llrr" + "r" * (len(heads) - 4))
    print()


def _range(estimate: object) -> str:
    from edgekit.speed import Estimate
    from edgekit.units import UNKNOWN

    if not isinstance(estimate, Estimate):
        return UNKNOWN
    return f"{estimate.value:.1f} ({estimate.low:.1f}-{estimate.high:.1f})"
