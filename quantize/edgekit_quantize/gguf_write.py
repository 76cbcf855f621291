"""Lay out a GGUF and encode its header; the data section follows it without a gap."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from edgekit_quantize.architectures import TensorSpec
from edgekit_quantize.errors import BadCheckpointError, QuantizeError
from edgekit_quantize.gguf_header import MAGIC, MAX_NAME_BYTES, GgufTensor
from edgekit_quantize.metadata import KeyValue, Scalar, ValueType
from edgekit_quantize.tensor_types import TensorType, align, tensor_bytes

_FORMATS = {
    ValueType.UINT8: "<B",
    ValueType.INT8: "<b",
    ValueType.UINT16: "<H",
    ValueType.INT16: "<h",
    ValueType.UINT32: "<I",
    ValueType.INT32: "<i",
    ValueType.FLOAT32: "<f",
    ValueType.BOOL: "<?",
    ValueType.UINT64: "<Q",
    ValueType.INT64: "<q",
    ValueType.FLOAT64: "<d",
}


def lay_out(specs: Sequence[TensorSpec], types: Sequence[TensorType]) -> list[GgufTensor]:
    """Place the tensors one after another, each at a multiple of 32 bytes."""
    placed = []
    offset = 0
    for spec, kind in zip(specs, types, strict=True):
        size = tensor_bytes(kind, spec.shape)
        placed.append(GgufTensor(spec.name, kind, spec.shape, offset, size))
        offset = align(offset + size)
    return placed


def encode_header(metadata: Sequence[KeyValue], tensors: Sequence[GgufTensor]) -> bytes:
    """Return the header of a version 3 GGUF, padded to where the data section starts.

    Raises QuantizeError for a key that comes twice or a tensor name longer than ggml's 63 bytes.
    """
    keys = [entry.key for entry in metadata]
    if len(set(keys)) < len(keys):
        raise QuantizeError("a metadata key comes twice", code="duplicate_key")
    return assemble_header(encode_keys(metadata), len(metadata), tensors)


def encode_keys(metadata: Sequence[KeyValue]) -> bytes:
    """Return the metadata as a GGUF holds it."""
    out = bytearray()
    for entry in metadata:
        out += _text(entry.key)
        out += struct.pack("<I", entry.type)
        _encode_value(out, entry)
    return bytes(out)


def assemble_header(keys: bytes, n_keys: int, tensors: Sequence[GgufTensor]) -> bytes:
    """Return a header from metadata that is encoded already; see `encode_header`."""
    out = bytearray(MAGIC)
    out += struct.pack("<IQQ", 3, len(tensors), n_keys)
    out += keys
    for tensor in tensors:
        name = tensor.name.encode()
        if len(name) > MAX_NAME_BYTES:
            raise QuantizeError(f"tensor name {tensor.name!r} is too long", code="long_name")
        out += _text(tensor.name)
        out += struct.pack("<I", len(tensor.shape))
        out += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape)
        out += struct.pack("<IQ", tensor.type.id, tensor.offset)
    return bytes(out.ljust(align(len(out)), b"\0"))


def _encode_value(out: bytearray, entry: KeyValue) -> None:
    if entry.type is not ValueType.ARRAY:
        out += _scalar(entry.type, _one(entry))
        return
    if entry.item is None or isinstance(entry.value, str) or not isinstance(entry.value, Sequence):
        raise QuantizeError(f"{entry.key} is an array without items", code="bad_value")
    out += struct.pack("<IQ", entry.item, len(entry.value))
    if entry.item is ValueType.STRING:
        out += b"".join(_text(str(text)) for text in entry.value)
    else:
        out += struct.pack(f"<{len(entry.value)}{_FORMATS[entry.item][1:]}", *entry.value)


def _one(entry: KeyValue) -> Scalar:
    if isinstance(entry.value, str | int | float):
        return entry.value
    raise QuantizeError(f"{entry.key} is no single value", code="bad_value")


def _scalar(kind: ValueType, value: Scalar) -> bytes:
    return _text(str(value)) if kind is ValueType.STRING else struct.pack(_FORMATS[kind], value)


def _text(text: str) -> bytes:
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise BadCheckpointError(
            f"a text of the model holds half a character: {text[:40]!a}",
            code="bad_text",
            hint="tokenizer.json or tokenizer_config.json is damaged; fetch it again",
        ) from error
    return len(raw).to_bytes(8, "little") + raw
