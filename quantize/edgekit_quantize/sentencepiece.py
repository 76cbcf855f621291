"""Read a SentencePiece `tokenizer.model`: a protobuf file from strangers, so every step is checked.

Only the fields that decide how text is cut are kept. The wire format is protobuf's: a key
(field number and wire type) as a varint, then a varint, 4 or 8 bytes, or a length and bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgekit_quantize.vocabulary import MAX_TOKENS, TokenKind, damaged, read_bounded

UNIGRAM, BPE = 1, 2
"""TrainerSpec.ModelType; 3 and 4 are whole words and single characters."""

_VARINT, _I64, _BYTES, _I32 = 0, 1, 2, 5
_KINDS = {int(kind) for kind in TokenKind}


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """The pieces by id, and the settings. `charsmap` is the size of the normalization table."""

    texts: tuple[str, ...]
    scores: tuple[float, ...]
    kinds: tuple[int, ...]
    model_type: int = UNIGRAM
    special_ids: tuple[tuple[str, int], ...] = ()
    whitespace_as_suffix: bool = False
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    charsmap: int = 0


def is_sentencepiece(path: Path) -> bool:
    """Tell a SentencePiece model from tiktoken's text file of the same name.

    Its first field is a piece: key 0x0A. tiktoken's file starts with a base64 letter.
    """
    try:
        with path.open("rb") as file:
            return file.read(1) == b"\n"
    except OSError:
        return False


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read the file at `path`. Raises BadCheckpointError (code `bad_tokenizer`)."""
    try:
        return parse_sentencepiece(read_bounded(path))
    except (ValueError, struct.error) as error:
        raise damaged(f"{path.name} is no SentencePiece model: {error}") from error


def parse_sentencepiece(data: bytes) -> SentencePieceModel:
    """Decode a ModelProto. Raises ValueError with the reason in words."""
    texts: list[str] = []
    scores: list[float] = []
    kinds: list[int] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1:
            if len(texts) >= MAX_TOKENS:
                raise ValueError(f"more than {MAX_TOKENS} pieces")
            text, score, kind = _piece(_bytes(value))
            texts.append(text)
            scores.append(score)
            kinds.append(kind)
        elif number == 2:
            trainer.update(_fields(_bytes(value)))
        elif number == 3:
            normalizer.update(_fields(_bytes(value)))
    if not texts:
        raise ValueError("it has no pieces")
    if len(set(texts)) < len(texts):
        raise ValueError("two pieces have the same text")
    roles = (("unk", 40, 0), ("bos", 41, 1), ("eos", 42, 2), ("pad", 43, -1))
    special = ((name, _signed(_int(trainer.get(field, start)))) for name, field, start in roles)
    return SentencePieceModel(
        texts=tuple(texts),
        scores=tuple(scores),
        kinds=tuple(kinds),
        model_type=_int(trainer.get(3, UNIGRAM)),
        special_ids=tuple((name, i) for name, i in special if 0 <= i < len(texts)),
        whitespace_as_suffix=bool(_int(trainer.get(24, 0))),
        add_dummy_prefix=bool(_int(normalizer.get(3, 1))),
        remove_extra_whitespaces=bool(_int(normalizer.get(4, 1))),
        escape_whitespaces=bool(_int(normalizer.get(5, 1))),
        charsmap=len(_bytes(normalizer.get(2, b""))),
    )


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, int(TokenKind.NORMAL)
    for number, value in _fields(data):
        if number == 1:
            text = _bytes(value).decode()
        elif number == 2:
            (score,) = struct.unpack("<f", _bytes(value))
        elif number == 3:
            kind = _int(value)
    if not text:
        raise ValueError("a piece has no text")
    if kind not in _KINDS:
        raise ValueError(f"a piece has the unknown type {kind}")
    if not math.isfinite(score):
        raise ValueError(f"the piece {text[:40]!r} has the score {score}")
    return text, score, kind


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field: int for varints, bytes for all else."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        wire = key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_I32, _I64):
            size = 4 if wire == _I32 else 8
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if size > end - at:
            raise ValueError(f"a field of {size} bytes runs past the end")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number of more than ten bytes at byte {at}")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where bytes belong")
    return value


def _int(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("bytes where a number belongs")
    return value


def _signed(value: int) -> int:
    """Protobuf's int32 stores -1 as 64 bits of ones."""
    return value - (1 << 64) if value >= 1 << 63 else value
