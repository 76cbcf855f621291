"""llama.cpp's tokenizer in a child process: texts in, ids out, through a vocabulary-only GGUF.

Bad vocabularies make llama.cpp abort, so it never runs in the test's own process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_vocab_gguf(path: Path, metadata: Sequence[Any], arch: str = "llama") -> Path:
    """Write a GGUF that holds nothing but the keys of `metadata`."""
    from edgekit_quantize.gguf_write import encode_header
    from edgekit_quantize.metadata import string

    path.write_bytes(encode_header([string("general.architecture", arch), *metadata], []))
    return path


Ids = list[list[int]]


def tokenize(model: Path, texts: Sequence[str]) -> tuple[Ids, Ids]:
    """Return llama.cpp's ids of each text, without BOS: markers as their ids, then as text."""
    marked, plain = call(model, {"texts": list(texts)})
    return marked, plain


def describe(model: Path) -> dict[str, Any]:
    """Return the special ids and flags as llama.cpp has them after loading."""
    reply = call(model, {"describe": True})
    assert isinstance(reply, dict)
    return reply


def call(model: Path, job: dict[str, Any]) -> Any:
    child = subprocess.run(
        [sys.executable, __file__, str(model)],
        input=json.dumps(job).encode(),
        capture_output=True,
        timeout=280,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        check=False,
    )
    log = child.stderr.decode(errors="replace")[-2000:]
    assert child.returncode == 0, f"llama.cpp child: {child.returncode}\n{log}"
    return json.loads(child.stdout.splitlines()[-1])


def _answer(path: str, job: dict[str, Any]) -> object:
    import ctypes

    import llama_cpp

    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(path.encode(), params)
    assert model, "llama.cpp refuses the vocabulary"
    vocab = llama_cpp.llama_model_get_vocab(model)
    if job.get("describe"):
        names = ("bos", "eos", "eot", "pad", "fim_pre", "fim_suf", "fim_mid", "get_add_bos")
        names += ("get_add_eos", "n_tokens", "type")
        return {name: int(getattr(llama_cpp, f"llama_vocab_{name}")(vocab)) for name in names}
    found: list[Ids] = [[], []]
    for text in job["texts"]:
        data = text.encode()
        room = len(data) + 8
        ids = (ctypes.c_int32 * room)()
        for special, into in zip((True, False), found, strict=True):
            n = llama_cpp.llama_tokenize(vocab, data, len(data), ids, room, False, special)
            assert n >= 0
            into.append(list(ids[:n]))
    return found


if __name__ == "__main__":
    print(json.dumps(_answer(sys.argv[1], json.loads(sys.stdin.buffer.read()))))
