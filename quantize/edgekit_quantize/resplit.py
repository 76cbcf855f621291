"""Cut a finished GGUF into files, copying its tensors as they are."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgekit_quantize.errors import BadGgufError
from edgekit_quantize.gguf_header import GgufHeader, GgufTensor, read_header
from edgekit_quantize.gguf_write import assemble_header, encode_keys
from edgekit_quantize.splits import cut, split_keys
from edgekit_quantize.tensor_types import ALIGNMENT, align

_KEYS_START = 24
_COPY_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """One file of a cut model: its header, and what it takes of the whole file's data.

    `number` counts from 0, `count` is how many there are; `file_bytes` is the size of the file.
    """

    source: Path
    number: int
    count: int
    header: bytes
    runs: tuple[tuple[int, int, int], ...]
    """(where in the source, how many bytes, how many zeros follow)."""

    @property
    def file_bytes(self) -> int:
        return len(self.header) + sum(length + pad for _, length, pad in self.runs)

    def chunks(self) -> Iterator[bytes]:
        """Yield the file's content. Raises OSError as reading does."""
        yield self.header
        with self.source.open("rb") as file:
            for start, length, pad in self.runs:
                file.seek(start)
                left = length
                while left and (data := file.read(min(_COPY_BYTES, left))):
                    left -= len(data)
                    yield data
                yield bytes(pad)


def pieces(path: Path, limit: int) -> list[Piece]:
    """Return the files that `path` becomes when none may be larger than `limit` bytes.

    One piece is the file itself, byte for byte. Raises BadGgufError for a file that is damaged or
    a part already, CannotCreateError when a tensor does not fit into a file.
    """
    header = read_header(path)
    if "split.count" in header.metadata:
        raise BadGgufError(f"{path.name} is one of several files already", code="already_split")
    if header.alignment != ALIGNMENT:
        raise BadGgufError(
            f"{path.name} aligns its tensors to {header.alignment} bytes", code="odd_alignment"
        )
    if header.file_bytes <= limit:
        with path.open("rb") as file:
            whole = file.read(header.data_offset)
        rest = header.file_bytes - header.data_offset
        return [Piece(path, 0, 1, whole, ((header.data_offset, rest, 0),))]
    with path.open("rb") as file:
        keys = file.read(header.keys_end)[_KEYS_START:]
    n_keys = struct.unpack("<Q", _head(path)[16:24])[0]
    # The keys that number the files take a few bytes more than the whole file's header.
    room = header.data_offset + 256
    files = cut(header.tensors, room, limit)
    return [
        _piece(header, path, keys, n_keys, files[number], number, len(files))
        for number in range(len(files))
    ]


def _piece(
    header: GgufHeader,
    path: Path,
    keys: bytes,
    n_keys: int,
    tensors: list[GgufTensor],
    number: int,
    count: int,
) -> Piece:
    extra = split_keys(number, count, len(header.tensors))
    first = number == 0
    encoded = (keys if first else b"") + encode_keys(extra)
    head = assemble_header(encoded, (n_keys if first else 0) + len(extra), tensors)
    where = {tensor.name: tensor.offset for tensor in header.tensors}
    runs = tuple(
        (header.data_offset + where[t.name], t.bytes, align(t.bytes) - t.bytes) for t in tensors
    )
    return Piece(path, number, count, head, runs)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_KEYS_START)
