"""Prompts to tokens, safe against texts that kill or stall llama.cpp's tokenizer.

Its regex engine recurses once per character of a word (about 150 bytes of stack each), so a
megabyte of one letter overflows any usual stack and ends the process; and it copies the whole
text once per control token in it, so a megabyte of those takes minutes. Hence two guards: a
text that can never fit the context is refused by its length alone, and a long one is given to
llama.cpp in parts of MAX_PART characters, cut where words end. Only a single word longer than
that is cut inside. Run it on a thread with STACK_BYTES of stack.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from edgekit_server.engine import native
from edgekit_server.engine.vocabulary import Vocabulary
from edgekit_server.engine.wire import Piece

MAX_PART = 16_384
STACK_BYTES = 64 * 1024 * 1024
"""4 KiB for each character of the longest part; reserved, and touched only when needed."""

# Ends of words, best first. A letter or digit before white space or CJK punctuation ends a word
# for every split pattern in llama.cpp; before other punctuation, for nearly every one (not
# before an apostrophe, for contractions).
_WORD_ENDS = (
    re.compile(r"[^\W_](?=[ \n\r\t\u3001\u3002\uff01\uff0c\uff1f])"),
    re.compile(r"[^\W_](?=[\x21-&(-/:-@\[-^`{-~])"),
)


FAR_TOO_LONG = 4
"""Contexts that a prompt may fill before it is not worth counting any further."""


class DroppedError(Exception):
    """Nobody waits for these tokens any more."""


class TooLongError(Exception):
    """The prompt has at least `n_tokens` tokens, more than a sequence can hold."""

    def __init__(self, n_tokens: int) -> None:
        super().__init__(f"at least {n_tokens} tokens")
        self.n_tokens = n_tokens


class Tokenizer:
    """Pieces of text to ids; thread safe."""

    def __init__(self, model: native.Model, vocabulary: Vocabulary, n_ctx_seq: int) -> None:
        self._model = model
        self._vocabulary = vocabulary
        self._n_ctx_seq = n_ctx_seq
        texts = sorted(vocabulary.control_texts, key=len, reverse=True)
        self._longest_control = max(map(len, texts), default=0)
        self._control = re.compile("|".join(map(re.escape, texts)) if texts else r"(?!)")

    @property
    def vocab(self) -> object:
        """llama.cpp's vocabulary, for the samplers that look at texts."""
        return self._model.vocab

    def encode(
        self,
        prompt: Sequence[Piece],
        *,
        limit: bool = True,
        dropped: Callable[[], bool] | None = None,
    ) -> array[int]:
        """Tokenize pieces in order; nothing is added, BOS neither.

        A control token's text becomes that token only in a piece that says so. Raises
        TooLongError if `limit` and the prompt cannot fit by far (its bytes alone show it, or
        FAR_TOO_LONG contexts are full), DroppedError once `dropped` says that nobody waits, and
        EngineDiedError(tokenizer_failed) if llama.cpp refuses the text.
        """
        if limit:
            self._refuse_hopeless(prompt)
        ids: array[int] = array("i")
        for text, special in self._merged(prompt):
            for part in self._parts(text, special):
                if limit and len(ids) > FAR_TOO_LONG * self._n_ctx_seq:
                    raise TooLongError(len(ids))
                if dropped is not None and dropped():
                    raise DroppedError
                found = self._model.tokenize(part.encode("utf-8", "replace"), special=special)
                ids.frombytes(found.astype(np.int32).tobytes())
        return ids

    def plain(self, text: str) -> list[int]:
        """Tokenize a text in which no letters are control tokens, of any length."""
        return self.encode([(text, False)], limit=False).tolist()

    def _refuse_hopeless(self, prompt: Sequence[Piece]) -> None:
        """n tokens cover at most n x longest_piece bytes, so bytes give a lower bound."""
        if not self._vocabulary.exact_bytes:
            return
        n_bytes = sum(len(text.encode("utf-8", "replace")) for text, _ in prompt)
        at_least = -(-n_bytes // self._vocabulary.longest_piece)
        if at_least > self._n_ctx_seq:
            raise TooLongError(at_least)

    def _merged(self, prompt: Sequence[Piece]) -> Iterator[Piece]:
        """Join neighbours where the flag makes no difference, so that words may span them.

        A template's text and a user's text belong to one rendered string, and the reference
        tokenizes that string whole. Only a user's text that spells a control token is kept
        apart, since there the flag decides.
        """
        run: list[str] = []
        for text, special in prompt:
            if not text:
                continue
            if special or not self._control.search(text):
                run.append(text)
                continue
            if run:
                yield "".join(run), True
                run = []
            yield text, False
        if run:
            yield "".join(run), True

    def _parts(self, text: str, special: bool) -> Iterator[str]:
        """Yield the text in parts of at most MAX_PART characters."""
        start = 0
        if self._model.is_byte_pair:
            while len(text) - start > MAX_PART:
                cut = self._cut(text, start, special)
                yield text[start:cut]
                start = cut
        yield text[start:]

    def _cut(self, text: str, start: int, special: bool) -> int:
        """Return the best place to cut within MAX_PART characters from `start`."""
        end = start + MAX_PART
        best, *others = ([m.end() for m in ends.finditer(text, start, end)] for ends in _WORD_ENDS)
        tokens = [m.start() for m in self._control.finditer(text, start, end)] if special else []
        for places in (best, tokens, *others, [end]):
            for place in reversed(places[-8:]):
                if place > start and self._control_over(text, place, special) is None:
                    return place
        # The cut falls into a control token, and nothing better is near: cut before that.
        over = self._control_over(text, end, special)
        return end if over is None or over <= start else over

    def _control_over(self, text: str, place: int, special: bool) -> int | None:
        """Return the start of the control token that a cut at `place` would split."""
        if not special:
            return None
        begin, end = max(0, place - self._longest_control), place + self._longest_control
        for match in self._control.finditer(text, begin, end):
            if match.start() < place < match.end():
                return match.start()
        return None
