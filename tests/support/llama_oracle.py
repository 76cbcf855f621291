"""llama.cpp itself as the oracle, in a child process: `call(job)` runs one job and returns JSON.

Bad input makes llama.cpp abort, and its log goes to stderr, so it never runs in the test's own
process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

Job = dict[str, Any]


def call(job: Job, *, timeout: float = 280) -> Any:
    """Run `job` in a fresh interpreter. Fails with the child's log when it dies."""
    child = subprocess.run(
        [sys.executable, __file__, json.dumps(job)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        check=False,
    )
    assert child.returncode == 0, f"llama.cpp child: {child.returncode}\n{child.stderr[-2000:]}"
    return json.loads(child.stdout.splitlines()[-1])


def quantize(source: Path, targets: dict[str, Path], numbers: dict[str, int]) -> None:
    """Run `llama_model_quantize` on `source` once for each file type in `targets`."""
    jobs = [[numbers[name], str(path)] for name, path in targets.items()]
    call({"do": "quantize", "source": str(source), "jobs": jobs})


def _quantize_params(number: int) -> Any:
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype = 2, number
    return params


def _do_quantize(job: Job) -> object:
    import ctypes

    import llama_cpp

    for number, path in job["jobs"]:
        params = _quantize_params(number)
        code = llama_cpp.llama_model_quantize(
            job["source"].encode(), path.encode(), ctypes.byref(params)
        )
        assert code == 0, f"llama_model_quantize({number}) returned {code}"
    return "ok"


def _do_generate(job: Job) -> object:
    import llama_cpp

    model = llama_cpp.Llama(
        job["model"], n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False, seed=1
    )
    tokens = model.tokenize(job["prompt"].encode(), special=True)
    output = []
    for token in model.generate(tokens, temp=0.0):
        output.append(token)
        if len(output) == job["n"]:
            break
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    fim = [
        llama_cpp.llama_vocab_fim_pre(vocab),
        llama_cpp.llama_vocab_fim_suf(vocab),
        llama_cpp.llama_vocab_fim_mid(vocab),
    ]
    return {"prompt": tokens, "output": output, "fim": fim, "metadata": model.metadata}


def _do_tokenize(job: Job) -> object:
    import llama_cpp

    model = llama_cpp.Llama(job["model"], vocab_only=True, verbose=False)
    return [model.tokenize(text.encode(), add_bos=False, special=False) for text in job["texts"]]


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    actions = {
        "quantize": _do_quantize,
        "generate": _do_generate,
        "tokenize": _do_tokenize,
    }
    print(json.dumps(actions[request["do"]](request)))
