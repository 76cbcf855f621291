"""Loads models when requests need them and unloads others to make room, in order of arrival.

All state is touched on the event loop only. `pump` looks at the first of the line again whenever
something has changed: a request ended, a load ended, a child is gone, somebody gave up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field

from .api.deadline import timed_out
from .client import LOADING_RETRY_S, State, not_ready
from .config import ServeConfig
from .engine.wire import Hello
from .errors import EngineDiedError, RequestError, ServerError
from .holding import present
from .room import make_room
from .served import Served

log = logging.getLogger("edgekit_server")

MOST_WAITING = 256
"""Requests that may wait for a model to be loaded; one more gets its 503 at once."""
LOOK_AGAIN_S = 1.0
RELOAD_PAUSE_S = 10.0
"""A model that failed to load is not tried again for so long."""


@dataclass(slots=True, eq=False)
class _Ticket:
    """A request in line. Once `turn` is done, the model is held for it."""

    served: Served
    turn: asyncio.Future[None] = field(default_factory=asyncio.Future)


class Keeper:
    """Decides which models are loaded, within the memory that there is."""

    def __init__(self, served: Sequence[Served], config: ServeConfig) -> None:
        self._served = served
        self._budget = config.memory_budget_bytes
        self._idle_s = config.idle_unload_s
        self._keepalive_s = config.keepalive_s
        self._wait_s = config.load_wait_s
        self._line: deque[_Ticket] = deque()
        self._awaited: frozenset[str] = frozenset()
        """Busy models that the first of the line needs to go: newcomers for them stand behind."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    @property
    def waiting(self) -> int:
        """How many requests are in line."""
        return len(self._line)

    def start(self, preloaded: Sequence[Served]) -> None:
        """Begin loading these; returns at once."""
        for served in preloaded:
            served.start(on_demand=False)
            self._spawn(self._settle(served))
        if self._idle_s is not None:
            self._spawn(self._unload_idle(self._idle_s))

    async def use(self, served: Served) -> Hello:
        """Return the loaded model; it stays loaded until the HTTP request of the caller ends.

        Loads it first where need be. RequestError 503 when that takes too long or fails, and
        while the server itself is starting.
        """
        if served.failed_at is not None and time.monotonic() - served.failed_at < RELOAD_PAUSE_S:
            raise _load_failed(served)
        holder = present()
        if holder is None:
            await self._hold(served)
            try:
                return await self._ready(served)
            finally:
                self._release(served)
        if not holder.holds(served) and self._open(served):
            served.hold()
            holder.keep(served, lambda: self._release(served))
        if holder.holds(served) and served.client.state is State.READY:
            return await served.client.ready()
        try:
            async with asyncio.timeout(holder.waits_s), holder.alive(self._keepalive_s):
                if not holder.holds(served):
                    await self._hold(served)
                    holder.keep(served, lambda: self._release(served))
                return await self._ready(served)
        except TimeoutError:
            raise timed_out() from None

    def end_open(self) -> None:
        """Send everyone in line away: the server is about to go."""
        self._closing = True
        line, self._line = self._line, deque()
        for ticket in line:
            if not ticket.turn.done():
                ticket.turn.set_exception(
                    EngineDiedError("the server is shutting down", code="shutting_down")
                )

    async def stop(self) -> None:
        """Stop every child."""
        self.end_open()
        await asyncio.gather(*(served.client.stop() for served in self._served))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def pump(self) -> None:
        """Let the first of the line through, and those after it, as far as that is possible now."""
        self._awaited = frozenset()
        while self._line and not self._closing:
            ticket = self._line[0]
            if not ticket.turn.done():
                if ticket.served.leaving:
                    return
                if not ticket.served.resident and not self._has_room(ticket.served):
                    return
                if not ticket.served.resident:
                    ticket.served.start(on_demand=True)
                    self._spawn(self._settle(ticket.served))
                ticket.served.hold()
                ticket.turn.set_result(None)
            self._line.popleft()

    def _has_room(self, wanted: Served) -> bool:
        """Whether it can be loaded now; if not, see to it that it can be soon."""
        needed = wanted.config.memory_bytes or 0
        here = [s for s in self._served if s.resident]
        # Those that are leaving will soon take nothing.
        staying = [s for s in here if not s.leaving]
        room = make_room([s.resident_now() for s in staying], needed, self._budget)
        self._awaited = frozenset(room.waits_for)
        if room.waits_for or not room.fits:
            return False
        for served in staying:
            if served.id in room.unload:
                self._unload(served, f"to make room for {wanted.id}")
        taken = sum(s.config.memory_bytes or 0 for s in here)
        return self._budget is None or taken + needed <= self._budget

    async def _hold(self, served: Served) -> None:
        """Hold the model once it is loaded or being loaded, which may take until it has room."""
        if self._open(served):
            served.hold()
        else:
            await self._stand_in_line(served)

    def _open(self, served: Served) -> bool:
        """Whether it may be held at once: nobody waits for it to go."""
        return served.resident and not served.leaving and served.id not in self._awaited

    async def _stand_in_line(self, served: Served) -> None:
        """Return when the model is being loaded, or is; it is held for the caller then."""
        if len(self._line) >= MOST_WAITING:
            raise _no_room(served)
        ticket = _Ticket(served)
        self._line.append(ticket)
        self.pump()
        try:
            async with asyncio.timeout(self._wait_s):
                while not ticket.turn.done():
                    # Whatever changes calls `pump`; a look now and then costs nothing.
                    await asyncio.wait((ticket.turn,), timeout=LOOK_AGAIN_S)
                    self.pump()
                ticket.turn.result()
        except TimeoutError:
            self._give_up(ticket)
            raise _no_room(served) from None
        except asyncio.CancelledError:
            self._give_up(ticket)
            raise

    def _give_up(self, ticket: _Ticket) -> None:
        if ticket.turn.done() and not ticket.turn.cancelled() and ticket.turn.exception() is None:
            self._release(ticket.served)
            return
        ticket.turn.cancel()
        with contextlib.suppress(ValueError):
            self._line.remove(ticket)
        self.pump()

    async def _ready(self, served: Served) -> Hello:
        client = served.client
        if served.on_demand and client.state is State.LOADING:
            try:
                async with asyncio.timeout(self._wait_s):
                    await client.wait_settled()
            except TimeoutError:
                raise not_ready(State.LOADING) from None
            except ServerError as error:
                served.failure = error
                raise _load_failed(served) from error
        return await client.ready()

    async def _settle(self, served: Served) -> None:
        """Wait for the end of a load. One that failed leaves no child behind."""
        began = time.monotonic()
        try:
            await served.client.wait_settled()
            if len(self._served) > 1 and served.client.state is State.READY:
                log.info("loaded %s in %.1f s", served.id, time.monotonic() - began)
        except ServerError as error:
            served.failure, served.failed_at = error, time.monotonic()
            if served.on_demand:
                await served.stop()
        self.pump()

    def _release(self, served: Served) -> None:
        served.release()
        self.pump()

    def _unload(self, served: Served, reason: str) -> None:
        log.info("unloading %s: %s", served.id, reason)
        served.leaving = True
        self._spawn(self._stopped(served))

    async def _stopped(self, served: Served) -> None:
        await served.stop()
        self.pump()

    async def _unload_idle(self, idle_s: float) -> None:
        while True:
            await asyncio.sleep(min(5.0, idle_s / 4))
            now = time.monotonic()
            for served in self._served:
                idle = served.resident and not served.leaving and not served.busy
                if idle and not served.config.pinned and now - served.used_at >= idle_s:
                    self._unload(served, f"nobody used it for {idle_s:g} s")

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work, name="model-keeper")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _no_room(served: Served) -> RequestError:
    return RequestError(
        f"there is no room to load '{served.id}' now: other models are in use",
        status=503,
        type="unavailable_error",
        code="model_busy",
        retry_after_s=LOADING_RETRY_S,
    )


def _load_failed(served: Served) -> RequestError:
    why = served.failure.message if served.failure is not None else "unknown"
    return RequestError(
        f"'{served.id}' could not be loaded: {why}",
        status=503,
        type="unavailable_error",
        code="model_load_failed",
        retry_after_s=LOADING_RETRY_S,
    )
