"""Checkpoint folder -> quantized GGUF in one streaming pass.

The recipe and the layout follow from shapes alone, so the header is written first. Then chunks
of rows flow in file order: threads encode a bounded window of them, the calling thread writes
and hashes. No intermediate file; memory does not grow with the model.

What only a conversion needs (tokenizers, readers, writers) is imported when one starts: the
package offers `convert` at its top, and planners that never convert import that too.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit_quantize.errors import IoFailedError
from edgekit_quantize.recipe import NO_OVERRIDES, Overrides
from edgekit_quantize.tensor_types import FileType, align, find_file_type

if TYPE_CHECKING:
    from concurrent.futures import Future

    import numpy as np
    import numpy.typing as npt

    from edgekit_quantize.architectures import Part, TensorSource
    from edgekit_quantize.checkpoint import Checkpoint
    from edgekit_quantize.gguf_header import GgufTensor
    from edgekit_quantize.imatrix_file import ImatrixFile, Importance
    from edgekit_quantize.metadata import KeyValue
    from edgekit_quantize.output import PartialFile
    from edgekit_quantize.planning import Plan
    from edgekit_quantize.rows import Chunk, Job
    from edgekit_quantize.stored import StoredPart

QUANTIZATION_VERSION = 2
"""ggml's GGML_QNT_VERSION."""


@dataclass(frozen=True, slots=True)
class Written:
    """One finished file."""

    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Converted:
    """The finished model. `tensor_bytes` is all its data sections; `files` is one but for splits.

    `path` is the file to open: the first. `sha256` is its digest, and for a split model that of
    the `sha256sum` listing of its files.
    """

    files: tuple[Written, ...]
    filetype: str
    tensor_bytes: int
    n_tensors: int
    seconds: float
    source_digest: str
    reasons: tuple[str, ...]

    @property
    def path(self) -> Path:
        return self.files[0].path

    @property
    def file_bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def sha256(self) -> str:
        if len(self.files) == 1:
            return self.files[0].sha256
        from edgekit_quantize.provenance import listing_digest

        return listing_digest({file.path.name: file.sha256 for file in self.files})


def convert(
    source: Path,
    destination: Path,
    filetype: str,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    name: str | None = None,
    digests: Mapping[str, str] | None = None,
    split_bytes: int | None = None,
    imatrix: Path | None = None,
    overrides: Overrides = NO_OVERRIDES,
    vision: bool = False,
) -> Converted:
    """Convert the checkpoint folder `source` to the GGUF `destination`.

    `threads` defaults to the CPUs this process may use. `progress(done_bytes, total_bytes)`
    counts source bytes, hashed and converted; it is called from several
    threads, one at a time. `name` becomes
    `general.name`. `digests` gives sha256 by file name for files already verified, which are
    then not hashed again. `split_bytes` cuts the result into files of at most that size, named
    after `destination` as llama.cpp names them. `imatrix` is a file of importances, see
    `imatrix_file`; `overrides` are types wanted other than the recipe's. `vision` converts the
    model's vision part in place of its language part, see `mmproj`.

    The destination appears whole or not at all, the first of several files last. Raises the errors
    of this package: UnknownFileTypeError, MissingFileError, BadCheckpointError, CannotCreateError,
    IoFailedError, BusyError.
    """
    from edgekit_quantize.checkpoint import Checkpoint, file_digests
    from edgekit_quantize.gguf_write import encode_header
    from edgekit_quantize.imatrix_file import read_imatrix
    from edgekit_quantize.mmproj import plan_vision
    from edgekit_quantize.planning import plan_conversion
    from edgekit_quantize.provenance import listing_digest
    from edgekit_quantize.splits import cut

    started = time.monotonic()
    file_type = find_file_type(filetype)
    workers = threads or _usable_cpus()
    with Checkpoint(source) as checkpoint:
        weighing = read_imatrix(imatrix) if imatrix is not None else None
        plan = (
            plan_vision(checkpoint, file_type)
            if vision
            else plan_conversion(checkpoint, file_type, weighing, overrides)
        )
        meter = _Meter(checkpoint, plan, progress, digests or {})
        digest = listing_digest(
            file_digests(checkpoint.files(), digests or {}, workers, meter.advance)
        )
        keys = _metadata(checkpoint, plan, file_type, digest, name)
        # llama-quantize puts these last of all.
        keys += weighing.keys() if weighing is not None else []
        files = cut(plan.tensors, len(encode_header(keys, plan.tensors)), split_bytes)
        written = _write(checkpoint, plan, keys, files, destination, workers, meter)
    return Converted(
        files=tuple(written),
        filetype=file_type.name,
        tensor_bytes=sum(align(file[-1].offset + file[-1].bytes) for file in files),
        n_tensors=len(plan.tensors),
        seconds=time.monotonic() - started,
        source_digest=digest,
        reasons=plan.reasons,
    )


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def header_bytes(
    checkpoint: Checkpoint, plan: Plan, file_type: FileType, imatrix: ImatrixFile | None
) -> int:
    """Return the bytes before the data section of the file that `plan` makes."""
    from edgekit_quantize.gguf_write import encode_header
    from edgekit_quantize.provenance import listing_digest

    digest = listing_digest({})
    keys = _metadata(checkpoint, plan, file_type, digest, None)
    keys += imatrix.keys() if imatrix is not None else []
    return len(encode_header(keys, plan.tensors))


def _metadata(
    checkpoint: Checkpoint, plan: Plan, file_type: FileType, digest: str, name: str | None
) -> list[KeyValue]:
    from edgekit_quantize.general import general_metadata
    from edgekit_quantize.llama import VERSION
    from edgekit_quantize.metadata import u32
    from edgekit_quantize.provenance import provenance_metadata

    arch = plan.architecture.name
    engine = f"llama-cpp-python {VERSION}"
    return [
        *general_metadata(checkpoint.folder, arch, plan.tensors, name),
        *plan.architecture.metadata(checkpoint.config),
        *plan.tokenizer.metadata,
        *provenance_metadata(digest, engine),
        # llama-quantize puts these two last, whatever its input's order.
        u32("general.quantization_version", QUANTIZATION_VERSION),
        u32("general.file_type", file_type.number),
    ]


def _write(
    checkpoint: Checkpoint,
    plan: Plan,
    keys: Sequence[KeyValue],
    files: Sequence[Sequence[GgufTensor]],
    destination: Path,
    workers: int,
    meter: _Meter,
) -> list[Written]:
    """Write each file beside its name, then give all of them their names, the first one last."""
    from edgekit_quantize.gguf_write import encode_header
    from edgekit_quantize.output import PartialFile
    from edgekit_quantize.splits import split_keys, split_path

    sources = iter(zip(plan.sources, plan.importance, strict=True))
    # The first file asks for the room of all.
    ahead = [align(tensors[-1].offset + tensors[-1].bytes) for tensors in files]
    with ExitStack() as stack:
        done: list[PartialFile] = []
        for number, tensors in enumerate(files):
            extra = split_keys(number, len(files), len(plan.tensors))
            header = encode_header([*(keys if number == 0 else ()), *extra], tensors)
            path = split_path(destination, number, len(files))
            out = stack.enter_context(PartialFile(path, len(header) + sum(ahead[number:])))
            out.write(header)
            jobs = zip(islice(sources, len(tensors)), tensors, strict=True)
            _stream(checkpoint, jobs, out, workers, meter)
            out.sync()
            _check(out.path, header, len(header) + ahead[number])
            done.append(out)
        for out in reversed(done):
            out.commit()
    return [Written(out.destination, out.written, out.sha256.hexdigest()) for out in done]


def _stream(
    checkpoint: Checkpoint,
    tensors: Iterable[tuple[tuple[TensorSource, Importance | None], GgufTensor]],
    out: PartialFile,
    workers: int,
    meter: _Meter,
) -> None:
    """Encode on `workers` threads, write in order. At most 2 x workers + 2 chunks are in memory."""
    from concurrent.futures import ThreadPoolExecutor

    from edgekit_quantize.llama import Ggml
    from edgekit_quantize.rows import Encoder, chunks

    jobs = [make_job(checkpoint, source, tensor, weights) for (source, weights), tensor in tensors]
    ggml = Ggml()
    for kind in {job.target.type.name: job.target.type for job in jobs}.values():
        ggml.prepare(kind)
    encoder = Encoder(ggml)
    window: deque[tuple[Chunk, Future[npt.NDArray[np.uint8]]]] = deque()
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="quantize") as pool:
        try:
            for chunk in chain.from_iterable(map(chunks, jobs)):
                window.append((chunk, pool.submit(encoder.encode, chunk)))
                if len(window) > 2 * workers + 1:
                    _write_next(window, out, meter)
            while window:
                _write_next(window, out, meter)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            window.clear()
            raise


def make_job(
    checkpoint: Checkpoint,
    source: TensorSource,
    tensor: GgufTensor,
    importance: Importance | None = None,
) -> Job:
    """Return a tensor to write with the stored parts that its values come from."""
    from edgekit_quantize.rows import Job

    parts = tuple(_stored_part(checkpoint, part) for part in source.parts)
    return Job(tensor, source, parts, importance)


def _stored_part(checkpoint: Checkpoint, part: Part) -> StoredPart:
    from edgekit_quantize.scales import scale_block
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
    if chunk.part is not None:
        chunk.part.forget(chunk.first, chunk.last)
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
        plan: Plan,
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
