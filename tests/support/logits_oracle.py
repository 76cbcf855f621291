"""Logits of the same ids from llama.cpp and from transformers, and how far they are apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
"""[n, vocab]: row i is the answer after ids[: i + 1]."""

TOLERANCE = 2e-3
"""Largest difference allowed, as a part of the logits' range."""


def token_ids(n: int, vocab: int, seed: int) -> list[int]:
    """Return `n` random ids below `vocab`."""
    found: list[int] = np.random.default_rng(seed).integers(0, vocab, n).tolist()
    return found


def llama_logits(gguf: Path, ids: Sequence[int]) -> Logits:
    """Return llama.cpp's logits: one batch, F32 cache, no flash attention, in a child process."""
    return each_llama_logits([(gguf, ids)])[0]


def each_llama_logits(jobs: Sequence[tuple[Path, Sequence[int]]]) -> list[Logits]:
    """Return `llama_logits` of several files from one child."""
    with tempfile.TemporaryDirectory() as work:
        outs = [Path(work) / f"{i}.npy" for i in range(len(jobs))]
        request = [
            {"model": str(gguf), "ids": list(ids), "out": str(out)}
            for (gguf, ids), out in zip(jobs, outs, strict=True)
        ]
        child = subprocess.run(
            [sys.executable, __file__, json.dumps(request)],
            capture_output=True,
            text=True,
            timeout=280,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            check=False,
        )
        assert child.returncode == 0, f"llama.cpp: {child.returncode}\n{child.stderr[-3000:]}"
        return [np.load(out) for out in outs]


def transformers_logits(folder: Path, ids: Sequence[int]) -> Logits:
    """Return the logits of the class that config.json names, in f32."""
    from tests.support import transformers_child

    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "logits.npy"
        transformers_child.call(
            {"do": "logits", "folder": str(folder), "ids": list(ids), "out": str(out)}
        )
        found: Logits = np.load(out)
        return found


def distance(ours: Logits, theirs: Logits) -> float:
    """Return max |difference| relative to the range of `theirs`; ids both know are compared."""
    width = min(ours.shape[1], theirs.shape[1])
    ours, theirs = ours[:, :width], theirs[:, :width]
    assert np.isfinite(ours).all()
    assert np.isfinite(theirs).all()
    return float(np.abs(ours - theirs).max() / (theirs.max() - theirs.min()))


def assert_agree(gguf: Path, folder: Path, ids: Sequence[int]) -> float:
    """Fail unless llama.cpp's logits of `gguf` are transformers' logits of `folder`."""
    return compare(llama_logits(gguf, ids), transformers_logits(folder, ids))


def compare(ours: Logits, theirs: Logits) -> float:
    """Fail unless the logits agree, and vary enough to prove it. Returns the distance."""
    apart = distance(ours, theirs)
    assert theirs.std(axis=0).mean() > 0.1, "the logits hardly vary: this would prove nothing"
    assert apart <= TOLERANCE, f"logits differ by {apart:.2e} of their range"
    return apart


def _compute(job: dict[str, Any]) -> None:
    import ctypes

    import llama_cpp

    settings = llama_cpp.llama_model_default_params()
    settings.n_gpu_layers = 0
    settings.use_extra_bufts = False
    model = llama_cpp.llama_model_load_from_file(job["model"].encode(), settings)
    assert model, "the model does not load"
    n = len(job["ids"])
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = n
    options.n_seq_max = 1
    options.n_threads = options.n_threads_batch = 1
    options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    options.type_k = options.type_v = llama_cpp.GGML_TYPE_F32
    context = llama_cpp.llama_init_from_model(model, options)
    assert context, "there is no context"
    batch = llama_cpp.llama_batch_init(n, 0, 1)
    batch.n_tokens = n
    for i, token in enumerate(job["ids"]):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, 1
    assert llama_cpp.llama_decode(context, batch) == 0
    width = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    raw = llama_cpp.llama_get_logits(context)
    logits = np.ctypeslib.as_array(
        ctypes.cast(raw, ctypes.POINTER(ctypes.c_float)), shape=(n, width)
    )
    np.save(job["out"], logits)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)


if __name__ == "__main__":
    import llama_cpp

    llama_cpp.llama_backend_init()
    for request in json.loads(sys.argv[1]):
        _compute(request)
