"""Conversion against `llama_model_quantize`, byte for byte: every file type, with an importance
matrix and without, dense models and mixtures, rows that are no whole blocks of 256."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgekit_quantize import FILE_TYPES, convert, read_header
from edgekit_quantize.errors import BadRecipeError
from edgekit_quantize.gguf_header import GgufHeader
from edgekit_quantize.imatrix_file import read_imatrix, write_imatrix
from edgekit_quantize.metadata import ValueType
from edgekit_quantize.recipe import NO_OVERRIDES, Overrides
from edgekit_quantize.tensor_types import TENSOR_TYPES
from tests.support.checkpoints import make_checkpoint
from tests.support.mixtures import mixtral, qwen3moe
from tests.support.quantize_oracle import Run, runs


@dataclass
class Sums:
    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]


def random_sums(header: GgufHeader, seed: int = 5) -> dict[str, Sums]:
    """Positive sums for every matrix, over four decades; an expert that was never reached."""
    rng = np.random.default_rng(seed)
    found = {}
    for tensor in header.tensors:
        if len(tensor.shape) < 2 or tensor.name == "token_embd.weight":
            continue
        matrices = tensor.shape[2] if len(tensor.shape) > 2 else 1
        counts = rng.integers(1, 4000, matrices)
        if matrices > 1:
            counts[1] = 0
        squares = 10 ** rng.uniform(-3, 1, (matrices, tensor.shape[0]))
        found[tensor.name] = Sums(squares * counts[:, None], counts)
    return found


def assert_identical(
    folder: Path, work: Path, names: list[str], *, overrides: Overrides = NO_OVERRIDES
) -> int:
    """Each direct conversion is the very file llama.cpp makes from our BF16 GGUF."""
    convert(folder, work / "bf16.gguf", "BF16", threads=2)
    sums = random_sums(read_header(work / "bf16.gguf"))
    write_imatrix(work / "some.gguf", sums, 7, "calibration")
    weighing = read_imatrix(work / "some.gguf").keys()
    # What llama-quantize computes from the file, by hand and in float32.
    means = {
        name: np.where(
            entry.counts[:, None] > 0,
            entry.sums.astype(np.float32) / np.maximum(entry.counts, 1).astype(np.float32)[:, None],
            np.float32(1),
        ).reshape(-1)
        for name, entry in sums.items()
    }
    np.savez(work / "means.npz", **means)
    keys = {key.key: key.value for key in weighing}
    cases = [(name, weighed) for name in names for weighed in (False, True)]
    wanted = [
        Run(
            str(work / "bf16.gguf"),
            FILE_TYPES[name].number,
            str(work / f"theirs-{name}-{weighed}.gguf"),
            imatrix=str(work / "means.npz") if weighed else None,
            keys=keys if weighed else {},  # type: ignore[arg-type]
            tensor_types=tuple((p, TENSOR_TYPES[t].id) for p, t in overrides.tensors),
            output=TENSOR_TYPES[overrides.output].id if overrides.output else None,
            embedding=TENSOR_TYPES[overrides.embedding].id if overrides.embedding else None,
            pure=overrides.pure,
        )
        for name, weighed in cases
    ]
    compared = 0
    for (name, weighed), run, done in zip(cases, wanted, runs(wanted), strict=True):
        ours, theirs = work / "ours.gguf", Path(str(run.destination))
        given = work / "some.gguf" if weighed else None
        if done.error is not None:
            theirs.unlink(missing_ok=True)
            with pytest.raises(BadRecipeError) as caught:
                convert(folder, ours, name, threads=2, imatrix=given, overrides=overrides)
            expected = "requires an imatrix" if not weighed else "no tensor type fallback"
            assert expected in done.error or "no tensor type fallback" in done.error
            assert caught.value.code in ("imatrix_required", "no_smaller_type")
            continue
        convert(folder, ours, name, threads=2, imatrix=given, overrides=overrides)
        one, other = read_header(ours), read_header(theirs)
        assert one.tensors == other.tensors, (name, weighed)
        assert list(one.metadata.items()) == list(other.metadata.items()), (name, weighed)
        assert ours.read_bytes() == theirs.read_bytes(), (name, weighed)
        theirs.unlink()
        compared += 1
    return compared


NEED = sum(file_type.needs_imatrix for file_type in FILE_TYPES.values())

# ggml builds its 1- and 2-bit tables anew in each process: 15 s of CPU, so they are slow tests.
QUICK = [name for name in FILE_TYPES if not name.startswith(("IQ1", "IQ2", "IQ3_XX"))]
QUICK_NEED = sum(FILE_TYPES[name].needs_imatrix for name in QUICK)


def small(folder: Path) -> Path:
    return make_checkpoint(folder, layers=1, kv_heads=1, ffn=256, vocab=300)


def test_dense_with_and_without_importance(tmp_path: Path) -> None:
    assert assert_identical(small(tmp_path / "c"), tmp_path, QUICK) == 2 * len(QUICK) - QUICK_NEED


@pytest.mark.slow
def test_dense_every_type(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", layers=8, kv_heads=4, ffn=512, vocab=300)
    assert assert_identical(folder, tmp_path, list(FILE_TYPES)) == 2 * len(FILE_TYPES) - NEED


def test_rows_of_96_and_160(tmp_path: Path) -> None:
    """No block of 256 fits, so few types are left; Q1_0's blocks of 128 are refused by both."""
    folder = make_checkpoint(
        tmp_path / "c", hidden=96, ffn=160, heads=3, kv_heads=3, head_dim=32, vocab=300
    )
    assert assert_identical(folder, tmp_path, list(FILE_TYPES)) == 2 * len(FILE_TYPES) - 2


def test_mixture_with_and_without_importance(tmp_path: Path) -> None:
    """Experts' rows of 96 and 256; an importance of its own for each expert."""
    folder = qwen3moe(tmp_path / "c", layers=1, experts=2)
    names = [name for name in QUICK if name != "Q1_0"]
    assert assert_identical(folder, tmp_path, names) == 2 * len(names) - QUICK_NEED


@pytest.mark.slow
def test_mixture_every_type(tmp_path: Path) -> None:
    folder = qwen3moe(tmp_path / "c", layers=8)
    assert assert_identical(folder, tmp_path, list(FILE_TYPES)) == 2 * len(FILE_TYPES) - NEED - 2


def test_eight_experts(tmp_path: Path) -> None:
    names = ["Q4_K_M", "Q2_K", "IQ4_XS", "Q4_0", "MXFP4_MOE"]
    assert assert_identical(mixtral(tmp_path / "c", ffn=32, layers=1), tmp_path, names) == 10


@pytest.mark.slow
def test_eight_experts_every_type(tmp_path: Path) -> None:
    folder = mixtral(tmp_path / "c", ffn=256, layers=2)
    assert assert_identical(folder, tmp_path, list(FILE_TYPES)) == 2 * len(FILE_TYPES) - NEED


OVERRIDES = {
    "patterns": Overrides(
        tensors=((r"blk\.0\.attn_v", "Q8_0"), ("ffn_down", "IQ4_NL"), ("attn_v", "F16"))
    ),
    "output and embedding": Overrides(output="Q8_0", embedding="Q4_0"),
    "pure": Overrides(pure=True, tensors=((r"\.1\.", "Q6_K"),)),
}


@pytest.mark.parametrize("name", OVERRIDES)
@pytest.mark.parametrize("tied", [False, True])
def test_overrides(name: str, tied: bool, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", layers=2, ffn=288, vocab=300, tied=tied)
    names = ["Q4_K_M", "Q3_K_M", "F16", "IQ4_XS"]
    assert assert_identical(folder, tmp_path, names, overrides=OVERRIDES[name]) == 8


def test_the_file_says_what_it_was_weighed_with(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", vocab=300)
    convert(folder, tmp_path / "bf16.gguf", "BF16", threads=1)
    write_imatrix(tmp_path / "w.gguf", random_sums(read_header(tmp_path / "bf16.gguf")), 3, "text")
    done = convert(folder, tmp_path / "m.gguf", "Q4_0", threads=1, imatrix=tmp_path / "w.gguf")
    header = read_header(done.path)
    found = {k: v for k, v in header.metadata.items() if "imatrix" in k}
    assert found == {
        "quantize.imatrix.file": "w.gguf",
        "quantize.imatrix.dataset": "text",
        "quantize.imatrix.entries_count": 15,
        "quantize.imatrix.chunks_count": 3,
        "edgekit.imatrix.digest": read_imatrix(tmp_path / "w.gguf").digest,
    }
    assert header.types["quantize.imatrix.entries_count"] is ValueType.UINT32
    assert any("w.gguf weighs 15 of 16" in reason for reason in done.reasons)
