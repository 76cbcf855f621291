"""TOML tables to the records of `facts`. Every key is checked; see `tables`."""

from __future__ import annotations

import re
from typing import Final

from edgekit.facts import (
    UNPACK_CLASSES,
    AbsentModel,
    Evidence,
    FileType,
    Licence,
    ModelCard,
    Source,
)
from edgekit.tables import Table

_ID: Final = re.compile(r"[a-z0-9][a-z0-9.\-]*")


def identity(table: Table) -> tuple[str, tuple[str, ...]]:
    """The id and aliases of an entry. Raises ConfigError for names that are not plain."""
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
    entry, aliases = identity(table)
    name = table.text("name")
    if not table.flag("exists", True):
        absent = AbsentModel(entry, name, aliases, table.text("why"), table.texts("nearest"))
        table.done()
        return absent
    card = ModelCard(
        id=entry,
        name=name,
        aliases=aliases,
        config=_config(table),
        sources=tuple(_source(t) for t in table.tables("sources")),
        licence=_licence(table.table("licence")),
        params=table.integer("params"),
        n_ctx_train=table.integer("n_ctx_train"),
        tools=table.maybe_text("tools"),
        fim=table.maybe_flag("fim"),
        header_bytes=table.maybe_integer("header_bytes"),
        notes=table.maybe_text("notes"),
        path=table.path,
        gguf_arch=table.maybe_text("gguf_arch"),
        params_active=table.maybe_integer("params_active"),
        gated=table.maybe_flag("gated"),
        gate=table.maybe_text("gate"),
        released=table.maybe_text("released"),
        vision=table.maybe_text("vision"),
        evidence=tuple(_evidence(t) for t in table.tables("benchmarks")),
        evidence_source=table.maybe_text("benchmarks_source"),
        facts_from=table.texts("sources_of_facts"),
        unverified=table.texts("unverified"),
    )
    table.done()
    if card.n_ctx_train == 0:
        raise table.error("n_ctx_train", "must be positive")
    return card


def _config(table: Table) -> dict[str, object]:
    """The `[config]` table; TOML has no null, so `config_nulls` names the keys that are.

    Absent is not the same: a class may have a default (DeepSeek's `q_lora_rank`).
    """
    config = table.table("config").raw()
    for path in table.texts("config_nulls"):
        *outer, key = path.split(".")
        inner: object = config
        for name in outer:
            inner = inner.get(name) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or key in inner:
            raise table.error("config_nulls", f"names {path!r}, which config has a value for")
        inner[key] = None
    return config


def _source(table: Table) -> Source:
    source = Source(
        kind=table.choice("kind", ("hub", "builtin", "folder")),
        location=table.text("location"),
        revision=table.maybe_text("revision"),
        allow=table.texts("allow"),
        bytes=table.maybe_integer("bytes"),
        unpinned=table.maybe_text("unpinned"),
    )
    table.done()
    # Without a commit the file must say why, so that nobody leaves it out by accident.
    excused = source.revision is None and source.unpinned is not None
    pinned = re.fullmatch(r"[0-9a-f]{40}", source.revision or "")
    if source.kind == "hub" and not pinned and not excused:
        raise table.error("revision", "must be a full commit of 40 hexadecimal digits")
    return source


def _evidence(table: Table) -> Evidence:
    found = Evidence(table.text("name"), table.number("score"), table.maybe_text("note"))
    table.done()
    return found


def _licence(table: Table) -> Licence:
    licence = Licence(
        name=table.text("name"),
        spdx=table.maybe_text("spdx"),
        commercial_use=table.maybe_flag("commercial_use"),
        acceptance_required=table.flag("acceptance_required", True),
        conditions=table.maybe_text("conditions"),
        mau_limit=table.maybe_integer("mau_limit"),
        eu_clause=table.maybe_text("eu_clause"),
        attribution=table.maybe_text("attribution"),
        url=table.maybe_text("url"),
        text=table.maybe_text("text"),
    )
    table.done()
    return licence


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
                loss_imatrix=table.maybe_number("loss_imatrix"),
                common=table.flag("common", True),
            )
        )
        table.maybe_text("note")
        table.done()
    return {f.id: f for f in sorted(found, key=lambda f: f.loss)}
