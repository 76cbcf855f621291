"""Acceptances of licences travel with a signed bundle: who installs it need not accept again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from edgekit.bundle.documents import ACCEPTANCE
from edgekit.errors import MissingInputError, from_os
from edgekit.licence import adopt
from edgekit.store import Entry, Store


def adopt_acceptances(entries: Iterable[Entry], store: Store, data: Path) -> list[str]:
    """Keep the acceptances that came with installed models; return the models they are of.

    One that was given on this machine stays. Nothing is taken for a model that this catalogue
    does not know, or whose licence is another one here: that is accepted anew.

    Raises BadDataError for a record that cannot be read, IoFailedError.
    """
    from edgekit.catalogue import find_model

    adopted = []
    for entry in entries:
        paper = store.paper(entry, ACCEPTANCE)
        if paper is None:
            continue
        try:
            card, record = find_model(entry.model), paper.read_bytes()
        except MissingInputError:
            continue
        except OSError as error:
            raise from_os(error) from error
        if adopt(card, record, data) is not None:
            adopted.append(card.id)
    return adopted
