"""`edgekit fit`: what runs where, at which file type and context, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.csv_file import CsvOption
from edgekit.cli.fit_files import ExplainOption, HtmlOption, show_explained, write_files
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
    from edgekit.remedy import Remedy


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
        ttft: Annotated[
            float | None, typer.Option(min=1, metavar="MS", help="Longest time to first token.")
        ] = None,
        tok_s: Annotated[
            float | None,
            typer.Option("--tok-s", min=0.1, metavar="X", help="Least tokens a second a user."),
        ] = None,
        explain: ExplainOption = False,
        html: HtmlOption = None,
        csv: CsvOption = None,
        json: Json = False,
    ) -> None:
        """Say whether a model fits a device: file type, context, memory and speed, with reasons.

        Example: edgekit fit mistral-3-small --device a10 --users 4
        """
        from edgekit.catalogue import load_devices
        from edgekit.errors import UsageError
        from edgekit.fit import Targets, candidates, fit_record
        from edgekit.fit_report import report_record
        from edgekit.remedy import remedies
        from edgekit.source import cards_for

        if source is not None and len(models) > 1:
            raise UsageError(
                "--source belongs to one model", code="usage", hint="name one model with --source"
            )

        devices = (
            [d for d in load_devices().values() if d.id != "this"]
            if all_devices
            else [device_for(side_by_side(device, gpus))[0]]
        )
        targets = Targets(tok_s, ttft)
        tried: list[Candidate] = []
        helps: list[dict[str, object]] = []
        rows: list[Candidate] = []
        groups: list[list[Candidate]] = []
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
                        card,
                        d,
                        users=users,
                        n_ctx=ctx,
                        filetype=wanted,
                        n_gpu_layers=offload,
                        targets=targets,
                    )
                    rows += found
                    groups.append(found)
                    tried.append(found[0])
                    if all_devices:
                        continue
                    ways = remedies(found, n_ctx=ctx, filetype=wanted, targets=targets)
                    helps += [
                        {"model": card.id, "device": d.id, "text": w.text, "option": w.option}
                        for w in ways
                    ]
                    if not json:
                        show(card, d, found, ways)
                if all_devices and not json:
                    show_devices(card, tried)
                    tried = []
        if json:
            named = [{"id": a.id, "why": a.why, "nearest": list(a.nearest)} for a in absent]
            more: dict[str, object] = {"absent": named} if named else {}
            if explain:
                more |= {"groups": report_record(groups)["groups"]}
            output.emit({**fit_record(rows), "remedies": helps, **more})
        elif explain:
            show_explained([found[0] for found in groups])
        if html is not None or csv is not None:
            record = {**report_record(groups, absent, work=html is not None), "remedies": helps}
            write_files(record, html=html, csv=csv, quiet=json)


def side_by_side(device: str, gpus: int) -> str:
    """The name of so many of one device. Raises UsageError for a group or a cloud machine."""
    from edgekit.catalogue import find_device
    from edgekit.errors import UsageError

    if gpus == 1:
        return device
    if device.strip().lower() == "this" or find_device(device).count > 1:
        raise UsageError(
            f"--gpus counts one device of the catalogue, not {device}",
            code="bad_device_group",
            hint="write the cards out, such as --device a10*2+l4",
        )
    return f"{find_device(device).id}*{gpus}"


def show_absent(absent: AbsentModel) -> None:
    """Head the verdicts on the nearest real models of a name that has no weights."""
    output.say("Name", f"{absent.name}: none published under it. {absent.why}")
    output.say("Nearest", " · ".join(absent.nearest))
    print()


def show_devices(card: ModelCard, rows: list[Candidate]) -> None:
    """Print one line for each device: those that fit first, then by name."""
    from edgekit.cli.model_facts import licence_lines
    from edgekit.units import UNKNOWN, format_gib

    output.say("Model", f"{card.id} for {rows[0].plan.users} users, on {len(rows)} devices")
    output.say("Licence", licence_lines(card.licence)[0][1])
    print()
    rank = {"fits": 0, "tight": 1, "no": 2}
    body = [
        (
            c.device.id,
            c.verdict,
            c.filetype.id,
            f"{c.plan.n_ctx:,}",
            format_gib(c.plan.parts[0].total).removesuffix(" GiB"),
            format_gib(c.plan.parts[0].budget).removesuffix(" GiB"),
            f"{c.speed.decode.value:.1f}" if c.speed.decode else UNKNOWN,
            f"{c.speed.ttft_ms.value:,.0f} ms" if c.speed.ttft_ms else UNKNOWN,
        )
        for c in sorted(rows, key=lambda c: (rank[c.verdict], c.device.id))
    ]
    heads = ("device", "verdict", "type", "context", "needs GiB", "of GiB", "tok/s", "TTFT")
    output.table(heads, body, "lllrrrrr")
    print()
    output.say(
        "Note", "tok/s is for each user; fit MODEL --device NAME says why, and what would help"
    )
    print()


def show(
    card: ModelCard, device: Device, rows: list[Candidate], ways: Sequence[Remedy] = ()
) -> None:
    """Print the verdict on one model and device: the choice first, then the others."""
    from edgekit.cli.model_facts import licence_lines
    from edgekit.units import UNKNOWN, format_gib

    best = rows[0]
    plan = best.plan
    output.say("Model", f"{card.id} on {device.name}")
    if best.verdict == "no":
        asked = len(rows) == 1 or best.binding not in ("memory", "host memory")
        lead = "" if asked else f"even {best.filetype.id} "
        output.say("Verdict", f"does not fit: {lead}{best.reason}")
    else:
        text = f"{best.filetype.id} · {output.context(plan.n_ctx, plan.users)}"
        output.say("Choice" if best.verdict == "fits" else "Tight", text)
        output.say("Why", best.reason)
    for number, way in enumerate(ways):
        # An option that breaks over two lines cannot be copied.
        gap = " " if len(f"{way.text}: {way.option}") <= output.WIDTH - output.LABEL else "\n"
        output.say("Or" if number else "Instead", f"{way.text}:{gap}{way.option}")
    output.say("Licence", licence_lines(card.licence)[0][1])
    print()
    if best.binding == "engine":
        return
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
