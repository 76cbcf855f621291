"""TOML tables to devices, device families and their published speeds. Every key is checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from edgekit.facts import UNPACK_CLASSES, Device, Family, MemoryKind, Published
from edgekit.facts_toml import identity
from edgekit.speed_terms import DECODE_TERMS, PREFILL_TERMS
from edgekit.tables import Table


def read_device(
    table: Table, families: Mapping[str, Family], published: Mapping[str, Published]
) -> Device:
    """One file of `devices/`. Raises ConfigError."""
    entry, aliases = identity(table)
    family = table.text("family")
    if family not in families:
        raise table.error("family", f"is {family!r}, which families.toml does not hold")
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
        measured_gb_s=table.maybe_number("measured_gb_s"),
        peak_tflops=table.maybe_number("peak_tflops"),
        fp32_tflops=table.maybe_number("fp32_tflops"),
        fp16_tflops=table.maybe_number("fp16_tflops"),
        int8_tops=table.maybe_number("int8_tops"),
        arch=table.maybe_text("arch"),
        compute_capability=table.maybe_text("compute_capability"),
        cores=table.maybe_integer("cores"),
        gpu_cores=table.maybe_integer("gpu_cores"),
        sockets=table.maybe_integer("sockets") or 1,
        gpu_share=table.maybe_number("gpu_share"),
        fanless=table.flag("fanless", False),
        runs_engine=table.flag("runs_engine", True),
        watts=table.maybe_number("watts"),
        price_usd=table.maybe_number("price_usd"),
        price_date=table.maybe_text("price_date"),
        price_note=table.maybe_text("price_note"),
        published=published.get(entry),
        probed=table.flag("probed", False),
        source=table.text("source"),
        notes=(notes,) if notes else (),
    )
    table.done()
    return device


def read_families(root: Table) -> dict[str, Family]:
    """`families.toml`. Raises ConfigError."""
    return {n: _family(n, root.table(n)) for n in root.keys()}  # noqa: SIM118


def read_published(root: Table) -> dict[str, Published]:
    """`published_speeds.toml`: factors by device. Raises ConfigError."""
    found = {}
    for name in root.keys():  # noqa: SIM118 - a Table is not a dict
        table = root.table(name)
        found[name] = Published(
            decode=_constants(table, "decode", UNPACK_CLASSES),
            prefill=_constants(table, "prefill", UNPACK_CLASSES),
            decode_spread=table.maybe_number("decode_spread"),
            prefill_spread=table.maybe_number("prefill_spread"),
            rows=table.integer("rows"),
        )
        table.texts("sources")
        table.done()
    return found


def _family(name: str, table: Table) -> Family:
    others = table.maybe_table("other_backends")
    family = Family(
        id=name,
        parent=table.maybe_text("parent"),
        decode=_constants(table, "decode", DECODE_TERMS),
        prefill=_constants(table, "prefill", PREFILL_TERMS),
        decode_spread=table.number("decode_spread"),
        prefill_spread=table.number("prefill_spread"),
        fitted_on=table.texts("fitted_on"),
        source=table.text("source"),
        tflops_per_watt=table.maybe_number("tflops_per_watt"),
        gflops_per_core=table.maybe_number("gflops_per_core"),
        unpack_cost=table.maybe_number("unpack_cost") or 1.0,
        other_backends={k: str(v) for k, v in others.raw().items()} if others else {},
    )
    table.done()
    return family


def _constants(table: Table, key: str, known: tuple[str, ...]) -> dict[str, float]:
    inner = table.maybe_table(key)
    if inner is None:
        return {}
    found = inner.numbers()
    wrong = sorted(set(found) - set(known))
    if wrong:
        raise table.error(key, f"holds {wrong[0]!r}; known: {', '.join(known)}")
    return found
