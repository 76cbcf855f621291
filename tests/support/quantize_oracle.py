"""`llama_model_quantize` itself, in a child process: dry runs and real ones, with every option.

    dry = Run(source, number)                      # types only; the file may be a sparse skeleton
    real = Run(source, number, destination=path)   # writes
    for done in runs([dry, real]): done.types, done.mib, done.error

`imatrix` is an .npz of float32 arrays by tensor name; `keys` are added to the metadata.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LINE = re.compile(
    r"\] +(\S+) +- \[.*?\], type = +(\w+), (?:converting .*)?size = .*?(?:\((\w+)\))?$"
)
SIZE = re.compile(r"quant size  = +([\d.]+) MiB")


@dataclass(frozen=True, slots=True)
class Run:
    """One call. `number` is the file type's; types in overrides are ggml's numbers."""

    source: str
    number: int
    destination: str | None = None
    imatrix: str | None = None
    tensor_types: tuple[tuple[str, int], ...] = ()
    output: int | None = None
    embedding: int | None = None
    pure: bool = False
    keys: dict[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Done:
    """What was said: type by tensor in the file's order, size in MiB to two decimals, or why not.

    `types` is filled by dry runs only.
    """

    types: dict[str, str]
    mib: float | None
    error: str | None


def runs(wanted: Sequence[Run], *, timeout: float = 600) -> list[Done]:
    """Do all in one child. Fails with the child's log when it dies."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump([asdict(run) for run in wanted], file)
        file.flush()
        child = subprocess.run(
            [sys.executable, __file__, file.name],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            check=False,
        )
    assert child.returncode == 0, f"llama.cpp child: {child.returncode}\n{child.stderr[-2000:]}"
    return [Done(**record) for record in json.loads(child.stdout.splitlines()[-1])]


def _params(run: dict[str, Any], keep: list[object]) -> Any:
    import ctypes

    import llama_cpp
    import numpy as np

    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.pure = 2, run["number"], run["pure"]
    params.dry_run = run["destination"] is None
    if run["output"] is not None:
        params.output_tensor_type = run["output"]
    if run["embedding"] is not None:
        params.token_embedding_type = run["embedding"]
    if run["tensor_types"]:
        rows = (llama_cpp.llama_model_tensor_override * (len(run["tensor_types"]) + 1))()
        for i, (pattern, kind) in enumerate(run["tensor_types"]):
            rows[i].pattern, rows[i].type = pattern.encode(), kind
        params.tt_overrides = rows
        keep.append(rows)
    if run["imatrix"]:
        arrays = dict(np.load(run["imatrix"]))
        entries = (llama_cpp.llama_model_imatrix_data * (len(arrays) + 1))()
        for i, (name, array) in enumerate(arrays.items()):
            data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entries[i].name, entries[i].data, entries[i].size = name.encode(), data, array.size
        params.imatrix = entries
        keep += [arrays, entries]
    if run["keys"]:
        pairs = (llama_cpp.llama_model_kv_override * (len(run["keys"]) + 1))()
        for i, (key, value) in enumerate(run["keys"].items()):
            pairs[i].key = key.encode()
            if isinstance(value, str):
                pairs[i].tag, pairs[i].value.val_str = 3, value.encode()
            else:
                pairs[i].tag, pairs[i].value.val_i64 = 0, value
        params.kv_overrides = pairs
        keep.append(pairs)
    return params


def _main(requests: list[dict[str, Any]]) -> list[dict[str, object]]:
    import ctypes

    import llama_cpp

    # llama.cpp's own logger: a Python one would take most of the time.
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), ctypes.c_void_p(0))
    answers = []
    real_stderr = os.dup(2)
    for run in requests:
        keep: list[object] = []
        params = _params(run, keep)
        target = (run["destination"] or "/nonexistent/out.gguf").encode()
        with tempfile.TemporaryFile() as log:
            os.dup2(log.fileno(), 2)
            code = llama_cpp.llama_model_quantize(
                run["source"].encode(), target, ctypes.byref(params)
            )
            os.dup2(real_stderr, 2)
            log.seek(0)
            lines = log.read().decode(errors="replace").splitlines()
        types = {found[1]: (found[3] or found[2]) for found in map(LINE.search, lines) if found}
        size = next((found for found in map(SIZE.search, lines) if found), None)
        answers.append(
            {
                "types": {name: kind.upper() for name, kind in types.items()},
                "mib": float(size[1]) if size else None,
                "error": None if code == 0 else lines[-1],
            }
        )
    return answers


if __name__ == "__main__":
    print(json.dumps(_main(json.loads(Path(sys.argv[1]).read_text()))))
