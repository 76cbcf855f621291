"""Recognise a byte-level BPE's pre-tokenizer by its split pattern.

llama.cpp has the splitting rules compiled in and picks one by the name in
`tokenizer.ggml.pre`. Its own converter finds the name by hashing a token sequence, so every new
vocabulary needs a new hash. The rule does not depend on the vocabulary: the steps in
tokenizer.json say it in full, and equal steps mean an equal rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgekit_quantize.errors import BadCheckpointError

Steps = tuple[str, ...]

BYTE_LEVEL = "byte-level with its own regex"
DIGITS = "single digits"

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_CASED_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _TAIL
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_MARKS}|{_TAIL}"
_DEEPSEEK_V3_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+".replace(r"\"", '"')
    + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    + _TAIL
)


@dataclass(frozen=True, slots=True)
class Known:
    """One rule of llama.cpp. `ignore_merges` tells apart rules with equal steps."""

    pre: str
    steps: Steps
    ignore_merges: bool | None = None


KNOWN: tuple[Known, ...] = (
    Known("tekken", (rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_CASED_TAIL}",)),
    Known("llama-bpe", (_LLAMA3,), ignore_merges=True),
    Known("dbrx", (_LLAMA3,), ignore_merges=False),
    Known("qwen2", (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_MARKS}|{_TAIL}",)),
    Known(
        "qwen35",
        (
            rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_TAIL}",
        ),
    ),
    Known(
        "gpt-4o",
        (rf"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_CASED_TAIL}",),
    ),
    Known("gpt-2", (BYTE_LEVEL,)),
    Known("gpt-2", (_GPT2,)),
    Known("starcoder", (DIGITS, BYTE_LEVEL)),
    Known("starcoder", (DIGITS, _GPT2)),
    Known(
        "deepseek-coder",
        (
            r"[\r\n]",
            r"\s?\p{L}+",
            r"\s?\p{P}+",
            "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
            DIGITS,
        ),
    ),
    Known(
        "deepseek-v3",
        (
            r"\p{N}{1,3}",
            "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            _DEEPSEEK_V3_WORDS,
        ),
    ),
)


def recognise(pre_tokenizer: object, *, ignore_merges: bool) -> str:
    """Return llama.cpp's name for the `pre_tokenizer` object of a tokenizer.json.

    Raises BadCheckpointError (code `unknown_tokenizer`) that shows the steps found.
    """
    steps = canonical_steps(pre_tokenizer)
    for known in KNOWN:
        if known.steps == steps and known.ignore_merges in (None, ignore_merges):
            return known.pre
    shown = "; ".join(steps) or "no splitting at all"
    names = ", ".join(dict.fromkeys(known.pre for known in KNOWN))
    raise BadCheckpointError(
        f"the tokenizer splits text in a way edgekit does not know: {shown[:300]}",
        code="unknown_tokenizer",
        hint=f"supported split patterns: {names}",
    )


def canonical_steps(pre_tokenizer: object) -> Steps:
    """Flatten the nested object into one line per step that splits.

    Line ends inside a pattern are written as escapes, because repositories do both. A step of
    an unknown kind becomes a line that matches nothing.
    """
    if pre_tokenizer is None:
        return ()
    if not isinstance(pre_tokenizer, Mapping):
        return (f"<{pre_tokenizer!r}>",)
    kind = pre_tokenizer.get("type")
    if kind == "Sequence" and isinstance(inner := pre_tokenizer.get("pretokenizers"), list):
        return tuple(step for part in inner for step in canonical_steps(part))
    if kind == "ByteLevel":
        prefix = ("<prefix space>",) if pre_tokenizer.get("add_prefix_space") else ()
        return prefix + ((BYTE_LEVEL,) if pre_tokenizer.get("use_regex", True) else ())
    if kind == "Digits":
        return (DIGITS if pre_tokenizer.get("individual_digits") else "<digit runs>",)
    if kind == "Split":
        return (_split_step(pre_tokenizer),)
    return (f"<{kind}>",)


def _split_step(split: Mapping[str, object]) -> str:
    """Isolating the matches and dropping all else (the pattern matches everything) are equal."""
    pattern = split.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, Mapping) else None
    mode = (split.get("behavior"), bool(split.get("invert", False)))
    if not isinstance(regex, str) or mode not in (("Isolated", False), ("Removed", True)):
        return f"<split {pattern!r} {mode}>"
    return regex.replace("\r", r"\r").replace("\n", r"\n")
