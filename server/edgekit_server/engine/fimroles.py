"""Which control tokens of a vocabulary play which part in fill-in-the-middle. Pure.

llama.cpp names most of them; some families' it does not know by role (Mistral's, Seed-Coder's,
StarCoder's file separator). Sources: llama.cpp's vocabulary table, mistral-common `encode_fim`,
the model cards of Qwen2.5-Coder, StarCoder2, Granite, CodeGemma and Seed-Coder.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

CORE = (
    ("[PREFIX]", "[SUFFIX]", "[MIDDLE]"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    ("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>"),
    ("<|prefix|>", "<|suffix|>", "<|middle|>"),
)
"""Prefix, suffix and middle, one family a line."""
MORE = {
    "pad": ("<|fim_pad|>", "<fim_pad>", "<fim-pad>"),
    "repo": ("<|repo_name|>", "<repo_name>", "<|reponame|>", "<reponame>"),
    "sep": (
        "<|file_sep|>", "<file_sep>", "<|file_separator|>", "<|filename|>", "<filename>",
    ),
}  # fmt: skip
"""Tokens around the files of a repository, the likeliest first."""
NO_CONTRACT = {
    "llama4": "Llama 4 has the tokens, but no way to prompt with them was ever documented",
    "phi3": "Phi's vocabulary has the tokens, but the models were not trained to fill in",
}
"""Architectures whose FIM tokens promise nothing."""


def roles(
    named: Mapping[str, str], controls: Collection[str], architecture: str | None
) -> dict[str, str]:
    """Return token texts by role: prefix, suffix, middle, pad, repo, sep; unknown ones left out.

    `named`: what llama.cpp or the file says, which goes first. Without a prefix and a suffix
    there are no roles at all.
    """
    if architecture in NO_CONTRACT:
        return {}
    found = {role: named[role] for role in ("prefix", "suffix", "middle") if role in named}
    known = frozenset(controls)
    if not {"prefix", "suffix"} <= found.keys():
        texts = next((line for line in CORE if known.issuperset(line[:2])), None)
        if texts is None:
            return found
        by_text = zip(("prefix", "suffix", "middle"), texts, strict=True)
        # What the file names by itself is never overruled.
        found = {role: text for role, text in by_text if text in known} | found
    for role, choices in MORE.items():
        present = [text for text in choices if text in known]
        if role in named or present:
            found[role] = named.get(role) or present[0]
    return found
