"""`edgekit compare`: models side by side on one device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.csv_file import CsvOption, write_csv
from edgekit.cli.fit_files import HtmlOption, write_page
from edgekit.cli.options import (
    DEFAULT_USERS,
    Ctx,
    DeviceOption,
    FileTypeOption,
    Json,
    Users,
    device_for,
    model_and_filetype,
)

if TYPE_CHECKING:
    from edgekit.compare import Comparison
    from edgekit.compare_words import Row

AT_A_TIME = 4
"""Columns side by side; with more they are set in blocks of three."""


def register(app: typer.Typer) -> None:
    @app.command(short_help="Set models side by side on a device.")
    def compare(
        models: Annotated[list[str], typer.Argument(help="Models, as `name` or `name:FILETYPE`.")],
        device: DeviceOption = "this",
        users: Users = DEFAULT_USERS,
        ctx: Ctx = None,
        filetype: FileTypeOption = None,
        years: Annotated[float, typer.Option(help="Years that the price is spread over.")] = 3.0,
        utilisation: Annotated[
            float, typer.Option(help="Share of the hours in which tokens are made.")
        ] = 0.3,
        kwh_price: Annotated[float, typer.Option(help="USD for a kWh.")] = 0.25,
        csv: CsvOption = None,
        html: HtmlOption = None,
        json: Json = False,
    ) -> None:
        """Set models side by side: verdict, memory, speed, scores, licence, air gap, cost.

        Example: edgekit compare code-llama-4 mistral-3-small --device a10
        """
        from edgekit.compare import Wanted
        from edgekit.compare import compare as judge
        from edgekit.compare_record import compare_record, compare_rows
        from edgekit.running_cost import Assumptions, check
        from edgekit.source import cards_for

        assumed = check(Assumptions(years, utilisation, kwh_price))
        wanted = []
        for text in models:
            name, kind = model_and_filetype(text, filetype)
            absent, cards = cards_for(name, None)
            wanted.append(Wanted(name, absent, cards, kind))
        found = judge(wanted, device_for(device)[0], users=users, n_ctx=ctx, assumed=assumed)
        if csv is not None:
            write_csv(csv, compare_rows(found))
        if html is not None:
            write_page(html, compare_record(found))
        if json:
            output.emit(compare_record(found))
            return
        show(found)


def show(found: Comparison) -> None:
    """Print the names without weights, one line a model where there are many, the table."""
    from edgekit.compare_words import rows

    device = found.device
    parts = [device.name]
    parts += [] if device.watts is None else [f"{device.watts:g} W"]
    parts.append("1 user" if found.users == 1 else f"{found.users} users")
    output.say("Device", " · ".join(parts))
    price = found.price
    if not device.probed:
        cards = f" for {device.count} cards" if device.count > 1 else ""
        known = (
            f"{price.usd:,.0f} USD{cards}: {price.note}" if price.usd is not None else price.note
        )
        output.say("Price", known)
    for absent in found.absent:
        output.say("Name", f"{absent.name}: none published under this name. {absent.why}")
        output.say("Nearest", " · ".join(absent.nearest))
    table = rows(found)
    names = [column.card.id for column in found.columns]
    if len(names) > AT_A_TIME:
        print()
        _summary(found)
    size = len(names) if len(names) <= AT_A_TIME else AT_A_TIME - 1
    for start in range(0, len(names), size):
        print()
        _block(names[start : start + size], table, start)
    print()
    _notes(found)


def _summary(found: Comparison) -> None:
    from edgekit.cli.model_facts import short_licence
    from edgekit.units import UNKNOWN

    body = []
    for c in found.columns:
        pace = c.best.speed.decode if c.best.verdict == "fits" else None
        body.append(
            (
                c.card.id,
                c.verdict,
                c.best.filetype.id,
                UNKNOWN if pace is None else f"{pace.value:.1f}",
                short_licence(c.card.licence),
            )
        )
    output.table(("model", "verdict", "type", "tok/s a user", "licence"), body, "lllrl")


def _block(names: Sequence[str], table: Sequence[Row], start: int) -> None:
    """Columns of equal width, each text wrapped within its own."""
    width = (output.WIDTH - output.LABEL + 2) // len(names) - 2
    lines = [("", list(names))]
    lines += [(r.label, list(r.cells[start : start + len(names)])) for r in table]
    for label, cells in lines:
        wrapped = [fold(text, width) for text in cells]
        if not any(any(part) for part in wrapped):
            continue
        for i in range(max(len(part) for part in wrapped)):
            texts = [part[i] if i < len(part) else "" for part in wrapped]
            head = label if i == 0 else ""
            print(f"{head:<{output.LABEL}}{'  '.join(f'{t:<{width}}' for t in texts)}".rstrip())


def fold(text: str, width: int) -> list[str]:
    """Break a cell's text into lines of at most `width`; a long word is broken too."""
    import textwrap

    return textwrap.wrap(text, width) or [""]


def _notes(found: Comparison) -> None:
    from edgekit.speed import OUTPUT_TOKENS, PROMPT_TOKENS

    sources = dict.fromkeys(
        c.card.evidence_source for c in found.columns if c.card.evidence_source is not None
    )
    for i, source in enumerate(sources):
        output.say("" if i else "Scores", source)
    if sources:
        output.say("", "each maker measures its own way; --json has every score with its note")
    output.say("Loss", "KL divergence from the unquantized model, published for Llama 3 8B")
    output.say(
        "Speed",
        f"predicted, all users at once, prompts of {PROMPT_TOKENS} and answers of {OUTPUT_TOKENS} "
        "tokens; in brackets the range that nine in ten fall into",
    )
    output.say("Cost", f"of a million generated tokens: {found.assumed.words}")
    if len(found.columns) > AT_A_TIME:
        output.say("Wide", "--csv FILE writes all models as one table, --json as one record")
    # A model that was asked for by its name before one that is only nearest to a name.
    nearest = {name for absent in found.absent for name in absent.nearest}
    good = [c for c in found.columns if c.verdict == "deploy"]
    good.sort(key=lambda c: c.card.id in nearest)
    bad = [c for c in found.columns if c.verdict == "not deployable here today"]
    if good:
        output.say("Next", f"edgekit deploy {good[0].card.id}")
    if bad:
        output.say("" if good else "Next", f"edgekit buy {bad[0].card.id}   what would run it")
