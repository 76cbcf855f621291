"""`edgekit models` and `edgekit devices`: the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.options import Json

if TYPE_CHECKING:
    from edgekit.facts import Device, ModelCard

Words = Annotated[
    list[str] | None, typer.Argument(metavar="[show NAME]", help="Show one entry in full.")
]


def register(app: typer.Typer) -> None:
    @app.command()
    def models(words: Words = None, json: Json = False) -> None:
        """List the models of the catalogue, or show one.

        Example: edgekit models show mistral-3-small
        """
        from edgekit.catalogue import find_model, load_absent, load_models
        from edgekit.units import UNKNOWN

        if (name := _name(words)) is not None:
            card = find_model(name)
            _show("models", card, model_lines(card), json=json)
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
        rows = [
            (
                c.id,
                ", ".join(c.aliases) or UNKNOWN,
                f"{c.params / 1e9:.1f} B" if c.params >= 1e8 else f"{c.params / 1e6:.1f} M",
                f"{c.n_ctx_train:,}",
                c.licence.spdx or c.licence.name,
            )
            for c in cards
        ]
        output.table(("model", "also", "params", "context", "licence"), rows, "llrrl")
        for entry in absent:
            print()
            output.say("Note", f"{entry.why.rstrip('.')}. Nearest: {', '.join(entry.nearest)}.")

    @app.command()
    def devices(words: Words = None, json: Json = False) -> None:
        """List the devices of the catalogue, or show one.

        Example: edgekit devices show a10
        """
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
                ", ".join(d.aliases) or UNKNOWN,
                d.name,
                format_gib(d.usable_bytes or d.memory_bytes),
                f"{d.bandwidth_gb_s:.0f} GB/s" if d.bandwidth_gb_s else UNKNOWN,
            )
            for d in found
        ]
        output.table(("device", "also", "name", "usable", "bandwidth"), rows, "lllrr")


def _name(words: list[str] | None) -> str | None:
    """Take NAME or `show NAME`. Raises UsageError for more words."""
    from edgekit.errors import UsageError

    rest = words[1:] if words and words[0] == "show" else words or []
    if len(rest) > 1 or (words and not rest):
        raise UsageError(
            "one name is shown at a time", code="usage", hint="write show NAME, or nothing for all"
        )
    return rest[0] if rest else None


def model_lines(card: ModelCard) -> list[tuple[str, str]]:
    """Say what a person asks of a model; `--json` has the rest."""
    from edgekit.units import UNKNOWN, format_bytes

    shape = card.config
    use = {True: "commercial use allowed", False: "no commercial use", None: "use not read up"}
    licence = [card.licence.spdx or card.licence.name, use[card.licence.commercial_use]]
    if card.licence.conditions:
        licence.append(card.licence.conditions)
    weights = [
        f"{s.location}{'@' + s.revision[:7] if s.revision else ''}, {format_bytes(s.bytes)}"
        for s in card.sources
    ]
    found = [
        ("Model", f"{card.id}: {card.name}"),
        ("Also", ", ".join(card.aliases) or UNKNOWN),
        ("Shape", f"{card.params:,} parameters, {shape.get('num_hidden_layers', UNKNOWN)} layers"),
        ("Context", f"{card.n_ctx_train:,} tokens"),
        ("Tools", card.tools or UNKNOWN),
        ("FIM", {True: "yes", False: "no", None: UNKNOWN}[card.fim]),
        ("Licence", "; ".join(licence)),
        ("Weights", "\n".join(weights) or "in no place that edgekit knows"),
    ]
    return found + ([("Note", card.notes)] if card.notes else [])


def device_lines(device: Device) -> list[tuple[str, str]]:
    """Say what a person asks of a device; `--json` has the rest."""
    from edgekit.budget import device_budget
    from edgekit.units import UNKNOWN, format_gb_s, format_gib

    budget = device_budget(device)
    peak, watts = device.peak_tflops, device.watts
    sizes = ", ".join(f"{device.id}@{size}" for size in device.memory_options_gib)
    found = [
        ("Device", f"{device.id}: {device.name}"),
        ("Also", ", ".join(device.aliases) or UNKNOWN),
        ("Memory", f"{format_gib(device.memory_bytes)} {device.memory_kind}"),
        ("Budget", f"{format_gib(budget.bytes)}: {budget.basis}"),
        ("Bandwidth", format_gb_s(device.bandwidth_gb_s)),
        ("Peak", f"{peak:,.0f} TFLOPS" if peak else UNKNOWN),
        ("Power", f"{watts:,.0f} W" if watts else UNKNOWN),
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
