"""Many dry loads of one file in one child: the vocabulary is read once, then contexts are made.

`python -m tests.support.dry_loads MODEL` reads a JSON list of loads and answers with a list of
records in the same order: bytes of weights, KV and compute buffers as llama.cpp plans them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Load:
    """What a context is asked for."""

    n_ctx: int
    n_seq_max: int
    kv_type: str = "f16"
    n_ubatch: int = 512
    flash_attn: bool = True
    streams: bool = False


@dataclass(frozen=True, slots=True)
class Planned:
    """What llama.cpp would allocate on the CPU, in bytes. `compute` is without the output."""

    weights: int
    kv: int
    compute: int
    output: int


def dry_loads(path: Path, loads: Sequence[Load]) -> list[Planned]:
    """Ask llama.cpp about all `loads` of one file."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.dry_loads", str(path)],
        input=json.dumps([asdict(load) for load in loads]),
        capture_output=True,
        text=True,
        timeout=300,
        cwd=root,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
    )
    if done.returncode:
        raise AssertionError(f"status {done.returncode}: {done.stdout}\n{done.stderr[-2000:]}")
    return [Planned(**record) for record in json.loads(done.stdout.strip().splitlines()[-1])]


def _main(path: Path) -> None:
    from edgekit_server.engine import native
    from edgekit_server.engine.options import ContextOptions, ModelOptions

    loads = [Load(**record) for record in json.load(sys.stdin)]
    log = native.capture_log()
    found = []
    model = native.Model(ModelOptions(path, use_extra_bufts=False, no_alloc=True), log)
    for load in loads:
        options = ContextOptions(
            n_ctx=load.n_ctx,
            n_seq_max=load.n_seq_max,
            n_batch=max(load.n_ubatch, load.n_seq_max),
            n_ubatch=load.n_ubatch,
            n_threads=1,
            type_k=load.kv_type,
            type_v=load.kv_type,
            flash_attn=load.flash_attn,
            kv_unified=not load.streams,
        )
        context = native.Context(model, options, log)
        rows = context.memory_rows()
        context.close()
        assert rows, "llama.cpp's table of buffers cannot be read here"
        found.append(
            Planned(
                weights=sum(row.weights for row in rows),
                kv=sum(row.kv for row in rows),
                compute=sum(row.compute for row in rows),
                output=4 * model.n_vocab * load.n_seq_max,
            )
        )
    model.close()
    sys.stdout.write(json.dumps([asdict(record) for record in found]) + "\n")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
