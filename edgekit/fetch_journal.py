"""What is known of a file that is being fetched, so that a killed fetch goes on where it was.

One JSON object a line, appended and never changed. First the head, then marks:

    {"size": 4892809584, "chunk": 67108864, "identity": "\\"9b1c…\\""}
    {"start": 67108864, "end": 69206016, "sha256": "…", "whole": false}
    {"done": "…"}

A mark says that the bytes from `start` (of a chunk) to `end` lie on the disk with this digest; the
last mark of a chunk counts. With `whole` the digest is of everything from the file's first byte.
`done` is the digest of the whole file, checked. What follows a torn or strange line is not there.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Final

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Mark:
    """Bytes of one chunk that are on the disk."""

    start: int
    end: int
    sha256: str
    whole: bool


@dataclass(frozen=True, slots=True)
class Journal:
    """A journal as read. `valid_bytes` is where the next line belongs."""

    size: int
    chunk: int
    identity: str | None
    marks: dict[int, Mark] = field(default_factory=dict)
    done: str | None = None
    valid_bytes: int = 0


def head_line(size: int, chunk: int, identity: str | None) -> bytes:
    """Return the first line. `identity` is what the server calls this content, an ETag."""
    return _line({"size": size, "chunk": chunk, "identity": identity})


def mark_line(mark: Mark) -> bytes:
    """Return the line of a mark."""
    return _line({"start": mark.start, "end": mark.end, "sha256": mark.sha256, "whole": mark.whole})


def done_line(sha256: str) -> bytes:
    """Return the line of a finished and checked file."""
    return _line({"done": sha256})


def read_journal(data: bytes) -> Journal | None:
    """Read what can be trusted of a journal; None when not even its head can."""
    lines = data.split(b"\n")[:-1]  # what follows the last newline was torn
    head = _object(lines[0]) if lines else None
    if head is None or head.keys() != {"size", "chunk", "identity"}:
        return None
    size, chunk, identity = head["size"], head["chunk"], head["identity"]
    if not isinstance(size, int) or not isinstance(chunk, int):
        return None
    if not _number(size) or not _number(chunk) or chunk == 0:
        return None
    if identity is not None and not isinstance(identity, str):
        return None
    marks: dict[int, Mark] = {}
    done: str | None = None
    at = len(lines[0]) + 1
    for line in lines[1:]:
        found = _object(line)
        if found is None:
            break
        if found.keys() == {"done"} and _is_digest(found["done"]):
            done = str(found["done"])
        elif (mark := _mark(found, size, chunk)) is not None:
            marks[mark.start] = mark
        else:
            break
        at += len(line) + 1
    return Journal(size, chunk, identity, marks, done, at)


def _mark(found: dict[str, object], size: int, chunk: int) -> Mark | None:
    if found.keys() != {"start", "end", "sha256", "whole"}:
        return None
    start, end, sha256, whole = (found[k] for k in ("start", "end", "sha256", "whole"))
    if not _number(start) or not _number(end) or not _is_digest(sha256):
        return None
    assert isinstance(start, int)
    assert isinstance(end, int)
    if start % chunk or not start < end <= min(start + chunk, size) or not isinstance(whole, bool):
        return None
    return Mark(start, end, str(sha256), whole)


def _object(line: bytes) -> dict[str, object] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _number(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _line(record: dict[str, object]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"
