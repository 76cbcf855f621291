"""Copies of a good GGUF with one thing wrong in them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

NAN_TOKEN = 100
"""The token whose embedding is not a number."""


def with_nan(model: Path, path: Path) -> Path:
    """Copy a model of gguf_models; one token's embedding becomes NaN."""
    shutil.copy(model, path)
    reader = gguf.GGUFReader(path)
    (tensor,) = (t for t in reader.tensors if t.name == "token_embd.weight")
    width, start = int(tensor.shape[0]), int(tensor.data_offset)
    with path.open("r+b") as file:
        file.seek(start + NAN_TOKEN * width * 4)
        file.write(np.full(width, np.nan, np.float32).tobytes())
    return path


def with_number(key: str, value: int) -> Callable[[Path, Path], Path]:
    """Return a copier that sets one 32-bit metadata number."""

    def copy(model: Path, path: Path) -> Path:
        shutil.copy(model, path)
        reader = gguf.GGUFReader(path)
        field = reader.fields[key]
        start = int(field.offset) + sum(len(part.tobytes()) for part in field.parts[:-1])
        with path.open("r+b") as file:
            file.seek(start)
            file.write(int(value).to_bytes(4, "little"))
        return path

    return copy


def with_bytes(before: bytes, after: bytes) -> Callable[[Path, Path], Path]:
    """Return a copier that replaces the first occurrence of some bytes by as many others."""
    assert len(before) == len(after)

    def copy(model: Path, path: Path) -> Path:
        data = model.read_bytes()
        assert before in data
        path.write_bytes(data.replace(before, after, 1))
        return path

    return copy


def cut_at(share: float) -> Callable[[Path, Path], Path]:
    """Return a copier that keeps this share of the file."""

    def copy(model: Path, path: Path) -> Path:
        data = model.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        return path

    return copy


def garbage(model: Path, path: Path) -> Path:
    """Write the magic and then nonsense."""
    path.write_bytes(b"GGUF" + bytes(range(256)) * 16)
    return path
