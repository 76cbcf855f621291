"""Byte-level BPE from tokenizer.json: the family of GPT-2, Llama 3, Qwen, DeepSeek, tekken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgekit_quantize.pretokenizers import LIMITS, recognise
from edgekit_quantize.vocabulary import (
    AddedToken,
    TokenKind,
    Vocabulary,
    added_text_and_kind,
    added_tokens,
    as_list,
    byte_letters,
    check_size,
    damaged,
    fill_holes,
    is_id,
    look_alike_notes,
    too_many_ids,
    unknown_kind,
)

_SPACE = chr(ord(" ") + 256)

_LLAMA3_RULES = ("llama-bpe", "dbrx")
_TEKKEN_CONTROL = 1000
_WRONG_PATTERN = (
    "pre-tokenizer tekken: the vocabulary is Mistral's tekken, tokenizer.json has Llama 3's split "
    "pattern by mistake (Mistral Small 3.1; transformers calls the correction fix_mistral_regex)"
)


def from_json(
    tokenizer: Mapping[str, object], settings: Mapping[str, object], size: int, arch: str
) -> Vocabulary:
    """Read a tokenizer.json for a model of family `arch` with `size` embedding rows.

    Raises BadCheckpointError: `unknown_tokenizer`, `bad_tokenizer`, `vocab_mismatch`.
    """
    check_size(size, "config.json")
    model = tokenizer["model"]
    assert isinstance(model, Mapping)
    ignore_merges = bool(model.get("ignore_merges", False))
    pre = recognise(tokenizer.get("pre_tokenizer"), ignore_merges=ignore_merges, arch=arch)
    reason = f"pre-tokenizer {pre}, recognised from the split pattern in tokenizer.json"
    vocab = _vocab(model)
    if pre in _LLAMA3_RULES and _is_tekken(vocab):
        pre, reason = "tekken", _WRONG_PATTERN
    notes = [LIMITS[pre]] if pre in LIMITS else []
    notes += _normalizer_notes(tokenizer.get("normalizer"))
    added = added_tokens(tokenizer)
    for token in added:
        if vocab.get(token.content, token.id) != token.id:
            other = vocab[token.content]
            raise damaged(f"tokenizer.json gives {token.content!r} the ids {other} and {token.id}")
    tokens, kinds = _token_table(vocab, added, size)
    prefix = settings.get("add_prefix_space")
    return Vocabulary(
        model="gpt2",
        pre=pre,
        tokens=tokens,
        kinds=kinds,
        merges=[_merge(e) for e in as_list(model.get("merges"), "tokenizer.json: merges")],
        reason=reason,
        ids={token.content: token.id for token in added},
        add_space_prefix=prefix if arch == "llama" and isinstance(prefix, bool) else None,
        notes=[*notes, *_strip_notes(tokenizer), *look_alike_notes(added)],
    )


def _is_tekken(vocab: Mapping[str, int]) -> bool:
    """Tekken has 1,000 control tokens, then the bytes in order; others sort them as letters."""
    named = vocab.get("<s>", 1) == 1 and vocab.get("[INST]", 3) == 3
    letters = enumerate(byte_letters(), start=_TEKKEN_CONTROL)
    return named and all(vocab.get(letter) == number for number, letter in letters)


def _vocab(model: Mapping[str, object]) -> dict[str, int]:
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not all(is_id(number) for number in vocab.values()):
        raise damaged("tokenizer.json: the vocabulary is no map from token to id")
    return vocab


def _token_table(
    vocab: Mapping[str, int], added: Sequence[AddedToken], size: int
) -> tuple[list[str], list[int]]:
    """Return text and kind of each id below `size`; ids without a token become `[PADn]`."""
    tokens: list[str | None] = [None] * size
    kinds = [int(TokenKind.UNUSED)] * size
    by_id = {token.id: token for token in added}
    everything = {**vocab, **{token.content: token.id for token in added}}
    for text, number in everything.items():
        if number >= size:
            raise too_many_ids("tokenizer.json", text, number, size)
        if tokens[number] is not None:
            raise damaged(f"tokenizer.json gives {tokens[number]!r} and {text!r} the id {number}")
        tokens[number], kinds[number] = text, TokenKind.NORMAL
        if number in by_id:
            tokens[number], kinds[number] = added_text_and_kind(by_id[number])
    return fill_holes(tokens, "tokenizer.json"), kinds


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
    raise damaged(f"tokenizer.json: {entry!r:.80} is no merge")


def _normalizer_notes(normalizer: object) -> list[str]:
    """llama.cpp normalizes nothing: say so for NFC (few texts are not), refuse all else."""
    if normalizer is None:
        return []
    kind = normalizer.get("type") if isinstance(normalizer, Mapping) else None
    if isinstance(normalizer, Mapping) and kind == "Sequence":
        inner = as_list(normalizer.get("normalizers"), "tokenizer.json: normalizers")
        if all(isinstance(step, Mapping) and step.get("type") == "NFC" for step in inner):
            return _normalizer_notes(inner[0]) if inner else []
    if kind == "NFC":
        return ["tokenizer.json composes letters and accents (NFC), llama.cpp takes text as it is"]
    raise unknown_kind(f"tokenizer.json normalizes texts, which llama.cpp does not: {kind!r:.80}")


def _strip_notes(tokenizer: Mapping[str, object]) -> list[str]:
    stripping = [
        entry
        for entry in as_list(tokenizer.get("added_tokens"), "tokenizer.json: added_tokens")
        if isinstance(entry, Mapping) and (entry.get("lstrip") or entry.get("rstrip"))
    ]
    if not stripping:
        return []
    return [
        f"{len(stripping)} added tokens take white space beside them with them in tokenizer.json "
        "(lstrip, rstrip); llama.cpp leaves it in the text"
    ]
