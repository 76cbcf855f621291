"""The newest fill-in-the-middle request of a client wins; its older ones end at once.

Editors ask at every keystroke, and not all of them take back what they no longer need. Who is
the same client is said by api/newest.py. What is overtaken ends in a 499, or, once its stream has
begun, where it is: with the finish reason of an answer that reached its limit of tokens.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine
from typing import TypeVar

from .call import Call, superseded

T = TypeVar("T")

MOST_CLIENTS = 1024
"""The one unheard of for longest is forgotten: its open request then just goes on."""


class Turn:
    """One request's place: the newest of its client until `supersede`."""

    def __init__(self) -> None:
        self.superseded = asyncio.Event()
        self._call: Call | None = None

    async def run(self, work: Coroutine[object, object, T]) -> T:
        """Do what comes before the answer. RequestError 499 if a newer request comes meanwhile."""
        task = asyncio.ensure_future(work)
        overtaken = asyncio.ensure_future(self.superseded.wait())
        try:
            await asyncio.wait((task, overtaken), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise superseded()
        finally:
            overtaken.cancel()
            task.cancel()
            await asyncio.gather(task, overtaken, return_exceptions=True)

    def follow(self, call: Call) -> None:
        """End this call, too, when a newer request comes."""
        self._call = call
        if self.superseded.is_set():
            call.supersede()

    def supersede(self) -> None:
        """A newer request is there."""
        self.superseded.set()
        if self._call is not None:
            self._call.supersede()


class Newest:
    """The newest request of each client."""

    def __init__(self) -> None:
        self._turns: OrderedDict[str, Turn] = OrderedDict()

    def turn(self, client: str) -> Turn:
        """Begin a client's request: what the client asked before ends now."""
        older = self._turns.pop(client, None)
        if older is not None:
            older.supersede()
        turn = self._turns[client] = Turn()
        while len(self._turns) > MOST_CLIENTS:
            self._turns.popitem(last=False)
        return turn
