"""One streaming request to `/v1/completions`, timed.

Knows HTTP and server-sent events, nothing of load levels. The server's usage is the only
source of token counts: what it does not say stays None.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import httpx

from edgekit.report.statistics import Arrival, Sample

Answer = dict[str, object]


async def stream_one(
    client: httpx.AsyncClient,
    body: Answer,
    timeout_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Sample:
    """Send one request and time what comes back; a failure is a Sample with `error`, never a raise.

    The clock starts just before the request is handed to a warm connection and is read for each
    piece that comes from the socket, before it is parsed; pieces of one read arrived together.
    `timeout_s` bounds the whole request. `error` is short and countable: `timeout`, `http_503`,
    `connect`, `cut`, ...
    """
    sent = clock()
    reader = _Reader()
    error: str | None = None
    try:
        async with (
            asyncio.timeout(timeout_s),
            client.stream("POST", "completions", json=body) as response,
        ):
            if response.status_code != 200:
                await response.aread()
                error = f"http_{response.status_code}"
            else:
                await _read(response, reader, clock)
    except TimeoutError:
        error = "timeout"
    except httpx.HTTPError as failure:
        error = _kind_of(failure)
    end = clock()
    return Sample(
        sent_s=sent,
        end_s=end,
        arrivals=tuple(reader.arrivals),
        prompt_tokens=reader.usage("prompt_tokens"),
        output_tokens=reader.usage("completion_tokens"),
        cached_tokens=reader.cached_tokens(),
        error=error or reader.verdict(),
    )


async def _read(response: httpx.Response, reader: _Reader, clock: Callable[[], float]) -> None:
    """Feed the reader until the stream ends, and tell it which pieces came in one socket read.

    httpx hands out the HTTP chunks of one read one by one without waiting in between. A mark
    left in the event loop is reached only when we did wait, that is, when new bytes were read.
    """
    loop, waited = asyncio.get_running_loop(), asyncio.Event()
    loop.call_soon(waited.set)
    async for chunk in response.aiter_bytes():
        now, is_new = clock(), waited.is_set()
        reader.feed(chunk, now, is_new_read=is_new)
        if is_new:
            waited.clear()
            loop.call_soon(waited.set)


def _kind_of(failure: httpx.HTTPError) -> str:
    if isinstance(failure, httpx.TimeoutException):
        return "timeout"
    if isinstance(failure, httpx.ConnectError):
        return "connect"
    return "cut" if isinstance(failure, httpx.TransportError) else type(failure).__name__


class _Reader:
    """Server-sent events of one completion -> arrivals, usage, errors."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self._pending = b""
        self._answered = False
        """Has the current read brought tokens already?"""
        self._usage: dict[str, object] = {}
        self._counted = 0
        self._finished = False
        self._error: str | None = None

    def feed(self, chunk: bytes, at_s: float, *, is_new_read: bool = True) -> None:
        """Take some bytes; all tokens of one socket read arrive when its first one does."""
        self._answered = self._answered and not is_new_read
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        events, counted_before, counted = 0, self._counted, False
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                self._finished = True
                continue
            try:
                event = json.loads(data)
            except ValueError:
                self._error = "bad_json"
                continue
            if isinstance(event, dict):
                has_text, has_count = self._take(event)
                events += has_text
                counted |= has_count
        tokens = self._counted - counted_before if counted else None
        if not tokens and not events:
            return
        if self._answered:
            last = self.arrivals.pop()
            at_s, events = last.at_s, last.events + events
            tokens = None if last.tokens is None or tokens is None else last.tokens + tokens
        self.arrivals.append(Arrival(at_s, events, tokens))
        self._answered = True

    def _take(self, event: Answer) -> tuple[bool, bool]:
        """Note one event; return (it carried text, it said how many tokens it carried)."""
        failure = event.get("error")
        if failure is not None:
            code = failure.get("code") or failure.get("type") if isinstance(failure, dict) else None
            self._error = f"stream_{code}" if code else "stream_error"
            return False, False
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        usage = event.get("usage")
        if isinstance(usage, dict):
            self._usage = usage
        if not isinstance(choice, dict):
            return False, False
        self._finished |= choice.get("finish_reason") is not None
        said = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if isinstance(said, int):
            self._counted = max(self._counted, said)
        return bool(choice.get("text")), isinstance(said, int)

    def usage(self, key: str) -> int | None:
        value = self._usage.get(key)
        return value if isinstance(value, int) else None

    def cached_tokens(self) -> int | None:
        details = self._usage.get("prompt_tokens_details")
        value = details.get("cached_tokens") if isinstance(details, dict) else None
        return value if isinstance(value, int) else None

    def verdict(self) -> str | None:
        """What is wrong with a stream whose bytes came to an end; None if nothing is."""
        if self._error is not None:
            return self._error
        if not self._finished:
            return "cut"
        return None if self.arrivals else "no_text"
