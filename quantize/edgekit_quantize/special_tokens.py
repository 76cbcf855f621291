"""Which ids start, end and fill, and what is put at the ends of a text: GGUF keys.

Ids come from tokenizer_config.json by text, then from config.json, then from the vocabulary file
itself. llama.cpp has one key each for the end of a text, of a turn and of a message; the list
of end ids in generation_config.json is spread over them. It also finds some ids by their text,
in the order of a hash table: what is written here does not depend on that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from edgekit_quantize.architectures import Config
from edgekit_quantize.metadata import KeyValue, boolean, u32
from edgekit_quantize.vocabulary import TokenKind, as_list, damaged, is_id

FIM_FAMILIES = (
    ("[PREFIX]", "[SUFFIX]", "[MIDDLE]"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)
"""Prefix, suffix and middle markers; a family counts when the vocabulary has all three."""

FIM_OTHERS = {"pad": ("<|fim_pad|>",), "rep": ("<|repo_name|>",), "sep": ("<|file_sep|>",)}
"""Padding, repository and file separator of Qwen's Coder models."""

END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|eot|>", "<end_of_turn>", "▁<EOT>", "<|endoftext|>")
UNLISTED = ("▁<EOT>", "<|eot|>")
"""Ends of a turn that CodeLlama and Muse Glimmer have and their generation_config.json may not."""
END_OF_MESSAGE = ("<|eom_id|>", "<|eom|>")

_ROLES = ("bos", "eos", "unk", "sep", "pad", "mask")
_ID_KEYS = {"unk": "unknown", "sep": "seperator", "pad": "padding"}
_KNOWN_ENDS = {
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|eom_id|>", "</s>"),
    *("<|endoftext|>", "<|end_of_text|>", "<end_of_turn>", "<eos>", "<｜end▁of▁sentence｜>"),
    *("<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<end_of_utterance>", "<turn|>", "<|tool_response>"),
    *("<|flush|>", "<|calls|>", "[e~["),
}
"""Texts that llama.cpp takes for the end of a generation whatever keys and token types say."""


def content(entry: object) -> str | None:
    """Return the text of a special token given as a text or as an object."""
    if isinstance(entry, Mapping):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def id_keys(
    settings: Mapping[str, object],
    config: Config,
    generation: Mapping[str, object],
    ids: Mapping[str, int],
    own: Mapping[str, int],
    size: int,
) -> tuple[list[KeyValue], list[str]]:
    """Return the keys for roles, turn ends and fill-in-the-middle, and notes.

    `ids` are added tokens by text, `own` the roles that the vocabulary file names, `size` the
    number of tokens. Raises BadCheckpointError for an id outside the vocabulary.
    """
    roles = _roles(settings, config, ids, own)
    ends, notes = _ends(config, generation, ids, roles.get("eos"))
    found = {**roles, **ends}
    for role, number in found.items():
        if number >= size:
            raise damaged(f"the {role} token has id {number}, outside the {size} tokens")
    keys = [u32(f"tokenizer.ggml.{_ID_KEYS.get(r, r)}_token_id", n) for r, n in found.items()]
    return [*keys, *_fim_keys(ids)], notes


def ends_by_text(tokens: Sequence[str], kinds: Sequence[int]) -> list[str]:
    """Note the plain tokens that llama.cpp takes for end marks, such as the "</s>" of HTML."""
    plain = (TokenKind.NORMAL, TokenKind.USER_DEFINED)
    return [
        f"token {number} ({text!r}) is plain text here; llama.cpp ends a generation at it"
        for number, (text, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in plain and text in _KNOWN_ENDS
    ]


def _roles(
    settings: Mapping[str, object], config: Config, ids: Mapping[str, int], own: Mapping[str, int]
) -> dict[str, int]:
    found: dict[str, int] = {}
    for role in _ROLES:
        text = content(settings.get(f"{role}_token"))
        if text is not None and text in ids:
            found[role] = ids[text]
    inner = config.get("text_config")
    for source in (config, inner if isinstance(inner, Mapping) else {}):
        for role in _ROLES:
            number = source.get(f"{role}_token_id")
            if role not in found and isinstance(number, int) and is_id(number):
                found[role] = number
    for role, number in own.items():
        found.setdefault(role, number)
    return found


def _ends(
    config: Config, generation: Mapping[str, object], ids: Mapping[str, int], eos: int | None
) -> tuple[dict[str, int], list[str]]:
    """Spread the end ids beside `eos` over eot and eom; note any for which there is no key."""
    listed = generation.get("eos_token_id", config.get("eos_token_id"))
    others = [number for number in listed if is_id(number)] if isinstance(listed, list) else []
    others = list(dict.fromkeys(number for number in others if number != eos))
    texts = {number: text for text, number in ids.items()}
    found: dict[str, int] = {}
    eom = next((n for n in others if texts.get(n) in END_OF_MESSAGE), None)
    if eom is not None:
        found["eom"] = eom
        others.remove(eom)
    wanted = [ids[text] for text in END_OF_TURN if text in ids]
    eot = next((number for number in wanted if number in others), None)
    if eot is None:
        eot = next((ids[text] for text in UNLISTED if ids.get(text, eos) != eos), None)
    if eot is None and others:
        eot = others[0]
    if eot is not None:
        found["eot"] = eot
    left = [n for n in others if n != eot and texts.get(n) not in _KNOWN_ENDS]
    notes = [f"llama.cpp has no key for the further end id {number}" for number in left]
    return found, notes


def _fim_keys(ids: Mapping[str, int]) -> list[KeyValue]:
    for family in FIM_FAMILIES:
        if all(text in ids for text in family):
            found = [
                u32(f"tokenizer.ggml.fim_{name}_token_id", ids[text])
                for name, text in zip(("pre", "suf", "mid"), family, strict=True)
            ]
            for name, texts in FIM_OTHERS.items():
                found += [
                    u32(f"tokenizer.ggml.fim_{name}_token_id", ids[t]) for t in texts if t in ids
                ]
            return found
    return []


def add_keys(
    tokenizer: Mapping[str, object], settings: Mapping[str, object], own: Mapping[str, bool]
) -> list[KeyValue]:
    """Return the keys that say whether BOS, EOS and SEP are added.

    The post-processor of tokenizer.json decides, then the settings, then `own`, what the kind of
    vocabulary file implies.
    """
    found = _from_post_processor(tokenizer, settings)
    for role in _ROLES:
        value = settings.get(f"add_{role}_token")
        if isinstance(value, bool):
            found.setdefault(role, value)
    for role, value in own.items():
        found.setdefault(role, value)
    return [
        boolean(f"tokenizer.ggml.add_{role}_token", value)
        for role, value in found.items()
        if role in ("bos", "eos", "sep")
    ]


def _from_post_processor(
    tokenizer: Mapping[str, object], settings: Mapping[str, object]
) -> dict[str, bool]:
    found: dict[str, bool] = {}
    bos, eos = content(settings.get("bos_token")), content(settings.get("eos_token"))
    for processor in _processors(tokenizer.get("post_processor")):
        if processor.get("type") == "ByteLevel":
            found.setdefault("bos", False)
            found.setdefault("eos", False)
        elif processor.get("type") == "TemplateProcessing":
            single = list(_template(processor, "single"))
            if len(single) > 1 and single[0]:
                found["bos"] = single[0] == bos or bos is None
            if len(single) > 1 and single[-1]:
                found["eos"] = single[-1] == eos or eos is None
            pair = list(_template(processor, "pair"))
            start = 1 if pair and single and single[0] and pair[0] == single[0] else 0
            stop = -1 if pair and single and single[-1] and pair[-1] == single[-1] else None
            between = pair[start:stop][1:-1]
            if between:
                separators = (content(settings.get("sep_token")), eos)
                ends = len(single) > 1 and bool(single[-1])
                found["sep"] = (between[0] in separators and not ends) or (
                    len(between) == 2 and between[1] in separators
                )
    return found


def _processors(post: object) -> Iterator[Mapping[str, object]]:
    if isinstance(post, Mapping):
        for processor in as_list(post.get("processors", [post]), "tokenizer.json: post_processor"):
            if isinstance(processor, Mapping):
                yield processor


def _template(processor: Mapping[str, object], name: str) -> Iterable[str | None]:
    """Yield the special token of each part of a template, None for a sequence."""
    for part in as_list(processor.get(name), f"tokenizer.json: {name}"):
        special = part.get("SpecialToken") if isinstance(part, Mapping) else None
        text = special.get("id") if isinstance(special, Mapping) else None
        yield text if isinstance(text, str) else None
