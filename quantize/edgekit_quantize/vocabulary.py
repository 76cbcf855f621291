"""A vocabulary on its way into a GGUF: texts, kinds, scores or merges, and where they came from.

Also what the three readers (byte-level BPE, SentencePiece, tekken) share: bounded reading of
untrusted JSON, the errors, and the checks that keep llama.cpp from aborting on the result.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from edgekit_quantize.errors import BadCheckpointError, IoFailedError, MissingFileError

MAX_TOKENS = 1 << 20
"""Four times the largest vocabulary in use (Gemma 3: 262,144)."""
MAX_FILE_BYTES = 64 << 20
"""Twice the largest tokenizer.json in use (Gemma 3: 33 MB)."""
MAX_JSON_ITEMS = 4_000_000
"""Commas and opening brackets. Gemma 3's tokenizer.json has about two million."""
MAX_SETTINGS_BYTES = 16 << 20


class TokenKind(IntEnum):
    """llama.cpp's token types; SentencePiece's piece types have the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is matched in the text as a whole, before anything is split."""

    content: str
    id: int
    special: bool


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What one tokenizer file says.

    `model` is llama.cpp's name of the algorithm ("gpt2": byte-level BPE, "llama": SentencePiece
    BPE) and `pre` that of the splitting rule. `scores` belong to "llama", `merges` to "gpt2".
    `special_ids` are ids by role (bos, eos, unk, pad) that the file itself names, `ids` the added
    tokens and markers by text. `adds` says what is put at the ends, where the kind of file says
    so. `reason` says which file was read and why, `notes` what will differ and what was left out.
    """

    model: str
    pre: str
    tokens: Sequence[str]
    kinds: Sequence[int]
    reason: str
    ids: Mapping[str, int]
    scores: Sequence[float] = ()
    merges: Sequence[str] = ()
    add_space_prefix: bool | None = None
    special_ids: Mapping[str, int] = field(default_factory=dict)
    adds: Mapping[str, bool] = field(default_factory=dict)
    notes: Sequence[str] = ()


def unknown_kind(what: str) -> BadCheckpointError:
    return BadCheckpointError(
        what,
        code="unknown_tokenizer",
        hint="edgekit converts byte-level BPE and SentencePiece BPE vocabularies: tokenizer.json, "
        "tokenizer.model and tekken.json",
    )


def damaged(what: str) -> BadCheckpointError:
    return BadCheckpointError(what, code="bad_tokenizer", hint="fetch the tokenizer files again")


def too_many_ids(name: str, text: str, number: int, size: int) -> BadCheckpointError:
    return BadCheckpointError(
        f"{name} has token {text[:60]!r} with id {number}, but the model has only {size} embedding "
        "rows",
        code="vocab_mismatch",
        hint=f"config.json and {name} are of different models; fetch both again",
    )


def read_bounded(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """Return a file's bytes. Raises MissingFileError, IoFailedError, or `bad_tokenizer`."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{path.name} is missing from {path.parent}",
            code="missing_file",
            hint="fetch the whole repository, not only its weights",
        ) from error
    except OSError as error:
        raise IoFailedError(f"cannot read {path}: {error.strerror}", code="io_error") from error
    if len(data) > limit:
        raise damaged(f"{path.name} is larger than {limit >> 20} MiB")
    return data


def read_object(path: Path, limit: int = MAX_FILE_BYTES) -> dict[str, object]:
    """Return the object in a JSON file, whose size and number of items are checked first.

    The items are counted before decoding: each becomes a Python object, many times its text.
    """
    data = read_bounded(path, limit)
    if sum(data.count(mark) for mark in b",[{") > MAX_JSON_ITEMS:
        raise damaged(f"{path.name} has more than {MAX_JSON_ITEMS} items")
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise BadCheckpointError(
            f"{path.name} is no valid JSON: {error}", code="bad_json", hint="fetch the file again"
        ) from error
    if not isinstance(value, dict):
        raise BadCheckpointError(f"{path.name} holds no JSON object", code="bad_json")
    return value


def optional_object(path: Path) -> dict[str, object]:
    """Return the object in a settings file, or an empty one where there is no file."""
    return read_object(path, MAX_SETTINGS_BYTES) if path.is_file() else {}


def as_list(value: object, what: str) -> list[object]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise damaged(f"{what} is no list")
    return value


def is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def added_token(entry: object, number: object, where: str) -> AddedToken:
    """Read one added token's object. Raises `bad_tokenizer`."""
    if not isinstance(entry, Mapping):
        raise damaged(f"{where}: an added token is no object")
    content = entry.get("content")
    if not isinstance(content, str) or not isinstance(number, int) or not is_id(number):
        raise damaged(f"{where}: the added token {content!r} has no text or no id")
    return AddedToken(content, number, bool(entry.get("special", False)))


def added_tokens(tokenizer: Mapping[str, object]) -> list[AddedToken]:
    """Return the `added_tokens` of a tokenizer.json."""
    entries = as_list(tokenizer.get("added_tokens"), "tokenizer.json: added_tokens")
    return [
        added_token(e, e.get("id") if isinstance(e, Mapping) else None, "tokenizer.json")
        for e in entries
    ]


def added_text_and_kind(token: AddedToken) -> tuple[str, TokenKind]:
    """llama.cpp matches user-defined tokens in the raw text, so they hold spaces, not "▁"."""
    if token.special or looks_special(token.content):
        return token.content, TokenKind.CONTROL
    return token.content.replace("▁", " "), TokenKind.USER_DEFINED


def looks_special(text: str) -> bool:
    """Some repositories forget to mark control tokens; llama.cpp's converter marks these."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def byte_letters() -> list[str]:
    """Return the 256 printable stand-ins for bytes, in byte order (GPT-2's table)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def look_alike_notes(added: Sequence[AddedToken]) -> list[str]:
    """Say how many added tokens are written as control tokens though not marked special."""
    count = sum(not token.special and looks_special(token.content) for token in added)
    if not count:
        return []
    return [
        f"{count} added tokens look like control tokens and are written as such: in plain text "
        "they stay text, where tokenizer.json would turn them into their ids"
    ]


def fill_holes(tokens: Sequence[str | None], where: str) -> list[str]:
    """Name the ids without a token `[PADn]`, and refuse what makes llama.cpp abort.

    It reads texts as C strings and asserts that no two ids have the same one.
    """
    used = {text for text in tokens if text is not None}
    if len(used) + tokens.count(None) < len(tokens):
        twice, _ = Counter(text for text in tokens if text is not None).most_common(1)[0]
        raise damaged(f"{where}: two ids have the text {twice[:60]!r}")
    found = []
    for number, text in enumerate(tokens):
        if text is None:
            text = f"[PAD{number}]"
            while text in used:
                text = f"_{text}"
        elif "\0" in text or (not text and f"[EMPTY_{number}]" in used):
            raise damaged(f"{where}: the text of token {number} holds a NUL byte or is empty")
        found.append(text)
    return found


def check_size(size: int, where: str) -> None:
    if not 0 < size <= MAX_TOKENS:
        raise damaged(f"{where} has {size} tokens, more than the {MAX_TOKENS} edgekit accepts")
