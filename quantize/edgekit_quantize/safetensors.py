"""Read the header of one safetensors file that may be hostile.

Format: 8 bytes little-endian length, a JSON object {name: {dtype, shape, data_offsets}}, then
the data. As the format's own library, we refuse tensors that overlap, leave holes or do not
cover the data to its last byte; nothing is allocated on the word of the file.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from edgekit_quantize.errors import BadCheckpointError, IoFailedError, MissingFileError

MAX_HEADER_BYTES = 16 << 20
"""Room for 130,000 tensors. The format's own library allows 100 MB, which a parser may have to
hold several times over."""

MAX_TENSORS = 1 << 17

DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2,
    "I16": 2, "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as stored: shape rows first, `start` from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    bytes: int


class SafetensorsFile:
    """An open, mapped file with a checked header. Close it, or use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open, map and check `path`.

        Raises MissingFileError, IoFailedError, or BadCheckpointError with the code `truncated`,
        `bad_header`, `bad_tensor`, `out_of_bounds`, `overlap`, `hole` or `duplicate_tensor`.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise BadCheckpointError(f"{path.name} is no regular file", code="bad_file")
                self.file_bytes = status.st_size
                if self.file_bytes < 8:
                    raise _bad(path, f"is only {self.file_bytes} bytes long", "truncated")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise MissingFileError(
                f"{path.name} is missing from {path.parent}",
                code="missing_shard",
                hint="fetch the checkpoint again; it is incomplete",
            ) from error
        except OSError as error:
            raise IoFailedError(f"cannot read {path}: {error.strerror}", code="io_error") from error
        try:
            self.tensors = _parse(path, self._map, self.file_bytes)
        except BaseException:
            self._map.close()
            raise

    def view(self, tensor: StoredTensor, start: int = 0, end: int | None = None) -> memoryview:
        """Return the mapped bytes [start, end) of a tensor of this file, without a copy."""
        stop = tensor.bytes if end is None else end
        return memoryview(self._map)[tensor.start + start : tensor.start + stop]

    def forget(self, tensor: StoredTensor, start: int = 0, end: int | None = None) -> None:
        """Drop the pages of [start, end) from this process (they stay in the system's cache).

        Without it the mapping of a large checkpoint would count as resident memory.
        """
        if not hasattr(self._map, "madvise"):
            return
        stop = tensor.start + (tensor.bytes if end is None else end)
        first = (tensor.start + start) // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, first, stop - first)

    def close(self) -> None:
        """Unmap; where a view is still held, the last one to go unmaps."""
        with contextlib.suppress(BufferError):
            self._map.close()


def _bad(path: Path, what: str, code: str = "bad_header") -> BadCheckpointError:
    return BadCheckpointError(
        f"{path.name} {what}", code=code, hint="the file is damaged; fetch it again"
    )


def _parse(path: Path, data: mmap.mmap, file_bytes: int) -> dict[str, StoredTensor]:
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise _bad(path, f"claims a header of {length} bytes, more than {MAX_HEADER_BYTES}")
    if length > file_bytes - 8:
        raise _bad(path, f"ends inside its header of {length} bytes", "truncated")
    raw = data[8 : 8 + length]
    if not raw.startswith(b"{"):
        raise _bad(path, "has no safetensors header")
    # Each tensor opens three brackets; empty ones would cost 20 times their bytes.
    if raw.count(b"{") + raw.count(b"[") > 4 * MAX_TENSORS or raw.count(b",") > 16 * MAX_TENSORS:
        raise _bad(path, f"describes more than {MAX_TENSORS} tensors")
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        code = "duplicate_tensor" if isinstance(error, _DuplicateError) else "bad_header"
        raise _bad(path, f"has a header that is no valid JSON: {error}", code) from error
    header.pop("__metadata__", None)
    tensors = [_tensor(path, name, entry, 8 + length) for name, entry in header.items()]
    _check_layout(path, tensors, 8 + length, file_bytes)
    return {tensor.name: tensor for tensor in tensors}


class _DuplicateError(ValueError):
    """A JSON object names a key twice."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _DuplicateError(f"{twice!r} comes twice")
    return found


def _tensor(path: Path, name: str, entry: object, data_start: int) -> StoredTensor:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _bad(path, f"describes tensor {name!r} without dtype, shape and offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise _bad(path, f"stores {name!r} as {dtype!r}, which is not known", "bad_tensor")
    if not _whole(shape) or len(shape) > 8:
        raise _bad(path, f"gives {name!r} the shape {shape!r}", "bad_tensor")
    if not _whole(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _bad(path, f"gives {name!r} the offsets {offsets!r}", "bad_tensor")
    size = DTYPE_BYTES[dtype]
    for length in cast("list[int]", shape):
        size *= length
    if size != offsets[1] - offsets[0]:
        raise _bad(
            path,
            f"gives {name!r} {offsets[1] - offsets[0]} bytes, but {dtype} {shape} takes {size}",
            "bad_tensor",
        )
    return StoredTensor(name, dtype, tuple(shape), data_start + offsets[0], size)


def _whole(values: object) -> bool:
    """True for a list of non-negative integers that a 64-bit size can hold."""
    return isinstance(values, list) and all(
        isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**63 for v in values
    )


def _check_layout(
    path: Path, tensors: Sequence[StoredTensor], data_start: int, file_bytes: int
) -> None:
    at = data_start
    for tensor in sorted(tensors, key=lambda t: (t.start, t.bytes)):
        if tensor.start + tensor.bytes > file_bytes:
            code = "out_of_bounds" if tensor.start > file_bytes else "truncated"
            raise _bad(path, f"ends before tensor {tensor.name!r} does", code)
        if tensor.start < at:
            raise _bad(path, f"has tensor {tensor.name!r} overlap another", "overlap")
        if tensor.start > at:
            raise _bad(path, f"has a hole before tensor {tensor.name!r}", "hole")
        at = tensor.start + tensor.bytes
    if at != file_bytes:
        raise _bad(path, f"has {file_bytes - at} bytes that belong to no tensor", "hole")
