"""Fill in the middle: prefix and suffix around a model's own FIM control tokens. Pure.

Layouts: Mistral puts the suffix first and has no middle token (mistral-common, `encode_fim`);
Seed-Coder puts the suffix first and has one (its paper, FIM section); Qwen, StarCoder, DeepSeek,
Code Llama, CodeGemma, GLM and Granite put prefix, suffix, then the middle token. Files of the same
repository go first, as llama-server lays them out: where the model has tokens around files, with
those, else as plain text. Whatever control token a model writes next, the middle is over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..engine.wire import Piece
from ..errors import RequestError

MISTRAL_PREFIX = "[PREFIX]"
MISTRAL_SUFFIX = "[SUFFIX]"
SUFFIX_FIRST = frozenset({MISTRAL_PREFIX, "<[fim-prefix]>"})
"""Prefix tokens of the families that want the suffix before the prefix."""
NO_MIDDLE = frozenset({MISTRAL_PREFIX})
REPOSITORY = "project\n"
CURRENT_FILE = "current\n"
"""Clients name neither; a model wants a name there."""
NO_FIM = "the model has no FIM tokens"
HINT = "serve a model trained to fill in the middle, such as a Qwen2.5-Coder, beside it"


@dataclass(frozen=True, slots=True)
class File:
    """A piece of another file, for context."""

    text: str
    name: str = "tmp"


@dataclass(frozen=True, slots=True)
class Layout:
    """How one model wants a FIM prompt."""

    prefix: str
    suffix: str
    middle: str | None
    suffix_first: bool
    repo: str | None
    sep: str | None

    @property
    def stops(self) -> list[str]:
        """Texts that open another file where no token does: the middle ends before them."""
        if self.sep is not None:
            return []
        return ["\n+++++ "] if self.middle is None else ["\n--- snippet ---\n"]

    def pieces(self, prefix: str, suffix: str, files: Sequence[File] = ()) -> list[Piece]:
        """Return the prompt, without BOS. What the client sent is never a control token."""
        before: list[Piece] = [(self.prefix, True), (prefix, False)]
        after: list[Piece] = [(self.suffix, True), (suffix, False)]
        around = [*after, *before] if self.suffix_first else [*before, *after]
        ending: list[Piece] = [(self.middle, True)] if self.middle is not None else []
        found = [*self._files(files), *around, *ending]
        return [(text, special) for text, special in found if text]

    def _files(self, files: Sequence[File]) -> list[Piece]:
        if not files:
            return []
        if self.sep is None:
            return [(self._head(file) + file.text, False) for file in files]
        pieces: list[Piece] = []
        if self.repo is not None:
            pieces += [(self.repo, True), (REPOSITORY, False)]
        for file in files:
            pieces += [(self.sep, True), (f"{file.name}\n{file.text}", False)]
        return [*pieces, (self.sep, True), (CURRENT_FILE, False)]

    def _head(self, file: File) -> str:
        """Return the line over a file where no token marks one: Mistral's, or llama-server's."""
        return f"\n+++++ {file.name}\n" if self.middle is None else "\n\n--- snippet ---\n\n"


def layout_of(fim: Mapping[str, str]) -> Layout | None:
    """Return the layout for token texts by role (Hello.fim); None if the model has no FIM."""
    prefix, suffix, middle = fim.get("prefix"), fim.get("suffix"), fim.get("middle")
    if prefix is None or suffix is None or (middle is None and prefix not in NO_MIDDLE):
        return None
    return Layout(
        prefix=prefix,
        suffix=suffix,
        middle=None if prefix in NO_MIDDLE else middle,
        suffix_first=prefix in SUFFIX_FIRST,
        repo=fim.get("repo"),
        sep=fim.get("sep"),
    )


def fim_pieces(prefix: str, suffix: str, fim: Mapping[str, str]) -> list[Piece]:
    """Return the prompt, without BOS; `fim` is Hello.fim. RequestError if the model has no FIM."""
    layout = layout_of(fim)
    if layout is None:
        raise RequestError(
            "this model has no fill-in-the-middle tokens, so `suffix` cannot be served; "
            "use a model trained for it, such as a Qwen2.5-Coder",
            code="unsupported_parameter",
            param="suffix",
        )
    return layout.pieces(prefix, suffix)


def needed_layout(fim: Mapping[str, str]) -> Layout:
    """Return the layout; RequestError 501 if the model has no FIM tokens."""
    layout = layout_of(fim)
    if layout is None:
        raise RequestError(
            f"{NO_FIM}; {HINT}", status=501, type="not_supported_error", code="no_fim_tokens"
        )
    return layout


def newest_that_fit(sizes: Sequence[int], room: int) -> int:
    """Return how many of the last items have at most `room` together."""
    kept = 0
    for size in reversed(sizes):
        room -= size
        if room < 0:
            break
        kept += 1
    return kept
