"""TOML tables to the records of `facts`. Every key is checked; see `tables`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, cast

from edgekit.facts import (
    UNPACK_CLASSES,
    AbsentModel,
    Device,
    Family,
    FileType,
    Licence,
    MemoryKind,
    ModelCard,
    Rate,
    Source,
)
from edgekit.tables import Table

_ID: Final = re.compile(r"[a-z0-9][a-z0-9.\-]*")


def _identity(table: Table) -> tuple[str, tuple[str, ...]]:
    entry = table.text("id")
    if not _ID.fullmatch(entry):
        raise table.error("id", f"is {entry!r}; use small letters, digits, dots and hyphens")
    aliases = table.texts("aliases")
    bad = [a for a in aliases if not _ID.fullmatch(a)]
    if bad:
        raise table.error("aliases", f"holds {bad[0]!r}; use small letters, digits, dots, hyphens")
    return entry, aliases


def read_model(table: Table) -> ModelCard | AbsentModel:
    """One file of `models/`. Raises ConfigError."""
    entry, aliases = _identity(table)
    name = table.text("name")
    if not table.flag("exists", True):
        absent = AbsentModel(entry, name, aliases, table.text("why"), table.texts("nearest"))
        table.done()
        return absent
    card = ModelCard(
        id=entry,
        name=name,
        aliases=aliases,
        config=table.table("config").raw(),
        sources=tuple(_source(t) for t in table.tables("sources")),
        licence=_licence(table.table("licence")),
        params=table.integer("params"),
        n_ctx_train=table.integer("n_ctx_train"),
        tools=table.maybe_text("tools"),
        fim=table.maybe_flag("fim"),
        header_bytes=table.integer("header_bytes"),
        notes=table.maybe_text("notes"),
        path=table.path,
    )
    table.done()
    if card.n_ctx_train == 0:
        raise table.error("n_ctx_train", "must be positive")
    return card


def _source(table: Table) -> Source:
    source = Source(
        kind=table.choice("kind", ("hub", "builtin")),
        location=table.text("location"),
        revision=table.maybe_text("revision"),
        allow=table.texts("allow"),
        bytes=table.maybe_integer("bytes"),
    )
    table.done()
    if source.kind == "hub" and not re.fullmatch(r"[0-9a-f]{40}", source.revision or ""):
        raise table.error("revision", "must be a full commit of 40 hexadecimal digits")
    return source


def _licence(table: Table) -> Licence:
    licence = Licence(
        name=table.text("name"),
        spdx=table.maybe_text("spdx"),
        commercial_use=table.maybe_flag("commercial_use"),
        acceptance_required=table.flag("acceptance_required", True),
        conditions=table.maybe_text("conditions"),
    )
    table.done()
    return licence


def read_device(table: Table, families: Mapping[str, Family]) -> Device:
    """One file of `devices/`. Raises ConfigError."""
    entry, aliases = _identity(table)
    family = table.text("family")
    if family not in families:
        raise table.error("family", f"is {family!r}, which families.toml does not hold")
    decode, prefill = table.maybe_table("decode"), table.maybe_table("prefill")
    notes = table.maybe_text("notes")
    device = Device(
        id=entry,
        name=table.text("name"),
        aliases=aliases,
        reported_names=table.texts("reported_names"),
        vendor=table.text("vendor"),
        kind=table.text("kind"),
        backend=table.text("backend"),
        family=families[family],
        memory_kind=cast(
            "MemoryKind", table.choice("memory_kind", ("dedicated", "unified", "shared"))
        ),
        memory_bytes=table.maybe_integer("memory_bytes"),
        usable_bytes=table.maybe_integer("usable_bytes"),
        host_bytes=table.maybe_integer("host_bytes"),
        overhead_bytes=table.maybe_integer("overhead_bytes"),
        memory_options_gib=table.integers("memory_options_gib"),
        bandwidth_gb_s=table.maybe_number("bandwidth_gb_s"),
        peak_tflops=table.maybe_number("peak_tflops"),
        cores=table.maybe_integer("cores"),
        gpu_cores=table.maybe_integer("gpu_cores"),
        decode=_rate(decode) if decode else None,
        prefill=_prefill(prefill) if prefill else None,
        watts=table.maybe_number("watts"),
        price_usd=table.maybe_number("price_usd"),
        probed=table.flag("probed", False),
        source=table.text("source"),
        notes=(notes,) if notes else (),
    )
    table.done()
    return device


def _rate(table: Table) -> Rate:
    efficiency = table.table("efficiency").numbers()
    if set(efficiency) != set(UNPACK_CLASSES):
        raise table.error("efficiency", f"must have exactly {', '.join(UNPACK_CLASSES)}")
    rate = Rate(efficiency, table.number("spread"))
    table.maybe_text("source")
    table.done()
    return rate


def _prefill(table: Table) -> Rate:
    rate = Rate({"": table.number("efficiency")}, table.number("spread"))
    table.maybe_text("source")
    table.done()
    return rate


def _read_family(name: str, table: Table) -> Family:
    prefill = table.table("prefill")
    per_core = table.maybe_table("unpack_gb_s_per_core")
    family = Family(
        id=name,
        layer_us=table.number("layer_us"),
        attention_ns=table.maybe_number("attention_ns") or 0.0,
        layer_us_per_core=table.maybe_number("layer_us_per_core") or 0.0,
        small_batch=table.number("small_batch"),
        decode=_rate(table.table("decode")),
        decode_of_measured=table.maybe_number("decode_of_measured") or 1.0,
        prefill_efficiency=prefill.maybe_number("efficiency"),
        prefill_spread=prefill.number("spread"),
        prefill_gflops_per_core=table.maybe_number("prefill_gflops_per_core"),
        unpack_gb_s_per_core=per_core.numbers() if per_core else {},
        fitted_on=table.texts("fitted_on"),
        source=table.text("source"),
    )
    prefill.done()
    table.done()
    return family


def read_filetypes(root: Table) -> dict[str, FileType]:
    """`filetypes.toml`, best quality first. Raises ConfigError."""
    found = []
    for name in root.keys():  # noqa: SIM118 - a Table is not a dict
        table = root.table(name)
        found.append(
            FileType(
                id=name,
                loss=table.number("loss"),
                ppl=table.maybe_number("ppl"),
                unpack=table.choice("unpack", UNPACK_CLASSES),
                automatic=table.flag("automatic", True),
                why_not_automatic=table.maybe_text("why_not_automatic"),
                basis=table.maybe_text("basis") or "published",
            )
        )
        table.maybe_text("note")
        table.done()
    return {f.id: f for f in sorted(found, key=lambda f: f.loss)}


def read_families(root: Table) -> dict[str, Family]:
    """`families.toml`. Raises ConfigError."""
    return {n: _read_family(n, root.table(n)) for n in root.keys()}  # noqa: SIM118
