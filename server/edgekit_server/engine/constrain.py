"""Answers held to a grammar: compiled once by llguidance, then one matcher per request.

llguidance gets the vocabulary's tables and our own tokenizer, not llama.cpp's: it tokenizes what
a grammar forces, which may be one word of 100,000 letters, and those would overflow the C stack
(see tokenizer.py).
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from edgekit_server.engine import grammar as grammars
from edgekit_server.engine.vocabulary import Vocabulary
from edgekit_server.engine.wire import Grammar
from edgekit_server.errors import GrammarError

MAX_KEPT = 32
"""Compiled grammars kept for the next request with the same."""
COMPILE_S = 5.0
"""A grammar that takes longer is refused. The intake waits so long at most."""
MOST_FORCED = 64
"""Forced tokens told at once."""
MAX_MESSAGE = 600
ANY_OBJECT = '{"type": "object"}'

Compile = tuple[Grammar, "Future[LLMatcher]"]


class Grammars:
    """Compiles grammars for one vocabulary, in a thread of its own.

    The thread starts at once and prepares the vocabulary, 0.4 s for 128k tokens, which holds the
    interpreter up: better before the first request than within one.
    """

    def __init__(self, vocabulary: Vocabulary, tokenize: Callable[[str], list[int]]) -> None:
        """`tokenize`: text, without control tokens, to ids; called in any thread."""
        self._vocabulary = vocabulary
        self._tokenize = tokenize
        self._scratch = _Scratch(len(vocabulary.pieces))
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        self._jobs: queue.SimpleQueue[Compile] = queue.SimpleQueue()
        self._limits = LLParserLimits(
            # A fourth to a half of the defaults, which let one mask take 0.7 s. Each format and
            # each schema of ours passes with a tenth (128k tokens).
            initial_lexer_fuel=300_000,
            step_lexer_fuel=50_000,
            step_max_items=20_000,
            max_lexer_states=50_000,  # 1 to 2 kB each
            verbose_errors=False,  # they would quote the grammar's inner state
        )
        threading.Thread(target=self._work, name="grammars", daemon=True).start()

    def compile(self, grammar: Grammar) -> Matcher:
        """Return a matcher at its start. Raises GrammarError, with the grammar's `param`."""
        lead = (grammar.lead, grammar.lead_rule)
        key = repr((grammar.kind, grammar.text, grammar.schemas, lead, grammar.lenient))
        kept = self._kept.get(key)
        if kept is None:
            done: Future[LLMatcher] = Future()
            self._jobs.put((grammar, done))
            try:
                kept = done.result(COMPILE_S)
            except TimeoutError:
                done.cancel()
                raise GrammarError(
                    f"the grammar took more than {COMPILE_S:.0f} s to compile", param=grammar.param
                ) from None
            except GrammarError as error:
                raise GrammarError(error.message, param=error.param or grammar.param) from None
        self._kept[key] = kept
        self._kept.move_to_end(key)
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        return Matcher(kept.deep_copy(), self._scratch)

    def _work(self) -> None:
        tokenizer = _tokenizer(self._vocabulary, self._tokenize)
        while True:
            grammar, done = self._jobs.get()
            if not done.set_running_or_notify_cancel():
                continue
            try:
                done.set_result(self._compiled(tokenizer, grammar))
            except BaseException as error:
                done.set_exception(error)

    def _compiled(self, tokenizer: LLTokenizer | None, grammar: Grammar) -> LLMatcher:
        if tokenizer is None:
            raise GrammarError("this model has no token that ends an answer")
        try:
            return self._made(tokenizer, grammar)
        except GrammarError as error:
            at_fault = self._at_fault(tokenizer, grammar)
            if grammar.lenient and at_fault:
                schemas = [(p, ANY_OBJECT if p in at_fault else t) for p, t in grammar.schemas]
                return self._made(tokenizer, replace(grammar, schemas=schemas))
            for param, why in at_fault.items():
                raise GrammarError(why.message, param=param) from error
            raise

    def _made(self, tokenizer: LLTokenizer, grammar: Grammar) -> LLMatcher:
        source = grammars.source(grammar)
        made = LLMatcher(tokenizer, source, log_level=0, limits=self._limits)
        if not made.is_error():
            # The first mask finds grammars that compile and then are beyond the limits.
            made.compute_bitmask()
        if made.is_error():
            raise GrammarError(_cleaned(made.get_error()))
        if warnings := made.get_grammar_warnings():
            raise GrammarError("; ".join(warnings)[:MAX_MESSAGE])
        return made

    def _at_fault(self, tokenizer: LLTokenizer, grammar: Grammar) -> dict[str, GrammarError]:
        """Return which of a grammar's schemas cannot be held, by the client's field."""
        found: dict[str, GrammarError] = {}
        for param, text in grammar.schemas:
            try:
                self._made(tokenizer, Grammar("json_schema", text))
            except GrammarError as error:
                found[param] = error
        return found


def _cleaned(reason: str) -> str:
    return reason.split("<state>")[0].replace("<non-verbose/>", "").strip()[:MAX_MESSAGE]


class _Wrapper:
    """What LLTokenizer asks for: tables, and a callable from text to ids."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, eos: int, tokenize: Callable[[str], list[int]]):
        self.tokens = vocabulary.pieces
        self.special_token_ids = sorted(vocabulary.controls | vocabulary.ends)
        self.eos_token_id = eos
        self._tokenize = tokenize

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return self._tokenize(text)


def _tokenizer(vocabulary: Vocabulary, tokenize: Callable[[str], list[int]]) -> LLTokenizer | None:
    if not vocabulary.ends:
        return None
    named = [i for i in vocabulary.ends if vocabulary.text(i) == vocabulary.eos]
    ends = sorted(vocabulary.ends, key=lambda i: (i not in named, i))
    wrapper: Any = _Wrapper(vocabulary, ends[0], tokenize)
    return LLTokenizer(wrapper, eos_token=ends)


class _Scratch(threading.local):
    """Memory for one mask per thread, and the table that spreads a byte over eight logits."""

    def __init__(self, n_vocab: int) -> None:
        self.words = np.zeros((n_vocab + 31) // 32, np.int32)
        n_bytes = (n_vocab + 7) // 8
        self.bytes = self.words.view(np.uint8)[:n_bytes]
        self._spread = np.empty((n_bytes, 8), np.float32)
        self.added = self._spread.reshape(-1)[:n_vocab]
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        self._table = np.where(bits == 1, 0.0, -np.inf).astype(np.float32)

    def apply(self, row: NDArray[np.float32]) -> None:
        """Add minus infinity to the logits whose bit is 0: 28 us for 128k, whatever the mask."""
        np.take(self._table, self.bytes, axis=0, out=self._spread, mode="clip")
        np.add(row, self.added, out=row)


class Matcher:
    """Where one answer is in its grammar. One request owns it; no two threads at a time."""

    def __init__(self, matcher: LLMatcher, scratch: _Scratch) -> None:
        self._matcher = matcher
        self._scratch = scratch
        self._ahead: deque[int] = deque()
        """Forced tokens that were told and not accepted yet."""

    @property
    def error(self) -> str | None:
        """Why this answer cannot go on (the grammar got beyond its limits); None if it can."""
        return _cleaned(self._matcher.get_error()) if self._matcher.is_error() else None

    @property
    def stopped(self) -> bool:
        """Whether nothing more may come: the answer ends, and fits."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def accepting(self) -> bool:
        """Whether the answer may end here."""
        return self._matcher.is_accepting()

    def mask_row(self, row: NDArray[np.float32]) -> None:
        """Set the logits of tokens that may not come next to minus infinity, in place.

        All of them, if the grammar has failed.
        """
        if not self._matcher.is_error():
            words = self._scratch.words
            self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if self._matcher.is_error():
            row.fill(-np.inf)
        else:
            self._scratch.apply(row)

    def allows(self, token: int) -> bool:
        """Whether a token may come next."""
        return self._matcher.validate_tokens([token]) == 1

    def accept(self, token: int) -> None:
        """Go on with a token that was allowed; any other breaks the matcher."""
        self._matcher.consume_token(token)
        if self._ahead and self._ahead[0] == token:
            self._ahead.popleft()
        else:
            self._ahead.clear()

    def forced(self) -> list[int]:
        """Return the tokens that must come next, MOST_FORCED at most; [] where there is a choice.

        They are the tokenizer's own tokens of the forced text.
        """
        if not self._ahead and not self._matcher.is_stopped():
            self._ahead.extend(self._matcher.compute_ff_tokens())
        return list(islice(self._ahead, MOST_FORCED))

    def rollback(self, n: int) -> None:
        """Forget the last n accepted tokens. ValueError if it cannot."""
        if not self._matcher.rollback(n):
            raise ValueError(f"cannot take {n} tokens back: {self._matcher.get_error()}")
        self._ahead.clear()
