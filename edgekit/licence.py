"""What a licence asks before its weights may be fetched, and who accepted it.

    <data>/licences/<model>.json    one acceptance: model, licence, who, when, the text's digest

Records are kept for those who must show them; nothing here gives legal advice.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from edgekit.errors import BadDataError, DeniedError, from_os
from edgekit.facts import Licence, ModelCard
from edgekit.store import write_durably

SCHEMA: Final = "edgekit.licence-acceptance/1"


@dataclass(frozen=True, slots=True)
class Acceptance:
    """One record. `text_sha256` is None when the text is not shipped; `who` is user@host."""

    model: str
    licence: str
    spdx: str | None
    repository: str | None
    text_sha256: str | None
    who: str
    when: str


def text_of(licence: Licence) -> bytes | None:
    """Return the licence's text if it is shipped."""
    if licence.text is None:
        return None
    import edgekit_profiles

    folder = Path(next(iter(edgekit_profiles.__path__))) / "licences"
    try:
        return (folder / Path(licence.text).name).read_bytes()
    except OSError:
        return None


def find_acceptance(card: ModelCard, data: Path) -> Acceptance | None:
    """Return the record that holds for the model's licence as it is now, if there is one.

    A licence of another name, or another text of it, must be accepted anew.

    Raises BadDataError when the record cannot be read.
    """
    file = _file(card, data)
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _damaged(str(file), card, error) from error
    found = _parse(content, str(file), card)
    return found if found is not None and _holds(found, card) else None


def _parse(content: bytes, where: str, card: ModelCard) -> Acceptance | None:
    """Read a record; None for one of another schema."""
    try:
        record = json.loads(content)
        return Acceptance(**record) if record.pop("schema") == SCHEMA else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(where, card, error) from error


def _damaged(where: str, card: ModelCard, error: Exception) -> BadDataError:
    return BadDataError(
        f"the acceptance record {where} is damaged: {error}",
        code="acceptance_damaged",
        hint=f"delete it and run edgekit licence {card.id} --accept",
    )


def _holds(found: Acceptance, card: ModelCard) -> bool:
    text = _digest(card.licence)
    same_text = text is None or found.text_sha256 is None or text == found.text_sha256
    return found.licence == card.licence.name and found.model == card.id and same_text


def accept(card: ModelCard, data: Path) -> Acceptance:
    """Record that the person at this account accepts a model's licence.

    Raises CannotCreateError or IoFailedError.
    """
    repository = next((s.location for s in card.sources if s.kind == "hub"), None)
    found = Acceptance(
        model=card.id,
        licence=card.licence.name,
        spdx=card.licence.spdx,
        repository=repository,
        text_sha256=_digest(card.licence),
        who=f"{_user()}@{socket.gethostname()}",
        when=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    file = _file(card, data)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os(error) from error
    write_durably(file, (json.dumps({"schema": SCHEMA, **asdict(found)}, indent=2) + "\n").encode())
    return found


def adopt(card: ModelCard, record: bytes, data: Path) -> Acceptance | None:
    """Keep an acceptance that came in a bundle whose maker is trusted; return what holds now.

    One that was given here stays. One of another licence or text is not taken.

    Raises BadDataError when the record given, or the one that is here, cannot be read.
    """
    if (here := find_acceptance(card, data)) is not None:
        return here
    file = _file(card, data)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os(error) from error
    given = _parse(record, "in the bundle", card)
    if given is not None and _holds(given, card):
        write_durably(file, record)
    return find_acceptance(card, data)


def check_accepted(card: ModelCard, data: Path) -> None:
    """Raise DeniedError when the licence must be accepted first and was not."""
    if not card.licence.acceptance_required or find_acceptance(card, data) is not None:
        return
    raise DeniedError(
        f"{card.id} comes under the {card.licence.name}, which must be accepted before it is "
        "fetched or deployed",
        code="licence_not_accepted",
        hint=f"read it with edgekit licence {card.id}, then edgekit licence {card.id} --accept",
    )


def _digest(licence: Licence) -> str | None:
    text = text_of(licence)
    return None if text is None else hashlib.sha256(text).hexdigest()


def _file(card: ModelCard, data: Path) -> Path:
    return data / "licences" / f"{card.id}.json"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "unknown"
