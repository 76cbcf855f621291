"""The stored base: what an unquantized model predicts for a text, so that it need run only once.

    bytes  0..15   b"edgekit.base/1\\n\\0"
    u32            length of the JSON that follows, padded with spaces to a multiple of 16 bytes
    JSON           `n_vocab`, `window`, `windows`, `scored` (positions a window), `tokens` (digest
                   of the ids), `text` (digest), `answers` (ids, one list a prompt), `prompts`
                   (digest), `made_by`
    u16[...]       windows x scored x n_vocab log-probabilities, as `divergence.pack` makes them

Little-endian. A position takes 2 bytes a token of the vocabulary: 256 KiB at 131,072.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit_quantize.errors import BadCheckpointError, IoFailedError, MissingFileError
from edgekit_quantize.output import PartialFile

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Words = npt.NDArray[np.uint16]

MAGIC = b"edgekit.base/1\n\0"
MAX_JSON_BYTES = 16 << 20
MAX_VOCAB = 1 << 24


@dataclass(frozen=True, slots=True)
class BaseHeader:
    """What a stored base says of itself; see the top of this file."""

    n_vocab: int
    window: int
    windows: int
    scored: int
    tokens: str
    text: str
    prompts: str
    answers: tuple[tuple[int, ...], ...]
    made_by: str

    @property
    def data_bytes(self) -> int:
        return self.windows * self.scored * self.n_vocab * 2


class BaseFile:
    """A stored base that is read window by window."""

    def __init__(self, path: Path) -> None:
        """Read and check the header.

        Raises MissingFileError, IoFailedError, BadCheckpointError (`bad_base`).
        """
        self.path = path
        try:
            with path.open("rb") as file:
                head = file.read(len(MAGIC) + 4)
                if len(head) < len(MAGIC) + 4 or not head.startswith(MAGIC):
                    raise _bad(path, "it is none of edgekit's")
                (size,) = struct.unpack("<I", head[len(MAGIC) :])
                if size > MAX_JSON_BYTES:
                    raise _bad(path, f"its header claims {size} bytes")
                raw = file.read(size)
                self.header = _header(path, raw)
                self.offset = file.tell()
                there = file.seek(0, 2) - self.offset
        except FileNotFoundError as error:
            raise MissingFileError(f"there is no file {path}", code="no_such_file") from error
        except OSError as error:
            raise IoFailedError(f"cannot read {path}: {error.strerror}", code="io_error") from error
        if len(raw) < size or there != self.header.data_bytes:
            raise _bad(path, f"it holds {there} bytes of {self.header.data_bytes}")

    def windows(self) -> Iterator[Words]:
        """Give the rows of each window [scored, n_vocab]."""
        import numpy as np

        header = self.header
        shape = (header.windows, header.scored, header.n_vocab)
        data = np.memmap(self.path, np.dtype("<u2"), "r", self.offset, shape)
        for i in range(header.windows):
            yield np.asarray(data[i])


def write_base(path: Path, header: BaseHeader, windows: Iterator[Words]) -> None:
    """Write a base, whole or not at all. Raises what PartialFile raises."""
    text = json.dumps(asdict(header)).encode()
    text += b" " * (-(len(MAGIC) + 4 + len(text)) % 16)
    head = MAGIC + struct.pack("<I", len(text)) + text
    with PartialFile(path, len(head) + header.data_bytes) as out:
        out.write(head)
        for words in windows:
            out.write(words.astype("<u2", copy=False).tobytes())
        out.sync()
        out.commit()


def _header(path: Path, raw: bytes) -> BaseHeader:
    try:
        record = json.loads(raw)
        answers = tuple(tuple(map(_count, ids)) for ids in record.pop("answers"))
        kinds = {"n_vocab": int, "window": int, "windows": int, "scored": int}
        values: Mapping[str, object] = {
            name: _count(value) if name in kinds else str(value) for name, value in record.items()
        }
        header = BaseHeader(**values, answers=answers)  # type: ignore[arg-type]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _bad(path, f"its header cannot be read ({error})") from error
    if not 0 < header.n_vocab <= MAX_VOCAB or not header.scored * header.windows:
        raise _bad(path, "its header makes no sense")
    return header


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _bad(path: Path, why: str) -> BadCheckpointError:
    return BadCheckpointError(
        f"{path} is no base to compare with: {why}",
        code="bad_base",
        hint="make it again: edgekit evaluate GGUF --base UNQUANTIZED --save-base FILE",
    )
