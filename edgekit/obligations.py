"""What a licence wants done, in words, and the texts that must travel with copies."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from edgekit.errors import MissingInputError
from edgekit.facts import Licence, ModelCard
from edgekit.licence import text_of

OWN_TEXTS: Final = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
"""Beginnings of the names of legal texts in a model's repository."""

MAX_TEXT_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Words:
    """What a licence prescribes word for word; None where it prescribes nothing."""

    notice: str | None = None
    shown: str | None = None


@cache
def _prescribed() -> Mapping[str, Words]:
    import edgekit_profiles

    folder = Path(next(iter(edgekit_profiles.__path__))) / "licences"
    found = tomllib.loads((folder / "notices.toml").read_text(encoding="utf-8"))
    return {name: Words(**entry) for name, entry in found.items()}


def words_of(licence: Licence) -> Words:
    """Return the words that a licence prescribes."""
    return _prescribed().get(licence.name, Words())


def obligations(licence: Licence) -> list[tuple[str, str]]:
    """Return what the licence asks, as labelled sentences in the order people read them. Pure."""
    words = words_of(licence)
    use = {True: "commercial use allowed", False: "no commercial use", None: "not read up"}
    limit = licence.mau_limit and f"not above {licence.mau_limit:,} users a month"
    pairs = (
        ("Use", use[licence.commercial_use]),
        ("Asks", licence.conditions),
        ("Users", limit),
        ("EU", licence.eu_clause),
        ("Show", words.shown or licence.attribution),
        ("Notice", words.notice),
        ("Text", licence.url),
    )
    return [(label, str(text)) for label, text in pairs if text]


def legal_texts(card: ModelCard, weights: Path | None, data: Path) -> dict[str, bytes]:
    """Return the texts that must go with copies of a model, by the names they get there.

    The repository's own come first: they name the holder. Then the text that edgekit ships, then
    the one a person put into `<data>/licences/<model>.txt`.

    Raises MissingInputError (`licence_text_missing`) where the licence must be handed on and no
    text of it is here.
    """
    found: dict[str, bytes] = {}
    for file in sorted(weights.iterdir()) if weights is not None and weights.is_dir() else ():
        kind = next((k for k in OWN_TEXTS if file.name.upper().startswith(k)), None)
        if kind is None or not file.is_file() or file.stat().st_size > MAX_TEXT_BYTES:
            continue
        name = {"LICENCE": "LICENSE", "NOTICE": "NOTICE.upstream"}.get(kind, kind)
        found.setdefault(f"{name}.txt", file.read_bytes())
    if "LICENSE.txt" in found:
        return found
    own = data / "licences" / f"{card.id}.txt"
    text = text_of(card.licence) or (own.read_bytes() if own.is_file() else None)
    if text is not None:
        return {**found, "LICENSE.txt": text}
    raise MissingInputError(
        f"copies of {card.id} must carry the {card.licence.name}, and its text is not here",
        code="licence_text_missing",
        hint=f"save it as {own}" + (f" from {card.licence.url}" if card.licence.url else ""),
    )


def notice(card: ModelCard, changes: str, origin: str | None) -> bytes:
    """Return the NOTICE of a converted model: the lines asked for, and what was changed."""
    licence = card.licence
    words = words_of(licence)
    lines = [card.name, *([words.notice] if words.notice else [])]
    lines += ["", f"Licence: {licence.name}, in LICENSE.txt"]
    if origin:
        lines.append(f"Original: {origin}")
    lines += [f"Changed: {changes}", ""]
    lines += [f"{label}: {text}" for label, text in obligations(licence) if label != "Notice"]
    return ("\n".join(lines) + "\n").encode()
