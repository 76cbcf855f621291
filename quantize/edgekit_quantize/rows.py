"""Stored rows -> rows of the target type, chunk by chunk, on worker threads.

A chunk is a run of rows of one tensor. Rows are independent of each other in every tensor type,
so cutting a tensor into chunks changes no byte.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit_quantize.architectures import TensorSource
from edgekit_quantize.errors import BadCheckpointError
from edgekit_quantize.gguf_header import GgufTensor
from edgekit_quantize.llama import Ggml
from edgekit_quantize.safetensors import SafetensorsFile, StoredTensor
from edgekit_quantize.tensor_types import row_bytes

CHUNK_ELEMENTS = 1 << 20
"""Values per chunk: the unit of work handed to a thread and written in one go."""

SLICE_ELEMENTS = 1 << 16
"""Values widened to float32 at a time: 256 KiB, so that they are still in cache when read."""


@dataclass(frozen=True, slots=True)
class Job:
    """One tensor to write: its place in the file and where its values come from."""

    target: GgufTensor
    source: TensorSource
    shard: SafetensorsFile | None
    stored: StoredTensor | None

    @property
    def columns(self) -> int:
        return self.target.shape[0]

    @property
    def rows(self) -> int:
        return self.target.shape[1] if len(self.target.shape) > 1 else 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows [first, last) of a job. `ends` marks the tensor's last chunk."""

    job: Job
    first: int
    last: int
    ends: bool

    @property
    def source_bytes(self) -> int:
        if self.job.stored is None:
            return 0
        return self.job.stored.bytes * (self.last - self.first) // self.job.rows


def chunks(job: Job) -> Iterator[Chunk]:
    """Cut a tensor into runs of about CHUNK_ELEMENTS values."""
    step = max(1, CHUNK_ELEMENTS // job.columns)
    for first in range(0, job.rows, step):
        last = min(first + step, job.rows)
        yield Chunk(job, first, last, last == job.rows)


def rope_order(first: int, last: int, rows: int, heads: int) -> npt.NDArray[np.int64]:
    """Return the stored row of each GGUF row in [first, last).

    transformers rotates value j with value j + d/2 of a head, llama.cpp's `llama` graph rotates
    neighbours: GGUF row 2j + i of a head is stored row j + i d/2 (llama.cpp's `permute`).
    """
    size = rows // heads
    row = np.arange(first, last, dtype=np.int64)
    head, inside = row // size, row % size
    return head * size + inside // 2 + (inside % 2) * (size // 2)


class Encoder:
    """Turns chunks into bytes. One instance serves all threads."""

    def __init__(self, ggml: Ggml) -> None:
        self._ggml = ggml
        self._scratch = threading.local()

    def encode(self, chunk: Chunk) -> npt.NDArray[np.uint8]:
        """Return the chunk's bytes in its target type.

        Raises BadCheckpointError (code `not_finite`) when a stored value or a computed scale is
        NaN or infinite, as llama-quantize does.
        """
        job = chunk.job
        kind = job.target.type
        if job.stored is None:
            values = np.array(job.source.values, dtype=np.float32).reshape(1, job.columns)
            return values.view(np.uint8).reshape(-1)
        words = self._stored_rows(chunk)
        if not self._ggml.finite(job.stored.dtype, words):
            raise _not_finite(job.stored.name)
        if kind.name == job.stored.dtype:
            return words.view(np.uint8).reshape(-1)
        rows = chunk.last - chunk.first
        width = row_bytes(kind, job.columns)
        out: npt.NDArray[np.uint8] = np.empty(rows * width, np.uint8)
        step = max(1, SLICE_ELEMENTS // job.columns)
        for first in range(0, rows, step):
            part = words[first : first + step]
            values = self._widened(part, job.stored.dtype)
            target = out[first * width : (first + len(part)) * width]
            self._ggml.quantize(kind, values, target)
        if not self._ggml.finite(kind.name, out):
            raise _not_finite(job.stored.name)
        return out

    def _stored_rows(self, chunk: Chunk) -> npt.NDArray[np.generic]:
        """Return the chunk's rows in GGUF order: a view of the mapping, or a gathered copy."""
        job = chunk.job
        assert job.shard is not None
        assert job.stored is not None
        dtype = np.float32 if job.stored.dtype == "F32" else np.uint16
        heads = job.source.rope_heads
        if heads is None:
            row = job.stored.bytes // job.rows
            view = job.shard.view(job.stored, chunk.first * row, chunk.last * row)
            return _aligned(view, dtype).reshape(-1, job.columns)
        # A bias has one value per row, a matrix a row of columns: the rows permute alike.
        rows = job.rows if len(job.target.shape) > 1 else job.columns
        every = _aligned(job.shard.view(job.stored), dtype).reshape(rows, -1)
        span = (chunk.first, chunk.last) if len(job.target.shape) > 1 else (0, rows)
        order = rope_order(*span, rows, heads)
        return np.ascontiguousarray(every[order]).reshape(-1, job.columns)

    def _widened(self, part: npt.NDArray[np.generic], dtype: str) -> npt.NDArray[np.float32]:
        if dtype == "F32":
            return part.view(np.float32)
        buffer: npt.NDArray[np.float32] | None = getattr(self._scratch, "buffer", None)
        if buffer is None or buffer.size < part.size:
            buffer = np.empty(max(part.size, SLICE_ELEMENTS), np.float32)
            self._scratch.buffer = buffer
        values = buffer[: part.size].reshape(part.shape)
        self._ggml.widen(part.view(np.uint16), dtype, values)
        return values


def _aligned(view: memoryview, dtype: type[np.generic]) -> npt.NDArray[np.generic]:
    """Return the bytes as values; copied when the header's length leaves them unaligned."""
    raw = np.frombuffer(view, np.uint8)
    if raw.ctypes.data % np.dtype(dtype).itemsize:
        raw = raw.copy()
    return raw.view(dtype)


def _not_finite(name: str) -> BadCheckpointError:
    return BadCheckpointError(
        f"tensor {name!r} holds NaN or infinite values",
        code="not_finite",
        hint="fetch the checkpoint again; if it stays, the published weights are broken",
    )
