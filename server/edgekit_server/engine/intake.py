"""The intake thread: reads the socket, tokenizes, checks, and hands requests to the loop.

All this happens off the step thread, so a long prompt delays nobody's next token.
"""

from __future__ import annotations

import socket
import threading
import time
from array import array
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from edgekit_server.engine import wire
from edgekit_server.engine.lane import Dropped, Lane
from edgekit_server.engine.loop import Loop
from edgekit_server.engine.request import Request, deadline
from edgekit_server.engine.sampling import Chooser
from edgekit_server.engine.tokenizer import DroppedError, Tokenizer, TooLongError
from edgekit_server.engine.vocabulary import Vocabulary
from edgekit_server.errors import EngineDiedError, WireError


class Outbox:
    """The writing side of the socket, shared by both threads."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self.broken = False

    def send(self, message: wire.Message) -> None:
        """Write one message. A peer that is gone is no error: its end of file stops us."""
        with self._lock:
            try:
                wire.send(self._sock, message)
            except OSError:
                self.broken = True


class _RefusalError(Exception):
    """Becomes a Rejected message."""

    def __init__(self, code: str, message: str, n_prompt: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.n_prompt = n_prompt


@dataclass(slots=True)
class Intake:
    sock: socket.socket
    outbox: Outbox
    loop: Loop
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    n_ctx_seq: int
    lane: Lane = field(default_factory=lambda: Lane("counting"))
    """Where long texts are tokenized."""
    deadline_s: float | None = None
    """Longest life of any request; a request may ask for a shorter one."""
    failure: Exception | None = None
    """What ended `run` before its time; the main thread raises it."""
    n_taken: int = 0
    """Messages dealt with."""

    def run(self) -> None:
        """Serve messages until Stop, end of file, or bytes that are no message."""
        try:
            while (message := wire.receive(self.sock)) is not None:
                if isinstance(message, wire.Stop):
                    break
                self._serve(message)
                self.n_taken += 1
        except Exception as error:
            self.failure = error
        finally:
            self.lane.close()
            self.loop.stop()

    def _serve(self, message: wire.Message) -> None:
        match message:
            case wire.Generate():
                self._guarded(message.id, lambda: self._generate(message))
            case wire.Tokenize():
                self._guarded(message.id, lambda: self._queue_tokenize(message))
            case wire.Cancel():
                self.loop.cancel(message.id)
                self.lane.drop(message.id)
            case _:
                raise WireError(f"the front sent a {type(message).__name__}")

    def _guarded(self, request_id: int, work: Callable[[], None]) -> None:
        try:
            work()
        except _RefusalError as refusal:
            self.outbox.send(
                wire.Rejected(request_id, refusal.code, refusal.message, refusal.n_prompt)
            )
        except (EngineDiedError, ValueError, MemoryError) as error:
            self.outbox.send(wire.Rejected(request_id, "tokenizer_failed", str(error)))

    def _queue_tokenize(self, message: wire.Tokenize) -> None:
        def work(dropped: Dropped) -> None:
            self._guarded(message.id, lambda: self._tokenize(message, dropped))

        size = sum(len(text) for text, _ in message.prompt)
        if not self.lane.offer(message.id, size, work):
            raise _RefusalError("queue_full", "too much text is waiting to be counted")

    def _tokenize(self, message: wire.Tokenize, dropped: Dropped) -> None:
        with suppress(DroppedError):
            ids = self.tokenizer.encode(message.prompt, limit=False, dropped=dropped)
            self.outbox.send(wire.Tokens(message.id, ids.tolist()))

    def _generate(self, message: wire.Generate) -> None:
        arrived = time.monotonic()
        if not self.loop.has_room():
            raise _RefusalError("queue_full", "the engine's queue is full")
        self._check_ids(message.sampling.logit_bias, "logit_bias")
        tokens = self._prompt_tokens(message)
        if not tokens:
            raise _RefusalError("empty_prompt", "the prompt has no tokens")
        if len(tokens) >= self.n_ctx_seq:
            raise self._too_long(len(tokens))
        room = self.n_ctx_seq - len(tokens)
        wanted = room if message.max_tokens is None else max(0, min(message.max_tokens, room))
        ends = frozenset() if message.ignore_eos else self.vocabulary.ends
        never = [*self.vocabulary.suppressed]
        if message.ignore_eos:
            never += self.vocabulary.ends
        request = Request(
            id=message.id,
            tokens=tokens,
            limit=len(tokens) + wanted,
            chooser=Chooser(
                message.sampling,
                tokens,
                n_vocab=len(self.vocabulary.pieces),
                n_ctx=self.n_ctx_seq,
                forbidden=never,
                vocab=self.tokenizer.vocab,
            ),
            arrived=arrived,
            deadline=deadline(arrived, self.deadline_s, message.deadline_s),
            ends=ends,
            cache_prompt=message.cache_prompt,
            speculate=message.speculate,
        )
        self.outbox.send(wire.Accepted(message.id, len(tokens)))
        self.loop.submit(request)

    def _prompt_tokens(self, message: wire.Generate) -> array[int]:
        prompt = message.prompt
        if prompt and isinstance(prompt[0], int):
            ids = [item for item in prompt if isinstance(item, int)]
            self._check_ids(ids, "prompt")
            return array("i", ids)
        pieces = [item for item in prompt if not isinstance(item, int)]
        try:
            return self.tokenizer.encode(pieces)
        except TooLongError as error:
            raise self._too_long(error.n_tokens) from error

    def _check_ids(self, ids: Iterable[int], what: str) -> None:
        """A bad id would end the process in C."""
        n_vocab = len(self.vocabulary.pieces)
        for token in ids:
            if not 0 <= token < n_vocab:
                raise _RefusalError(
                    "bad_token", f"{what}: token {token} is not in 0..{n_vocab - 1}"
                )

    def _too_long(self, n_prompt: int) -> _RefusalError:
        return _RefusalError(
            "context_length_exceeded",
            f"the prompt has {n_prompt} tokens; a sequence holds {self.n_ctx_seq}, one of them "
            "for the answer",
            n_prompt,
        )
