"""The HTTP client that huggingface-hub is given: the same as its own, with limits.

Its own waits for ever and reads an answer of any length into memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Final

import httpx2

from edgekit.errors import BadDataError

MAX_REDIRECTS: Final = 10


class _Limited(httpx2.SyncByteStream):
    """A body that breaks off beyond so many bytes or seconds."""

    def __init__(
        self, inner: httpx2.SyncByteStream, host: str, max_bytes: int, deadline: float
    ) -> None:
        self._inner = inner
        self._host = host
        self._left = max_bytes
        self._deadline = deadline

    def __iter__(self) -> Iterator[bytes]:
        for block in self._inner:
            self._left -= len(block)
            if self._left < 0 or time.monotonic() > self._deadline:
                what = "far too long an answer" if self._left < 0 else "its answer far too slowly"
                raise BadDataError(
                    f"{self._host} sends {what}",
                    code="hostile_answer",
                    hint="check the address of the hub or mirror",
                )
            yield block

    def close(self) -> None:
        self._inner.close()


def capped_client(
    max_bytes: int, deadline_s: float, timeouts: Mapping[str, float]
) -> httpx2.Client:
    """Return a client whose answers are limited in length and time, compressed ones refused."""

    def before(request: httpx2.Request) -> None:
        given = request.extensions.get("timeout") or {}
        # The hub client asks some questions without any time limit.
        request.extensions["timeout"] = {k: given.get(k) or v for k, v in timeouts.items()}
        request.headers["accept-encoding"] = "identity"

    def after(response: httpx2.Response) -> None:
        if response.headers.get("content-encoding", "identity") not in ("identity", ""):
            # A few bytes can unfold into gigabytes.
            raise BadDataError(
                f"{response.url.host} sends a compressed answer that nobody asked for",
                code="hostile_answer",
                hint="check the address of the hub or mirror",
            )
        assert isinstance(response.stream, httpx2.SyncByteStream)
        deadline = time.monotonic() + deadline_s
        response.stream = _Limited(response.stream, response.url.host, max_bytes, deadline)

    return httpx2.Client(
        event_hooks={"request": [before], "response": [after]},
        follow_redirects=True,
        max_redirects=MAX_REDIRECTS,
        timeout=30.0,
    )
