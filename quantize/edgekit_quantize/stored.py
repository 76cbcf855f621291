"""Rows of one stored tensor, looked at through a view, in plain floats.

Float tensors come back in the bytes they are stored in. FP8 weights are multiplied by their
scales, which costs an index array per chunk and no copy of the tensor. MXFP4 experts come back
as ggml's blocks, the same bits in ggml's order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit_quantize.architectures.views import Dims, Split, Swap, View, viewed_shape
from edgekit_quantize.safetensors import SafetensorsFile, StoredTensor

Array = npt.NDArray[np.generic]

MXFP4_BLOCK = 32
"""Values that share one exponent."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor and the file that holds it."""

    shard: SafetensorsFile
    tensor: StoredTensor

    def array(self) -> Array:
        """Return the mapped values without a copy; they may lie unaligned.

        Shape as stored; BF16 and FP8 as unsigned words of their size.
        """
        words = np.frombuffer(self.shard.view(self.tensor), _WORDS[self.tensor.dtype])
        return words.reshape(self.tensor.shape)


@dataclass(frozen=True, slots=True)
class StoredPart:
    """Some rows of a GGUF tensor: a stored tensor, how it is viewed, and its scales if any.

    `block` is the number of values along each axis that share a scale.
    """

    stored: Stored
    view: View
    scales: Stored | None = None
    block: Dims = ()

    @property
    def rows(self) -> int:
        """Rows of the viewed tensor: all axes but the row's own (two of them for MXFP4)."""
        shape = viewed_shape(self.stored.tensor.shape, self.view)
        assert shape is not None, "checked when the conversion was planned"
        return math.prod(shape[: -2 if self.is_mxfp4 else -1])

    @property
    def is_mxfp4(self) -> bool:
        return self.stored.tensor.dtype == "U8"

    @property
    def float_dtype(self) -> str:
        """The type that `floats` returns: as stored, F32 for FP8."""
        dtype = self.stored.tensor.dtype
        return "F32" if dtype.startswith("F8") else dtype

    def floats(self, first: int, last: int) -> Array:
        """Return rows [first, last) as (rows, columns), contiguous, in `float_dtype`."""
        words = _rows(apply(self.stored.array(), self.view), first, last)
        if self.scales is None:
            return words
        values = FP8_VALUES[self.stored.tensor.dtype][words.view(np.uint8)]
        scaled: npt.NDArray[np.float32] = values * self._scale_rows(first, last)
        return scaled

    def forget(self, first: int, last: int) -> None:
        """Drop the pages of rows [first, last), which nobody reads again, from this process.

        Rows of a view lie anywhere in the tensor: it is dropped whole with its last row.
        """
        shard, tensor = self.stored.shard, self.stored.tensor
        if not self.view:
            row = tensor.bytes // self.rows
            shard.forget(tensor, first * row, last * row)
        elif last == self.rows:
            shard.forget(tensor)

    def mxfp4_blocks(self, first: int, last: int) -> npt.NDArray[np.uint8]:
        """Return rows [first, last) as ggml's blocks: an exponent, then 16 bytes of nibbles.

        A checkpoint packs neighbours into a byte, ggml packs value j with value j + 16.
        """
        assert self.scales is not None
        blocks = apply(self.stored.array(), self.view)
        exponents = apply(self.scales.array(), self.view)
        packed = _rows(blocks.reshape(*blocks.shape[:-2], -1), first, last)
        scale = _rows(exponents, first, last)
        count, per_row = scale.shape
        pairs = packed.view(np.uint8).reshape(count, per_row, MXFP4_BLOCK // 2)
        nibbles = np.empty((count, per_row, MXFP4_BLOCK), np.uint8)
        nibbles[..., 0::2], nibbles[..., 1::2] = pairs & 15, pairs >> 4
        out = np.empty((count, per_row, 1 + MXFP4_BLOCK // 2), np.uint8)
        out[..., 0] = scale
        half = MXFP4_BLOCK // 2
        np.bitwise_or(nibbles[..., :half], nibbles[..., half:] << 4, out=out[..., 1:])
        return out.reshape(-1)

    def _scale_rows(self, first: int, last: int) -> npt.NDArray[np.float32]:
        assert self.scales is not None
        shape = self.stored.tensor.shape
        table = _as_float32(self.scales)
        extents = (*table.shape, *(1,) * (len(shape) - table.ndim))
        where: npt.NDArray[np.int64] | int = 0
        for axis, (length, extent) in enumerate(zip(shape, extents, strict=True)):
            step = math.prod(extents[axis + 1 :])
            if extent == 1:
                continue
            index = np.arange(length, dtype=np.int64) // self.block[axis] * step
            along = index.reshape(*(1,) * axis, length, *(1,) * (len(shape) - axis - 1))
            seen = apply(np.broadcast_to(along, shape), self.view)
            where = where + _rows(seen, first, last).astype(np.int64, copy=False)
        return table.reshape(-1)[where]


def apply(array: Array, view: View) -> Array:
    """Return `array` looked at through `view`; never a copy."""
    for step in view:
        if isinstance(step, Split):
            shape = (*array.shape[: step.axis], *step.sizes, *array.shape[step.axis + 1 :])
            array = array.reshape(shape)
        elif isinstance(step, Swap):
            array = array.swapaxes(step.one, step.other)
        else:
            keep = [slice(None)] * array.ndim
            keep[step.axis] = slice(step.start, step.stop, step.step)
            array = array[tuple(keep)]
    return array


def _rows(array: Array, first: int, last: int) -> Array:
    """Return rows [first, last) of an array whose last axis is a row, contiguous and aligned."""
    if array.ndim < 2:
        return np.require(array, requirements=["C", "A"]).reshape(1, -1)
    if array.flags.c_contiguous:
        rows = array.reshape(-1, array.shape[-1])[first:last]
        return np.require(rows, requirements=["C", "A"])
    index = np.unravel_index(np.arange(first, last), array.shape[:-1])
    return np.ascontiguousarray(array[index])


def _as_float32(scales: Stored) -> npt.NDArray[np.float32]:
    array = scales.array()
    if scales.tensor.dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def _fp8(exponent_bits: int, mantissa_bits: int, bias: int) -> npt.NDArray[np.float32]:
    """Return the value of each of the 256 codes of an FP8 format, NaN where it has none.

    Source: OCP 8-bit Floating Point Specification 1.0. E4M3 has no infinity and one NaN per
    sign; E5M2 keeps IEEE's infinity and NaN, which are all unusable in a weight.
    """
    codes = np.arange(256)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    magnitude = np.where(
        exponent == 0,
        np.ldexp(mantissa, 1 - bias),
        np.ldexp(1 + mantissa, exponent - bias),
    )
    top = exponent == (1 << exponent_bits) - 1
    none = top & (codes & 7 == 7) if exponent_bits == 4 else top
    return np.where(none, np.nan, np.where(codes & 128, -magnitude, magnitude)).astype(np.float32)


FP8_VALUES = {"F8_E4M3": _fp8(4, 3, 7), "F8_E5M2": _fp8(5, 2, 15)}

_WORDS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.uint16,
    "BF16": np.uint16,
    "F8_E4M3": np.uint8,
    "F8_E5M2": np.uint8,
    "U8": np.uint8,
}
