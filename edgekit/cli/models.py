"""`edgekit models` and `edgekit devices`: the catalogue."""

from __future__ import annotations

from typing import Annotated

import typer

from edgekit.cli import output
from edgekit.cli.options import Json

Name = Annotated[str | None, typer.Argument(help="Show one entry in full.")]


def register(app: typer.Typer) -> None:
    @app.command()
    def models(name: Name = None, json: Json = False) -> None:
        """List the models of the catalogue, or show one.

        Example: edgekit models mistral-3-small
        """
        from edgekit.catalogue import find_model, load_absent, load_models
        from edgekit.units import UNKNOWN

        if name is not None:
            _show("models", find_model(name), json=json)
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
    def devices(name: Name = None, json: Json = False) -> None:
        """List the devices of the catalogue, or show one.

        Example: edgekit devices a10
        """
        from edgekit.catalogue import find_device, load_devices
        from edgekit.units import UNKNOWN, format_gib

        if name is not None:
            _show("devices", find_device(name), json=json)
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


def _show(noun: str, entry: object, *, json: bool) -> None:
    record = _record(entry)
    if json:
        output.emit({"schema": f"edgekit.{noun}/1", "rows": [record]})
        return
    for key, value in record.items():
        if value not in (None, [], {}):
            output.say(key if len(key) < output.LABEL else f"{key} ", _words(value))


def _words(value: object) -> str:
    import json

    if isinstance(value, list) and all(isinstance(x, str | int) for x in value):
        return ", ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)


def _record(entry: object) -> dict[str, object]:
    """Return a catalogue entry as JSON values."""
    import json
    from dataclasses import asdict, is_dataclass

    assert is_dataclass(entry)
    assert not isinstance(entry, type)
    found: dict[str, object] = json.loads(json.dumps(asdict(entry), default=str))
    return found
