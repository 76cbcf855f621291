"""A hub of our own for tests: the API that huggingface-hub speaks, LFS redirects to a second
port, ranges, and every way in which such a thing fails."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "f" * 40
BLOCK = 1 << 16


@dataclass
class Repository:
    """What the hub holds under one id. Weights are LFS files, everything else is git's."""

    files: dict[str, bytes]
    commit: str = COMMIT
    gated: bool = False
    token: str | None = None
    """Who sends this one is let in; None lets everyone in."""

    lists_sizes: bool = True
    """Mirrors often list names alone."""

    says_commit: bool = True
    linked: bool = True
    """Weights lie behind a redirect to the second port, with their digest in a header."""

    siblings: list[dict[str, Any]] | None = None
    """The listing to give, whatever the files are."""


@dataclass
class Fault:
    """What goes wrong, so many times, at files that match `name` on the hub or the CDN."""

    kind: str  # status cut slow etag wrong no_ranges loop redirect gzip garbage short_total
    name: str = "*"
    place: str = "*"
    times: int = 1
    after: int = 0
    value: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    from_byte: int = 0
    """Only requests that begin there or later."""


@dataclass(frozen=True)
class Ask:
    """One request as it arrived."""

    place: str
    method: str
    path: str
    headers: Mapping[str, str]
    start: int


class Hub:
    """Two servers in threads. Use `running()`."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.asked: list[Ask] = []
        self.sent: Counter[str] = Counter()
        """Bytes of content handed to the network, by file name."""

        self.pace_s = 0.0
        """Between blocks of 64 KiB, so that little lies in the sockets."""

        self.block = BLOCK
        self._lock = threading.Lock()
        self._servers = [self._server("hub"), self._server("cdn")]
        self.url = f"http://127.0.0.1:{self._servers[0].server_port}{prefix}"
        self.cdn_url = f"http://127.0.0.1:{self._servers[1].server_port}"

    def add(self, repository: str, files: dict[str, bytes], **more: Any) -> Repository:
        self.repositories[repository] = Repository(files, **more)
        return self.repositories[repository]

    def fault(self, kind: str, name: str = "*", **more: Any) -> None:
        self.faults.append(Fault(kind, name, **more))

    def content_requests(self) -> list[Ask]:
        return [a for a in self.asked if a.method == "GET" and "/api/models/" not in a.path]

    def strike(self, kind: str, place: str, name: str, start: int) -> Fault | None:
        """Use up one of the faults that match, if there is one."""
        with self._lock:
            for fault in self.faults:
                if (
                    fault.kind == kind
                    and fault.times > 0
                    and start >= fault.from_byte
                    and fault.place in ("*", place)
                    and fnmatchcase(name, fault.name)
                ):
                    fault.times -= 1
                    return fault
        return None

    def count(self, name: str, n: int) -> None:
        with self._lock:
            self.sent[name] += n

    def _server(self, place: str) -> ThreadingHTTPServer:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub, Handler.place = hub, place

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that was killed is the point of these tests

        server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), name=place, daemon=True).start()
        return server

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


@contextmanager
def running(prefix: str = "") -> Iterator[Hub]:
    hub = Hub(prefix)
    try:
        yield hub
    finally:
        hub.close()


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def is_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".gguf", ".bin"))


_DIGESTS: dict[int, tuple[bytes, str]] = {}


def sha256(data: bytes) -> str:
    """Cached by object: the same 256 MiB are asked for a hundred times."""
    known = _DIGESTS.get(id(data))
    if known is None or known[0] is not data:
        known = _DIGESTS[id(data)] = (data, hashlib.sha256(data).hexdigest())
    return known[1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    place: str

    def setup(self) -> None:
        super().setup()
        # So that what is counted as sent has really left, or nearly.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        self.start = int(match[1]) if match else 0
        self.end = int(match[2]) + 1 if match and match[2] else None
        self.ranged = match is not None
        self.hub.asked.append(
            Ask(self.place, self.command, self.path, dict(self.headers.items()), self.start)
        )
        url = urlsplit(self.path)
        path = unquote(url.path)
        if self.place == "cdn":
            _, owner, title, name = path.split("/", 3)
            self.content(self.hub.repositories[f"{owner}/{title}"], name)
            return
        if not path.startswith(self.hub.prefix):
            self.answer(404)
            return
        path = path[len(self.hub.prefix) :]
        if self.fails("api" if path.startswith("/api/") else path.rsplit("/", 1)[-1]):
            return
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self.api(match[1], match[2] or "main", "blobs" in parse_qs(url.query))
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.resolve(match[1], match[2], match[3])
        else:
            self.answer(404)

    def api(self, repository: str, revision: str, blobs: bool) -> None:
        found = self.hub.repositories.get(repository)
        if found is None or (found.token and not found.gated and not self.may(found)):
            self.answer(401 if not self.headers.get("authorization") else 404, error="RepoNotFound")
            return
        if revision not in ("main", found.commit):
            self.answer(404, error="RevisionNotFound")
            return
        if self.hub.strike("garbage", "hub", "api", 0):
            self.answer(200, body=b'{"id": 3, "siblings": 7}')
            return
        record: dict[str, Any] = {
            "id": repository,
            "gated": "manual" if found.gated else False,
            "siblings": found.siblings
            if found.siblings is not None
            else [self.sibling(found, n, blobs) for n in found.files],
        }
        if found.says_commit:
            record["sha"] = found.commit
        self.answer(200, body=json.dumps(record).encode())

    def sibling(self, found: Repository, name: str, blobs: bool) -> dict[str, Any]:
        data = found.files[name]
        if not (blobs and found.lists_sizes):
            return {"rfilename": name}
        record: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_oid(data[:9])}
        if not is_lfs(name):
            record["blobId"] = git_oid(data)
        else:
            record["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 134}
        return record

    def may(self, found: Repository) -> bool:
        return found.token is None or self.headers.get("authorization") == f"Bearer {found.token}"

    def resolve(self, repository: str, revision: str, name: str) -> None:
        found = self.hub.repositories.get(repository)
        if found is None or revision != found.commit:
            self.answer(404, error="RepoNotFound" if found is None else "RevisionNotFound")
            return
        if not self.may(found) and name not in ("README.md", "LICENSE"):
            known = self.headers.get("authorization") is not None
            self.answer(403 if known else 401, error="GatedRepo")
            return
        if name not in found.files:
            self.answer(404, error="EntryNotFound")
            return
        if self.hub.strike("loop", "hub", name, self.start):
            self.hub.fault("loop", name, place="hub")
            self.answer(302, {"Location": self.path})
            return
        if fault := self.hub.strike("redirect", "hub", name, self.start):
            self.answer(302, {"Location": fault.value})
            return
        if is_lfs(name) and found.linked:
            data = found.files[name]
            headers = {
                "Location": f"{self.hub.cdn_url}/{repository}/{name}",
                "X-Linked-Etag": f'"{sha256(data)}"',
                "X-Linked-Size": str(len(data)),
                "X-Repo-Commit": found.commit,
            }
            self.answer(302, headers)
            return
        self.content(found, name)

    def content(self, found: Repository, name: str) -> None:
        data = found.files[name]
        if self.place == "cdn" and self.fails(name):
            return
        etag = sha256(data)[:32] if is_lfs(name) else git_oid(data)
        if fault := self.hub.strike("etag", self.place, name, self.start):
            # From now on the file is another one.
            data = found.files[name] = fault.value
            etag = sha256(data)[:32]
        if self.hub.strike("wrong", self.place, name, self.start):
            data = bytes([data[0] ^ 1]) + data[1:] if self.start == 0 else data
        total, start, end = len(data), self.start, min(self.end or len(data), len(data))
        ranged = self.ranged and not self.hub.strike("no_ranges", self.place, name, 0)
        if not ranged:
            start, end = 0, total
        elif start >= total:
            self.answer(416, {"Content-Range": f"bytes */{total}"})
            return
        headers = {"ETag": f'"{etag}"', "Content-Length": str(end - start)}
        headers["X-Repo-Commit"] = found.commit
        if ranged:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{total}"
        if self.hub.strike("gzip", self.place, name, start):
            headers["Content-Encoding"] = "gzip"
        self.send_response(206 if ranged else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.strike("cut", self.place, name, start)
        slow = self.hub.strike("slow", self.place, name, start)
        view = memoryview(data)
        stop = min(end, start + cut.after) if cut else end
        while start < stop:
            block = view[start : min(stop, start + self.hub.block)]
            self.connection.sendall(block)
            self.hub.count(name, len(block))
            start += len(block)
            if pause := (slow.value if slow else self.hub.pace_s):
                time.sleep(pause)
        if cut:
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def fails(self, name: str) -> bool:
        """Answer with a status of the faults, if there is one for this."""
        if fault := self.hub.strike("status", self.place, name, self.start):
            self.answer(fault.value, fault.headers)
            return True
        return False

    def answer(
        self,
        status: int,
        headers: Mapping[str, str] = {},
        *,
        body: bytes = b"",
        error: str | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if error is not None:
            self.send_header("X-Error-Code", error)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
