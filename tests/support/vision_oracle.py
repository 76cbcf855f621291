"""What a picture becomes: llama.cpp's `mtmd` on our two GGUFs, and transformers on the folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]
"""[height, width, 3]."""


def mtmd_features(model: Path, mmproj: Path, picture: Picture) -> Values:
    """Return the embeddings [tokens, width] that llama.cpp puts in the picture's place."""
    with tempfile.TemporaryDirectory() as work:
        np.save(Path(work) / "picture.npy", picture)
        job = {"model": str(model), "mmproj": str(mmproj), "work": work}
        child = subprocess.run(
            [sys.executable, __file__, json.dumps(job)],
            capture_output=True,
            text=True,
            timeout=280,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            check=False,
        )
        assert child.returncode == 0, f"mtmd: {child.returncode}\n{child.stderr[-3000:]}"
        found: Values = np.load(Path(work) / "features.npy")
        return found


def transformers_features(folder: Path, picture: Picture, mean: float, std: float) -> Values:
    """Return the embeddings [tokens, width] of transformers' model, colours scaled as said."""
    from tests.support import transformers_child

    with tempfile.TemporaryDirectory() as work:
        pixels = (picture.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
        np.save(Path(work) / "pixels.npy", pixels.transpose(2, 0, 1)[None])
        transformers_child.call({"do": "features", "folder": str(folder), "work": work})
        found: Values = np.load(Path(work) / "features.npy")
        return found


def _main(job: dict[str, Any]) -> None:
    import ctypes

    import llama_cpp
    from llama_cpp import mtmd_cpp

    picture = np.ascontiguousarray(np.load(Path(job["work"]) / "picture.npy"))
    height, width, _ = picture.shape
    llama_cpp.llama_backend_init()
    settings = llama_cpp.llama_model_default_params()
    settings.n_gpu_layers = 0
    settings.use_extra_bufts = False
    model = llama_cpp.llama_model_load_from_file(job["model"].encode(), settings)
    assert model, "the model does not load"
    options = mtmd_cpp.mtmd_context_params_default()
    options.use_gpu, options.warmup, options.n_threads = False, False, 1
    options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = mtmd_cpp.mtmd_init_from_file(job["mmproj"].encode(), model, options)
    assert context, "the vision part does not load"
    data = picture.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    bitmap = mtmd_cpp.mtmd_bitmap_init(width, height, data)
    text = mtmd_cpp.mtmd_default_marker()
    wanted = mtmd_cpp.mtmd_input_text(text, len(text), True, True)
    chunks = mtmd_cpp.mtmd_input_chunks_init()
    bitmaps = (mtmd_cpp.mtmd_bitmap_p_ctypes * 1)(bitmap)
    assert mtmd_cpp.mtmd_tokenize(context, chunks, ctypes.byref(wanted), bitmaps, 1) == 0
    rows = []
    for i in range(mtmd_cpp.mtmd_input_chunks_size(chunks)):
        chunk = mtmd_cpp.mtmd_input_chunks_get(chunks, i)
        if mtmd_cpp.mtmd_input_chunk_get_type(chunk) != mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_IMAGE:
            continue
        assert mtmd_cpp.mtmd_encode_chunk(context, chunk) == 0
        n = mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk)
        raw = ctypes.cast(mtmd_cpp.mtmd_get_output_embd(context), ctypes.POINTER(ctypes.c_float))
        wide = llama_cpp.llama_model_n_embd_inp(model)
        rows.append(np.ctypeslib.as_array(raw, shape=(n, wide)).copy())
    assert len(rows) == 1, f"{len(rows)} pictures"
    np.save(Path(job["work"]) / "features.npy", rows[0])


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
