"""Mistral's native tekken.json: ranked byte strings, and the control tokens before them.

A token's id is its rank plus the number of control tokens. BPE by ranks joins any two
neighbours whose joint bytes are a token, lowest rank first; as merges that is every cut of a
token into two tokens, in the order of the token's rank. Transformers' own conversion lists them
in the same order, so a Hugging Face twin gives the same table.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekit_quantize.pretokenizers import LIMITS, recognise
from edgekit_quantize.vocabulary import (
    TokenKind,
    Vocabulary,
    as_list,
    byte_letters,
    check_size,
    damaged,
    fill_holes,
    is_id,
    read_object,
    too_many_ids,
)

MAX_TOKEN_BYTES = 1024
"""The longest token in use has 78. Cuts cost the square of the length."""

# fmt: off
OLD_CONTROL_TOKENS = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]",
    "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)
# fmt: on
"""What files up to version 7 leave out (mistral-common's list)."""

_ROLES = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}


def read_tekken(path: Path, size: int) -> Vocabulary:
    """Read the tekken.json at `path` for `size` embedding rows. Raises BadCheckpointError."""
    check_size(size, "params.json")
    tekken = read_object(path)
    config = tekken.get("config")
    if not isinstance(config, Mapping):
        raise damaged("tekken.json has no config")
    control = _control_tokens(tekken, config)
    ranked = _ranked(tekken, config, len(control))
    pattern = {"type": "Split", "pattern": {"Regex": config.get("pattern")}}
    pre = recognise({**pattern, "behavior": "Isolated"}, ignore_merges=True)
    letters = byte_letters()
    texts = ["".join([letters[byte] for byte in token]) for token in ranked]
    tokens: list[str | None] = [*control, *texts]
    if len(tokens) > size:
        raise too_many_ids("tekken.json", str(tokens[-1]), len(tokens) - 1, size)
    kinds = [TokenKind.CONTROL] * len(control) + [TokenKind.NORMAL] * len(texts)
    kinds += [TokenKind.UNUSED] * (size - len(tokens))
    ids = {text: number for number, text in enumerate(control)}
    return Vocabulary(
        model="gpt2",
        pre=pre,
        tokens=fill_holes([*tokens, *[None] * (size - len(tokens))], "tekken.json"),
        kinds=kinds,
        merges=[f"{left} {right}" for left, right in _merges(ranked, letters)],
        ids=ids,
        special_ids={role: ids[text] for role, text in _ROLES.items() if text in ids},
        adds={"bos": True, "eos": False},
        reason=f"tekken.json: {pre}, merges derived from ranks",
        notes=[LIMITS[pre]] if pre in LIMITS else [],
    )


def _control_tokens(tekken: Mapping[str, object], config: Mapping[str, object]) -> list[str]:
    """Return the control tokens by id, named `<SPECIAL_n>` where the file names none."""
    wanted = config.get("default_num_special_tokens")
    entries = tekken.get("special_tokens")
    names: dict[int, str] = dict(enumerate(OLD_CONTROL_TOKENS))
    if entries is not None:
        names = {}
        for entry in as_list(entries, "tekken.json: special_tokens"):
            number = entry.get("rank") if isinstance(entry, Mapping) else None
            text = entry.get("token_str") if isinstance(entry, Mapping) else None
            if not isinstance(text, str) or not isinstance(number, int) or not is_id(number):
                raise damaged("tekken.json: a special token has no rank or no text")
            if number in names:
                raise damaged(f"tekken.json gives two special tokens the rank {number}")
            names[number] = text
    if wanted is None:
        wanted = len(names)
    if not isinstance(wanted, int) or not is_id(wanted):
        raise damaged(f"tekken.json: {wanted!r:.40} special tokens")
    check_size(max(wanted, 1), "tekken.json")
    if names and max(names) >= wanted:
        raise damaged(f"tekken.json has a special token of rank {max(names)}, beyond {wanted}")
    return [names.get(number, f"<SPECIAL_{number}>") for number in range(wanted)]


def _ranked(
    tekken: Mapping[str, object], config: Mapping[str, object], n_control: int
) -> list[bytes]:
    """Return the byte strings in rank order, as many as `default_vocab_size` has room for.

    The file may hold more: Mistral trained 150,000 and uses the first 130,072.
    """
    entries = as_list(tekken.get("vocab"), "tekken.json: vocab")
    total = config.get("default_vocab_size")
    if total is None:
        total = len(entries) + n_control
    if not isinstance(total, int) or not is_id(total) or total < n_control:
        raise damaged(f"tekken.json: a vocabulary of {total!r:.40} tokens")
    check_size(total, "tekken.json")
    if total - n_control > len(entries):
        raise damaged(f"tekken.json lists {len(entries)} tokens, fewer than its config says")
    ranked = []
    for rank, entry in enumerate(entries[: total - n_control]):
        if not isinstance(entry, Mapping) or entry.get("rank") != rank:
            raise damaged(f"tekken.json: entry {rank} of the vocabulary has another rank")
        ranked.append(_token_bytes(entry.get("token_bytes"), rank))
    if len(set(ranked)) < len(ranked):
        raise damaged("tekken.json lists one token twice")
    single = {token for token in ranked[:256] if len(token) == 1}
    if len(single) < 256:
        raise damaged("tekken.json: the first 256 tokens are not the 256 bytes")
    return ranked


def _token_bytes(encoded: object, rank: int) -> bytes:
    try:
        token = base64.b64decode(encoded, validate=True) if isinstance(encoded, str) else b""
    except (binascii.Error, ValueError):
        token = b""
    if not 0 < len(token) <= MAX_TOKEN_BYTES:
        raise damaged(f"tekken.json: token {rank} has no bytes, or more than {MAX_TOKEN_BYTES}")
    return token


def _merges(ranked: Sequence[bytes], letters: Sequence[str]) -> list[tuple[str, str]]:
    """Return each cut of each token into two tokens: by its rank, then by the parts' ranks."""
    ranks = {token: rank for rank, token in enumerate(ranked)}
    merges = []
    for rank, token in enumerate(ranked):
        pairs = []
        for cut in range(1, len(token)):
            left = ranks.get(token[:cut])
            if left is not None and (right := ranks.get(token[cut:])) is not None:
                pairs.append((left, right))
        if not pairs and len(token) > 1:
            raise damaged(f"tekken.json: token {rank} is not made of other tokens")
        merges += sorted(pairs)
    texts = ["".join([letters[byte] for byte in token]) for token in ranked]
    return [(texts[left], texts[right]) for left, right in merges]
