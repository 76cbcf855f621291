"""What a model would need, without its weights in memory.

`python -m edgekit_server.engine.dryload MODEL --n-ctx N --n-seq-max N --n-ubatch N ...` loads
metadata only (no_alloc), lets llama.cpp plan its buffers, and prints one JSON line. Run it as a
child: a malformed file may end the process.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from edgekit_server import egress
from edgekit_server.engine import breakdown, native
from edgekit_server.engine.options import ContextOptions, ModelOptions
from edgekit_server.errors import ModelMissingError, ServerError


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; return the exit code of the error tree."""
    egress.follow()
    options = _parser().parse_args(arguments)
    flash = {"auto": None, "on": True, "off": False}[options.flash_attn]
    context_options = ContextOptions(
        n_ctx=options.n_ctx,
        n_seq_max=options.n_seq_max,
        n_batch=options.n_batch or max(options.n_ubatch, options.n_seq_max),
        n_ubatch=options.n_ubatch,
        n_threads=1,
        type_k=options.type_k,
        type_v=options.type_v,
        flash_attn=flash,
        kv_unified=not options.streams,
    )
    model_options = ModelOptions(
        options.model, options.n_gpu_layers, not options.no_extra_bufts, no_alloc=True
    )
    try:
        record: dict[str, object] = asdict(measure(model_options, context_options))
    except ServerError as error:
        record = {"error": {"code": error.code, "message": error.message}}
        code = error.exit_code
    else:
        code = 0
    sys.stdout.write(json.dumps(record) + "\n")
    return code


def measure(model_options: ModelOptions, context_options: ContextOptions) -> breakdown.Breakdown:
    """Return bytes per device for these settings. Raises ServerError if they cannot be had."""
    if not model_options.path.is_file():
        raise ModelMissingError(f"no file {model_options.path}")
    log = native.capture_log()
    with native.opened(model_options, context_options, log) as (model, context):
        logged = breakdown.from_log(
            log.text(),
            weights_bytes=model.size_bytes,
            n_outputs=context.n_seq_max,
            n_vocab=model.n_vocab,
        )
        return breakdown.merge(context.memory_rows(), logged)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edgekit_server.engine.dryload")
    parser.add_argument("model", type=Path)
    parser.add_argument("--n-ctx", type=int, required=True)
    parser.add_argument("--n-seq-max", type=int, default=1)
    parser.add_argument("--n-batch", type=int)
    parser.add_argument("--n-ubatch", type=int, default=512)
    parser.add_argument("--n-gpu-layers", type=int, default=-1)
    parser.add_argument("--no-extra-bufts", action="store_true")
    parser.add_argument("--type-k", default="f16")
    parser.add_argument("--type-v", default="f16")
    parser.add_argument("--flash-attn", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--streams", action="store_true", help="cells of its own per sequence")
    return parser


if __name__ == "__main__":
    sys.exit(main())
