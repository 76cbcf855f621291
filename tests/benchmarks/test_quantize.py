"""One pass beside two steps: wall time, bytes written, peak memory. Prints, asserts no time.

Each way runs in a child process of its own, the ways take turns, medians are compared:

- `one pass`: `edgekit_quantize.convert` from the checkpoint (hashes source and result, syncs).
- `two steps`: our own BF16 GGUF, then `llama_model_quantize`. The BF16 file is written by the
  same fast code, so this is the smallest advantage one pass can have.
- `llama.cpp`: its own converter to BF16, then `llama_model_quantize`. It runs when
  EDGEKIT_BENCH_CONVERTER names the `convert_hf_to_gguf.py` of a source tree (the sdist of
  llama-cpp-python holds one).

EDGEKIT_BENCH_SHAPE=1.5gb converts a checkpoint of 1.5 GB instead of 270 MB.
EDGEKIT_BENCH_FILETYPES and EDGEKIT_BENCH_REPEATS choose what runs and how often.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONVERTER = os.environ.get("EDGEKIT_BENCH_CONVERTER")
WAYS = ("one pass", "two steps", *(("llama.cpp",) if CONVERTER else ()))
SHAPES: dict[str, dict[str, int]] = {
    "270mb": {"hidden": 1024, "layers": 8, "heads": 16, "ffn": 4096},
    "1.5gb": {"hidden": 2048, "layers": 16, "heads": 32, "ffn": 5632},
}
Measured = dict[str, float]


@pytest.mark.bench
def test_one_pass_beside_two_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.support.checkpoints import make_checkpoint

    filetypes = os.environ.get("EDGEKIT_BENCH_FILETYPES", "Q8_0,Q4_0,Q4_K_M").split(",")
    repeats = int(os.environ.get("EDGEKIT_BENCH_REPEATS", "3"))
    shape = SHAPES[os.environ.get("EDGEKIT_BENCH_SHAPE", "270mb")]
    folder = make_checkpoint(
        tmp_path / "c", kv_heads=4, head_dim=64, vocab=32768, shards=4, **shape
    )
    source_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    largest = 2 * 32768 * shape["hidden"]
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
                    f"  {way:10s} {median['seconds']:7.2f} s "
                    f"{median['seconds'] / source_bytes * 2**30:6.1f} s/GiB "
                    f"{median['cpu_seconds']:7.2f} cpu s "
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


def _llama_cpp(folder: Path, work: Path, filetype: str) -> None:
    assert CONVERTER is not None
    subprocess.run(
        [
            *(sys.executable, CONVERTER, str(folder)),
            *("--outtype", "bf16", "--outfile", str(work / "bf16.gguf")),
        ],
        check=True,
        capture_output=True,
        # The tree's own gguf-py, not an installed one, belongs to its converter.
        env={**os.environ, "PYTHONPATH": str(Path(CONVERTER).parent / "gguf-py")},
    )
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


def _high_water_kib() -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+)", status, re.MULTILINE)
    assert found is not None
    return int(found[1])


def _child(way: str, folder: Path, work: Path, filetype: str) -> None:
    import llama_cpp
    import numpy

    assert llama_cpp is not None
    assert numpy is not None
    functions = {"one pass": _one_pass, "two steps": _two_steps, "llama.cpp": _llama_cpp}
    started = time.monotonic()
    functions[way](folder, work, filetype)
    os.sync()
    seconds = time.monotonic() - started
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    record = {
        "seconds": seconds,
        # Steadier than wall time on a machine that does other work as well.
        "cpu_seconds": sum(u.ru_utime + u.ru_stime for u in (own, children)),
        "written_bytes": sum(path.stat().st_size for path in work.glob("*.gguf")),
        # Not getrusage's own figure, which a process inherits from the one that started it.
        "peak_rss_bytes": max(_high_water_kib(), children.ru_maxrss) * 1024,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    _child(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
