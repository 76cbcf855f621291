"""Runs what loads models for evaluation in a child process: `call(job)` returns JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Job = dict[str, Any]


def call(job: Job, *, timeout: float = 280) -> Any:
    """Run `job` in a fresh interpreter. Fails with the child's log when it dies."""
    child = subprocess.run(
        [sys.executable, "-W", "error", __file__],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=timeout,
        env={
            **os.environ,
            "GGML_NO_BACKTRACE": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "quantize")]),
        },
        check=False,
    )
    assert child.returncode == 0, f"evaluation child: {child.returncode}\n{child.stderr[-2000:]}"
    return json.loads(child.stdout.splitlines()[-1])


def losses(base: Path, files: dict[str, Path], text: str, **more: Any) -> dict[str, Any]:
    """Compare files with an unquantized GGUF; one evaluation each, as plain dictionaries."""
    named = {name: str(file) for name, file in files.items()}
    return dict(call({"do": "losses", "base": str(base), "files": named, "text": text, **more}))


def collect(model: Path, text: str, output: Path, **more: Any) -> dict[str, Any]:
    """Collect an importance matrix into the .npz `output`: NAME for sums, NAME# for counts."""
    job = {"do": "collect", "model": str(model), "text": text, "output": str(output), **more}
    return dict(call(job))


def _do_losses(job: Job) -> object:
    from edgekit_quantize import evaluate as proof

    material = proof.Material(
        job["text"],
        tuple(((prompt, False),) for prompt in job.get("prompts", ())),
        job.get("window", 256),
        job.get("windows"),
    )
    engine = proof.Engine(job.get("threads", 1), use_extra_bufts=False)
    stored = Path(job["base"] + ".base")
    proof.score_base(Path(job["base"]), stored, material, engine)
    found = {}
    for name, file in job["files"].items():
        got = proof.evaluate(Path(file), stored, material, engine)
        found[name] = {
            **asdict(got.divergence),
            "prompts": got.prompts,
            "drifts": [asdict(drift) for drift in got.drifts],
        }
    return found


def _do_collect(job: Job) -> object:
    import numpy as np

    from edgekit_quantize.imatrix import collect

    found = collect(
        Path(job["model"]),
        job["text"],
        threads=job.get("threads", 1),
        chunks=job.get("chunks"),
        chunk_size=job.get("chunk_size", 512),
        use_extra_bufts=False,
    )
    arrays = {name: entry.sums for name, entry in found.entries.items()}
    arrays |= {f"{name}#": entry.counts for name, entry in found.entries.items()}
    np.savez(job["output"], **arrays)
    return {"chunks": found.chunks, "partial": found.partial, "names": sorted(found.entries)}


def _do_imatrix(job: Job) -> object:
    from edgekit_quantize.imatrix import collect
    from edgekit_quantize.imatrix_file import write_imatrix

    found = collect(
        Path(job["model"]),
        job["text"],
        threads=job.get("threads", 1),
        chunks=job["chunks"],
        use_extra_bufts=False,
    )
    write_imatrix(Path(job["output"]), found.entries, found.chunks, "test")
    return "ok"


if __name__ == "__main__":
    request = json.loads(sys.stdin.read())
    actions = {"losses": _do_losses, "collect": _do_collect, "imatrix": _do_imatrix}
    print(json.dumps(actions[request["do"]](request)))
