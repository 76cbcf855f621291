"""One HTTP request's generations: what the engine says about them, in one queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from .engine.wire import Output
from .errors import RequestError, ServerError


@dataclass(frozen=True, slots=True)
class Arrival:
    """One thing that happened to one of a call's choices."""

    index: int
    output: Output | ServerError


class Call:
    """One or more choices generated for one HTTP request; their outputs in one queue.

    The queue is bounded by the context: a choice has at most n_ctx_seq outputs.
    """

    def __init__(self, forget: Callable[[int], None]) -> None:
        """`forget` cancels a request id in the engine."""
        self._forget = forget
        self._queue: asyncio.Queue[Arrival] = asyncio.Queue()
        self._live: dict[int, int] = {}
        self.n_prompt: list[int] = []
        self.began = time.monotonic()
        """When it was made, to be handed to the engine."""
        self.superseded = False
        """Whether a newer request of the client cut the answer short."""

    @property
    def live(self) -> bool:
        """Whether any choice has more to come, or something arrived that was not taken yet."""
        return bool(self._live) or not self._queue.empty()

    async def next(self, timeout_s: float | None = None) -> Arrival | None:
        """Return the next arrival; None after `timeout_s` of silence."""
        if not self._queue.empty():
            return self._queue.get_nowait()
        try:
            async with asyncio.timeout(timeout_s):
                return await self._queue.get()
        except TimeoutError:
            return None

    def cancel(self, index: int | None = None) -> None:
        """Stop one choice, or all, before the engine's next step. Harmless when finished."""
        wanted = [i for i in self._live if index is None or i == index]
        for choice in wanted:
            self._forget(self._live.pop(choice))

    def supersede(self) -> None:
        """Stop all choices; each ends as if it had reached its limit. Harmless when finished."""
        for index, request_id in list(self._live.items()):
            self.superseded = True
            self._forget(request_id)
            self.put(index, Output(request_id, [], [], finish="length"))

    def check(self) -> None:
        """Raise the 499 of a superseded call: for answers that are sent whole."""
        if self.superseded:
            raise superseded()

    def add(self, index: int, request_id: int) -> None:
        self._live[index] = request_id

    def put(self, index: int, output: Output | ServerError) -> None:
        """Called by the reader task."""
        if index not in self._live:
            return
        if isinstance(output, ServerError) or output.finish is not None:
            del self._live[index]
        self._queue.put_nowait(Arrival(index, output))


def superseded() -> RequestError:
    """Return the 499 of a request that a newer one of its client has made useless."""
    return RequestError(
        "a newer fill-in-the-middle request of this client took its place",
        status=499,
        type="request_superseded",
        code="request_superseded",
    )
