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
_O200K = rf"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_CASED_TAIL}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_MARKS}|{_TAIL}"
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293"
    "\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c"
    "\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"
    "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59"
    "\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"
    "\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"
    "\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
"""The letters of scripts with upper and lower case, as DeepSeek's files list them."""
_DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_V3_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+".replace(r"\"", '"')
    + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    + _TAIL
)


@dataclass(frozen=True, slots=True)
class Known:
    """One rule of llama.cpp. `ignore_merges` and `arch` tell apart rules with equal steps."""

    pre: str
    steps: Steps
    ignore_merges: bool | None = None
    arch: str | None = None


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
    # Two names of one rule; a Llama 4 file made elsewhere says "llama4".
    Known("llama4", (_O200K,), arch="llama4"),
    Known("gpt-4o", (_O200K,)),
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
            _DEEPSEEK_CJK,
            DIGITS,
        ),
    ),
    # llama.cpp keeps a run of digits together here: no vocabulary of this kind has a token of
    # two digits, so none are joined.
    Known(
        "deepseek-llm",
        (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+$",
            _DEEPSEEK_CJK,
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


_CASE_AND_MARKS = (
    "llama.cpp's rule knows upper and lower case in ASCII only and takes combining marks for "
    "punctuation: texts in Indic scripts, with decomposed accents or with capitals outside ASCII "
    "are cut into more tokens"
)
_WIDE_SPACES = (
    "llama.cpp reads white space outside ASCII as a plain space, where the rule counts that of "
    "U+1680 to U+3000 among the letters and marks of East Asia"
)
LIMITS = {
    "tekken": _CASE_AND_MARKS,
    "llama4": _CASE_AND_MARKS,
    "gpt-4o": _CASE_AND_MARKS,
    "deepseek-llm": _WIDE_SPACES,
    "deepseek-coder": _WIDE_SPACES,
}
"""Where llama.cpp's compiled rule is not the one in tokenizer.json.

The others are equal, but for one letter: after an apostrophe, a long s (U+017F) ends a
contraction by the case-insensitive patterns of Llama 3, Qwen and GPT-4o, and not in llama.cpp.
"""


def recognise(pre_tokenizer: object, *, ignore_merges: bool, arch: str = "") -> str:
    """Return llama.cpp's name for the `pre_tokenizer` object of a tokenizer.json.

    `ignore_merges` is the model's setting of that name, `arch` llama.cpp's name of the family.

    Raises BadCheckpointError (code `unknown_tokenizer`) that shows the steps found.
    """
    steps = canonical_steps(pre_tokenizer)
    for known in KNOWN:
        fits = known.ignore_merges in (None, ignore_merges) and known.arch in (None, arch)
        if known.steps == steps and fits:
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
