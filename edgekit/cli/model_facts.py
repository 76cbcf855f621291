"""What `edgekit models show` says of one model, line by line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.facts import AbsentModel, Licence, ModelCard, Source

Lines = list[tuple[str, str]]
_OWN = "LicenseRef-"


def model_lines(card: ModelCard) -> Lines:
    """Say what a person asks of a model; `--json` has the rest."""
    from edgekit.units import UNKNOWN

    found = [
        ("Model", f"{card.id}: {card.name}{f', {card.released}' if card.released else ''}"),
        ("Also", ", ".join(card.aliases) or UNKNOWN),
        ("Shape", _shape(card)),
        ("Context", _context(card)),
        ("Tools", card.tools or UNKNOWN),
        ("FIM", {True: "yes", False: "no", None: UNKNOWN}[card.fim]),
    ]
    found += [("Vision", card.vision)] if card.vision else []
    found += licence_lines(card.licence)
    found += [("Gate", _gate(card))]
    places = "\n".join(_place(source) for source in card.sources)
    found.append(("Weights", places or "in no place that edgekit knows"))
    if card.evidence:
        scores = ", ".join(
            f"{e.name} {e.score:g}{f' ({e.note})' if e.note else ''}" for e in card.evidence
        )
        found.append(("Scores", f"{scores}\n{card.evidence_source or 'source not known'}"))
    found += [("Note", card.notes)] if card.notes else []
    found += [("Unsure", "; ".join(card.unverified))] if card.unverified else []
    if card.facts_from:
        origins = dict.fromkeys(text.split(":")[0] for text in card.facts_from)
        found.append(("Facts", f"{' · '.join(origins)}\nwhat each says: --json"))
    return found


def absent_lines(absent: AbsentModel) -> Lines:
    """Say that a name has no weights, and what there is."""
    return [
        ("Model", f"{absent.id}: {absent.name}"),
        ("Weights", f"none. {absent.why}"),
        ("Nearest", " · ".join(absent.nearest)),
        ("Next", f"edgekit fit {absent.id} judges each of them; with weights of your own: "
                 f"edgekit deploy {absent.id} --source DIR"),
    ]  # fmt: skip


def licence_lines(licence: Licence) -> Lines:
    """What the licence allows and asks, each duty on a line of its own."""
    use = {True: "commercial use allowed", False: "no commercial use", None: "use not read up"}
    first = [licence.label, use[licence.commercial_use]]
    if licence.acceptance_required:
        first.append("has to be accepted")
    found = [("Licence", "; ".join(first))]
    if licence.mau_limit is not None:
        limit = f"not for those with more than {licence.mau_limit:,} monthly users"
        found.append(("", limit))
    found += [("", text) for text in (licence.conditions, licence.attribution) if text]
    found += [("", f"EU: {licence.eu_clause}")] if licence.eu_clause else []
    return found + ([("", licence.url)] if licence.url else [])


def short_licence(licence: Licence) -> str:
    """For a table: the SPDX name, without the prefix of those that SPDX does not list."""
    return licence.spdx.removeprefix(_OWN) if licence.spdx else licence.name


def table_rows(cards: Iterable[ModelCard]) -> list[tuple[str, ...]]:
    """Rows of `edgekit models`; other names that need more room go on below."""
    import textwrap

    from edgekit.units import UNKNOWN

    rows: list[tuple[str, ...]] = []
    for card in cards:
        params = card.params / 1e9 if card.params >= 1e8 else card.params / 1e6
        names = textwrap.wrap(
            ", ".join(card.aliases), 30, break_long_words=False, break_on_hyphens=False
        )
        rows.append(
            (
                card.id,
                names[0] if names else UNKNOWN,
                f"{params:.1f} {'B' if card.params >= 1e8 else 'M'}",
                f"{card.n_ctx_train:,}",
                short_licence(card.licence),
            )
        )
        rows += [("", more, "", "", "") for more in names[1:]]
    return rows


def _shape(card: ModelCard) -> str:
    from edgekit.shape import shape

    s = shape(card.config)
    parts = [f"{card.params:,} parameters", f"{s.n_layer} layers"]
    if s.experts is not None:
        active = f", {card.params_active / 1e9:g} B active" if card.params_active else ""
        parts.append(f"{s.experts.used} of {s.experts.count} experts a token{active}")
    return ", ".join(parts)


def _context(card: ModelCard) -> str:
    """Tokens, and what one of them costs in memory."""
    from edgekit import kv
    from edgekit.shape import shape
    from edgekit.units import format_bytes

    s = shape(card.config)
    table = kv.table(s)
    text = f"{card.n_ctx_train:,} tokens, {format_bytes(table.full[0])} of keys and values each"
    if table.window:
        local = sum(1 for window in s.windows if window)
        text += f"; {local} of {s.n_layer} layers see {table.window:,} tokens at most"
    return text


def _gate(card: ModelCard) -> str:
    known = {True: "the hub asks for consent first", False: "none", None: "not known"}
    text = known[card.gated]
    return f"{text}: {card.gate}" if card.gate else text


def _place(source: Source) -> str:
    from edgekit.units import format_bytes

    where = f"{source.location}{'@' + source.revision[:7] if source.revision else ''}"
    pinned = ", not pinned to a commit" if source.unpinned else ""
    return f"{where}, {format_bytes(source.bytes)}{pinned}"
