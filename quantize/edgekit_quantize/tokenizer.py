"""tokenizer.json and tokenizer_config.json -> the `tokenizer.*` keys of a GGUF.

Byte-level BPE only (the family of GPT-2, Llama 3, Qwen, tekken). Keys, order and values are
those of llama.cpp's converter, plus the fill-in-the-middle ids, which it leaves to guessing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from edgekit_quantize.architectures import Config
from edgekit_quantize.checkpoint import read_json
from edgekit_quantize.errors import BadCheckpointError, MissingFileError
from edgekit_quantize.metadata import KeyValue, boolean, i32s, string, strings, u32
from edgekit_quantize.pretokenizers import recognise

FIM_FAMILIES = (
    ("[PREFIX]", "[SUFFIX]", "[MIDDLE]"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
)
"""Prefix, suffix and middle markers; a family counts when all three are added tokens."""

_SPACE = chr(ord(" ") + 256)
_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "mask")
_ID_KEYS = {"unk": "unknown", "sep": "seperator", "pad": "padding"}


class TokenKind(IntEnum):
    """llama.cpp's token types."""

    NORMAL = 1
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """The keys to write, and how the pre-tokenizer was found."""

    metadata: tuple[KeyValue, ...]
    pre: str
    reason: str


def read_tokenizer(folder: Path, config: Config, vocab_size: int, arch: str) -> Tokenizer:
    """Read the folder's tokenizer for a model with `vocab_size` embedding rows.

    Raises MissingFileError, or BadCheckpointError with the code `unknown_tokenizer` (a kind we
    do not convert), `bad_tokenizer` (damaged) or `vocab_mismatch`.
    """
    tokenizer = _read_tokenizer_json(folder)
    settings_file = folder / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.is_file() else {}
    model = tokenizer.get("model")
    if not isinstance(model, Mapping) or model.get("type", "BPE") != "BPE":
        raise _unknown("tokenizer.json is no BPE tokenizer")
    if model.get("byte_fallback"):
        raise _unknown("tokenizer.json is a SentencePiece-style BPE with byte fallback")
    pre = recognise(
        tokenizer.get("pre_tokenizer"), ignore_merges=bool(model.get("ignore_merges", False))
    )
    vocab = _vocab(model)
    added = _added_tokens(tokenizer, vocab)
    tokens, kinds = _token_table(vocab, added, vocab_size)

    keys: list[KeyValue] = []
    prefix_space = settings.get("add_prefix_space")
    if arch == "llama" and isinstance(prefix_space, bool):
        keys.append(boolean("tokenizer.ggml.add_space_prefix", prefix_space))
    keys.append(string("tokenizer.ggml.model", "gpt2"))
    keys.append(string("tokenizer.ggml.pre", pre))
    keys.append(strings("tokenizer.ggml.tokens", tokens))
    keys.append(i32s("tokenizer.ggml.token_type", kinds))
    if merges := [_merge(entry) for entry in _list(model.get("merges"), "merges")]:
        keys.append(strings("tokenizer.ggml.merges", merges))
    ids = {token.content: token.id for token in added}
    for kind, number in _special_ids(settings, config, ids).items():
        if number >= vocab_size:
            raise _bad(f"the {kind} token has id {number}, outside the {vocab_size} tokens")
        keys.append(u32(f"tokenizer.ggml.{_ID_KEYS.get(kind, kind)}_token_id", number))
    keys.extend(_fim_keys(ids))
    for kind, value in _added_at_the_ends(tokenizer, settings).items():
        keys.append(boolean(f"tokenizer.ggml.add_{kind}_token", value))
    keys.extend(_template_keys(folder, settings))
    reason = f"pre-tokenizer {pre}, recognised from the split pattern in tokenizer.json"
    return Tokenizer(tuple(keys), pre, reason)


@dataclass(frozen=True, slots=True)
class _Added:
    content: str
    id: int
    special: bool


def _unknown(what: str) -> BadCheckpointError:
    return BadCheckpointError(
        what,
        code="unknown_tokenizer",
        hint="edgekit converts byte-level BPE tokenizers stored as tokenizer.json",
    )


def _bad(what: str) -> BadCheckpointError:
    return BadCheckpointError(what, code="bad_tokenizer", hint="fetch tokenizer.json again")


def _read_tokenizer_json(folder: Path) -> dict[str, object]:
    path = folder / "tokenizer.json"
    if not path.is_file():
        for other in ("tekken.json", "tokenizer.model", "vocab.json"):
            if (folder / other).is_file():
                raise _unknown(f"the folder has {other} but no tokenizer.json")
        raise MissingFileError(
            f"tokenizer.json is missing from {folder}",
            code="missing_file",
            hint="fetch the whole repository, not only its weights",
        )
    return read_json(path)


def _list(value: object, what: str) -> list[object]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _bad(f"tokenizer.json: {what} is no list")
    return value


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _vocab(model: Mapping[str, object]) -> dict[str, int]:
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not all(_is_id(number) for number in vocab.values()):
        raise _bad("tokenizer.json: the vocabulary is no map from token to id")
    return dict(vocab)


def _added_tokens(tokenizer: Mapping[str, object], vocab: Mapping[str, int]) -> list[_Added]:
    found = []
    for entry in _list(tokenizer.get("added_tokens"), "added_tokens"):
        if not isinstance(entry, Mapping):
            raise _bad("tokenizer.json: an added token is no object")
        content, number = entry.get("content"), entry.get("id")
        if not isinstance(content, str) or not isinstance(number, int) or not _is_id(number):
            raise _bad(f"tokenizer.json: the added token {content!r} has no text or no id")
        if vocab.get(content, number) != number:
            raise _bad(f"tokenizer.json gives {content!r} the ids {vocab[content]} and {number}")
        found.append(_Added(content, number, bool(entry.get("special", False))))
    return found


def _token_table(
    vocab: Mapping[str, int], added: list[_Added], size: int
) -> tuple[list[str], list[int]]:
    """Return text and kind of each id below `size`; ids without a token become `[PADn]`."""
    tokens: list[str | None] = [None] * size
    kinds = [int(TokenKind.NORMAL)] * size
    by_id = {token.id: token for token in added}
    everything = {**vocab, **{token.content: token.id for token in added}}
    for text, number in everything.items():
        if number >= size:
            raise BadCheckpointError(
                f"tokenizer.json has token {text!r} with id {number}, but the model has only "
                f"{size} embedding rows",
                code="vocab_mismatch",
                hint="config.json and tokenizer.json are of different models; fetch both again",
            )
        if tokens[number] is not None:
            raise _bad(f"tokenizer.json gives {tokens[number]!r} and {text!r} the id {number}")
        tokens[number] = text
        if number in by_id:
            special = by_id[number].special or _looks_special(text)
            kinds[number] = TokenKind.CONTROL if special else TokenKind.USER_DEFINED
            if not special:
                tokens[number] = text.replace("▁", " ")
    kinds = [TokenKind.UNUSED if tokens[i] is None else kind for i, kind in enumerate(kinds)]
    return [f"[PAD{i}]" if text is None else text for i, text in enumerate(tokens)], kinds


def _looks_special(text: str) -> bool:
    """Some repositories forget to mark control tokens; llama.cpp's converter marks these."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def _merge(entry: object) -> str:
    if isinstance(entry, str):
        return entry
    if isinstance(entry, list) and len(entry) == 2:
        left, right = entry
        if isinstance(left, str) and isinstance(right, str):
            if " " in left or " " in right:
                # A space inside a part would end it: write the byte-level stand-in.
                left, right = left.replace(" ", _SPACE), right.replace(" ", _SPACE)
            return f"{left} {right}"
    raise _bad(f"tokenizer.json: {entry!r} is no merge")


def _content(entry: object) -> str | None:
    if isinstance(entry, Mapping):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _special_ids(
    settings: Mapping[str, object], config: Config, ids: Mapping[str, int]
) -> dict[str, int]:
    """tokenizer_config.json first (by text), then config.json (by id)."""
    found: dict[str, int] = {}
    for kind in _SPECIAL:
        text = _content(settings.get(f"{kind}_token"))
        if text is not None and text in ids:
            found[kind] = ids[text]
    for kind in _SPECIAL:
        number = config.get(f"{kind}_token_id")
        if kind not in found and isinstance(number, int) and _is_id(number):
            found[kind] = number
    return found


def _fim_keys(ids: Mapping[str, int]) -> list[KeyValue]:
    for family in FIM_FAMILIES:
        if all(text in ids for text in family):
            names = ("pre", "suf", "mid")
            return [
                u32(f"tokenizer.ggml.fim_{name}_token_id", ids[text])
                for name, text in zip(names, family, strict=True)
            ]
    return []


def _added_at_the_ends(
    tokenizer: Mapping[str, object], settings: Mapping[str, object]
) -> dict[str, bool]:
    """Say whether BOS, EOS (and SEP) are added: by the post-processor, else by the settings."""
    found: dict[str, bool] = {}
    bos, eos = _content(settings.get("bos_token")), _content(settings.get("eos_token"))
    for processor in _processors(tokenizer.get("post_processor")):
        if processor.get("type") == "ByteLevel":
            found.setdefault("bos", False)
            found.setdefault("eos", False)
        elif processor.get("type") == "TemplateProcessing":
            single = [_template_token(part) for part in _list(processor.get("single"), "single")]
            if len(single) > 1 and single[0]:
                found["bos"] = single[0] == bos or bos is None
            if len(single) > 1 and single[-1]:
                found["eos"] = single[-1] == eos or eos is None
            pair = [_template_token(part) for part in _list(processor.get("pair"), "pair")]
            start = 1 if pair and single and single[0] and pair[0] == single[0] else 0
            stop = -1 if pair and single and single[-1] and pair[-1] == single[-1] else None
            between = pair[start:stop][1:-1]
            if between:
                separators = (_content(settings.get("sep_token")), eos)
                ends = len(single) > 1 and bool(single[-1])
                found["sep"] = (between[0] in separators and not ends) or (
                    len(between) == 2 and between[1] in separators
                )
    for kind in _SPECIAL:
        value = settings.get(f"add_{kind}_token")
        if isinstance(value, bool):
            found.setdefault(kind, value)
    return {kind: found[kind] for kind in found if kind in ("bos", "eos", "sep")}


def _processors(post: object) -> Iterator[Mapping[str, object]]:
    if isinstance(post, Mapping):
        for processor in _list(post.get("processors", [post]), "post_processor"):
            if isinstance(processor, Mapping):
                yield processor


def _template_token(part: object) -> str | None:
    """Return the special token of one template part, None for a sequence."""
    special = part.get("SpecialToken") if isinstance(part, Mapping) else None
    text = special.get("id") if isinstance(special, Mapping) else None
    return text if isinstance(text, str) else None


def _template_keys(folder: Path, settings: Mapping[str, object]) -> list[KeyValue]:
    """The chat template: tokenizer_config.json wins over chat_template.jinja, as upstream."""
    template = settings.get("chat_template")
    jinja = folder / "chat_template.jinja"
    if template is None and jinja.is_file():
        template = jinja.read_text(encoding="utf-8")
    if template is None:
        return []
    if isinstance(template, str):
        return [string("tokenizer.chat_template", template)]
    if not isinstance(template, list):
        raise _bad("tokenizer_config.json: chat_template is neither a text nor a list")
    named: dict[str, str] = {}
    for entry in template:
        name = entry.get("name") if isinstance(entry, Mapping) else None
        text = entry.get("template") if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or not isinstance(text, str):
            raise _bad("tokenizer_config.json: a chat template has no name or no text")
        named[re.sub(r"[^A-Za-z0-9]", "_", name)] = text
    default = named.pop("default", None)
    keys = [string(f"tokenizer.chat_template.{name}", named[name]) for name in sorted(named)]
    if named:
        keys.append(strings("tokenizer.chat_templates", sorted(named)))
    if default is not None:
        keys.append(string("tokenizer.chat_template", default))
    return keys
