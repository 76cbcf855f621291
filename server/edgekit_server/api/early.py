"""Keep a stream alive that has not begun: its model is still waiting for room, or loading.

A stream's headers go out when the engine has accepted the request, so that a refusal has its own
status. Loading can take longer than clients stay without a byte. After one silent interval the
stream begins here, with comments; a refusal that comes then is an error event, as it would be in
the midst of an answer.
"""

from __future__ import annotations

import contextlib
import json

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import RequestError
from ..holding import present
from .deadline import deadline_of
from .responses_head import refused
from .responses_out import written_out
from .sse import KEEP_ALIVE

PATHS = frozenset(
    {
        "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses",
        "/v1/fim/completions", "/infill", "/completion",
    }
)  # fmt: skip
"""Where streams are server-sent events; Ollama's lines know no comment."""
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class EarlyStreams:
    """ASGI middleware, inside of `Holding`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request; its holder learns how to say that something is still going on."""
        holder = present()
        if holder is not None and scope["type"] == "http":
            # What is no number is for the endpoint to speak about.
            with contextlib.suppress(RequestError):
                holder.waits_s = deadline_of(Request(scope))
        if holder is None or scope["path"] not in PATHS:
            await self._app(scope, receive, send)
            return
        early = _Early(scope["path"], send)
        holder.say_alive = early.beat
        await self._app(scope, receive, early.send)


class _Early:
    def __init__(self, path: str, send: Send) -> None:
        self._path = path
        self._send = send
        self._begun_here = False
        self._begun_there = False
        self._refused: bytes | None = None
        """What came of a refusal's body."""

    async def beat(self) -> None:
        """Send one comment, after the headers if need be."""
        if self._begun_there:
            return
        if not self._begun_here:
            self._begun_here = True
            start = {"type": "http.response.start", "status": 200, "headers": _HEADERS}
            await self._send(start)
        await self._send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})

    async def send(self, message: Message) -> None:
        """Pass on what the application sends, without the headers that are out already."""
        if message["type"] == "http.response.start":
            self._begun_there = True
            if self._begun_here:
                kind = Headers(raw=message["headers"]).get("content-type", "")
                self._refused = None if kind.startswith("text/event-stream") else b""
                return
        elif self._refused is not None and message["type"] == "http.response.body":
            self._refused += message.get("body", b"")
            if message.get("more_body", False):
                return
            message = {**message, "body": error_event(self._path, self._refused)}
        await self._send(message)


def error_event(path: str, body: bytes) -> bytes:
    """Return a refusal's body as the event by which this path's streams report an error."""
    try:
        said = json.loads(body)
    except ValueError:
        said = {"error": {"message": "the request was refused", "type": "server_error"}}
    name = b""
    if path == "/v1/messages":
        name = b"event: error\n"
    elif path == "/v1/responses":
        error = said["error"]
        return written_out(refused(error.get("code") or "server_error", error["message"]))
    text = json.dumps(said, ensure_ascii=False, separators=(",", ":"))
    return name + b"data: " + text.encode("utf-8", "replace") + b"\n\n"
