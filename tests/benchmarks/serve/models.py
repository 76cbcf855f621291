"""The files to serve: two synthetic ones of half a billion parameters, and pocket.

The synthetic weights are random: the text is noise, the work per token is that of a real model
of this shape. The vocabulary of 131,072 is a space and one to four lower-case letters, all of them
up to three and many of four. So an answer is text (arbitrary bytes would mostly be half
characters, which servers hold back), a prompt of n such words has n tokens, and an answer sent
back as a prompt has the tokens it was generated with.
"""

from __future__ import annotations

import itertools
import json
import shutil
import string
from collections.abc import Iterator
from pathlib import Path

from edgekit_quantize.convert import convert
from tests.support import checkpoints
from tests.support.pocket import convert_pocket

VERSION = 1
"""Part of the file names: raise it when the shape changes."""
VOCAB = 131_072
SHAPE = {
    "hidden": 1024, "layers": 16, "heads": 16, "kv_heads": 4, "head_dim": 64, "ffn": 4096,
    "vocab": VOCAB, "shards": 4,
}  # fmt: skip
FILETYPES = {"synthetic-q4_k_m": "Q4_K_M", "synthetic-q4_0": "Q4_0"}
POCKET = "pocket"


def model_path(name: str, cache: Path) -> Path:
    """Return the GGUF of that name, made first if it is not in the cache."""
    cache.mkdir(parents=True, exist_ok=True)
    if name == POCKET:  # made anew: its weights may have changed, and it takes half a second
        return convert_pocket(cache, "Q4_K_M")
    path = cache / f"{name}-v{VERSION}.gguf"
    if not path.is_file():
        _make_synthetic(cache)
    return path


def _make_synthetic(cache: Path) -> None:
    folder = cache / "checkpoint.partial"
    shutil.rmtree(folder, ignore_errors=True)
    checkpoints.make_checkpoint(folder, **SHAPE, extra_config={"max_position_embeddings": 65536})
    _write_words(folder)
    for name, filetype in FILETYPES.items():
        partial = cache / f"{name}.partial.gguf"
        convert(folder, partial, filetype)
        partial.replace(cache / f"{name}-v{VERSION}.gguf")
    shutil.rmtree(folder)


def _write_words(folder: Path) -> None:
    """Replace the vocabulary of a checkpoint by letters, keeping ids 0 to 275."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    model = tokenizer["model"]
    kept = sorted(model["vocab"], key=model["vocab"].__getitem__)[: VOCAB - len(model["merges"])]
    ids = {token: i for i, token in enumerate(kept)}
    merges: list[list[str]] = []
    for left, right in _merges():
        if len(ids) == VOCAB:
            break
        ids[left + right] = len(ids)
        merges.append([left, right])
    model["vocab"], model["merges"] = ids, merges
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def _merges() -> Iterator[tuple[str, str]]:
    space, letters = chr(ord(" ") + 256), string.ascii_lowercase
    for n in range(4):
        for word in itertools.product(letters, repeat=n):
            yield from ((space + "".join(word), letter) for letter in letters)
