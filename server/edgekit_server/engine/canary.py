"""Does this library run this model on this machine? `python -m edgekit_server.engine.canary M`

Loads the model and decodes a prompt, single tokens and several sequences at once: the three
shapes of work that use different kernels. Prints one JSON line. A miscompiled kernel ends this
process by a signal, which is the answer the caller looks for.
"""

from __future__ import annotations

import argparse
import json
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgekit_server import egress
from edgekit_server.engine import native, threads
from edgekit_server.engine.batch import Batch
from edgekit_server.engine.options import ContextOptions, ModelOptions
from edgekit_server.errors import EngineDiedError, ModelMissingError, ServerError

N_PROMPT, N_SINGLE, N_TOGETHER = 48, 4, 4
"""48 prompt rows pass the row counts from which matrix units and repacked kernels take over."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the canary; return the exit code of the error tree, 0 if all is well."""
    egress.follow()
    parser = argparse.ArgumentParser(prog="edgekit_server.engine.canary")
    parser.add_argument("model", type=Path)
    parser.add_argument("--no-extra-bufts", action="store_true", help="no repacked weights")
    parser.add_argument("--n-gpu-layers", type=int, default=-1)
    parser.add_argument("--n-threads", type=int)
    options = parser.parse_args(arguments)
    model_options = ModelOptions(options.model, options.n_gpu_layers, not options.no_extra_bufts)
    try:
        tokens = try_model(model_options, options.n_threads or threads.default_threads()[0])
    except ServerError as error:
        _say({"ok": False, "error": {"code": error.code, "message": error.message}})
        return error.exit_code
    _say(
        {
            "ok": True,
            "tokens": tokens,
            "backends": native.backends(),
            "gpu_offload": native.gpu_offload(),
            "version": native.version(),
        }
    )
    return 0


def try_model(options: ModelOptions, n_threads: int) -> list[int]:
    """Return the greedy tokens drawn. Raises ServerError when something is wrong but alive."""
    if not options.path.is_file():
        raise ModelMissingError(f"no file {options.path}")
    context_options = ContextOptions(
        n_ctx=256, n_seq_max=N_TOGETHER, n_batch=64, n_ubatch=64, n_threads=n_threads
    )
    log = native.capture_log()
    with native.opened(options, context_options, log) as (model, context):
        batch = Batch(context.n_batch)
        prompt = array("i", [(7 * i + 3) % model.n_vocab for i in range(N_PROMPT)])
        drawn = _decode(context, batch, [(0, 0, prompt)])
        position = N_PROMPT
        for _ in range(N_SINGLE):
            drawn += _decode(context, batch, [(0, position, array("i", drawn[-1:]))])
            position += 1
        together = [(seq, 0, array("i", drawn[:2])) for seq in range(1, N_TOGETHER)]
        last = (0, position, array("i", drawn[-1:]))
        return drawn + _decode(context, batch, [last, *together])


def _decode(
    context: native.Context, batch: Batch, parts: Sequence[tuple[int, int, array[int]]]
) -> list[int]:
    """Compute parts of several sequences; return the likeliest token after each."""
    batch.clear()
    for seq, start, tokens in parts:
        batch.add(seq, start, tokens, output=True)
    code = context.decode(batch.ready())
    if code != 0:
        raise EngineDiedError(f"llama_decode returned {code}", code="decode_failed")
    logits = context.logits(len(parts))
    if not np.isfinite(logits).all():
        raise EngineDiedError("the model computed no finite numbers", code="not_finite")
    return [int(token) for token in logits.argmax(axis=1)]


def _say(record: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
