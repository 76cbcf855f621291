"""Read a GGUF header that may be hostile.

Every count, length and offset is checked against the bytes that are really there before
anything is allocated for it, so reading costs memory in proportion to the header on disk. The
rules are those of ggml/src/gguf.cpp; what llama.cpp would abort on is an error here.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit_quantize.errors import BadGgufError, IoFailedError, MissingFileError
from edgekit_quantize.metadata import Scalar, Value, ValueType
from edgekit_quantize.tensor_types import (
    ALIGNMENT,
    TENSOR_TYPES_BY_ID,
    TensorType,
    align,
    tensor_bytes,
)

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 256 << 20
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_ARRAY_ITEMS = 1 << 24
MAX_KEY_BYTES = 1 << 16
MAX_NAME_BYTES = 63
MAX_DIMENSIONS = 4

_FORMATS = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: shape in ggml order, `offset` from the start of the data section."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A checked header. `data_offset` is where the data section starts in the file.

    `keys_end` is where the metadata ends: its bytes are those from 24 to there.
    """

    version: int
    metadata: dict[str, Value]
    types: dict[str, ValueType]
    tensors: tuple[GgufTensor, ...]
    alignment: int
    data_offset: int
    file_bytes: int
    keys_end: int

    @property
    def architecture(self) -> str | None:
        value = self.metadata.get("general.architecture")
        return value if isinstance(value, str) else None


def read_header(path: Path) -> GgufHeader:
    """Read and check the header of a GGUF file; tensor data is not touched.

    Raises MissingFileError, IoFailedError, or BadGgufError with a code that says what is wrong:
    `not_gguf`, `truncated`, `bad_header`, `bad_tensor`, `overlap`.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 24:
                raise BadGgufError(f"{path.name} is only {size} bytes long", code="truncated")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(data, size, path.name)
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no file {path}", code="no_such_file") from error
    except OSError as error:
        raise IoFailedError(f"cannot read {path}: {error.strerror}", code="io_error") from error


def parse_header(data: bytes, file_bytes: int | None = None) -> GgufHeader:
    """Parse a header held in memory; `file_bytes` is the whole file's size if `data` is a part."""
    return _parse(data, len(data) if file_bytes is None else file_bytes, "the GGUF header")


class _Reader:
    """A cursor that refuses to move past the end."""

    def __init__(self, data: bytes | mmap.mmap, label: str) -> None:
        self.data = data
        self.end = min(len(data), MAX_HEADER_BYTES)
        self.label = label
        self.at = 0
        self.items_left = MAX_ARRAY_ITEMS

    def fail(self, what: str, code: str = "bad_header") -> BadGgufError:
        return BadGgufError(
            f"{self.label}: {what} (near byte {self.at})",
            code=code,
            hint="the file is damaged; fetch or convert it again",
        )

    def need(self, count: int, what: str) -> None:
        if count > self.end - self.at:
            raise self.fail(f"the file ends inside {what}", "truncated")

    def take(self, count: int, what: str) -> bytes:
        self.need(count, what)
        start, self.at = self.at, self.at + count
        return self.data[start : self.at]

    def number(self, kind: ValueType, what: str) -> int | float | bool:
        code = _FORMATS[kind]
        raw = self.take(struct.calcsize("<" + code), what)
        if kind is ValueType.BOOL and raw not in (b"\0", b"\1"):
            raise self.fail(f"{what} is no boolean")
        value: int | float | bool = struct.unpack("<" + code, raw)[0]
        return value

    def count(self, what: str, limit: int) -> int:
        value = int(self.number(ValueType.UINT64, what))
        if value > limit:
            raise self.fail(f"{value} {what} is more than the {limit} allowed")
        return value

    def text(self, what: str, limit: int = MAX_HEADER_BYTES) -> str:
        length = self.count(f"bytes in {what}", limit)
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8") from error

    def texts(self, count: int, what: str) -> tuple[str, ...]:
        """Read `count` strings; a vocabulary has hundreds of thousands, so no call per item."""
        data, at, end = self.data, self.at, self.end
        found = []
        try:
            for _ in range(count):
                start = at + 8
                at = start + int.from_bytes(data[at:start], "little")
                if at > end or start > end:
                    raise self.fail(f"the file ends inside {what}", "truncated")
                found.append(data[start:at].decode())
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8") from error
        self.at = at
        return tuple(found)

    def value_type(self, what: str) -> ValueType:
        number = int(self.number(ValueType.UINT32, what))
        try:
            return ValueType(number)
        except ValueError as error:
            raise self.fail(f"{what} has the unknown value type {number}") from error

    def value(self, kind: ValueType, key: str) -> Value:
        if kind is ValueType.ARRAY:
            return self.array(key)
        if kind is ValueType.STRING:
            return self.text(f"the value of {key}")
        return self.number(kind, f"the value of {key}")

    def array(self, key: str) -> Sequence[Scalar]:
        item = self.value_type(f"the array {key}")
        if item is ValueType.ARRAY:
            raise self.fail(f"{key} is an array of arrays")
        count = self.count(f"items in {key}", self.items_left)
        self.items_left -= count
        if item is ValueType.STRING:
            self.need(count * 8, key)
            return self.texts(count, f"an item of {key}")
        code = _FORMATS[item]
        width = struct.calcsize("<" + code)
        self.need(count * width, key)
        raw = self.take(count * width, key)
        if item is ValueType.BOOL and raw.strip(b"\0\1"):
            raise self.fail(f"{key} holds something that is no boolean")
        return struct.unpack(f"<{count}{code}", raw)


def _parse(data: bytes | mmap.mmap, file_bytes: int, label: str) -> GgufHeader:
    reader = _Reader(data, label)
    if reader.take(4, "the magic") != MAGIC:
        raise BadGgufError(f"{label} is not a GGUF file", code="not_gguf")
    version = int(reader.number(ValueType.UINT32, "the version"))
    if version not in VERSIONS:
        big_endian = version & 0xFFFF == 0
        what = "is big-endian" if big_endian else f"has GGUF version {version}"
        raise reader.fail(f"{what}; edgekit reads little-endian versions 2 and 3")
    n_tensors = reader.count("tensors", MAX_TENSORS)
    n_keys = reader.count("keys", MAX_KEYS)
    metadata: dict[str, Value] = {}
    types: dict[str, ValueType] = {}
    for _ in range(n_keys):
        key = reader.text("a key", MAX_KEY_BYTES)
        if key in metadata:
            raise reader.fail(f"the key {key!r} comes twice")
        types[key] = reader.value_type(key)
        metadata[key] = reader.value(types[key], key)
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if (
        not isinstance(alignment, int)
        or not 8 <= alignment <= 1 << 20
        or alignment & (alignment - 1)
    ):
        raise reader.fail(f"general.alignment {alignment!r} is no power of two from 8 to 2^20")
    keys_end = reader.at
    tensors = [_tensor(reader, alignment) for _ in range(n_tensors)]
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise reader.fail("two tensors have the same name", "bad_tensor")
    data_offset = align(reader.at, alignment)
    _check_layout(reader, tensors, file_bytes - data_offset)
    return GgufHeader(
        version=version,
        metadata=metadata,
        types=types,
        tensors=tuple(tensors),
        alignment=alignment,
        data_offset=data_offset,
        file_bytes=file_bytes,
        keys_end=keys_end,
    )


def _tensor(reader: _Reader, alignment: int) -> GgufTensor:
    name = reader.text("a tensor name", MAX_NAME_BYTES)
    n_dims = int(reader.number(ValueType.UINT32, name))
    if not 1 <= n_dims <= MAX_DIMENSIONS:
        raise reader.fail(f"tensor {name!r} has {n_dims} dimensions", "bad_tensor")
    shape = tuple(reader.count(f"elements in {name}", 2**40) for _ in range(n_dims))
    elements = 1
    for size in shape:
        elements *= size
    if not 0 < elements < 2**62:
        raise reader.fail(f"tensor {name!r} has the shape {shape}", "bad_tensor")
    number = int(reader.number(ValueType.UINT32, name))
    kind = TENSOR_TYPES_BY_ID.get(number)
    if kind is None:
        raise reader.fail(f"tensor {name!r} has the unknown type {number}", "bad_tensor")
    if shape[0] % kind.block:
        raise reader.fail(f"rows of {name!r} are no whole {kind.name} blocks", "bad_tensor")
    offset = int(reader.number(ValueType.UINT64, name))
    if offset % alignment:
        raise reader.fail(f"tensor {name!r} starts at {offset}, unaligned", "bad_tensor")
    return GgufTensor(name, kind, shape, offset, tensor_bytes(kind, shape))


def _check_layout(reader: _Reader, tensors: Sequence[GgufTensor], data_bytes: int) -> None:
    """Refuse tensors that reach past the file or share bytes."""
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise reader.fail(f"tensor {tensor.name!r} overlaps another", "overlap")
        end = tensor.offset + tensor.bytes
        if end > data_bytes:
            raise reader.fail(f"tensor {tensor.name!r} reaches past the end", "truncated")
