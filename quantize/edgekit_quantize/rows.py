"""Stored rows -> rows of the target type, chunk by chunk, on worker threads.

A chunk is a run of rows of one tensor. Rows are independent of each other in every tensor type,
so cutting a tensor into chunks changes no byte.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit_quantize.architectures import TensorSource
from edgekit_quantize.errors import BadCheckpointError
from edgekit_quantize.gguf_header import GgufTensor
from edgekit_quantize.imatrix_file import Importance
from edgekit_quantize.llama import Ggml
from edgekit_quantize.stored import StoredPart
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
    parts: tuple[StoredPart, ...]
    importance: Importance | None = None

    @property
    def columns(self) -> int:
        return self.target.shape[0]

    @property
    def rows(self) -> int:
        return math.prod(self.target.shape[1:])

    @property
    def matrix_rows(self) -> int:
        """Rows of one matrix: a mixture's tensor holds one for each expert."""
        return self.target.shape[1] if len(self.target.shape) > 2 else self.rows


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows [first, last) of one part of a job (`part` is None for synthesized values).

    `start` is the tensor's row that the part's row 0 is; `ends` marks the tensor's last chunk.
    """

    job: Job
    part: StoredPart | None
    start: int
    first: int
    last: int
    ends: bool

    @property
    def source_bytes(self) -> int:
        if self.part is None:
            return 0
        return self.part.stored.tensor.bytes * (self.last - self.first) // self.part.rows


def chunks(job: Job) -> Iterator[Chunk]:
    """Cut a tensor into runs of about CHUNK_ELEMENTS values, none across two of its matrices.

    A vector is one chunk, whatever its view makes of it.
    """
    if not job.parts:
        yield Chunk(job, None, 0, 0, job.rows, True)
        return
    vector = len(job.target.shape) == 1
    matrix = job.matrix_rows
    step = max(1, CHUNK_ELEMENTS // job.columns)
    start = 0
    for part in job.parts:
        first = 0
        while first < part.rows:
            to_edge = matrix - (start + first) % matrix
            last = part.rows if vector else min(first + min(step, to_edge), part.rows)
            ends = last == part.rows and part is job.parts[-1]
            yield Chunk(job, part, start, first, last, ends)
            first = last
        start += part.rows


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
        job, part = chunk.job, chunk.part
        kind = job.target.type
        if part is None:
            values = np.array(job.source.values, dtype=np.float32).reshape(1, job.columns)
            return values.view(np.uint8).reshape(-1)
        name = part.stored.tensor.name
        if part.is_mxfp4:
            return part.mxfp4_blocks(chunk.first, chunk.last)
        words = part.floats(chunk.first, chunk.last).reshape(-1, job.columns)
        if not self._ggml.finite(part.float_dtype, words):
            raise _not_finite(name)
        if kind.name == part.float_dtype and not job.source.add:
            return words.view(np.uint8).reshape(-1)
        width = row_bytes(kind, job.columns)
        out: npt.NDArray[np.uint8] = np.empty(len(words) * width, np.uint8)
        weights = None
        if job.importance is not None:
            number = (chunk.start + chunk.first) // job.matrix_rows
            weights = job.importance.matrix(number, job.columns)
        step = max(1, SLICE_ELEMENTS // job.columns)
        for first in range(0, len(words), step):
            piece = words[first : first + step]
            values = self._widened(piece, part.float_dtype)
            if job.source.add:
                values = values + np.float32(job.source.add)
            target = out[first * width : (first + len(piece)) * width]
            self._ggml.quantize(kind, values, target, weights)
        if not self._ggml.finite(kind.name, out):
            raise _not_finite(name)
        return out

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


def _not_finite(name: str) -> BadCheckpointError:
    return BadCheckpointError(
        f"tensor {name!r} holds NaN or infinite values",
        code="not_finite",
        hint="fetch the checkpoint again; if it stays, the published weights are broken",
    )
