"""The chain from sources to result: on record at each link, and the same bytes each time."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edgekit_quantize.checkpoint import Checkpoint
from edgekit_quantize.convert import convert
from edgekit_quantize.gguf_header import read_header
from edgekit_quantize.imatrix_file import read_imatrix
from edgekit_quantize.llama import VERSION
from edgekit_quantize.provenance import CONVERTER
from tests.support import proof
from tests.support.pocket import SOURCE, convert_pocket

TEXT = (SOURCE.parents[2] / "edgekit" / "fit.py").read_text()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def collected(model: Path, output: Path, **more: int) -> Path:
    """Collect over little text and write the file, in a child."""
    proof.call({"do": "imatrix", "model": str(model), "text": TEXT, "output": str(output), **more})
    return output


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imatrix")
    return collected(convert_pocket(folder, "BF16"), folder / "m.gguf", chunks=2)


def test_a_matrix_is_the_same_file_each_time(matrix: Path, tmp_path: Path) -> None:
    again = collected(convert_pocket(tmp_path, "BF16"), tmp_path / "n.gguf", chunks=2, threads=2)
    assert again.read_bytes() == matrix.read_bytes()
    found = read_imatrix(matrix)
    assert (found.chunks, found.datasets, len(found.tensors)) == (2, ("test",), 42)


def test_the_chain_is_on_record_and_gives_the_same_bytes(matrix: Path, tmp_path: Path) -> None:
    one, two = (
        convert(SOURCE, tmp_path / f"{n}.gguf", "Q2_K_S", threads=n, imatrix=matrix, name="pocket")
        for n in (1, 2)
    )
    assert one.path.read_bytes() == two.path.read_bytes()
    # Result: what the converter says is the file's own digest.
    assert one.sha256 == two.sha256 == sha256(one.path)
    metadata = read_header(one.path).metadata
    # Sources, by hand: sha256sum FILES | LC_ALL=C sort -k2 | sha256sum
    with Checkpoint(SOURCE) as checkpoint:
        files = checkpoint.files()
    lines = "".join(f"{sha256(f)}  {f.name}\n" for f in sorted(files, key=lambda f: f.name))
    by_hand = "sha256:" + hashlib.sha256(lines.encode()).hexdigest()
    assert metadata["edgekit.source.digest"] == one.source_digest == by_hand
    assert {f.suffix for f in files} >= {".safetensors", ".json"}
    # Converter, kernels and matrix.
    assert metadata["edgekit.converter"] == CONVERTER
    assert metadata["edgekit.quantizer"] == f"llama-cpp-python {VERSION}"
    assert metadata["edgekit.imatrix.digest"] == f"sha256:{sha256(matrix)}"
    assert metadata["quantize.imatrix.entries_count"] == 42


def test_another_link_gives_another_result(matrix: Path, tmp_path: Path) -> None:
    plain = convert(SOURCE, tmp_path / "plain.gguf", "Q4_0", threads=1)
    weighed = convert(SOURCE, tmp_path / "weighed.gguf", "Q4_0", threads=1, imatrix=matrix)
    assert plain.sha256 != weighed.sha256
    assert plain.source_digest == weighed.source_digest
    assert "edgekit.imatrix.digest" not in read_header(plain.path).metadata
