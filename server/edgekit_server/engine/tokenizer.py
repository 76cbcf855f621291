"""Prompts to tokens, safe against texts that kill llama.cpp's tokenizer.

Its regex engine recurses once per character of a word (about 150 bytes of stack each), so a
megabyte of one letter overflows any usual stack and ends the process. Two guards: a text that
can never fit the context is refused by its length alone, and a word longer than MAX_WORD
characters is cut there. Run it on a thread with STACK_BYTES of stack.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from edgekit_server.engine import native
from edgekit_server.engine.vocabulary import Vocabulary
from edgekit_server.engine.wire import Piece

MAX_WORD = 16_384
STACK_BYTES = 64 * 1024 * 1024
"""4 KiB for each character of the longest word; reserved, and touched only when needed."""

# A letter or digit, then ASCII or CJK punctuation or a space: no pre-tokenizer's word reaches
# over this, but for contractions (the apostrophes are left out) and a bounded few characters.
_WORD_END = re.compile(
    r"\w(?=[\x00-&(-/:-@\[-^`{-~\u2010-\u2018\u201a-\u2027\u3000-\u3003\u3008-\u3011\uff01-\uff0f])"
)


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
        self._control = re.compile("|".join(map(re.escape, texts)) if texts else r"(?!)")

    def encode(self, prompt: Sequence[Piece], *, limit: bool = True) -> array[int]:
        """Tokenize pieces in order; nothing is added, BOS neither.

        A control token's text becomes that token only in a piece that says so. Raises
        TooLongError if `limit` and the bytes alone show that the prompt cannot fit, and
        EngineDiedError(tokenizer_failed) if llama.cpp refuses the text.
        """
        if limit:
            self._refuse_hopeless(prompt)
        ids: array[int] = array("i")
        for text, special in self._merged(prompt):
            for part in self._fragments(text, special):
                found = self._model.tokenize(part.encode("utf-8", "replace"), special=special)
                ids.frombytes(found.astype(np.int32).tobytes())
        return ids

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

    def _fragments(self, text: str, special: bool) -> Iterator[str]:
        """Yield the text in parts that hold no word longer than MAX_WORD."""
        if len(text) <= MAX_WORD or not self._model.is_byte_pair:
            yield text
            return
        start = previous = 0
        ends = [match.end() for match in _WORD_END.finditer(text)]
        for end in [*ends, len(text)]:
            while end - previous > MAX_WORD:
                cut = self._outside_control(text, previous, previous + MAX_WORD, special)
                yield text[start:cut]
                start = previous = cut
            previous = end
        if start < len(text):
            yield text[start:]

    def _outside_control(self, text: str, start: int, cut: int, special: bool) -> int:
        """Move a cut back to the front of a control token that it would split."""
        if special:
            for match in self._control.finditer(text, start):
                if match.start() >= cut:
                    break
                if start < match.start() and cut < match.end():
                    return match.start()
        return cut
