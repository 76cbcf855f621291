"""GGUF files spoilt on purpose, in ways that a loader does not notice."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgekit_quantize.gguf_header import GgufTensor, read_header

SCALE_AT = {"Q2_K": 80, "Q3_K": 108, "Q4_K": 0, "Q5_K": 0, "Q6_K": 208, "Q8_0": 0, "Q4_0": 0}
"""Where in a block its (super-)scale is, a half float."""


def _tensor(file: Path, name: str) -> tuple[GgufTensor, int]:
    header = read_header(file)
    (tensor,) = (t for t in header.tensors if t.name == name)
    return tensor, header.data_offset + tensor.offset


def flip_scales(file: Path, out: Path, name: str, share: float = 1.0) -> Path:
    """Turn the sign of the scales of the first `share` of a tensor's blocks."""
    tensor, start = _tensor(file, name)
    raw = bytearray(file.read_bytes())
    blocks = np.frombuffer(memoryview(raw)[start : start + tensor.bytes], np.uint8)
    blocks = blocks.reshape(-1, tensor.type.block_bytes)
    blocks[: int(len(blocks) * share), SCALE_AT[tensor.type.name] + 1] ^= 0x80
    out.write_bytes(raw)
    return out


def swap(file: Path, out: Path, one: str, other: str) -> Path:
    """Put two tensors of the same size in each other's place."""
    (a, at), (b, bt) = _tensor(file, one), _tensor(file, other)
    assert (a.type, a.shape) == (b.type, b.shape)
    raw = bytearray(file.read_bytes())
    raw[at : at + a.bytes], raw[bt : bt + b.bytes] = raw[bt : bt + b.bytes], raw[at : at + a.bytes]
    out.write_bytes(raw)
    return out


def empty(file: Path, out: Path, name: str) -> Path:
    """Fill a tensor with zeros."""
    tensor, start = _tensor(file, name)
    raw = bytearray(file.read_bytes())
    raw[start : start + tensor.bytes] = bytes(tensor.bytes)
    out.write_bytes(raw)
    return out
