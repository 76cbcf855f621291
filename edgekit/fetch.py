"""Fetch the contents of a listing: parallel ranges, journaled, checked against the hub's digests.

A fetch that was killed goes on where it was: at most MARK_BYTES of each connection, and what was
on its way in the sockets, is asked for again. Nothing is believed that was not hashed.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgekit.errors import BadDataError, EdgekitError, from_foreign
from edgekit.fetch_chunks import Chunk, FileWork
from edgekit.fetch_http import Body, Home, open_range
from edgekit.fetch_retry import Patience, TryAgainError

if TYPE_CHECKING:
    import httpx

    from edgekit.hub import RemoteFile

CHUNK_BYTES: Final = 64 << 20
MARKS_PER_CHUNK: Final = 32
"""A mark every 2 MiB: the journal of a 5 GB shard grows to 400 kB."""

CONNECTIONS: Final = 4
MAX_RESTARTS: Final = 3
STALL_S: Final = 30.0
"""A connection that brings nothing for this long is cut and asked again."""

Progress = Callable[[int, int], None]
Notice = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Fetched:
    """One file, here and checked. `check`: "sha256" or "git" of the hub, or "none"."""

    name: str
    bytes: int
    sha256: str
    check: str


@dataclass(frozen=True, slots=True)
class Result:
    """All files. `new_bytes` came over the network, `resumed_bytes` were here already."""

    files: tuple[Fetched, ...]
    new_bytes: int
    resumed_bytes: int
    seconds: float


def silent(*_: object) -> None:
    """Take what nobody wants to see."""


def works_for(
    files: Sequence[RemoteFile], folder: Path, journals: Path, chunk_bytes: int = CHUNK_BYTES
) -> list[FileWork]:
    """Return one piece of work a file: contents go to `folder/<name>`."""
    return [FileWork(f, folder / f.name, journals / f"{f.name}.jsonl", chunk_bytes) for f in files]


def fetch(
    works: Sequence[FileWork],
    home: Home,
    *,
    connections: int = CONNECTIONS,
    progress: Progress = silent,
    notice: Notice = silent,
) -> Result:
    """Fetch every file and return its digest.

    Raises:
        BadDataError: wrong bytes (`digest_mismatch`), a file that keeps changing, no such format.
        DeniedError, MissingInputError: as the hub says.
        BusyError, IoFailedError: after several attempts; what was fetched is kept.
        CannotCreateError, IoFailedError: the disk.
    """
    import httpx

    started = time.monotonic()
    limits = httpx.Limits(max_connections=connections * 2, max_keepalive_connections=connections)
    client = httpx.Client(timeout=httpx.Timeout(STALL_S, connect=15.0), limits=limits)
    crew = _Crew(works, home, client, notice)
    threads = [
        threading.Thread(target=crew.work, name=f"fetch-{i}", daemon=True)
        for i in range(max(1, connections))
    ]
    total = sum(work.remote.size for work in works)
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            crew.wake.wait(0.1)
            crew.wake.clear()
            progress(sum(work.bytes_here for work in works), total)
    finally:
        crew.stop.set()
        for thread in threads:
            thread.join(2.0)
        with contextlib.suppress(Exception):
            client.close()
    if crew.failure is not None:
        raise crew.failure
    progress(total, total)
    found = tuple(crew.found[work.remote.name] for work in works)
    resumed = sum(work.resumed_bytes for work in works)
    return Result(found, crew.new_bytes, resumed, time.monotonic() - started)


class _BeganAgainError(Exception):
    """The chunk in hand belongs to a state of the file that is gone."""


class _StoppedError(Exception):
    """Another thread failed, or the person has had enough."""


class _Crew:
    """What the threads share."""

    def __init__(
        self, works: Sequence[FileWork], home: Home, client: httpx.Client, notice: Notice
    ) -> None:
        self.stop = threading.Event()
        self.wake = threading.Event()
        self.failure: EdgekitError | None = None
        self.found: dict[str, Fetched] = {}
        self.new_bytes = 0
        self._total = len(works)
        self._unread = list(works)
        self._works: list[FileWork] = []
        self._home = home
        self._client = client
        self._notice = notice
        self._lock = threading.Lock()

    def work(self) -> None:
        """Take chunks until there are none, in one of the threads."""
        try:
            while not self.stop.is_set() and self._one():
                pass
        except _StoppedError:
            pass
        except Exception as error:
            with self._lock:
                if self.failure is None:
                    self.failure = error if isinstance(error, EdgekitError) else from_foreign(error)
            self.stop.set()
        finally:
            self.wake.set()

    def _one(self) -> bool:
        """Do one thing; False when nothing is left for anyone."""
        with self._lock:
            unread = self._unread.pop(0) if self._unread else None
        if unread is not None:
            if why := unread.resume():
                self._notice(f"{unread.remote.name} begins again: {why}")
            if unread.digest is not None:
                self._enter(unread, unread.digest)
            elif unread.remote.size == 0:
                unread.meet(None)
            with self._lock:
                self._works.append(unread)
            self._finish(unread)
            return True
        with self._lock:
            open_ = [w for w in self._works if w.digest is None]
            # A file of one's own first: what comes in order is hashed once.
            taken = next(
                ((w, c) for w in sorted(open_, key=lambda w: w.active) if (c := w.take())), None
            )
        if taken is None:
            if len(self.found) == self._total:
                return False
            self.stop.wait(0.02)
            return True
        self._chunk(*taken)
        return True

    def _chunk(self, work: FileWork, chunk: Chunk) -> None:
        patience = Patience()
        try:
            while not chunk.done:
                before = chunk.at
                try:
                    self._transfer(work, chunk)
                except TryAgainError as error:
                    if chunk.at > before:
                        patience.progress()
                    if self.stop.wait(patience.wait_s(error)):
                        return
        except _BeganAgainError:
            return
        finally:
            work.give_back(chunk)
        self._finish(work)

    def _transfer(self, work: FileWork, chunk: Chunk) -> None:
        with open_range(self._client, self._home, work.remote, chunk.at, chunk.end) as body:
            self._meet(work, chunk, body)
            with work.path.open("r+b", buffering=0) as file:
                file.seek(chunk.at)
                self._receive(work, chunk, body, file)
                if chunk.done:
                    work.finish(chunk, file)
        if not chunk.done:
            raise TryAgainError(f"the connection for {work.remote.name} was cut")

    def _meet(self, work: FileWork, chunk: Chunk, body: Body) -> None:
        name, size = work.remote.name, work.remote.size
        if body.total is not None and body.total != size:
            raise BadDataError(
                f"{name} has {body.total:,} bytes on the hub, {size:,} were listed",
                code="file_changed",
                hint="run the same command again; if it stays so, the mirror's copy is damaged",
            )
        if not work.current(chunk):
            raise _BeganAgainError
        restarts = work.restarts
        if work.meet(body.identity, body.ranged):
            return
        if work.restarts > MAX_RESTARTS:
            raise BadDataError(
                f"{name} keeps changing on the hub while it is fetched",
                code="file_changed",
                hint="name a full commit with --revision, or fetch when nobody uploads",
            )
        if work.restarts > restarts:
            self._notice(f"{name} has changed on the hub (another ETag) and begins again")
        elif not body.ranged:
            self._notice(f"the server ignores ranges: {name} comes in one piece")
        raise _BeganAgainError

    def _receive(self, work: FileWork, chunk: Chunk, body: Body, file: FileIO) -> None:
        skip = chunk.at - body.start
        marked, step = chunk.at, max(work.chunk_bytes // MARKS_PER_CHUNK, 1)
        step = min(step, CHUNK_BYTES // MARKS_PER_CHUNK)
        try:
            for block in body.blocks:
                if self.stop.is_set():
                    raise _StoppedError
                if not work.current(chunk):
                    raise _BeganAgainError
                data = memoryview(block)[skip:][: chunk.end - chunk.at]
                skip = max(0, skip - len(block))
                _write(file, data)
                chunk.hasher.update(data)
                chunk.at += len(data)
                with self._lock:
                    self.new_bytes += len(block)
                if chunk.done:
                    return
                if chunk.at - marked >= step:
                    work.mark(chunk)
                    marked = chunk.at
        finally:
            if marked < chunk.at < chunk.end:
                work.mark(chunk)

    def _finish(self, work: FileWork) -> None:
        """Check a file that is complete; the first thread to see it does."""
        if work.digest is not None or not work.claim():
            return
        digest, remote = work.seal(), work.remote
        check = "sha256" if remote.sha256 else "git" if remote.git_oid else "none"
        good = digest == remote.sha256 if remote.sha256 else True
        if check == "git":
            good = _git_oid(work.path, remote.size) == remote.git_oid
        if not good:
            work.discard()
            raise BadDataError(
                f"{remote.name} is not what the hub lists: its {check} digest differs; it has "
                "been removed",
                code="digest_mismatch",
                hint="run the same command again to fetch that file anew; if it fails again, "
                "use another mirror",
            )
        if (fault := _fault(work.path)) is not None:
            work.discard()
            raise BadDataError(
                f"{remote.name} {fault}; it has been removed",
                code="not_weights",
                hint="do not use this repository; report it to whoever runs the hub",
            )
        work.keep(digest)
        self._enter(work, digest, check)

    def _enter(self, work: FileWork, digest: str, check: str | None = None) -> None:
        remote = work.remote
        check = check or ("sha256" if remote.sha256 else "git" if remote.git_oid else "none")
        with self._lock:
            self.found[remote.name] = Fetched(remote.name, remote.size, digest, check)


def _write(file: FileIO, data: memoryview) -> None:
    while len(data):
        data = data[file.write(data) or 0 :]


def _git_oid(path: Path, size: int) -> str:
    """Return git's name for a file's content: sha1 over a small header and the bytes."""
    # Not for security: the commit that was asked for is a sha1 itself.
    sha = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            sha.update(data)
    return sha.hexdigest()


def _fault(path: Path) -> str | None:
    """Say that a file of weights does not begin like one; None when it does, or is none."""
    name = path.name.lower()
    with path.open("rb") as file:
        head, size = file.read(9), path.stat().st_size
    if name.endswith(".gguf") and head[:4] != b"GGUF":
        return "does not begin like a GGUF file"
    if name.endswith(".safetensors"):
        length = int.from_bytes(head[:8], "little")
        if size < 9 or length > size - 8 or head[8:] != b"{":
            return "does not begin like a safetensors file (pickled weights, or a link's text?)"
    return None
