"""A light HTTP client: raw asyncio, one connection a request, the same for every server.

Client and server share the cores, so what this costs is taken from the server measured. It
parses a stream's events only as far as is needed to know whether text came.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_S = 600.0


class RefusedError(Exception):
    """The server answered, but not with 200."""


@dataclass(slots=True)
class Answer:
    """One request's outcome; all times by time.perf_counter."""

    began: float = 0.0
    ended: float = 0.0
    times: list[float] = field(default_factory=list)
    """When text arrived; streams only."""
    text: str = ""
    finish: str | None = None
    n_prompt: int = 0
    n_answer: int = 0
    n_cached: int | None = None

    @property
    def ttft_s(self) -> float:
        """Seconds to the first text of a stream."""
        return self.times[0] - self.began


async def get(port: int, path: str) -> tuple[int, bytes]:
    """Return status and body. OSError if nobody listens."""
    async with asyncio.timeout(10):
        status, body = await _send(port, f"GET {path}", b"")
        return status, b"".join([part async for part in body])


async def post(
    port: int, path: str, body: Mapping[str, object], answer: Answer | None = None
) -> Answer:
    """Ask and read the answer, whole or as a stream as `body` says. Raises RefusedError.

    `answer` is filled while a stream runs, for callers that want to watch it. A cancelled call
    closes its connection, as an editor does.
    """
    answer = answer or Answer()
    answer.began = time.perf_counter()
    async with asyncio.timeout(TIMEOUT_S):
        status, parts = await _send(port, f"POST {path}", json.dumps(body).encode())
        if status != 200:
            said = b"".join([part async for part in parts])
            raise RefusedError(f"{status}: {said[:300].decode('utf-8', 'replace')}")
        try:
            if body.get("stream"):
                await _read_events(parts, answer)
            else:
                _whole(json.loads(b"".join([part async for part in parts])), answer)
        finally:
            await parts.aclose()
    answer.ended = time.perf_counter()
    return answer


async def _send(port: int, head: str, body: bytes) -> tuple[int, AsyncGenerator[bytes, None]]:
    """Return the status and the body's parts. The generator owns the connection: close it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    try:
        writer.write(
            f"{head} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        top = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    except BaseException:
        writer.close()
        raise
    chunked = "transfer-encoding: chunked" in top
    return int(top.split(" ", 2)[1]), _parts(reader, writer, chunked=chunked)


async def _parts(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, chunked: bool
) -> AsyncGenerator[bytes, None]:
    try:
        while chunked and (size := int(await reader.readline(), 16)):
            yield (await reader.readexactly(size + 2))[:-2]
        while not chunked and (data := await reader.read(1 << 18)):
            yield data
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _read_events(parts: AsyncGenerator[bytes, None], answer: Answer) -> None:
    pending = b""
    async for part in parts:
        pending += part
        *lines, pending = pending.split(b"\n")
        now = time.perf_counter()
        for line in lines:
            if line.startswith(b"data: {"):
                _event(json.loads(line[6:]), answer, now)


def _event(event: Any, answer: Answer, now: float) -> None:
    if "error" in event:
        raise RefusedError(json.dumps(event["error"])[:300])
    for choice in event.get("choices", ()):
        text = choice.get("text") or choice.get("delta", {}).get("content")
        if text:
            answer.times.append(now)
            answer.text += text
        answer.finish = choice.get("finish_reason") or answer.finish
    _usage(event.get("usage"), answer)


def _whole(reply: Any, answer: Answer) -> None:
    choice = reply["choices"][0]
    answer.text = choice["text"] if "text" in choice else choice["message"]["content"] or ""
    answer.finish = choice["finish_reason"]
    _usage(reply["usage"], answer)


def _usage(usage: Any, answer: Answer) -> None:
    if usage:
        answer.n_prompt, answer.n_answer = usage["prompt_tokens"], usage["completion_tokens"]
        answer.n_cached = usage.get("prompt_tokens_details", {}).get("cached_tokens")
