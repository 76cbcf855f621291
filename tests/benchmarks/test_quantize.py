"""One pass beside two steps: wall time, bytes written, peak memory. Prints, asserts no time.

Each way runs in a child process of its own, the ways take turns, medians are compared:

- `one pass`: `edgekit_quantize.convert` from the checkpoint (hashes source and result, syncs).
- `two steps`: our own BF16 GGUF, then `llama_model_quantize`. The BF16 file is written by the
  same fast code, so this is the smallest advantage one pass can have.
- `two steps, gguf-py`: the BF16 file encoded tensor by tensor with gguf-py, as llama.cpp's
  converter does it (without its imports and its tokenizer checks), then `llama_model_quantize`.

EDGEKIT_BENCH_FILETYPES and EDGEKIT_BENCH_REPEATS choose what runs and how often.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WAYS = ("one pass", "two steps", "two steps, gguf-py")
Measured = dict[str, float]


@pytest.mark.bench
def test_one_pass_beside_two_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.support.checkpoints import make_checkpoint

    filetypes = os.environ.get("EDGEKIT_BENCH_FILETYPES", "Q8_0,Q4_0,Q4_K_M").split(",")
    repeats = int(os.environ.get("EDGEKIT_BENCH_REPEATS", "3"))
    folder = make_checkpoint(
        tmp_path / "c", hidden=1024, layers=8, heads=16, kv_heads=4, head_dim=64, ffn=4096,
        vocab=32768, shards=4,
    )  # fmt: skip
    source_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    largest = 2 * 32768 * 1024
    records = []
    for filetype in filetypes:
        runs: dict[str, list[Measured]] = {way: [] for way in WAYS}
        for _ in range(repeats):
            for way in WAYS:
                runs[way].append(_run(way, folder, tmp_path, filetype))
        medians = {
            way: {key: statistics.median(run[key] for run in taken) for key in taken[0]}
            for way, taken in runs.items()
        }
        one = medians["one pass"]
        records.append(
            {
                "filetype": filetype,
                "repeats": repeats,
                "source_bytes": source_bytes,
                "ways": medians,
                "ratios": {
                    way: {key: round(one[key] / other[key], 3) for key in one}
                    for way, other in medians.items()
                    if way != "one pass"
                },
                "peak_minus_largest_mib": round((one["peak_rss_bytes"] - largest) / 2**20, 1),
            }
        )
    with capsys.disabled():
        for record in records:
            print(f"\n{record['filetype']}: {source_bytes / 1e6:.0f} MB of BF16 weights")
            for way, median in record["ways"].items():
                print(
                    f"  {way:20s} {median['seconds']:7.2f} s {median['cpu_seconds']:7.2f} cpu s "
                    f"{median['written_bytes'] / 1e6:7.0f} MB "
                    f"written {median['peak_rss_bytes'] / 2**20:6.0f} MiB peak"
                )
            for way, ratio in record["ratios"].items():
                print(f"  one pass / {way}: " + ", ".join(f"{k} {v}" for k, v in ratio.items()))
            print(json.dumps(record))


def _run(way: str, folder: Path, work: Path, filetype: str) -> Measured:
    for path in work.glob("*.gguf"):
        path.unlink()
    os.sync()
    child = subprocess.run(
        [sys.executable, __file__, way, str(folder), str(work), filetype],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "quantize")])},
    )
    measured: Measured = json.loads(child.stdout.splitlines()[-1])
    return measured


def _one_pass(folder: Path, work: Path, filetype: str) -> None:
    from edgekit_quantize import convert

    convert(folder, work / "out.gguf", filetype)


def _two_steps(folder: Path, work: Path, filetype: str) -> None:
    from edgekit_quantize import convert

    convert(folder, work / "bf16.gguf", "BF16")
    _llama_quantize(work, filetype)


def _two_steps_gguf_py(folder: Path, work: Path, filetype: str) -> None:
    import gguf
    import numpy as np

    from edgekit_quantize import convert as module
    from edgekit_quantize.checkpoint import Checkpoint
    from edgekit_quantize.convert import _header, _jobs, _plan
    from edgekit_quantize.tensor_types import align, find_file_type

    assert module is not None
    with Checkpoint(folder) as checkpoint, (work / "bf16.gguf").open("wb") as out:
        file_type = find_file_type("BF16")
        plan = _plan(checkpoint, file_type)
        out.write(_header(checkpoint, plan, file_type, "sha256:none", None))
        for job in _jobs(checkpoint, plan):
            (part,) = job.parts
            words = part.floats(0, part.rows)
            values = (words.astype(np.uint32) << np.uint32(16)).view(np.float32)
            values = values.reshape(job.rows, job.columns)
            kind = gguf.GGMLQuantizationType[job.target.type.name]
            out.write(gguf.quants.quantize(values, kind).tobytes())
            out.write(bytes(align(job.target.bytes) - job.target.bytes))
    _llama_quantize(work, filetype)


def _llama_quantize(work: Path, filetype: str) -> None:
    import llama_cpp

    from edgekit_quantize.tensor_types import find_file_type

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = find_file_type(filetype).number
    source, target = work / "bf16.gguf", work / "out.gguf"
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    assert code == 0


def _number(path: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", Path(path).read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def _child(way: str, folder: Path, work: Path, filetype: str) -> None:
    import llama_cpp
    import numpy

    assert llama_cpp is not None
    assert numpy is not None
    functions = dict(zip(WAYS, (_one_pass, _two_steps, _two_steps_gguf_py), strict=True))
    before = _number("/proc/self/io", "write_bytes")
    started = time.monotonic()
    functions[way](folder, work, filetype)
    seconds = time.monotonic() - started
    record = {
        "seconds": seconds,
        # Steadier than wall time on a machine that does other work as well.
        "cpu_seconds": time.process_time(),
        "written_bytes": _number("/proc/self/io", "write_bytes") - before,
        "peak_rss_bytes": _number("/proc/self/status", "VmHWM") * 1024,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    _child(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
