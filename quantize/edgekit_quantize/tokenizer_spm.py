"""SentencePiece BPE vocabularies: tokenizer.model, or its Hugging Face conversion alone.

llama.cpp's "llama" tokenizer merges the two neighbours whose joint token has the highest score.
tokenizer.model holds those scores. A tokenizer.json with `byte_fallback` holds merges instead,
in the order of the scores they were made from, so the rank of a token's first merge stands for
its score.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgekit_quantize.sentencepiece import BPE, UNIGRAM, SentencePieceModel, read_sentencepiece
from edgekit_quantize.vocabulary import (
    AddedToken,
    TokenKind,
    Vocabulary,
    added_text_and_kind,
    added_token,
    added_tokens,
    as_list,
    check_size,
    damaged,
    fill_holes,
    is_id,
    look_alike_notes,
    optional_object,
    too_many_ids,
    unknown_kind,
)

ADDED_SCORE, HOLE_SCORE = -1000.0, -10000.0
"""What llama.cpp's converter writes; neither is ever compared, such tokens do not merge."""

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE_TO_BAR = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_PREPEND_BAR = {"type": "Prepend", "prepend": "▁"}


@dataclass(slots=True)
class _Table:
    """Texts, scores and kinds by id while they are put together."""

    size: int
    where: str
    tokens: list[str | None] = field(init=False)
    scores: list[float] = field(init=False)
    kinds: list[int] = field(init=False)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokens = [None] * self.size
        self.scores = [HOLE_SCORE] * self.size
        self.kinds = [int(TokenKind.UNUSED)] * self.size

    def put(self, number: int, text: str, score: float, kind: int) -> None:
        if number >= self.size:
            raise too_many_ids(self.where, text, number, self.size)
        self.tokens[number], self.scores[number], self.kinds[number] = text, score, kind

    def add(self, token: AddedToken) -> None:
        """Set an added token. One without an embedding row can never be used: it is left out."""
        if token.id >= self.size:
            self.notes.append(
                f"{token.content!r} (id {token.id}) is left out: the model has {self.size} rows"
            )
            return
        text, kind = added_text_and_kind(token)
        self.put(token.id, text, ADDED_SCORE, kind)


def from_model(
    path: Path, tokenizer: Mapping[str, object], settings: Mapping[str, object], size: int
) -> Vocabulary:
    """Read the SentencePiece model at `path` for `size` embedding rows.

    `tokenizer` and `settings` are the contents of tokenizer.json and tokenizer_config.json, empty
    where there is none: they name tokens added after training. Raises BadCheckpointError.
    """
    check_size(size, "config.json")
    model = read_sentencepiece(path)
    _check_model(model)
    _check_agrees(model, tokenizer)
    table = _Table(size, path.name)
    pieces = zip(model.texts, model.scores, model.kinds, strict=True)
    for number, (text, score, kind) in enumerate(pieces):
        if kind == TokenKind.USER_DEFINED:
            text = text.replace("▁", " ")
        table.put(number, text, score, kind)
    ids = {text: number for number, text in enumerate(model.texts)}
    added = [*_added_files(path.parent, settings), *added_tokens(tokenizer)]
    table.notes += look_alike_notes(added)
    for token in added:
        table.add(token)
        if token.id < size:
            ids[token.content] = token.id
    prefix, note = model.add_dummy_prefix, None
    if tokenizer:
        prefix, note = _space_prefix(tokenizer)
    return _finish(
        table,
        ids,
        prefix,
        [*table.notes, *([note] if note else [])],
        f"{path.name}: SentencePiece BPE with the scores it was trained with",
        dict(model.special_ids),
    )


def from_json(tokenizer: Mapping[str, object], size: int) -> Vocabulary:
    """Read a tokenizer.json with `byte_fallback` for `size` embedding rows."""
    check_size(size, "config.json")
    model = tokenizer["model"]
    assert isinstance(model, Mapping)
    prefix, note = _space_prefix(tokenizer)
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not all(is_id(number) for number in vocab.values()):
        raise damaged("tokenizer.json: the vocabulary is no map from token to id")
    added = added_tokens(tokenizer)
    scores, unlisted = _scores_by_rank(vocab, model.get("merges"), {t.content for t in added})
    table = _Table(size, "tokenizer.json", look_alike_notes(added))
    unknown = model.get("unk_token")
    for text, number in vocab.items():
        if number < size and table.tokens[number] is not None:
            raise damaged(f"tokenizer.json gives {table.tokens[number]!r} and {text!r} one id")
        kind = TokenKind.NORMAL
        if _BYTE.fullmatch(text):
            kind = TokenKind.BYTE
        elif text == unknown:
            kind = TokenKind.UNKNOWN
        table.put(number, text, scores[text], kind)
    ids = dict(vocab)
    for token in added:
        if vocab.get(token.content, token.id) != token.id:
            raise damaged(f"tokenizer.json gives {token.content!r} two ids")
        table.add(token)
        if token.id < size:
            ids[token.content] = token.id
    notes = [*table.notes, *([note] if note else [])]
    if unlisted:
        notes.append(
            f"{unlisted} ways to join two tokens are no merges in tokenizer.json; llama.cpp, which "
            "goes by scores, may use them"
        )
    special = {"unk": vocab[unknown]} if isinstance(unknown, str) and unknown in vocab else {}
    return _finish(
        table, ids, prefix, notes, "tokenizer.json: SentencePiece BPE, scores from merges", special
    )


def _finish(
    table: _Table,
    ids: Mapping[str, int],
    prefix: bool,
    notes: list[str],
    reason: str,
    special_ids: Mapping[str, int],
) -> Vocabulary:
    tokens = fill_holes(table.tokens, table.where)
    missing = {f"<0x{byte:02X}>" for byte in range(256)} - set(tokens)
    if missing:
        raise unknown_kind(
            f"{table.where} has no token {min(missing)}: llama.cpp ends the process on a "
            "character outside such a vocabulary"
        )
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=tokens,
        kinds=table.kinds,
        scores=table.scores,
        reason=reason,
        ids=ids,
        add_space_prefix=prefix,
        special_ids={role: number for role, number in special_ids.items() if number < table.size},
        adds={"bos": True, "eos": False},
        notes=notes,
    )


def _check_model(model: SentencePieceModel) -> None:
    """Refuse what llama.cpp's "llama" tokenizer does not do; it would do it silently."""
    if model.model_type == UNIGRAM:
        raise unknown_kind(
            "tokenizer.model is a Unigram SentencePiece model, which llama.cpp has only for T5"
        )
    if model.model_type != BPE:
        raise unknown_kind(f"tokenizer.model is of the SentencePiece type {model.model_type}")
    if model.charsmap or model.remove_extra_whitespaces:
        raise unknown_kind("tokenizer.model normalizes texts, which llama.cpp does not")
    if model.whitespace_as_suffix or not model.escape_whitespaces:
        raise unknown_kind("tokenizer.model treats white space in a way llama.cpp does not know")


def _check_agrees(model: SentencePieceModel, tokenizer: Mapping[str, object]) -> None:
    inner = tokenizer.get("model")
    vocab = inner.get("vocab") if isinstance(inner, Mapping) else None
    if not isinstance(vocab, Mapping):
        return
    for number, (text, kind) in enumerate(zip(model.texts, model.kinds, strict=True)):
        if kind == TokenKind.NORMAL and vocab.get(text, number) != number:
            raise damaged(
                f"tokenizer.model gives {text[:60]!r} the id {number}, tokenizer.json another"
            )


def _added_files(folder: Path, settings: Mapping[str, object]) -> Iterable[AddedToken]:
    """added_tokens.json (text to id), then tokenizer_config.json's decoder, which wins."""
    for text, number in optional_object(folder / "added_tokens.json").items():
        yield added_token({"content": text}, number, "added_tokens.json")
    decoder = settings.get("added_tokens_decoder")
    if decoder is None:
        return
    if not isinstance(decoder, Mapping):
        raise damaged("tokenizer_config.json: added_tokens_decoder is no object")
    for key, entry in decoder.items():
        number = int(key) if re.fullmatch(r"[0-9]{1,9}", key) else None
        yield added_token(entry, number, "tokenizer_config.json")


def _scores_by_rank(
    vocab: Mapping[str, int], merges: object, added: Container[str]
) -> tuple[dict[str, float], int]:
    """Return minus the rank of each token's first merge, and how many joins are no merge."""
    entries = as_list(merges, "tokenizer.json: merges")
    scores: dict[str, float] = {}
    listed: dict[str, int] = {}
    for rank, entry in enumerate(entries):
        parts = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(parts, list) or len(parts) != 2:
            raise damaged(f"tokenizer.json: {entry!r:.80} is no merge")
        left, right = parts
        if not isinstance(left, str) or not isinstance(right, str):
            raise damaged(f"tokenizer.json: {entry!r:.80} is no merge")
        token = left + right
        scores.setdefault(token, -float(rank))
        listed[token] = listed.get(token, 0) + 1
    unlisted = 0
    for text in vocab:
        scores.setdefault(text, -float(len(entries)))
        if text not in added and not _BYTE.fullmatch(text):
            cuts = range(1, min(len(text), _MAX_CUTS))
            joins = sum(text[:cut] in vocab and text[cut:] in vocab for cut in cuts)
            unlisted += max(0, joins - listed.get(text, 0))
    return scores, unlisted


_MAX_CUTS = 256
"""Longer tokens are not searched for further joins: a hostile file could have long ones."""


def _space_prefix(tokenizer: Mapping[str, object]) -> tuple[bool, str | None]:
    """Say whether a space is put before the text; refuse any other normalization."""
    normalizers = _flat(tokenizer.get("normalizer"), "normalizers")
    splits = _flat(tokenizer.get("pre_tokenizer"), "pretokenizers")
    splits = [step for step in splits if not _is_no_op(step)]
    if not splits and normalizers == [_PREPEND_BAR, _SPACE_TO_BAR]:
        return True, None
    if not splits and normalizers == [_SPACE_TO_BAR]:
        return False, None
    if not normalizers and len(splits) == 1 and isinstance(step := splits[0], Mapping):
        scheme = step.get("prepend_scheme", "always")
        whole = step.get("split") is False and step.get("replacement") == "▁"
        if step.get("type") == "Metaspace" and whole and scheme in ("always", "first", "never"):
            note = None
            if scheme == "first":
                note = "llama.cpp puts a space before the text after each control token as well, "
                note += "tokenizer.json only before the first"
            return scheme != "never", note
    raise unknown_kind(
        f"tokenizer.json normalizes or splits text in an unknown way: {normalizers!r:.200}; "
        f"{splits!r:.200}"
    )


def _flat(step: object, inner: str) -> list[object]:
    """Undo a Sequence. Deep nesting stays as it is, and matches nothing."""
    if step is None:
        return []
    if isinstance(step, Mapping) and step.get("type") == "Sequence":
        return as_list(step.get(inner), f"tokenizer.json: {inner}")
    return [step]


def _is_no_op(step: object) -> bool:
    """Gemma splits at spaces, of which its normalizer has left none."""
    if not isinstance(step, Mapping) or step.get("type") != "Split":
        return False
    return step.get("pattern") == {"String": " "} and step.get("behavior") == "MergedWithPrevious"
