"""`python -m edgekit_server MODEL.gguf`: serve one file, for development."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import fields
from pathlib import Path

from . import EngineConfig, ServeConfig, ServerError, serve


def main(argv: list[str] | None = None) -> int:
    """Parse, serve, and return the exit code."""
    default = {f.name: f.default for kind in (EngineConfig, ServeConfig) for f in fields(kind)}
    parser = argparse.ArgumentParser(prog="python -m edgekit_server", description=__doc__)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--id", help="the name that clients ask for (default: the file's name)")
    parser.add_argument("--host", default=default["host"])
    parser.add_argument("--port", type=int, default=default["port"])
    parser.add_argument("--api-key", action="append", default=[], dest="api_keys")
    parser.add_argument("--ctx", type=int, default=default["n_ctx"], help="KV cells, tokens")
    parser.add_argument("--sequences", type=int, default=default["n_seq_max"])
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--gpu-layers", type=int, default=default["n_gpu_layers"])
    parser.add_argument("--no-extra-bufts", action="store_true")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    config = ServeConfig(
        engine=EngineConfig(
            model_path=options.model,
            model_id=options.id or options.model.stem,
            n_ctx=options.ctx,
            n_seq_max=options.sequences,
            n_gpu_layers=options.gpu_layers,
            n_threads=options.threads,
            use_extra_bufts=not options.no_extra_bufts,
        ),
        host=options.host,
        port=options.port,
        api_keys=tuple(options.api_keys),
    )
    try:
        serve(config)
    except ServerError as error:
        hint = f"\n{error.hint}" if error.hint else ""
        sys.stderr.write(f"error: {error.message}{hint}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
