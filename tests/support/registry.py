"""A small OCI registry for tests: blobs, manifests, ranges, and the three ways of logging in."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

USER, PASSWORD = "ops", "s3cret"
_PATH = re.compile(r"/v2/(?P<repository>.+)/(?P<kind>blobs|manifests)/(?P<rest>.+)")


@dataclass
class Held:
    """What a registry holds, and what it has seen."""

    login: str = "none"
    """none, basic, or bearer: tokens that live for `token_uses` requests."""
    token_uses: int = 1_000_000
    cut_after: int | None = None
    """Bytes of one blob answer after which the connection breaks, once."""
    wrong: bool = False
    """Sends blobs with a changed bit."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    url: str = ""


@contextmanager
def registry(**settings: Any) -> Iterator[Held]:
    """Run a registry on a free loopback port; `url` is `127.0.0.1:PORT`."""
    held = Held(**settings)

    class Handler(_Handler):
        state = held

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    held.url = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield held
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Held
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Tests print nothing."""

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_GET

    def answer(self) -> None:
        held, url = self.state, urlsplit(self.path)
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length) if length else b""
        held.seen[f"{self.command} {url.path.split('/')[-2]}"] += 1
        if url.path == "/token":
            self.token()
        elif not self.allowed():
            self.challenge()
        elif url.path in ("/v2/", "/v2"):
            self.say(200)
        elif match := _PATH.fullmatch(url.path):
            query = {k: v[0] for k, v in parse_qs(url.query).items()}
            if match["kind"] == "manifests":
                self.manifests(match["rest"], body)
            elif match["rest"].startswith("uploads"):
                self.uploads(match["repository"], match["rest"], query, body)
            else:
                self.blob(match["rest"])
        else:
            self.say(404)

    def manifests(self, reference: str, body: bytes) -> None:
        held = self.state
        if self.command == "PUT":
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
            wanted = json.loads(body)
            parts = [wanted.get("config"), *wanted.get("layers", ())]
            if any(part and part["digest"] not in held.blobs for part in parts):
                self.say(400, b"MANIFEST_BLOB_UNKNOWN")
                return
            kind = self.headers.get("content-type", "")
            held.manifests[reference] = held.manifests[digest] = (kind, body)
            self.say(201, b"", {"location": self.path, "docker-content-digest": digest})
        elif reference in held.manifests:
            kind, data = held.manifests[reference]
            self.say(200, data, {"content-type": kind})
        else:
            self.say(404, b"MANIFEST_UNKNOWN")

    def uploads(self, repository: str, rest: str, query: dict[str, str], body: bytes) -> None:
        held = self.state
        if self.command == "POST":
            name = f"u{len(held.uploads)}"
            held.uploads[name] = b""
            self.say(202, b"", {"location": f"/v2/{repository}/blobs/uploads/{name}?_state=x"})
            return
        name = rest.rpartition("/")[2]
        held.uploads[name] = held.uploads.get(name, b"") + body
        if self.command == "PATCH":
            self.say(202, b"", {"location": self.path})
            return
        data = held.uploads.pop(name)
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != query.get("digest"):
            self.say(400, b"DIGEST_INVALID")
            return
        held.blobs[query["digest"]] = data
        self.say(201, b"", {"location": f"/v2/{repository}/blobs/{query['digest']}"})

    def blob(self, digest: str) -> None:
        held = self.state
        data = held.blobs.get(digest)
        if data is None:
            self.say(404, b"BLOB_UNKNOWN")
            return
        if held.wrong and len(data) > 1000:
            data = data[:500] + bytes([data[500] ^ 1]) + data[501:]
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        if match is None:
            self.say(200, data)
            return
        start, end = int(match[1]), min(int(match[2]) + 1, len(data))
        self.say(206, data[start:end], {"content-range": f"bytes {start}-{end - 1}/{len(data)}"})

    def allowed(self) -> bool:
        held, given = self.state, self.headers.get("authorization", "")
        if held.login == "none":
            return True
        if held.login == "basic":
            return given == _basic()
        left = held.tokens.get(given.removeprefix("Bearer "), 0)
        held.tokens[given.removeprefix("Bearer ")] = left - 1
        return left > 0

    def challenge(self) -> None:
        basic = self.state.login == "basic"
        bearer = f'Bearer realm="http://{self.state.url}/token",service="test",scope="pull,push"'
        self.say(401, b"", {"www-authenticate": 'Basic realm="test"' if basic else bearer})

    def token(self) -> None:
        if self.headers.get("authorization") != _basic():
            self.say(401)
            return
        token = f"t{len(self.state.tokens)}"
        self.state.tokens[token] = self.state.token_uses
        self.say(200, json.dumps({"token": token}).encode())

    def say(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        held = self.state
        with suppress(ConnectionError):
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if held.cut_after is not None and len(body) > held.cut_after:
                self.wfile.write(body[: held.cut_after])
                held.cut_after = None
                self.close_connection = True
                return
            self.wfile.write(body)
            held.sent += len(body)


def _basic() -> str:
    return "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
