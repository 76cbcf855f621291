"""Answers kept in memory for `previous_response_id`, GET and DELETE: few, and small together.

Nothing is written to disk, and a restart forgets all. An id is 128 random bits; whoever has it, and
a key of this server, may read the answer.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from pydantic import JsonValue as Json

from ..errors import RequestError

Item = dict[str, Json]

MAX_RESPONSES = 512
MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Stored:
    """One answer. Items are kept as JSON text: a chain of answers shares those of its beginning."""

    response: bytes
    conversation: tuple[bytes, ...]
    """All items up to this answer, its own output included; no instructions."""
    own: Mapping[str, bytes]
    """Its output items by their ids."""
    n_bytes: int
    """As if nothing were shared."""

    def items(self) -> list[Item]:
        """Return the conversation's items."""
        return [cast("Item", json.loads(item)) for item in self.conversation]


class ResponseStore:
    """Least recently used answers leave first."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, Stored] = OrderedDict()
        self._owners: dict[str, str] = {}
        """Output item id -> response id."""
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(
        self, response: Mapping[str, Json], given: Sequence[Item], before: Stored | None = None
    ) -> None:
        """Keep an answer: `given` are the items of its request, `before` what it went on from.

        One that is larger than the whole store is not kept.
        """
        response_id = cast("str", response["id"])
        output = cast("list[Item]", response["output"])
        answered = {cast("str", item["id"]): _text(item) for item in output}
        conversation = before.conversation if before is not None else ()
        conversation += (*map(_text, given), *answered.values())
        text = _text(response)
        stored = Stored(text, conversation, answered, len(text) + sum(map(len, conversation)))
        if stored.n_bytes > self._max_bytes:
            return
        self._kept[response_id] = stored
        self._owners |= dict.fromkeys(answered, response_id)
        self.n_bytes += stored.n_bytes
        while len(self._kept) > self._max_responses or self.n_bytes > self._max_bytes:
            self._forget(next(iter(self._kept)))

    def get(self, response_id: str) -> Stored:
        """Return an answer; RequestError 404 for one that is not, or no longer, here."""
        stored = self._kept.get(response_id)
        if stored is None:
            raise RequestError(
                f"Response with id '{response_id}' not found.",
                status=404,
                code="response_not_found",
                param="response_id",
            )
        self._kept.move_to_end(response_id)
        return stored

    def previous(self, response_id: str) -> Stored:
        """Return the answer to go on from; the 400 that clients know if it is not here."""
        if response_id not in self._kept:
            raise RequestError(
                f"Previous response with id '{response_id}' not found.",
                code="previous_response_not_found",
                param="previous_response_id",
            )
        return self.get(response_id)

    def item(self, item_id: str) -> Item | None:
        """Return an output item of any answer that is kept."""
        owner = self._owners.get(item_id)
        if owner is None:
            return None
        return cast("Item", json.loads(self.get(owner).own[item_id]))

    def delete(self, response_id: str) -> None:
        """Forget an answer; RequestError 404 if there is none. Those that went on from it stay."""
        self.get(response_id)
        self._forget(response_id)

    def _forget(self, response_id: str) -> None:
        stored = self._kept.pop(response_id)
        self.n_bytes -= stored.n_bytes
        for item_id in stored.own:
            self._owners.pop(item_id, None)


def _text(value: Mapping[str, Json]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
