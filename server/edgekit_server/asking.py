"""Questions to the engine child that get one reply: token ids, vectors, scores."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from .engine import wire
from .errors import EngineDiedError, RequestError, WireError
from .refusals import kills_engine, not_answered
from .suspects import Suspects

SUSPECT_POLL_S = 0.1
Reply = wire.Tokens | wire.Embedded


@dataclass(slots=True, eq=False)
class _Asked:
    key: bytes
    param: str
    computed: bool
    """Whether the model has to run for it."""
    reply: asyncio.Future[Reply]


class Asking(ABC):
    """The part of an engine's client that asks."""

    hello: wire.Hello | None
    _ids: Iterator[int]
    _suspects: Suspects
    _writer: asyncio.StreamWriter | None

    def __init__(self) -> None:
        self._asked: dict[int, _Asked] = {}

    @abstractmethod
    async def ready(self) -> wire.Hello:
        """Return the loaded model, or raise why there is none."""

    @abstractmethod
    def running_keys(self) -> set[bytes]:
        """Return the content keys of what the engine may be working on."""

    async def tokenize(self, pieces: list[wire.Piece], *, param: str = "content") -> list[int]:
        """Return the token ids of a text; nothing is added, BOS neither.

        RequestError: too much is waiting to be counted, or the text cannot be tokenized.
        EngineDiedError when the child died over it.
        """
        return (await self.tokens(wire.Tokenize(0, pieces), param=param)).tokens

    async def tokens(self, question: wire.Tokenize, *, param: str) -> wire.Tokens:
        """Ask for ids, or what ids mean; raises as `tokenize`, and for ids that are none."""
        reply = await self._ask(question, param)
        assert isinstance(reply, wire.Tokens)
        return reply

    async def embed(self, question: wire.Embed, *, param: str) -> wire.Embedded:
        """Ask for vectors or scores. RequestError: refused; EngineDiedError: died over it."""
        reply = await self._ask(question, param)
        assert isinstance(reply, wire.Embedded)
        return reply

    async def _ask(self, question: wire.Tokenize | wire.Embed, param: str) -> Reply:
        await self.ready()
        try:
            key = blake2b(wire.encode(question), digest_size=16).digest()
        except WireError as error:
            raise RequestError(error.message, param=param, code="invalid_value") from error
        while self._suspects.must_wait([key], self.running_keys()):
            await asyncio.sleep(SUSPECT_POLL_S)
            await self.ready()
        if self._suspects.refused(key):
            raise kills_engine(param)
        writer = self._writer
        if writer is None:
            raise EngineDiedError("the engine is being restarted")
        asked_id = next(self._ids)
        reply_to: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        asked = _Asked(key, param, isinstance(question, wire.Embed), reply_to)
        self._asked[asked_id] = asked
        try:
            writer.write(wire.encode(replace(question, id=asked_id)))
            with contextlib.suppress(OSError):  # the reader notices, and fails the reply
                await writer.drain()
            reply = await asked.reply
        except asyncio.CancelledError:
            if asked_id in self._asked and self._writer is not None:
                self._writer.write(wire.encode(wire.Cancel(asked_id)))
            raise
        finally:
            self._asked.pop(asked_id, None)
        self._suspects.clear(key)
        return reply

    def _answered(self, message: wire.Message) -> bool:
        """Take a reply to a question; False: the message is no such thing."""
        if not isinstance(message, Reply | wire.Rejected):
            return False
        asked = self._asked.pop(message.id, None)
        if asked is not None and not asked.reply.done():
            if isinstance(message, wire.Rejected):
                asked.reply.set_exception(not_answered(message, self.hello, asked.param))
            else:
                asked.reply.set_result(message)
        # A reply to a question that was given up still is one.
        return asked is not None or not isinstance(message, wire.Rejected)

    def _fail_asked(self, error: EngineDiedError) -> None:
        asked, self._asked = list(self._asked.values()), {}
        for one in asked:
            if not one.reply.done():
                one.reply.set_exception(error)

    def n_computing(self) -> int:
        """Return how many open questions the model has to run for."""
        return sum(one.computed for one in self._asked.values())

    def asked_keys(self) -> Sequence[bytes]:
        """Return the content keys of the open questions."""
        return [one.key for one in self._asked.values()]
