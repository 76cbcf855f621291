"""The tokenizer files of a checkpoint folder -> the `tokenizer.*` keys of a GGUF.

Keys, order and values are those of llama.cpp's converter, plus the fill-in-the-middle and
turn-end ids, which it leaves to guessing.

Which file is read, when there are several:

1. Mistral's native layout (params.json and no config.json): tekken.json, else the newest
   tokenizer.model.vN. The folder holds nothing else that belongs to it.
2. A byte-level tokenizer.json: transformers reads it, so it is what the model is used with. (A
   tokenizer.model beside it is tiktoken's text file, as in Llama 3; a tekken.json beside it gives
   the same table.)
3. tokenizer.model: the scores that the model was trained with; a tokenizer.json beside it is
   its conversion, and only its added tokens and settings are read.
4. tokenizer.json with byte fallback alone.
5. tekken.json in a Hugging Face folder without the two others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit_quantize import tekken, tokenizer_bpe, tokenizer_spm
from edgekit_quantize.architectures import Config
from edgekit_quantize.chat_templates import template_keys
from edgekit_quantize.errors import MissingFileError
from edgekit_quantize.metadata import KeyValue, boolean, f32s, i32s, string, strings
from edgekit_quantize.sentencepiece import is_sentencepiece
from edgekit_quantize.special_tokens import add_keys, ends_by_text, id_keys
from edgekit_quantize.vocabulary import (
    Vocabulary,
    optional_object,
    read_object,
    unknown_kind,
)


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """The keys to write, the pre-tokenizer, and how both were found (and what will differ)."""

    metadata: tuple[KeyValue, ...]
    pre: str
    reason: str


def read_tokenizer(folder: Path, config: Config, vocab_size: int, arch: str) -> Tokenizer:
    """Read the folder's tokenizer for a model of family `arch` with `vocab_size` embedding rows.

    Raises MissingFileError, or BadCheckpointError with the code `unknown_tokenizer` (a kind we
    do not convert), `bad_tokenizer` (damaged) or `vocab_mismatch`.
    """
    settings = optional_object(folder / "tokenizer_config.json")
    generation = optional_object(folder / "generation_config.json")
    path = folder / "tokenizer.json"
    native = _is_native(folder)
    tokenizer = read_object(path) if path.is_file() and not native else {}
    vocabulary = _vocabulary(folder, tokenizer, settings, vocab_size, arch, native)

    keys: list[KeyValue] = []
    if vocabulary.add_space_prefix is not None:
        keys.append(boolean("tokenizer.ggml.add_space_prefix", vocabulary.add_space_prefix))
    keys.append(string("tokenizer.ggml.model", vocabulary.model))
    keys.append(string("tokenizer.ggml.pre", vocabulary.pre))
    keys.append(strings("tokenizer.ggml.tokens", vocabulary.tokens))
    if vocabulary.scores:
        keys.append(f32s("tokenizer.ggml.scores", vocabulary.scores))
    keys.append(i32s("tokenizer.ggml.token_type", vocabulary.kinds))
    if vocabulary.merges:
        keys.append(strings("tokenizer.ggml.merges", vocabulary.merges))
    special, notes = id_keys(
        settings, config, generation, vocabulary.ids, vocabulary.special_ids, vocab_size
    )
    templates = template_keys(folder, settings)
    keys.extend(special)
    keys.extend(add_keys(tokenizer, settings, vocabulary.adds))
    keys.extend(templates)
    notes = [*vocabulary.notes, *notes, *ends_by_text(vocabulary.tokens, vocabulary.kinds)]
    if native and not templates:
        notes.append("the folder holds no chat template; mistral-common has it in code")
    return Tokenizer(tuple(keys), vocabulary.pre, "; ".join([vocabulary.reason, *notes]))


def _vocabulary(
    folder: Path,
    tokenizer: Mapping[str, object],
    settings: Mapping[str, object],
    size: int,
    arch: str,
    native: bool,
) -> Vocabulary:
    tekken_file, model_file = folder / "tekken.json", folder / "tokenizer.model"
    if native:
        if tekken_file.is_file():
            return tekken.read_tekken(tekken_file, size)
        return tokenizer_spm.from_model(_native_model(folder), {}, {}, size)
    if tokenizer:
        model = tokenizer.get("model")
        kind = model.get("type", "BPE") if isinstance(model, Mapping) else None
        if not isinstance(model, Mapping) or kind != "BPE":
            raise unknown_kind(f"tokenizer.json is no BPE tokenizer but {kind!r:.40}")
        if not model.get("byte_fallback"):
            return tokenizer_bpe.from_json(tokenizer, settings, size, arch)
        if is_sentencepiece(model_file):
            return tokenizer_spm.from_model(model_file, tokenizer, settings, size)
        return tokenizer_spm.from_json(tokenizer, size)
    if model_file.is_file():
        return tokenizer_spm.from_model(model_file, {}, settings, size)
    if tekken_file.is_file():
        return tekken.read_tekken(tekken_file, size)
    if (folder / "vocab.json").is_file():
        raise unknown_kind("the folder has vocab.json but no tokenizer.json")
    raise MissingFileError(
        f"tokenizer.json is missing from {folder}",
        code="missing_file",
        hint="fetch the whole repository, not only its weights",
    )


def _is_native(folder: Path) -> bool:
    return (folder / "params.json").is_file() and not (folder / "config.json").is_file()


def _native_model(folder: Path) -> Path:
    """Return the newest of tokenizer.model.v1, .v3, .v7, .v7m1, else tokenizer.model."""
    versions = {}
    for path in folder.glob("tokenizer.model.v*"):
        if match := re.fullmatch(r"tokenizer\.model\.v(\d{1,3})(?:m(\d{1,3}))?", path.name):
            versions[int(match[1]), int(match[2] or 0)] = path
    return versions[max(versions)] if versions else folder / "tokenizer.model"
