"""Importance matrix files: both formats, hostile bytes, and what does not match a model."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_quantize import convert
from edgekit_quantize.errors import (
    BadGgufError,
    BadImatrixError,
    BadRecipeError,
    MissingFileError,
)
from edgekit_quantize.imatrix_file import read_imatrix, write_imatrix
from tests.support.checkpoints import make_checkpoint
from tests.support.mixtures import qwen3moe


@dataclass
class Sums:
    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]


DENSE, EXPERTS, HEADS = "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight", "blk.0.attn_k_b.weight"
ENTRIES = {
    EXPERTS: Sums(np.arange(1.0, 13.0).reshape(3, 4), np.array([2, 0, 5])),
    DENSE: Sums(np.array([[3.0, 6.0, 9.0, 0.0]]), np.array([3])),
    # One count for three matrices: a weight that each row meets in all its parts.
    HEADS: Sums(np.arange(12.0).reshape(3, 4), np.array([4])),
}


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<i", len(raw)) + raw


def legacy(entries: dict[str, tuple[int, list[float]]], tail: bytes = b"") -> bytes:
    out = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        out += text(name) + struct.pack("<ii", calls, len(values))
        out += np.array(values, "<f4").tobytes()
    return out + tail


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_imatrix(tmp_path / "i.gguf", ENTRIES, 7, "code and chat", chunk_size=256)
    return tmp_path / "i.gguf"


def test_what_is_written_is_llama_cpps_format(written: Path) -> None:
    """Read by llama.cpp's own Python package: names, shapes, values and keys."""
    reader = gguf.GGUFReader(written)
    assert [tensor.name for tensor in reader.tensors] == [
        f"{name}.{part}" for name in sorted(ENTRIES) for part in ("in_sum2", "counts")
    ]
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert list(found[f"{EXPERTS}.in_sum2"].shape) == [4, 3]
    assert list(found[f"{EXPERTS}.counts"].shape) == [1, 3]
    assert list(found[f"{HEADS}.in_sum2"].shape) == [12, 1]
    assert found[f"{EXPERTS}.counts"].data.reshape(-1).tolist() == [2, 0, 5]
    assert found[f"{DENSE}.in_sum2"].data.reshape(-1).tolist() == [3, 6, 9, 0]
    fields = {
        key: reader.get_field(key).contents()  # type: ignore[union-attr]
        for key in ("general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")
    }
    assert list(fields.values()) == ["imatrix", ["code and chat"], 7, 256]


def test_means_by_expert(written: Path) -> None:
    found = read_imatrix(written)
    assert (found.chunks, found.datasets, found.name) == (7, ("code and chat",), "i.gguf")
    assert found.digest.startswith("sha256:")
    experts = found.tensors[EXPERTS]
    assert experts.matrix(0, 4).tolist() == [0.5, 1, 1.5, 2]
    assert experts.matrix(1, 4).tolist() == [1, 1, 1, 1], "never reached"
    assert experts.matrix(2, 4).tolist() == pytest.approx([1.8, 2, 2.2, 2.4])
    assert found.tensors[HEADS].matrix(2, 4).tolist() == [2, 2.25, 2.5, 2.75]
    assert found.tensors[DENSE].matrix(0, 4).tolist() == [1, 2, 3, 0]


def test_the_same_entries_make_the_same_bytes(written: Path) -> None:
    again = written.with_name("again.gguf")
    write_imatrix(again, dict(reversed(ENTRIES.items())), 7, "code and chat", chunk_size=256)
    assert again.read_bytes() == written.read_bytes()


def test_the_older_format(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    tail = struct.pack("<i", 12) + text("wiki.train")
    path.write_bytes(legacy({"odd": (4, [2, 4, 8]), DENSE: (0, [5, 6])}, tail))
    found = read_imatrix(path)
    assert (found.chunks, found.datasets) == (12, ("wiki.train",))
    assert found.tensors["odd"].matrix(0, 3).tolist() == [0.5, 1, 2]
    assert found.tensors[DENSE].matrix(0, 2).tolist() == [5, 6], "no count: taken as it is"
    path.write_bytes(legacy({"odd": (4, [2, 4, 8])}))
    assert (read_imatrix(path).chunks, read_imatrix(path).datasets) == (0, ())


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "0 bytes"),
        (struct.pack("<ii", 0, 0), "number of entries is 0"),
        (struct.pack("<i", 1) + struct.pack("<i", 2**31 - 1), "bytes long"),
        (struct.pack("<i", 2**31 - 1) + text("a") + struct.pack("<ii", 1, 1) + b"123", "ends"),
        (legacy({"a": (1, [1])})[:-1], "ends inside a"),
        (struct.pack("<i", 1) + text("a") + struct.pack("<ii", 1, 2**30), "ends inside a"),
        (struct.pack("<i", 1) + text("a") + struct.pack("<ii", 1, -1), "is -1"),
        (struct.pack("<i", 2) + 2 * legacy({"a": (1, [1])})[4:], "twice"),
        (struct.pack("<ii", 1, 2) + b"\xff\xfe" + struct.pack("<iif", 1, 1, 1), "UTF-8"),
        (legacy({"x" * 64: (1, [1])}), "too long"),
        (legacy({"a": (1, [float("nan")])}), "negative, NaN or infinite"),
        (legacy({"a": (1, [-1.0])}), "negative, NaN or infinite"),
    ],
)
def test_damaged_files_of_the_older_format(raw: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "i.dat"
    path.write_bytes(raw)
    with pytest.raises(BadImatrixError, match=words) as caught:
        read_imatrix(path)
    assert caught.value.exit_code == 65
    assert caught.value.hint


def test_a_model_is_no_importance_matrix(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", layers=1, vocab=300)
    convert(folder, tmp_path / "m.gguf", "Q8_0", threads=1)
    with pytest.raises(BadImatrixError, match="is it a model"):
        read_imatrix(tmp_path / "m.gguf")
    with pytest.raises(MissingFileError):
        read_imatrix(tmp_path / "none.gguf")


def test_sums_without_counts(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "i.gguf", ENTRIES, 7, "text")
    raw = (tmp_path / "i.gguf").read_bytes()
    (tmp_path / "i.gguf").write_bytes(raw.replace(b"attn_q.weight.counts", b"attn_q.weight.cuonts"))
    with pytest.raises(BadImatrixError, match="but not both"):
        read_imatrix(tmp_path / "i.gguf")


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), older=st.booleans())
def test_damaged_bytes_are_errors_or_numbers(
    seed: int, older: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = folder / "damaged"
    if not (folder / "whole.gguf").is_file():
        write_imatrix(folder / "whole.gguf", ENTRIES, 7, "text")
        tail = struct.pack("<i", 12) + text("text")
        (folder / "whole.dat").write_bytes(legacy({"a": (4, [2, 4]), "b": (1, [1] * 9)}, tail))
    raw = bytearray((folder / ("whole.dat" if older else "whole.gguf")).read_bytes())
    rng = np.random.default_rng(seed)
    for _ in range(rng.integers(1, 4)):
        raw[rng.integers(len(raw))] = rng.integers(256)
    if rng.random() < 0.3:
        del raw[rng.integers(len(raw)) :]
    path.write_bytes(raw)
    try:
        found = read_imatrix(path)
    except (BadGgufError, BadImatrixError):
        return
    for entry in found.tensors.values():
        values = entry.matrix(0, entry.size)
        assert (values >= 0).all()


def imatrix_for(folder: Path, path: Path, columns: dict[str, int]) -> Path:
    entries = {name: Sums(np.ones((1, n)), np.array([1])) for name, n in columns.items()}
    write_imatrix(path, entries, 1, "text")
    return path


def test_types_that_need_an_importance_say_so(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", layers=1, vocab=300)
    with pytest.raises(BadRecipeError, match="IQ2_XS needs an importance for blk") as caught:
        convert(folder, tmp_path / "m.gguf", "IQ2_XS", threads=1)
    assert (caught.value.code, caught.value.exit_code) == ("imatrix_required", 2)
    assert "edgekit imatrix" in str(caught.value.hint)
    part = imatrix_for(folder, tmp_path / "part.gguf", {"blk.0.attn_q.weight": 256})
    with pytest.raises(BadRecipeError, match=r"attn_k.weight.*part.gguf has none"):
        convert(folder, tmp_path / "m.gguf", "IQ2_XS", threads=1, imatrix=part)
    assert not (tmp_path / "m.gguf").exists()


def test_another_models_importance_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", layers=1, vocab=300)
    other = imatrix_for(folder, tmp_path / "other.gguf", {"blk.0.attn_q.weight": 512})
    with pytest.raises(BadImatrixError, match="has 512 values, the tensor has 256") as caught:
        convert(folder, tmp_path / "m.gguf", "Q4_K_M", threads=1, imatrix=other)
    assert caught.value.code == "other_model"
    # llama.cpp ignores an entry of the embeddings that does not fit, and so do we.
    odd = imatrix_for(folder, tmp_path / "odd.gguf", {"token_embd.weight": 512})
    convert(folder, tmp_path / "m.gguf", "Q4_K_M", threads=1, imatrix=odd)


def test_experts_that_no_text_reached_are_reported(tmp_path: Path) -> None:
    folder = qwen3moe(tmp_path / "c", layers=1, experts=2)
    entries = {"blk.0.ffn_up_exps.weight": Sums(np.ones((2, 256)), np.array([9, 0]))}
    write_imatrix(tmp_path / "i.gguf", entries, 1, "text")
    done = convert(folder, tmp_path / "m.gguf", "Q4_K_M", threads=1, imatrix=tmp_path / "i.gguf")
    said = "\n".join(done.reasons)
    assert "1 expert of blk.0.ffn_up_exps.weight was never reached" in said
    assert "no importance for blk.0.attn_k.weight" in said
