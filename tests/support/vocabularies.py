"""Tokenizer folders of every kind edgekit converts, trained here by the kinds' own libraries.

Byte-level BPE: the tokenizers library's trainer behind each family's split pattern.
SentencePiece BPE with byte fallback: the sentencepiece trainer, and its conversion to
tokenizer.json as Llama's, Mistral's and Gemma's repositories have it.
"""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.text_samples import samples

MODULES = ("argparse.py", "inspect.py", "typing.py", "tarfile.py", "html/entities.py", "doctest.py")
"""Standard library files: some 600 kB of code and English for the trainers."""

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_middle|>",
          "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")  # fmt: skip
MISTRAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[TOOL_CALLS]", "<pad>",
           "[PREFIX]", "[MIDDLE]", "[SUFFIX]")  # fmt: skip
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜fim▁hole｜>", "<｜fim▁begin｜>",
            "<｜fim▁end｜>")  # fmt: skip
LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>")

BAR_RUNS = tuple("▁" * n for n in range(2, 32))
"""Gemma's whitespace pieces, user-defined."""


def corpus(size: int) -> Iterator[str]:
    """Yield texts to train `size` tokens on: code and English, and texts that no test uses."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in MODULES if size > 4000 else MODULES[:1]:
        yield from (library / name).read_text(encoding="utf-8").splitlines(keepends=True)
    yield from samples(min(size // 2, 4000), seed=99)


def split(regex: str) -> dict[str, object]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}


def pre_tokenizer(steps: Sequence[str]) -> dict[str, Any]:
    """Return the tokenizer.json object for the steps of a `Known` rule."""
    from edgekit_quantize.pretokenizers import BYTE_LEVEL as OWN_REGEX
    from edgekit_quantize.pretokenizers import DIGITS

    parts: list[dict[str, object]] = []
    for step in steps:
        if step == DIGITS:
            parts.append({"type": "Digits", "individual_digits": True})
        elif step == OWN_REGEX:
            parts.append({**BYTE_LEVEL, "use_regex": True})
        else:
            parts.append(split(step))
    if parts[-1]["type"] != "ByteLevel":
        parts.append(BYTE_LEVEL)
    return {"type": "Sequence", "pretokenizers": parts}


def byte_level(
    folder: Path,
    steps: Sequence[str],
    size: int,
    *,
    special: Sequence[str] = CHATML,
    ignore_merges: bool = False,
    normalizer: Mapping[str, object] | None = None,
) -> Path:
    """Train byte-level BPE of `size` tokens behind `steps` and write its tokenizer.json."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    rules = pre_tokenizer(steps)
    shell = json.loads(tokenizer.to_str())
    shell["pre_tokenizer"], shell["normalizer"] = rules, normalizer
    tokenizer = Tokenizer.from_str(json.dumps(shell))
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(size), trainer)
    data = json.loads(tokenizer.to_str())
    data["model"]["ignore_merges"] = ignore_merges
    data["decoder"] = BYTE_LEVEL
    settings = {"bos_token": special[1], "eos_token": special[0]}
    return write_folder(folder, data, settings)


def write_folder(folder: Path, data: object, settings: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def sentencepiece_model(
    path: Path,
    size: int,
    *,
    control: Sequence[str] = (),
    user_defined: Sequence[str] = (),
    dummy_prefix: bool = True,
    gemma: bool = False,
    **options: Any,
) -> Path:
    """Train SentencePiece BPE with byte fallback as Llama's (or Gemma's) and write the model."""
    import sentencepiece

    ids = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3} if gemma else {}
    texts = (line.rstrip("\n") for line in corpus(size))
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(text for text in texts if text),
            model_writer=file,
            **{
                "model_type": "bpe",
                "vocab_size": size,
                "byte_fallback": True,
                "split_digits": True,
                "allow_whitespace_only_pieces": True,
                "normalization_rule_name": "identity",
                "remove_extra_whitespaces": False,
                "add_dummy_prefix": dummy_prefix,
                "control_symbols": list(control),
                "user_defined_symbols": list(user_defined),
                "character_coverage": 0.9995,
                "num_threads": 2,
                "minloglevel": 2,
                **ids,
                **options,
            },
        )
    return path


def converted(model: Path, *, scheme: str) -> dict[str, Any]:
    """Return the tokenizer.json of a SentencePiece model, as the hub's repositories have it.

    `scheme`: "legacy" puts "▁" before each stretch between added tokens (Llama 2, CodeLlama),
    "first" before the first only (Mistral v3), "none" nowhere (Gemma).
    """
    from sentencepiece import sentencepiece_model_pb2
    from transformers.tokenization_utils_base import generate_merges

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.read_bytes())
    vocab = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = {"type": "Prepend", "prepend": "▁"}
    normalizer: dict[str, object] | None = replace
    pre: dict[str, object] | None = None
    if scheme == "legacy":
        normalizer = {"type": "Sequence", "normalizers": [prepend, replace]}
    elif scheme == "first":
        normalizer = None
        pre = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    else:
        pre = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}
        pre["invert"] = False
    added = [
        {
            "id": i,
            "content": piece.piece,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": piece.type in (2, 3),
        }
        for i, piece in enumerate(proto.pieces)
        if piece.type in (2, 3, 4)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [list(pair) for pair in generate_merges(vocab, scores)],
        },
    }


def mistral_data(name: str) -> Path:
    """Return a real vocabulary that mistral-common carries, by file name."""
    import mistral_common

    return Path(str(mistral_common.__file__)).parent / "data" / name


def tekken_file(path: Path, *, ranks: int | None = None, control: int | None = None) -> Path:
    """Write tekken.json: Mistral's of September 2024, cut to `ranks` tokens if given.

    The first ranks of a BPE are a smaller BPE. `control` sets the number of control tokens.
    """
    data = json.loads(mistral_data("tekken_240911.json").read_text(encoding="utf-8"))
    config = data["config"]
    if control is not None:
        config["default_vocab_size"] += control - config["default_num_special_tokens"]
        config["default_num_special_tokens"] = control
    if ranks is not None:
        data["vocab"] = data["vocab"][: ranks + 50]
        config["default_vocab_size"] = ranks + config["default_num_special_tokens"]
    path.write_text(json.dumps(data), encoding="utf-8")
    return path
