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
from edgekit_server.engine.adapters import NO_ADAPTERS, AdapterSet, resolve
from edgekit_server.engine.constrain import Grammars, Matcher
from edgekit_server.engine.embed import Embedder, Job
from edgekit_server.engine.lane import Dropped, Lane
from edgekit_server.engine.loop import Loop
from edgekit_server.engine.request import Request, deadline
from edgekit_server.engine.sampling import Chooser
from edgekit_server.engine.tokenizer import DroppedError, Tokenizer, TooLongError
from edgekit_server.engine.vocabulary import Vocabulary
from edgekit_server.errors import EngineDiedError, GrammarError, WireError

QUICK_CHARS = 64 * 1024
"""Texts to embed of so many characters together are tokenized at once, not in the lane."""


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


Prompt = list[wire.Piece] | list[int]


def _size(prompt: Prompt) -> int:
    """Return the characters of a prompt; an id counts as one."""
    return sum(1 if isinstance(item, int) else len(item[0]) for item in prompt)


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
    grammars: Grammars | None = None
    embedder: Embedder | None = None
    generates: bool = True
    n_adapters: int = 0
    default_adapters: AdapterSet = NO_ADAPTERS
    gather: Callable[[int], None] = lambda _: None
    """Told of each answer that is read whole."""
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
            case wire.Embed():
                self._guarded(message.id, lambda: self._queue_embed(message))
            case wire.Cancel():
                self.loop.cancel(message.id)
                self.lane.drop(message.id)
                if self.embedder is not None:
                    self.embedder.cancel(message.id)
            case _:
                raise WireError(f"the front sent a {type(message).__name__}")

    def _guarded(self, request_id: int, work: Callable[[], None]) -> None:
        try:
            work()
        except _RefusalError as refusal:
            self.outbox.send(
                wire.Rejected(request_id, refusal.code, refusal.message, refusal.n_prompt)
            )
        except GrammarError as error:
            self.outbox.send(
                wire.Rejected(request_id, error.code, error.message, param=error.param)
            )
        except (EngineDiedError, ValueError, MemoryError) as error:
            self.outbox.send(wire.Rejected(request_id, "tokenizer_failed", str(error)))

    def _queue_tokenize(self, message: wire.Tokenize) -> None:
        def work(dropped: Dropped) -> None:
            self._guarded(message.id, lambda: self._tokenize(message, dropped))

        size = _size(message.prompt)
        if not self.lane.offer(message.id, size, work):
            raise _RefusalError("queue_full", "too much text is waiting to be counted")

    def _tokenize(self, message: wire.Tokenize, dropped: Dropped) -> None:
        with suppress(DroppedError):
            ids = self._tokens(message.prompt, limit=False, dropped=dropped)
            pieces = [self.vocabulary.pieces[i] for i in ids] if message.pieces else []
            self.outbox.send(wire.Tokens(message.id, ids.tolist(), pieces))

    def _queue_embed(self, message: wire.Embed) -> None:
        def work(dropped: Dropped) -> None:
            self._guarded(message.id, lambda: self._embed(message, dropped))

        if self.embedder is None or self.embedder.shape.pooling == "none":
            raise _RefusalError("no_embeddings", "this model gives no vectors: its pooling is none")
        if not self.embedder.has_room():
            raise _RefusalError("queue_full", "the engine's queue of embeddings is full")
        size = sum(map(_size, message.prompts))
        if size <= QUICK_CHARS:
            work(lambda: False)
        elif not self.lane.offer(message.id, size, work):
            raise _RefusalError("queue_full", "too much text is waiting to be counted")

    def _embed(self, message: wire.Embed, dropped: Dropped) -> None:
        assert self.embedder is not None
        most = self.embedder.shape.n_ctx
        if (
            message.dimensions is not None
            and not 0 < message.dimensions <= self.embedder.shape.n_out
        ):
            raise _RefusalError(
                "bad_dimensions", f"vectors of this model have {self.embedder.shape.n_out} values"
            )
        prompts: list[array[int]] = []
        with suppress(DroppedError):
            for number, prompt in enumerate(message.prompts):
                try:
                    tokens = self._tokens(prompt, limit=True, dropped=dropped)
                    n_tokens = len(tokens)
                except TooLongError as error:
                    n_tokens = max(error.n_tokens, most + 1)
                if not 0 < n_tokens <= most:
                    code = "input_too_long" if n_tokens else "empty_prompt"
                    said = f"text {number} has {n_tokens} tokens; it must have 1 to {most}"
                    raise _RefusalError(code, said, n_tokens)
                prompts.append(tokens)
            if prompts:
                self.embedder.submit(Job(message.id, prompts, message.norm, message.dimensions))
            else:
                self.outbox.send(wire.Embedded(message.id, [], []))
            self.loop.wake()

    def _generate(self, message: wire.Generate) -> None:
        arrived = time.monotonic()
        if not self.generates:
            raise _RefusalError("no_generation", "this model makes vectors of texts, not answers")
        if not self.loop.has_room():
            raise _RefusalError("queue_full", "the engine's queue is full")
        self._check_ids(message.sampling.logit_bias, "logit_bias")
        tokens = self._prompt_tokens(message)
        if not tokens:
            raise _RefusalError("empty_prompt", "the prompt has no tokens")
        if len(tokens) >= self.n_ctx_seq:
            raise self._too_long(len(tokens))
        room = self.n_ctx_seq - len(tokens)
        wanted = room if message.max_tokens is None else max(0, message.max_tokens)
        shifts = message.context_shift and wanted > room
        wanted = wanted if shifts else min(wanted, room)
        matcher = self._matcher(message)
        endless = message.ignore_eos and matcher is None  # else the grammar says where it ends
        ends = frozenset() if endless else self.vocabulary.ends
        never = [*self.vocabulary.suppressed]
        if endless:
            never += self.vocabulary.ends
        request = Request(
            id=message.id,
            tokens=tokens,
            limit=len(tokens) + wanted,
            shift_at=self.n_ctx_seq if shifts else None,
            chooser=Chooser(
                message.sampling,
                tokens,
                n_vocab=len(self.vocabulary.pieces),
                n_ctx=self.n_ctx_seq,
                forbidden=never,
                matcher=matcher,
                vocab=self.tokenizer.vocab,
            ),
            arrived=arrived,
            deadline=deadline(arrived, self.deadline_s, message.deadline_s),
            ends=ends,
            cache_prompt=message.cache_prompt,
            adapters=self._adapters(message),
            speculate=message.speculate,
        )
        if message.whole:
            self.gather(message.id)
        self.outbox.send(wire.Accepted(message.id, len(tokens)))
        self.loop.submit(request)

    def _matcher(self, message: wire.Generate) -> Matcher | None:
        if message.grammar is None:
            return None
        if self.grammars is None:
            raise GrammarError("this engine holds answers to no grammar", param="grammar")
        try:
            return self.grammars.compile(message.grammar)
        except GrammarError:
            if message.grammar.lenient:
                return None
            raise

    def _prompt_tokens(self, message: wire.Generate) -> array[int]:
        try:
            return self._tokens(message.prompt, limit=True)
        except TooLongError as error:
            raise self._too_long(error.n_tokens) from error

    def _tokens(self, prompt: Prompt, *, limit: bool, dropped: Dropped | None = None) -> array[int]:
        """Tokenize pieces or check ids; raises what the tokenizer does."""
        if prompt and isinstance(prompt[0], int):
            ids = [item for item in prompt if isinstance(item, int)]
            self._check_ids(ids, "prompt")
            return array("i", ids)
        pieces = [item for item in prompt if not isinstance(item, int)]
        return self.tokenizer.encode(pieces, limit=limit, dropped=dropped)

    def _adapters(self, message: wire.Generate) -> AdapterSet:
        try:
            return resolve(message.lora, self.default_adapters, self.n_adapters)
        except ValueError as error:
            raise _RefusalError("bad_adapter", f"lora: {error}") from error

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
