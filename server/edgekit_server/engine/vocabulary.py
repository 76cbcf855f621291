"""The vocabulary's tables, read once: no lookup of a token ever reaches native code again."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit_server.engine import native
from edgekit_server.engine.fimroles import roles


@dataclass(frozen=True, slots=True)
class Vocabulary:
    pieces: list[bytes]
    """The bytes of each token, control tokens as their text."""
    controls: frozenset[int]
    ends: frozenset[int]
    """Ids that end generation."""
    suppressed: tuple[int, ...]
    bos: str | None
    eos: str | None
    fim: dict[str, str]
    longest_piece: int
    """Bytes of the longest token: no text has fewer tokens than its bytes over this."""
    exact_bytes: bool
    """Whether the tokens of a text always join to exactly its bytes (byte-level BPE)."""

    @property
    def control_texts(self) -> list[str]:
        """Texts of the control tokens, in id order, empty ones left out."""
        texts = (self.text(token) for token in sorted(self.controls))
        return [text for text in texts if text]

    @property
    def control_ids(self) -> dict[str, int]:
        """Control tokens by text; the first of several with the same."""
        ids: dict[str, int] = {}
        for token in sorted(self.controls):
            if text := self.text(token):
                ids.setdefault(text, token)
        return ids

    def text(self, token: int) -> str:
        return self.pieces[token].decode("utf-8", "replace")


def pads_text(model: native.Model, tables: Vocabulary) -> bool:
    """Return whether the tokens of a text begin with a space that is not in it."""
    ids = model.tokenize(b"a", special=False).tolist()
    return bool(ids) and tables.pieces[ids[0]].startswith(b" ")


def read(model: native.Model) -> Vocabulary:
    """Read all tables of a loaded model (about 0.1 s for 128k tokens)."""
    pieces = model.pieces()
    controls = frozenset(model.control_ids())
    special = model.special_ids()
    texts = {token: pieces[token].decode("utf-8", "replace") for token in special.values()}
    named = {role: texts[token] for role, token in special.items()}
    known = {pieces[token].decode("utf-8", "replace") for token in controls}
    fim = roles(named, known, model.metadata("general.architecture"))
    return Vocabulary(
        pieces=pieces,
        controls=controls,
        ends=frozenset(model.end_ids()),
        suppressed=tuple(model.suppressed_ids()),
        bos=texts[special["bos"]] if "bos" in special else None,
        eos=texts[special["eos"]] if "eos" in special else None,
        fim=fim,
        longest_piece=max(map(len, pieces), default=1),
        exact_bytes=model.is_byte_pair and not model.strips_spaces,
    )
