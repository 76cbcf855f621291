"""Memory of converting a model of 24 B parameters: 47 GB of (sparse) weights, in a child.

The weights are holes, so the time says little; the memory does not depend on the values.
EDGEKIT_BENCH_FILETYPES chooses the file type. Needs 15 GB of disk for Q4_K_M.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekit.catalogue import find_model
from tests.support.cli import SOURCES
from tests.support.sparse import sparse_checkpoint


@pytest.mark.bench
@pytest.mark.timeout(3600)
def test_converting_24b_within_3_gib(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filetype = os.environ.get("EDGEKIT_BENCH_FILETYPES", "Q4_K_M").split(",")[0]
    config = dict(find_model("mistral-3-small").config)
    folder = sparse_checkpoint(tmp_path / "c", config, shards=10)
    logical = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    code = (
        "import sys; from pathlib import Path; from edgekit_quantize import convert\n"
        "convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])"
    )
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "m.gguf"), filetype],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SOURCES))},
    )
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    written = (tmp_path / "m.gguf").stat().st_size
    with capsys.disabled():
        print(
            f"\n{logical / 1e9:.1f} GB of weights to {filetype}, {written / 1e9:.1f} GB written: "
            f"peak {peak / 2**30:.2f} GiB resident, {seconds / (logical / 2**30):.1f} s/GiB"
        )
    assert peak < 3 * 2**30
