"""`edgekit models` and `edgekit devices`: the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.options import Json

if TYPE_CHECKING:
    from edgekit.errors import UsageError
    from edgekit.facts import Device

Words = Annotated[
    list[str] | None, typer.Argument(metavar="[show NAME]", help="Show one entry in full.")
]
ModelWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[show NAME | add REPO_OR_DIR]", help="Show one entry, or write one of your own."
    ),
]


def register(app: typer.Typer) -> None:
    @app.command()
    def models(
        words: ModelWords = None,
        name: Annotated[
            str | None, typer.Option(help="With add: the entry's name. Default: the folder's.")
        ] = None,
        force: Annotated[
            bool, typer.Option("--force", help="With add: replace an entry of that name.")
        ] = False,
        json: Json = False,
    ) -> None:
        """List the models of the catalogue, show one, or add one.

        Example: edgekit models show mistral-3-small
        """
        from edgekit.catalogue import load_absent, load_models
        from edgekit.cli.model_facts import table_rows

        if words and words[0] == "add":
            _add(words[1:], name, force=force, json=json)
            return
        if name is not None or force:
            raise _usage("--name and --force belong to `models add`")
        if (asked := _name(words)) is not None:
            _show_model(asked, json=json)
            return
        cards = list(load_models().values())
        absent = list(load_absent().values())
        if json:
            output.emit(
                {
                    "schema": "edgekit.models/1",
                    "rows": [_record(card) for card in cards],
                    "absent": [_record(entry) for entry in absent],
                }
            )
            return
        rows = table_rows(cards)
        output.table(("model", "also", "params", "context", "licence"), rows, "llrrl")
        for entry in absent:
            print()
            output.say("Note", f"{entry.why.rstrip('.')}. Nearest: {', '.join(entry.nearest)}.")

    @app.command()
    def devices(words: Words = None, json: Json = False) -> None:
        """List the devices of the catalogue, or show one.

        Example: edgekit devices show a10
        """
        from edgekit.budget import device_budget
        from edgekit.catalogue import find_device, load_devices
        from edgekit.units import UNKNOWN, format_gib

        if (name := _name(words)) is not None:
            device = find_device(name)
            _show("devices", device, device_lines(device), json=json)
            return
        found = list(load_devices().values())
        if json:
            output.emit({"schema": "edgekit.devices/1", "rows": [_record(d) for d in found]})
            return
        rows = [
            (
                d.id,
                min(d.aliases, key=len, default=UNKNOWN),
                format_gib(device_budget(d).limit_bytes),
                f"{d.bandwidth_gb_s:,.0f}" if d.bandwidth_gb_s else UNKNOWN,
                f"{d.watts:,.0f}" if d.watts else UNKNOWN,
                f"{d.price_usd:,.0f}" if d.price_usd else UNKNOWN,
                "published" if d.published else "family" if d.family.fitted_on else "physics",
            )
            for d in found
        ]
        heads = ("device", "short", "usable", "GB/s", "W", "USD", "speeds")
        output.table(heads, rows, "llrrrrl")
        print()
        output.say("Also", "NAME*2 is two of them, A+B one of each; cloud machines by name")
        output.say("", "(g5.xlarge, a2-highgpu-1g); `devices show NAME` has the rest")


def _name(words: list[str] | None) -> str | None:
    """Take NAME or `show NAME`. Raises UsageError for more words."""
    from edgekit.errors import UsageError

    rest = words[1:] if words and words[0] == "show" else words or []
    if len(rest) > 1 or (words and not rest):
        raise UsageError(
            "one name is shown at a time", code="usage", hint="write show NAME, or nothing for all"
        )
    return rest[0] if rest else None


def _add(words: list[str], name: str | None, *, force: bool, json: bool) -> None:
    from edgekit import user_models
    from edgekit.catalogue import load_models

    if len(words) != 1:
        raise _usage("`models add` takes one folder or repository")
    path = user_models.add(words[0], name, replace=force)
    card = next(c for c in load_models().values() if c.path == path)
    if json:
        output.emit({"schema": "edgekit.models/1", "rows": [_record(card)]})
        return
    output.say("Added", f"{card.id}: {path}")
    output.say("Licence", f"{card.licence.name}: read it and note in that file what it allows")
    output.say("Next", f"edgekit fit {card.id}")


def _show_model(name: str, *, json: bool) -> None:
    from edgekit.catalogue import named_models
    from edgekit.cli.model_facts import absent_lines, model_lines

    absent, cards = named_models(name)
    if absent is None:
        _show("models", cards[0], model_lines(cards[0]), json=json)
    elif json:
        rows = [_record(card) for card in cards]
        output.emit({"schema": "edgekit.models/1", "rows": rows, "absent": [_record(absent)]})
    else:
        for label, text in absent_lines(absent):
            output.say(label, text)


def _usage(problem: str) -> UsageError:
    from edgekit.errors import UsageError

    return UsageError(
        problem, code="usage", hint="edgekit models add REPO_OR_DIR [--name NAME] [--force]"
    )


def device_lines(device: Device) -> list[tuple[str, str]]:
    """Say what a person asks of a device; `--json` has the rest."""
    from edgekit.budget import device_budget
    from edgekit.units import UNKNOWN, format_gb_s, format_gib

    budget = device_budget(device)
    peak, watts = device.peak_tflops, device.watts
    sizes = ", ".join(f"{device.id}@{size}" for size in device.memory_options_gib)
    price = f"{device.price_usd:,.0f} USD" if device.price_usd else UNKNOWN
    price += f" ({device.price_note})" if device.price_note else ""
    speeds = f"constants of {device.family.id}: {device.family.source}"
    if device.published is not None:
        speeds += f"; {device.published.rows} published rows of this very device"
    found = [
        ("Device", f"{device.id}: {device.name}"),
        ("Also", ", ".join(device.aliases) or UNKNOWN),
        ("Memory", f"{format_gib(device.memory_bytes)} {device.memory_kind}"),
        ("Budget", f"{format_gib(budget.bytes)}: {budget.basis}"),
        ("Bandwidth", format_gb_s(device.bandwidth_gb_s)),
        ("Peak", f"{peak:,.0f} TFLOPS" if peak else UNKNOWN),
        ("Power", f"{watts:,.0f} W" if watts else UNKNOWN),
        ("Price", price),
        ("Speeds", speeds),
        ("Source", device.source),
    ]
    found += [("Sizes", sizes)] if sizes else []
    return found + [("Note", note) for note in device.notes]


def _show(noun: str, entry: object, lines: list[tuple[str, str]], *, json: bool) -> None:
    if json:
        output.emit({"schema": f"edgekit.{noun}/1", "rows": [_record(entry)]})
        return
    for label, text in lines:
        output.say(label, text)


def _record(entry: object) -> dict[str, object]:
    """Return a catalogue entry as JSON values."""
    import json
    from dataclasses import asdict, is_dataclass

    assert is_dataclass(entry)
    assert not isinstance(entry, type)
    found: dict[str, object] = json.loads(json.dumps(asdict(entry), default=str))
    return found
