"""Importance matrices as files: llama.cpp's GGUF format, read and written, and the older .dat.

The GGUF holds, for each weight X, `X.in_sum2` (sums of squares of its inputs, one row for each
expert) and `X.counts` (how many rows were summed). The older format holds them already divided
by the counts and multiplied by the number of chunks. What a quantizer gets is the mean square,
computed in float32 as llama-quantize does (tools/quantize/quantize.cpp), so that the bytes are
the same. Files may be hostile: every count is checked against the bytes that are there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgekit_quantize.errors import BadImatrixError, IoFailedError, MissingFileError
from edgekit_quantize.gguf_header import MAGIC, MAX_NAME_BYTES, GgufTensor, read_header
from edgekit_quantize.gguf_write import encode_header
from edgekit_quantize.metadata import KeyValue, string, strings, u32
from edgekit_quantize.tensor_types import TENSOR_TYPES, align

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

SUMS, COUNTS = ".in_sum2", ".counts"
CHUNK_COUNT, CHUNK_SIZE, DATASETS = (
    "imatrix.chunk_count",
    "imatrix.chunk_size",
    "imatrix.datasets",
)
MAX_KEY_TEXT = 127
"""Bytes of a text that llama-quantize copies into a model's metadata."""


class Gathered(Protocol):
    """What a collector gathered for one weight: sums [matrices, columns], counts [1 or matrices].

    One count for several matrices: all of them saw the same number of rows.
    """

    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Importance:
    """One weight's: `sums` is flat, and each of its equal parts is divided by one of `divisors`.

    A divisor of 0 stands for an expert that the text never reached: its inputs weigh 1 each.
    """

    sums: Floats
    divisors: Floats

    @property
    def size(self) -> int:
        return len(self.sums)

    def matrix(self, number: int, columns: int) -> Floats:
        """Return the mean squares [columns] of one matrix of the weight."""
        import numpy as np

        first = number * columns
        part = len(self.sums) // len(self.divisors)
        divisors = self.divisors[np.arange(first, first + columns) // part]
        sums = np.array(self.sums[first : first + columns], np.float32)
        reached = divisors > 0
        return np.where(reached, sums / np.where(reached, divisors, 1), np.float32(1))


@dataclass(frozen=True, slots=True)
class ImatrixFile:
    """A file that was read. `digest` is the sha256 of its bytes; `chunks` is 0 where unknown."""

    name: str
    digest: str
    datasets: tuple[str, ...]
    chunks: int
    tensors: Mapping[str, Importance]

    def keys(self) -> list[KeyValue]:
        """Return the metadata that llama-quantize adds to a model, and our digest.

        Only the file's name is given, not its path: the same inputs make the same bytes.
        """
        found = [string("quantize.imatrix.file", _cut(self.name))]
        if self.datasets:
            found.append(string("quantize.imatrix.dataset", _cut(self.datasets[0])))
        found.append(u32("quantize.imatrix.entries_count", len(self.tensors)))
        if self.chunks > 0:
            found.append(u32("quantize.imatrix.chunks_count", self.chunks))
        return [*found, string("edgekit.imatrix.digest", self.digest)]


def read_imatrix(path: Path) -> ImatrixFile:
    """Read an importance matrix of either format; its values stay on the disk until wanted.

    Raises MissingFileError, IoFailedError, BadGgufError, BadImatrixError (`bad_imatrix`,
    `not_finite`).
    """
    import numpy as np

    try:
        with path.open("rb") as file:
            digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        if size < 8:
            raise _bad(path, f"it is only {size} bytes long")
        data = np.memmap(path, np.uint8, "r")
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no file {path}", code="no_such_file") from error
    except OSError as error:
        raise IoFailedError(f"cannot read {path}: {error.strerror}", code="io_error") from error
    raw = np.asarray(data)
    if raw[:4].tobytes() == MAGIC:
        datasets, chunks, tensors = _read_gguf(path, raw)
    else:
        datasets, chunks, tensors = _read_legacy(path, raw)
    for name, entry in tensors.items():
        _check_values(path, name, entry)
    return ImatrixFile(path.name, digest, datasets, chunks, tensors)


def write_imatrix(
    path: Path,
    entries: Mapping[str, Gathered],
    chunks: int,
    dataset: str,
    *,
    chunk_size: int = 512,
) -> None:
    """Write the GGUF that llama.cpp reads, whole or not at all, in the order of the names.

    `chunks` windows of `chunk_size` tokens of the text called `dataset` were run. Raises what
    PartialFile raises.
    """
    import numpy as np

    from edgekit_quantize.output import PartialFile

    keys = [
        string("general.type", "imatrix"),
        strings(DATASETS, [dataset]),
        u32(CHUNK_COUNT, chunks),
        u32(CHUNK_SIZE, chunk_size),
    ]
    arrays: list[Floats] = []
    tensors: list[GgufTensor] = []
    offset = 0
    for name, entry in sorted(entries.items()):
        matrices = entry.counts.size
        for suffix, values in ((SUMS, entry.sums), (COUNTS, entry.counts)):
            array = np.ascontiguousarray(values, dtype="<f4").reshape(-1)
            shape = (array.size // matrices, matrices)
            tensors.append(
                GgufTensor(name + suffix, TENSOR_TYPES["F32"], shape, offset, array.nbytes)
            )
            arrays.append(array)
            offset = align(offset + array.nbytes)
    header = encode_header(keys, tensors)
    with PartialFile(path, len(header) + offset) as out:
        out.write(header)
        for array in arrays:
            out.write(array.tobytes())
            out.write(bytes(align(array.nbytes) - array.nbytes))
        out.sync()
        out.commit()


Read = tuple[tuple[str, ...], int, dict[str, Importance]]


def _read_gguf(path: Path, raw: npt.NDArray[np.uint8]) -> Read:
    import numpy as np

    header = read_header(path)
    chunks, datasets = header.metadata.get(CHUNK_COUNT), header.metadata.get(DATASETS)
    if not isinstance(chunks, int) or CHUNK_SIZE not in header.metadata or datasets is None:
        raise _bad(path, "it has no imatrix.* keys; is it a model?")
    texts = () if isinstance(datasets, str | int | float) else tuple(map(str, datasets))
    found = {tensor.name: tensor for tensor in header.tensors}

    def values(tensor: GgufTensor) -> Floats:
        if tensor.type.name != "F32":
            raise _bad(path, f"{tensor.name} is {tensor.type.name} and not F32")
        start = header.data_offset + tensor.offset
        return raw[start : start + tensor.bytes].view("<f4")

    tensors = {}
    for full in found:
        name = full.removesuffix(SUMS if full.endswith(SUMS) else COUNTS)
        if name == full or name in tensors:
            continue
        if name + SUMS not in found or name + COUNTS not in found:
            raise _bad(path, f"{name} has sums or counts, but not both")
        sums, counts = values(found[name + SUMS]), values(found[name + COUNTS])
        if len(sums) % len(counts):
            raise _bad(path, f"{name} has {len(sums)} sums and {len(counts)} counts")
        if not (np.isfinite(counts).all() and (counts >= 0).all()):
            raise _bad(path, f"the counts of {name} are no counts")
        tensors[name] = Importance(sums, np.floor(counts + np.float32(0.5)))
    return texts, chunks, tensors


def _read_legacy(path: Path, raw: npt.NDArray[np.uint8]) -> Read:
    import numpy as np

    cursor = _Cursor(path, raw)
    tensors: dict[str, Importance] = {}
    count = cursor.integer("the number of entries", least=1)
    for _ in range(count):
        name = cursor.text(cursor.integer("the length of a name", least=1), "a name")
        if name in tensors:
            raise _bad(path, f"{name} comes twice")
        calls = cursor.integer(f"the calls of {name}", least=0)
        length = cursor.integer(f"the length of {name}", least=1)
        sums = cursor.take(4 * length, name).view("<f4")
        # Without a count the values are taken as they are.
        tensors[name] = Importance(sums, np.array([max(calls, 1)], np.float32))
    chunks, dataset = 0, ""
    if cursor.left >= 8:
        chunks = cursor.integer("the number of chunks", least=0)
        dataset = cursor.text(cursor.integer("the length of a name", least=0), "the dataset")
    return (dataset,) if dataset else (), chunks, tensors


class _Cursor:
    """Reads the older format and refuses to move past the end."""

    def __init__(self, path: Path, raw: npt.NDArray[np.uint8]) -> None:
        self.path, self.raw, self.at = path, raw, 0

    @property
    def left(self) -> int:
        return len(self.raw) - self.at

    def take(self, count: int, what: str) -> npt.NDArray[np.uint8]:
        if count > self.left:
            raise _bad(self.path, f"it ends inside {what}")
        self.at += count
        return self.raw[self.at - count : self.at]

    def integer(self, what: str, *, least: int) -> int:
        value = int.from_bytes(self.take(4, what).tobytes(), "little", signed=True)
        if value < least:
            raise _bad(self.path, f"{what} is {value}")
        return value

    def text(self, length: int, what: str) -> str:
        if length > 1 << 16:
            raise _bad(self.path, f"{what} is {length} bytes long")
        try:
            return self.take(length, what).tobytes().decode()
        except UnicodeDecodeError as error:
            raise _bad(self.path, f"{what} is not UTF-8") from error


def _check_values(path: Path, name: str, entry: Importance) -> None:
    import numpy as np

    if len(name.encode()) > MAX_NAME_BYTES:
        raise _bad(path, f"the name {name[:80]!r} is too long")
    for piece in _pieces(entry.sums):
        # Squares: a negative sum would make a kernel compute with NaN.
        if not (np.isfinite(piece).all() and (piece >= 0).all()):
            raise BadImatrixError(
                f"{path.name}: the values of {name} are negative, NaN or infinite",
                code="not_finite",
                hint="collect the importance matrix again with `edgekit imatrix`",
            )


def _pieces(values: Floats, step: int = 1 << 20) -> Iterator[Floats]:
    for first in range(0, len(values), step):
        yield values[first : first + step]


def _cut(text: str) -> str:
    return text.encode()[:MAX_KEY_TEXT].decode(errors="ignore")


def _bad(path: Path, what: str) -> BadImatrixError:
    return BadImatrixError(
        f"{path.name} is no importance matrix: {what}",
        code="bad_imatrix",
        hint="pass a file of `edgekit imatrix` or llama-imatrix",
    )
