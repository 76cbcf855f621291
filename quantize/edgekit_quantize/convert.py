"""Checkpoint folder -> quantized GGUF in one streaming pass.

The recipe and the layout follow from shapes alone, so the header is written first. Then chunks
of rows flow in file order: threads encode a bounded window of them, the calling thread writes
and hashes. No intermediate file; memory does not grow with the model.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit_quantize import architectures
from edgekit_quantize.architectures import Architecture, Part, TensorSource
from edgekit_quantize.architectures.views import viewed_shape
from edgekit_quantize.checkpoint import Checkpoint, file_digests
from edgekit_quantize.errors import BadCheckpointError, IoFailedError
from edgekit_quantize.general import general_metadata
from edgekit_quantize.gguf_header import GgufTensor
from edgekit_quantize.gguf_write import encode_header, lay_out
from edgekit_quantize.metadata import KeyValue, u32
from edgekit_quantize.output import PartialFile
from edgekit_quantize.provenance import provenance_metadata, source_digest
from edgekit_quantize.recipe import assign, quantizable
from edgekit_quantize.scales import check_method, scale_block
from edgekit_quantize.tensor_types import FileType, align, find_file_type
from edgekit_quantize.tokenizer import Tokenizer, read_tokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgekit_quantize.rows import Chunk, Job
    from edgekit_quantize.stored import StoredPart

QUANTIZATION_VERSION = 2
"""ggml's GGML_QNT_VERSION."""

FLOAT_DTYPES = ("F32", "F16", "BF16")
SCALED_DTYPES = ("F8_E4M3", "F8_E5M2", "U8")
"""FP8, and MXFP4's packed nibbles: read together with their scales."""


@dataclass(frozen=True, slots=True)
class Converted:
    """The finished file. `tensor_bytes` is its data section, `sha256` the digest of all of it."""

    path: Path
    filetype: str
    file_bytes: int
    tensor_bytes: int
    n_tensors: int
    seconds: float
    source_digest: str
    sha256: str
    reasons: tuple[str, ...]


def convert(
    source: Path,
    destination: Path,
    filetype: str,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    name: str | None = None,
    digests: Mapping[str, str] | None = None,
) -> Converted:
    """Convert the checkpoint folder `source` to the GGUF `destination`.

    `threads` defaults to the CPUs this process may use. `progress(done_bytes, total_bytes)`
    counts source bytes, hashed and converted; it is called from several
    threads, one at a time. `name` becomes
    `general.name`. `digests` gives sha256 by file name for files already verified, which are
    then not hashed again.

    The destination appears whole or not at all. Raises the errors of this package:
    UnknownFileTypeError, MissingFileError, BadCheckpointError, CannotCreateError,
    IoFailedError, BusyError.
    """
    started = time.monotonic()
    file_type = find_file_type(filetype)
    workers = threads or _usable_cpus()
    with Checkpoint(source) as checkpoint:
        plan = _plan(checkpoint, file_type)
        meter = _Meter(checkpoint, plan, progress, digests or {})
        digest = source_digest(
            file_digests(checkpoint.files(), digests or {}, workers, meter.advance)
        )
        header = _header(checkpoint, plan, file_type, digest, name)
        last = plan.tensors[-1]
        tensor_bytes = align(last.offset + last.bytes)
        with PartialFile(destination, len(header) + tensor_bytes) as out:
            out.write(header)
            _stream(checkpoint, plan, out, workers, meter)
            out.sync()
            _check(out.path, header, len(header) + tensor_bytes)
            out.commit()
        return Converted(
            path=destination,
            filetype=file_type.name,
            file_bytes=out.written,
            tensor_bytes=tensor_bytes,
            n_tensors=len(plan.tensors),
            seconds=time.monotonic() - started,
            source_digest=digest,
            sha256=out.sha256.hexdigest(),
            reasons=plan.reasons,
        )


@dataclass(frozen=True, slots=True)
class _Plan:
    architecture: Architecture
    sources: tuple[TensorSource, ...]
    tensors: tuple[GgufTensor, ...]
    tokenizer: Tokenizer
    reasons: tuple[str, ...]


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _plan(checkpoint: Checkpoint, file_type: FileType) -> _Plan:
    """Decide names, types and places, and find all that is wrong before a byte is written."""
    config = checkpoint.config
    architecture = architectures.for_config(config)
    check_method(config)
    names = checkpoint.scales.names
    sources = tuple(architecture.sources(config, names))
    for source in sources:
        _check_stored(checkpoint, source)
    specs = [source.spec for source in sources]
    vocab = next(spec.shape[1] for spec in specs if spec.name == "token_embd.weight")
    tokenizer = read_tokenizer(checkpoint.folder, config, vocab, architecture.name)
    types = assign(specs, file_type.name, architecture.recipe_params(config))
    tensors = tuple(lay_out(specs, types))
    reasons = (
        tokenizer.reason,
        *architecture.notes(config, names),
        *_type_reasons(checkpoint, tensors, sources, file_type),
    )
    return _Plan(architecture, sources, tensors, tokenizer, reasons)


def _check_stored(checkpoint: Checkpoint, source: TensorSource) -> None:
    """Raise BadCheckpointError where a stored tensor is not what the architecture asks for."""
    columns, wanted = source.spec.shape[0], math.prod(source.spec.shape)
    found = 0
    for part in source.parts:
        stored = checkpoint.tensor(part.source)
        scaled = part.source in checkpoint.scales.of
        if stored.dtype not in FLOAT_DTYPES and not (scaled and stored.dtype in SCALED_DTYPES):
            raise BadCheckpointError(
                f"tensor {stored.name!r} is stored as {stored.dtype}",
                code="bad_dtype",
                hint="edgekit converts F32, F16 and BF16 weights, and FP8 and MXFP4 with their "
                "scales; use the BF16 checkpoint",
            )
        packed = stored.dtype == "U8"
        shape = (*stored.shape[:-1], stored.shape[-1] * 2) if packed else stored.shape
        seen = viewed_shape(shape, part.view)
        row = seen and (math.prod(seen[-2:]) if packed else seen[-1])
        whole = len(source.parts) > 1 or part.view or packed or shape == source.spec.shape[::-1]
        if not seen or not whole or (len(source.spec.shape) > 1 and row != columns):
            raise _bad_shape(stored.name, stored.shape, source.spec.shape)
        found += math.prod(seen)
    if source.parts and found != wanted:
        name = source.parts[0].source
        raise _bad_shape(name, checkpoint.tensor(name).shape, source.spec.shape)


def _bad_shape(name: str, stored: tuple[int, ...], wanted: tuple[int, ...]) -> BadCheckpointError:
    return BadCheckpointError(
        f"tensor {name!r} has the shape {list(stored)}, config.json asks for {list(wanted[::-1])}",
        code="bad_shape",
        hint="config.json and weights are of different models; fetch both again",
    )


def _type_reasons(
    checkpoint: Checkpoint,
    tensors: Sequence[GgufTensor],
    sources: Sequence[TensorSource],
    file_type: FileType,
) -> Iterator[str]:
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.type.name] = counts.get(tensor.type.name, 0) + 1
    mix = ", ".join(f"{counts[kind]} {kind}" for kind in sorted(counts))
    yield f"{file_type.name} by llama-quantize's rules: {mix}"
    if file_type.default.quantized:
        for tensor, source in zip(tensors, sources, strict=True):
            if quantizable(source.spec) and tensor.shape[0] % file_type.default.block:
                yield (
                    f"{tensor.name} is {tensor.type.name}: rows of {tensor.shape[0]} are no whole "
                    f"{file_type.default.name} blocks of {file_type.default.block}"
                )
    dtypes = {checkpoint.tensor(part.source).dtype for s in sources for part in s.parts}
    if dtypes != {"BF16"}:
        yield f"weights are stored as {', '.join(sorted(dtypes))} and quantized from those values"


def _header(
    checkpoint: Checkpoint, plan: _Plan, file_type: FileType, digest: str, name: str | None
) -> bytes:
    from edgekit_quantize.llama import VERSION

    arch = plan.architecture.name
    engine = f"llama-cpp-python {VERSION}"
    n_parameters = sum(math.prod(tensor.shape) for tensor in plan.tensors)
    keys: list[KeyValue] = [
        *general_metadata(checkpoint.folder, arch, n_parameters, name),
        *plan.architecture.metadata(checkpoint.config),
        *plan.tokenizer.metadata,
        *provenance_metadata(digest, engine),
        # llama-quantize puts these two last, whatever its input's order.
        u32("general.quantization_version", QUANTIZATION_VERSION),
        u32("general.file_type", file_type.number),
    ]
    return encode_header(keys, plan.tensors)


def _stream(
    checkpoint: Checkpoint, plan: _Plan, out: PartialFile, workers: int, meter: _Meter
) -> None:
    """Encode on `workers` threads, write in order. At most 2 x workers + 2 chunks are in memory."""
    from edgekit_quantize.llama import Ggml
    from edgekit_quantize.rows import Encoder

    ggml = Ggml()
    for kind in {tensor.type.name: tensor.type for tensor in plan.tensors}.values():
        ggml.prepare(kind)
    encoder = Encoder(ggml)
    window: deque[tuple[Chunk, Future[npt.NDArray[np.uint8]]]] = deque()
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="quantize") as pool:
        try:
            for chunk in _chunks(checkpoint, plan):
                window.append((chunk, pool.submit(encoder.encode, chunk)))
                if len(window) > 2 * workers + 1:
                    _write_next(window, out, meter)
            while window:
                _write_next(window, out, meter)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            window.clear()
            raise


def _chunks(checkpoint: Checkpoint, plan: _Plan) -> Iterator[Chunk]:
    from edgekit_quantize.rows import chunks

    for job in _jobs(checkpoint, plan):
        yield from chunks(job)


def _jobs(checkpoint: Checkpoint, plan: _Plan) -> Iterator[Job]:
    from edgekit_quantize.rows import Job

    for source, tensor in zip(plan.sources, plan.tensors, strict=True):
        parts = tuple(_stored_part(checkpoint, part) for part in source.parts)
        yield Job(tensor, source, parts)


def _stored_part(checkpoint: Checkpoint, part: Part) -> StoredPart:
    from edgekit_quantize.stored import Stored, StoredPart

    def stored(name: str) -> Stored:
        return Stored(checkpoint.where[name], checkpoint.tensor(name))

    weight = stored(part.source)
    scale_name = checkpoint.scales.of.get(part.source)
    if scale_name is None:
        return StoredPart(weight, part.view)
    scales = stored(scale_name)
    block: tuple[int, ...] = ()
    if weight.tensor.dtype != "U8":
        shapes = weight.tensor.shape, scales.tensor.shape
        block = scale_block(part.source, *shapes, checkpoint.config)
    return StoredPart(weight, part.view, scales, block)


def _write_next(
    window: deque[tuple[Chunk, Future[npt.NDArray[np.uint8]]]], out: PartialFile, meter: _Meter
) -> None:
    chunk, future = window.popleft()
    job = chunk.job
    out.write(future.result().data)
    meter.advance(chunk.source_bytes)
    if chunk.part is not None and chunk.ends_part:
        chunk.part.stored.shard.forget(chunk.part.stored.tensor)
    if chunk.ends:
        out.write(bytes(align(job.target.bytes) - job.target.bytes))


def _check(path: Path, header: bytes, file_bytes: int) -> None:
    """Read the header back: the file must say of itself what was planned."""
    with path.open("rb") as file:
        same = file.read(len(header)) == header
    if not same or path.stat().st_size != file_bytes:
        raise IoFailedError(f"{path} does not read back as it was written", code="bad_readback")


class _Meter:
    """Counts source bytes, from any thread."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: _Plan,
        report: Callable[[int, int], None] | None,
        known: Mapping[str, str],
    ) -> None:
        hashed = sum(p.stat().st_size for p in checkpoint.files() if p.name not in known)
        stored = sum(checkpoint.tensor(part.source).bytes for s in plan.sources for part in s.parts)
        self._total = hashed + stored
        self._done = 0
        self._report = report
        self._lock = threading.Lock()

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._report is not None:
                self._report(self._done, self._total)
