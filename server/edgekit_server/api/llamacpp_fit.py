"""Fit a FIM prompt into a sequence: other files' pieces may go, what is at the cursor may not.

llama-server also cuts prefix and suffix down to one batch. Here they are the question itself: a
prompt that does not fit without any other file is a 400, as in every dialect.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from weakref import WeakKeyDictionary

from ..chat.fim import File, Layout, newest_that_fit
from ..client import EngineClient
from ..engine.wire import Piece
from ..router import Model
from .params import with_bos

RESERVE = 256
"""Tokens kept for an answer whose length the client left open."""
COUNTED_AT_ONCE = 4
MOST_BYTES_PER_TOKEN = 64
"""A file of more than this for each token of the context is left out uncounted."""
MOST_SIZES = 1024
_sizes: WeakKeyDictionary[EngineClient, OrderedDict[bytes, int]] = WeakKeyDictionary()
"""Tokens of the files last seen, by model: editors send the same ones at every keystroke."""


@dataclass(frozen=True, slots=True)
class Fill:
    """A FIM request's texts."""

    prefix: str
    suffix: str
    files: Sequence[File]
    """The oldest first."""


@dataclass(frozen=True, slots=True)
class Omitted:
    """What a request sent and the model did not get."""

    n_files: int
    n_sent: int
    n_ctx_seq: int

    @property
    def reason(self) -> str:
        """Say what is missing and why, in one line."""
        return (
            f"{self.n_files} of {self.n_sent} input_extra, the oldest, left out: "
            f"a sequence holds {self.n_ctx_seq} tokens, the answer included"
        )

    def as_dict(self) -> dict[str, object]:
        return {"input_extra": self.n_files, "reason": self.reason}


def prompt_with(model: Model, layout: Layout, fill: Fill, n_files: int) -> list[Piece]:
    """Return the prompt with the last `n_files` files."""
    files = fill.files[len(fill.files) - n_files :]
    return with_bos(layout.pieces(fill.prefix, fill.suffix, files), model.hello)


def omitted(fill: Fill, n_kept: int, model: Model) -> Omitted | None:
    """Return what keeping the last `n_kept` files leaves out; None: nothing."""
    n_sent = len(fill.files)
    return None if n_kept == n_sent else Omitted(n_sent - n_kept, n_sent, model.hello.n_ctx_seq)


async def files_that_fit(model: Model, layout: Layout, fill: Fill, n_predict: int | None) -> int:
    """Return how many of the last files fit beside the rest and an answer of `n_predict` tokens.

    The engine checks once more: two texts joined may have a token more than each alone.
    """
    reserve = max(1, RESERVE if n_predict is None or n_predict < 0 else n_predict)
    room = model.hello.n_ctx_seq - reserve
    whole = prompt_with(model, layout, fill, len(fill.files))
    # No token is less than a byte, save one that some vocabularies put in front of a text.
    if not fill.files or sum(len(text.encode("utf-8", "replace")) + 1 for text, _ in whole) <= room:
        return len(fill.files)
    # With the marks around files, which are there as soon as there is one.
    core = with_bos(layout.pieces(fill.prefix, fill.suffix), model.hello)
    room -= await _count(model, core) + await _size(model, _marks(layout))
    most_bytes = MOST_BYTES_PER_TOKEN * model.hello.n_ctx_seq
    sizes: list[int] = []
    for at in range(len(fill.files), 0, -COUNTED_AT_ONCE):
        group = fill.files[max(0, at - COUNTED_AT_ONCE) : at]
        counted = (
            _size(model, _alone(layout, file)) if len(file.text) <= most_bytes else _no_room(room)
            for file in group
        )
        sizes[:0] = await asyncio.gather(*counted)
        if sum(sizes) > room:
            break
    return newest_that_fit(sizes, room)


def _marks(layout: Layout) -> list[Piece]:
    """Return what a prompt with files has more than the files."""
    with_one = layout.pieces("", "", [File("", "")])
    return with_one[: len(with_one) - len(layout.pieces("", ""))]


def _alone(layout: Layout, file: File) -> list[Piece]:
    """Return a file as it stands in a prompt."""
    more = len(layout.pieces("", "", [file, file])) - len(layout.pieces("", "", [file]))
    start = 2 if layout.sep is not None and layout.repo is not None else 0
    return layout.pieces("", "", [file])[start : start + more]


async def _count(model: Model, pieces: list[Piece]) -> int:
    return len(await model.client.tokenize(pieces, param="input_extra")) if pieces else 0


async def _size(model: Model, pieces: list[Piece]) -> int:
    """Return the tokens of a file, counted once."""
    known = _sizes.setdefault(model.client, OrderedDict())
    key = blake2b(repr(pieces).encode("utf-8", "replace"), digest_size=16).digest()
    if (size := known.get(key)) is None:
        size = known[key] = await _count(model, pieces)
        while len(known) > MOST_SIZES:
            known.popitem(last=False)
    known.move_to_end(key)
    return size


async def _no_room(room: int) -> int:
    return max(0, room) + 1
