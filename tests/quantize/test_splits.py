"""A model cut into files: what each holds, that llama.cpp opens it, that nothing is lost."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_quantize import convert, read_header
from edgekit_quantize.errors import BadGgufError, CannotCreateError
from edgekit_quantize.gguf_header import GgufTensor
from edgekit_quantize.resplit import pieces
from edgekit_quantize.splits import cut, split_path
from edgekit_quantize.tensor_types import TENSOR_TYPES, align
from tests.support import logits_oracle
from tests.support.checkpoints import make_checkpoint
from tests.support.cli import POCKET, Cli


def tensors_of(sizes: list[int]) -> list[GgufTensor]:
    kind = TENSOR_TYPES["I8"]
    return [GgufTensor(f"t{i}", kind, (size,), 0, size) for i, size in enumerate(sizes)]


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=40), st.integers(100, 9000))
def test_every_tensor_is_in_one_file_and_no_file_is_too_large(sizes: list[int], limit: int) -> None:
    header = 100
    tensors = tensors_of(sizes)
    if max(map(align, sizes)) + header > limit:
        with pytest.raises(CannotCreateError) as error:
            cut(tensors, header, limit)
        assert error.value.code == "split_too_small"
        return
    files = cut(tensors, header, limit)
    assert [t.name for file in files for t in file] == [t.name for t in tensors]
    for file in files:
        at = 0
        for tensor in file:
            assert tensor.offset == at
            at += align(tensor.bytes)
        assert header + at <= limit


def test_without_a_limit_there_is_one_file_of_the_plain_name(tmp_path: Path) -> None:
    assert len(cut(tensors_of([5, 6]), 10, None)) == 1
    assert split_path(tmp_path / "m.gguf", 0, 1) == tmp_path / "m.gguf"
    assert split_path(tmp_path / "m.gguf", 1, 3).name == "m-00002-of-00003.gguf"


def test_llama_cpp_answers_the_same_from_files_and_from_one(tmp_path: Path) -> None:
    whole = convert(POCKET, tmp_path / "whole.gguf", "Q8_0")
    limit = 2_500_000
    done = convert(POCKET, tmp_path / "cut.gguf", "Q8_0", split_bytes=limit)
    names = sorted(path.name for path in tmp_path.glob("cut*"))
    assert names == [file.path.name for file in done.files]
    assert len(names) == int(names[0][-10:-5]) > 2
    assert done.path.name.startswith("cut-00001-of-")
    assert done.tensor_bytes == whole.tensor_bytes
    listing = ""
    for number, file in enumerate(done.files):
        data = file.path.read_bytes()
        assert file.bytes == len(data) <= limit
        assert file.sha256 == hashlib.sha256(data).hexdigest()
        listing += f"{file.sha256}  {file.path.name}\n"
        header = read_header(file.path)
        assert header.metadata["split.no"] == number
        assert header.metadata["split.count"] == len(names)
        assert header.metadata["split.tensors.count"] == whole.n_tensors
        assert ("tokenizer.ggml.tokens" in header.metadata) == (number == 0)
    assert done.sha256 == "sha256:" + hashlib.sha256(listing.encode()).hexdigest()
    ids = logits_oracle.token_ids(48, 2000, seed=1)
    np.testing.assert_array_equal(
        logits_oracle.llama_logits(done.path, ids), logits_oracle.llama_logits(whole.path, ids)
    )


def test_a_finished_file_is_cut_into_the_files_a_conversion_writes(tmp_path: Path) -> None:
    whole = convert(POCKET, tmp_path / "whole.gguf", "Q8_0")
    limit = 2_500_000
    done = convert(POCKET, tmp_path / "cut.gguf", "Q8_0", split_bytes=limit)
    found = pieces(whole.path, limit)
    assert [piece.number for piece in found] == list(range(len(done.files)))
    for piece, file in zip(found, done.files, strict=True):
        assert b"".join(piece.chunks()) == file.path.read_bytes()
        assert piece.file_bytes == file.bytes
    with pytest.raises(BadGgufError) as error:
        pieces(done.path, limit)
    assert error.value.code == "already_split"


def test_a_small_file_is_one_piece_and_the_same_bytes(tmp_path: Path) -> None:
    whole = convert(POCKET, tmp_path / "whole.gguf", "Q8_0")
    (piece,) = pieces(whole.path, 1 << 30)
    assert b"".join(piece.chunks()) == whole.path.read_bytes()
    assert piece.file_bytes == whole.file_bytes


def test_a_failed_cut_leaves_nothing(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", vocab=300, hidden=64, ffn=64, head_dim=16, layers=2)
    before = set(tmp_path.iterdir())
    with pytest.raises(CannotCreateError) as error:
        convert(folder, tmp_path / "m.gguf", "F32", split_bytes=60_000)
    assert error.value.code == "split_too_small"
    assert set(tmp_path.iterdir()) == before


def test_the_command_cuts_and_will_not_overwrite(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    command = ["quantize", POCKET, tmp_path / "m.gguf", "--filetype", "Q8_0", "--split-size", "4MB"]
    record = cli.json(*command)
    assert Path(record["path"]).name.startswith("m-00001-of-")
    again = cli.run(*command)
    assert again.returncode == 73
    assert "pass --force" in again.stderr
