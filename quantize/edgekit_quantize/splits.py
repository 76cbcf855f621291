"""Cut one GGUF into several files, each of which a FAT32 stick or a registry takes.

The naming and the `split.*` keys are llama.cpp's: it opens the first file and finds the others by
name. All metadata is in the first; each file lays out its own tensors from zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgekit_quantize.errors import CannotCreateError
from edgekit_quantize.gguf_header import GgufTensor
from edgekit_quantize.metadata import KeyValue, ValueType, i32
from edgekit_quantize.tensor_types import align

MAX_SPLITS = 0xFFFF
"""`split.count` is 16 bits wide."""


def cut(
    tensors: Sequence[GgufTensor], header_bytes: int, limit: int | None
) -> list[list[GgufTensor]]:
    """Return the tensors of each file, in order and laid out anew; one file without a `limit`.

    `header_bytes` is kept free in every file: the header of an uncut file, which holds all any of
    them does. Raises CannotCreateError (code `split_too_small`) when one tensor alone is over the
    limit or more files were needed than the format counts.
    """
    if limit is None:
        return [list(tensors)]
    room = limit - header_bytes
    files: list[list[GgufTensor]] = [[]]
    at = 0
    for tensor in tensors:
        if at + align(tensor.bytes) > room and files[-1]:
            files.append([])
            at = 0
        if align(tensor.bytes) > room or len(files) > MAX_SPLITS:
            raise CannotCreateError(
                f"{tensor.name} takes {tensor.bytes} bytes and the header {header_bytes}: files "
                f"of {limit} bytes are too small",
                code="split_too_small",
                hint=f"allow at least {header_bytes + align(tensor.bytes)} bytes per file",
            )
        placed = GgufTensor(tensor.name, tensor.type, tensor.shape, at, tensor.bytes)
        files[-1].append(placed)
        at += align(tensor.bytes)
    return files


def split_keys(number: int, count: int, n_tensors: int) -> list[KeyValue]:
    """Return the keys of file `number` (from 0) of `count`; none when there is but one."""
    if count == 1:
        return []
    return [
        KeyValue("split.no", ValueType.UINT16, number),
        KeyValue("split.count", ValueType.UINT16, count),
        i32("split.tensors.count", n_tensors),
    ]


def split_path(path: Path, number: int, count: int) -> Path:
    """Return the name of file `number` (from 0): `model.gguf` -> `model-00001-of-00003.gguf`."""
    if count == 1:
        return path
    return path.with_name(f"{path.stem}-{number + 1:05d}-of-{count:05d}{path.suffix}")
