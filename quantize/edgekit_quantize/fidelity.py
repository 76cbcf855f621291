"""Are the weights in a file the weights it was made from, tensor by tensor?

A divergence measures what a model says; a tensor that matters little can be quite wrong and
hardly show. Here each tensor's rows are decoded again and set beside the checkpoint's own, so a
flipped scale, two tensors in each other's place or a torn block is seen whatever it does to the
output. It needs no more memory than a few rows, so it works for models that cannot be run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from edgekit_quantize.checkpoint import Checkpoint
from edgekit_quantize.errors import BadGgufError
from edgekit_quantize.gguf_header import GgufHeader, GgufTensor, read_header
from edgekit_quantize.tensor_types import FILE_TYPES, TensorType, row_bytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgekit_quantize.llama import Ggml
    from edgekit_quantize.rows import Job

    Floats = npt.NDArray[np.float32]
    Reader = Callable[[int, int], Floats]

VALUES = 1 << 20
"""Values of each tensor that are compared; all of a small one."""
RUNS = 8
"""Runs of rows, spread evenly, that they come from."""

MARGIN = 3.0


@dataclass(frozen=True, slots=True)
class Fidelity:
    """One tensor: root of the mean squared error over that of the weights, and what is allowed.

    `row` is the worst single row's.
    """

    name: str
    type: str
    error: float
    row: float
    limit: float
    row_limit: float

    @property
    def good(self) -> bool:
        # Written so that NaN is bad.
        return self.error <= self.limit and self.row <= self.row_limit


def allowed(kind: TensorType) -> tuple[float, float]:
    """Return the largest error of a tensor, and of one row, that quantizing explains.

    b bits a weight leave about 2^(1 - b) of a weight's size as error (Q8_0 0.5 %, Q4_K 8 %,
    Q2_K 30 %); three times that is allowed, and 0.95 at most: a wrong tensor has 1.4, a flipped
    scale 2, an empty one 1. Below two bits 1.2, since little more than the signs is left.
    """
    bits = kind.bits_per_weight
    most = 0.95 if bits >= 2 else 1.2
    limit = 0.01 if not kind.quantized else min(most, MARGIN * 2.0 ** (1 - bits))
    return limit, max(most, limit)


def compare_weights(
    model: Path, source: Path, progress: Callable[[int, int], None] | None = None
) -> list[Fidelity]:
    """Compare the GGUF `model` with the checkpoint folder or the GGUF it was made from.

    `progress(done, total)` counts tensors. Raises what reading either raises, and BadGgufError
    (`other_tensors`) when they do not hold the same tensors.
    """
    from edgekit_quantize.llama import Ggml

    ggml, header = Ggml(), read_header(model)
    found = []
    with model.open("rb") as file:
        total = len(header.tensors)
        for tensor, original in _pairs(model, header, source, ggml):
            stored = _gguf_reader(file, header, tensor, ggml)
            found.append(_compare(tensor, original, stored))
            if progress is not None:
                progress(len(found), total)
    return found


def _compare(tensor: GgufTensor, original: Reader, stored: Reader) -> Fidelity:
    import numpy as np

    error = power = worst = 0.0
    for first, last in _runs(tensor):
        want = original(first, last).astype(np.float64)
        off = np.square(stored(first, last) - want).sum(axis=1)
        size = np.square(want).sum(axis=1)
        error, power = error + float(off.sum()), power + float(size.sum())
        # A row of zeros must stay one.
        rows = np.divide(off, size, out=np.where(off > 0, np.inf, 0.0), where=size > 0)
        worst = max(worst, float(rows.max())) if not np.isnan(rows).any() else np.nan
    share = error / power if power else (np.inf if error else 0.0)
    return Fidelity(tensor.name, tensor.type.name, share**0.5, worst**0.5, *allowed(tensor.type))


def _runs(tensor: GgufTensor) -> Iterator[tuple[int, int]]:
    """Choose rows: [first, last) of each run."""
    columns, rows = tensor.shape[0], _rows(tensor)
    wanted = max(RUNS, VALUES // columns)
    if rows <= wanted:
        step = max(1, wanted // RUNS)
        yield from ((at, min(at + step, rows)) for at in range(0, rows, step))
        return
    size = wanted // RUNS
    for i in range(RUNS):
        first = i * (rows - size) // (RUNS - 1)
        yield first, first + size


def _rows(tensor: GgufTensor) -> int:
    rows = 1
    for n in tensor.shape[1:]:
        rows *= n
    return rows


def _pairs(
    model: Path, header: GgufHeader, source: Path, ggml: Ggml
) -> Iterator[tuple[GgufTensor, Reader]]:
    """Give each tensor of the file with a reader of what it should be."""
    mine = {tensor.name: tensor for tensor in header.tensors}
    if source.is_dir():
        from edgekit_quantize.convert import make_job
        from edgekit_quantize.planning import plan_conversion

        with Checkpoint(source) as checkpoint:
            plan = plan_conversion(checkpoint, FILE_TYPES["F32"])
            _check_same(model, mine, plan.tensors)
            for made_of, tensor in zip(plan.sources, plan.tensors, strict=True):
                yield mine[tensor.name], job_reader(make_job(checkpoint, made_of, tensor), ggml)
        return
    base = read_header(source)
    _check_same(model, mine, base.tensors)
    with source.open("rb") as file:
        for tensor in base.tensors:
            yield mine[tensor.name], _gguf_reader(file, base, tensor, ggml)


def _check_same(model: Path, mine: dict[str, GgufTensor], wanted: tuple[GgufTensor, ...]) -> None:
    shapes = {tensor.name: tensor.shape for tensor in wanted}
    odd = [name for name, tensor in mine.items() if shapes.get(name) != tensor.shape]
    odd += [name for name in shapes if name not in mine]
    if odd:
        raise BadGgufError(
            f"{model.name} and its source differ in {len(odd)} tensors, the first is {odd[0]}",
            code="other_tensors",
            hint="compare a file with the model that it was made from",
        )


def _gguf_reader(file: BinaryIO, header: GgufHeader, tensor: GgufTensor, ggml: Ggml) -> Reader:
    import numpy as np

    columns = tensor.shape[0]
    width = row_bytes(tensor.type, columns)

    def read(first: int, last: int) -> Floats:
        file.seek(header.data_offset + tensor.offset + first * width)
        raw = file.read((last - first) * width)
        out = np.empty((last - first, columns), np.float32)
        ggml.dequantize(tensor.type, np.frombuffer(raw, np.uint8), out)
        return out

    return read


def job_reader(job: Job, ggml: Ggml) -> Reader:
    """Return a function that gives rows [first, last) of what a job would write, as float32."""
    import numpy as np

    from edgekit_quantize.rows import Chunk, Encoder

    encoder = Encoder(ggml)

    def pieces(first: int, last: int) -> Iterator[Chunk]:
        if not job.parts:
            yield Chunk(job, part=None, start=0, first=0, last=job.rows, ends=True)
        elif len(job.target.shape) == 1:
            yield Chunk(job, job.parts[0], start=0, first=0, last=job.parts[0].rows, ends=True)
        else:
            start = 0
            for part in job.parts:
                low, high = max(first - start, 0), min(last - start, part.rows)
                if low < high:
                    yield Chunk(job, part, start=start, first=low, last=high, ends=False)
                start += part.rows

    def read(first: int, last: int) -> Floats:
        out = np.empty((last - first, job.columns), np.float32)
        raw = np.concatenate([encoder.encode(chunk) for chunk in pieces(first, last)])
        ggml.dequantize(job.target.type, raw, out)
        return out

    return read
