"""Which models an HTTP request uses: from when it asks the router until its last byte is sent.

A model that is held is not unloaded. The holder travels in a context variable, so that whatever
a request does, in whatever task, counts as its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextvars import ContextVar

from starlette.types import ASGIApp, Receive, Scope, Send


class Holder:
    """What one HTTP request holds."""

    def __init__(self) -> None:
        self._release: dict[object, Callable[[], None]] = {}
        self._closed = False
        self.streams = False
        """Whether the client wants a stream: set when its body has been read."""
        self.waits_s: float | None = None
        """How long the client said it would wait."""
        self.say_alive: Callable[[], Awaitable[None]] | None = None
        """Sends the client a sign of life; None: there is no way to."""

    def holds(self, what: object) -> bool:
        """Whether this request holds it already."""
        return what in self._release

    def keep(self, what: object, release: Callable[[], None]) -> None:
        """Take over a hold; `release` runs at the end of the request, or now if that is past."""
        if self._closed or what in self._release:
            release()
            return
        self._release[what] = release

    @contextlib.asynccontextmanager
    async def alive(self, every_s: float) -> AsyncGenerator[None, None]:
        """Keep the client's stream alive while the block waits."""
        if not self.streams or self.say_alive is None:
            yield
            return
        beating = asyncio.create_task(self._beat(self.say_alive, every_s), name="keep-alive")
        try:
            yield
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _beat(self, say_alive: Callable[[], Awaitable[None]], every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            await say_alive()

    def close(self) -> None:
        """Let go of everything."""
        self._closed = True
        releases, self._release = list(self._release.values()), {}
        for release in releases:
            release()


_present: ContextVar[Holder | None] = ContextVar("edgekit_holder", default=None)


def present() -> Holder | None:
    """Return the holder of the HTTP request that this code runs for; None outside of one."""
    return _present.get()


class Holding:
    """ASGI middleware: one holder for each HTTP request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request; what it held is let go of in every case."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        holder = Holder()
        token = _present.set(holder)
        try:
            await self._app(scope, receive, send)
        finally:
            _present.reset(token)
            holder.close()
