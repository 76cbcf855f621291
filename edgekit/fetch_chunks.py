"""One file on its way: which bytes are here, which are to be asked for, and the digest of all.

Connections take chunks. The chunk that follows everything hashed so far goes straight into the
digest of the whole file; one that is fetched ahead of it gets a digest of its own and is read
once more, from the page cache, when its turn comes. So a checkpoint of several shards is hashed
once, byte for byte, while it arrives.
"""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgekit.fetch_journal import Mark, done_line, head_line, mark_line, read_journal

if TYPE_CHECKING:
    from hashlib import _Hash

    from edgekit.hub import RemoteFile

_READ_BYTES: Final = 4 << 20


@dataclass(slots=True, eq=False)
class Chunk:
    """A stretch [start, end) of a file, here up to `at`. `whole`: hashed with all before it.

    `fresh` is false for bytes of an earlier process, which are checked before they count.
    """

    start: int
    end: int
    at: int
    generation: int
    whole: bool = False
    doing: bool = False
    fresh: bool = True
    sha256: str | None = None
    hasher: _Hash = field(default_factory=hashlib.sha256)

    @property
    def done(self) -> bool:
        return self.at == self.end

    def clear(self) -> None:
        self.at, self.whole, self.fresh, self.sha256 = self.start, False, True, None
        self.hasher = hashlib.sha256()


class FileWork:
    """The state of one file. Methods may be called from several threads."""

    def __init__(self, remote: RemoteFile, path: Path, journal: Path, chunk_bytes: int) -> None:
        self.remote = remote
        self.path = path
        self.journal = journal
        self.chunk_bytes = chunk_bytes
        self.identity: str | None = None
        self.restarts = 0
        self.resumed_bytes = 0
        self.digest: str | None = None
        """Of the whole file, once it is complete and checked."""
        self.claimed = False
        self._lock = threading.Lock()
        self._generation = 0
        self._folding = False
        self.chunks: list[Chunk] = []
        self._lay_out(chunk_bytes)

    @property
    def bytes_here(self) -> int:
        if self.digest is not None:
            return self.remote.size
        return sum(chunk.at - chunk.start for chunk in self.chunks)

    @property
    def active(self) -> int:
        return sum(chunk.doing for chunk in self.chunks)

    @property
    def complete(self) -> bool:
        """Every byte is here and hashed; whether it is the right digest is another question."""
        return self._whole_at == self.remote.size and not self._folding

    def claim(self) -> bool:
        """Let one thread alone finish a complete file."""
        with self._lock:
            if self.claimed or not self.complete:
                return False
            self.claimed = True
            return True

    def resume(self) -> str | None:
        """Take up what an earlier process left; return why it could not be used, if so.

        Whatever the journal says is read and hashed again before it counts.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        try:
            data, here = self.journal.read_bytes(), self.path.stat().st_size
        except FileNotFoundError:
            self._clear_files()
            return None
        found = read_journal(data)
        if found is None or found.size != self.remote.size or here != found.size:
            self._clear_files()
            return "it has another size now" if found and found.size != self.remote.size else None
        if found.done is not None and self.remote.sha256 in (None, found.done):
            self.digest, self.identity, self.claimed = found.done, found.identity, True
            self._whole_at, self.resumed_bytes = here, here
            return None
        # What follows is appended, so a torn line must go.
        os.truncate(self.journal, found.valid_bytes)
        self.identity = found.identity
        self._lay_out(found.chunk)
        for chunk in self.chunks:
            if (mark := found.marks.get(chunk.start)) is not None:
                chunk.at, chunk.whole, chunk.sha256 = mark.end, mark.whole, mark.sha256
                chunk.fresh = False
        self._rehash()
        self.resumed_bytes = self.bytes_here
        return None

    def meet(self, identity: str | None, ranges: bool = True) -> bool:
        """Compare an answer's identity with what is here; False when it began again for it.

        The first answer creates the files. Without `ranges` the file becomes one chunk.
        """
        with self._lock:
            begun = self.journal.exists()
            changed = begun and identity != self.identity and None not in (identity, self.identity)
            split = not ranges and len(self.chunks) > 1
            if begun and not changed and not split:
                return True
            again = changed or split
            if again:
                self._generation += 1
                self._folding = self.claimed = False
                self.restarts += changed
                self._clear_files()
            if split or not ranges:
                self.chunk_bytes = max(self.remote.size, 1)
            if again:
                self._lay_out(self.chunk_bytes)
            self.identity = identity
            with self.path.open("wb") as file:
                file.truncate(self.remote.size)
            self.journal.write_bytes(head_line(self.remote.size, self.chunk_bytes, identity))
            return not again

    def take(self) -> Chunk | None:
        """Give the next chunk that nobody works on."""
        with self._lock:
            for chunk in self.chunks:
                if chunk.done or chunk.doing:
                    continue
                chunk.doing = True
                if chunk.at == chunk.start:
                    chunk.whole = chunk.start == self._whole_at and not self._folding
                    chunk.hasher = self._whole if chunk.whole else hashlib.sha256()
                return chunk
        return None

    def current(self, chunk: Chunk) -> bool:
        """Whether the file has not begun again since the chunk was taken."""
        return chunk.generation == self._generation

    def mark(self, chunk: Chunk, *, sync: bool = False) -> None:
        """Put on record how far a chunk has come. The bytes were written before."""
        sha256 = chunk.hasher.copy().hexdigest()
        line = mark_line(Mark(chunk.start, chunk.at, sha256, chunk.whole))
        with self._lock:
            if self.current(chunk) and chunk.at > chunk.start:
                _append(self.journal, line, sync=sync)

    def give_back(self, chunk: Chunk) -> None:
        """Leave a chunk for whoever comes next, as far as it has come."""
        with self._lock:
            chunk.doing = False

    def finish(self, chunk: Chunk, file: FileIO) -> None:
        """Put a complete chunk on the disk, then on record, then into the digest of the whole."""
        os.fsync(file.fileno())
        self.mark(chunk, sync=True)
        with self._lock:
            chunk.doing = False
            if not self.current(chunk):
                return
            chunk.sha256 = None if chunk.whole else chunk.hasher.hexdigest()
            if chunk.whole:
                self._whole_at = chunk.end
        self._fold()

    def seal(self) -> str:
        """Return the digest of a complete file; nothing is on record yet."""
        return self._whole.hexdigest()

    def keep(self, digest: str) -> None:
        """Put on record that the file is complete and checked."""
        _sync(self.path)
        _append(self.journal, done_line(digest), sync=True)
        self.digest = digest

    def discard(self) -> None:
        """Remove what is here of the file: it is wrong."""
        with self._lock:
            self._generation += 1
            self._clear_files()
            self.chunks = []  # nobody is to fetch it again in this run

    def _lay_out(self, chunk_bytes: int) -> None:
        size = self.remote.size
        self.chunk_bytes = chunk_bytes
        self.chunks = [
            Chunk(start, min(start + chunk_bytes, size), start, self._generation)
            for start in range(0, size, chunk_bytes)
        ]
        self._whole = hashlib.sha256()
        self._whole_at = 0

    def _clear_files(self) -> None:
        # Threads that still write have the old file open, and write into nothing.
        self.path.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)

    def _rehash(self) -> None:
        with self.path.open("rb", buffering=0) as file:
            in_order = True
            for chunk in self.chunks:
                if chunk.at == chunk.start:
                    in_order = False
                elif chunk.whole:
                    trial = self._whole.copy()
                    if in_order and _hash(file, chunk.start, chunk.at, trial) == chunk.sha256:
                        self._whole = chunk.hasher = trial
                        self._whole_at = chunk.end if chunk.done else chunk.start
                    else:
                        chunk.clear()
                elif not chunk.done:
                    # The rest of it comes now: the hasher must know what is here.
                    if _hash(file, chunk.start, chunk.at, chunk.hasher) == chunk.sha256:
                        chunk.fresh = True
                    else:
                        chunk.clear()
                elif in_order:
                    self._take_in(chunk, file)
                in_order = in_order and chunk.done and self._whole_at == chunk.end

    def _fold(self) -> None:
        """Hash chunks that were fetched ahead, as far as there is no gap."""
        with self._lock:
            if self._folding:
                return
            self._folding, generation = True, self._generation
        file: FileIO | None = None
        try:
            while True:
                with self._lock:
                    if generation != self._generation:
                        return
                    chunk = self._next_to_fold()
                    if chunk is None:
                        self._folding = False
                        return
                file = file or self.path.open("rb", buffering=0)
                self._take_in(chunk, file)
        except BaseException:
            with self._lock:
                self._folding = False
            raise
        finally:
            if file is not None:
                file.close()

    def _next_to_fold(self) -> Chunk | None:
        if self._whole_at == self.remote.size:
            return None
        chunk = self.chunks[self._whole_at // self.chunk_bytes]
        return chunk if chunk.done and not chunk.doing and not chunk.whole else None

    def _take_in(self, chunk: Chunk, file: FileIO) -> None:
        """Add a chunk of its own digest to the digest of the whole; bad bytes are dropped."""
        trial = self._whole.copy()
        own = None if chunk.fresh else hashlib.sha256()
        _hash(file, chunk.start, chunk.end, trial, own)
        with self._lock:
            if not self.current(chunk):
                return
            if own is not None and own.hexdigest() != chunk.sha256:
                chunk.clear()
                return
            self._whole, self._whole_at = trial, chunk.end


def _hash(file: FileIO, start: int, end: int, hasher: _Hash, second: _Hash | None = None) -> str:
    """Feed a stretch of a file to one or two hashers; return the first one's digest then."""
    file.seek(start)
    buffer = memoryview(bytearray(min(_READ_BYTES, end - start)))
    left = end - start
    while left:
        count = file.readinto(buffer[: min(left, len(buffer))])
        if not count:
            break
        hasher.update(buffer[:count])
        if second is not None:
            second.update(buffer[:count])
        left -= count
    return hasher.copy().hexdigest()


def _append(path: Path, line: bytes, *, sync: bool) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(line)
        if sync:
            os.fsync(file.fileno())


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
