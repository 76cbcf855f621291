"""Who may talk to the server: address, keys, hosts, origins, body size.

Loopback needs no key; any other address does not start without one. On loopback the Host header
must be a loopback name (a page whose DNS was rebound to 127.0.0.1 sends its own), and a web page
from elsewhere is refused, since a browser would let it post here without asking.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import uuid
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .api.body import too_large
from .api.failures import error_response
from .config import ServeConfig
from .errors import ConfigError, RequestError
from .metrics import Metrics
from .paths import PUBLIC, canonical, label

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_KEY = re.compile(r"[\x21-\x7e]+")
_CORS_HEADERS = (
    "authorization, content-type, x-api-key, x-request-id, x-request-timeout, "
    "anthropic-version, anthropic-beta, anthropic-dangerous-direct-browser-access"
)


def is_loopback(host: str) -> bool:
    """Return whether a host name or address can only mean this machine."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def check_exposure(config: ServeConfig) -> None:
    """Raise ConfigError for an address that others can reach without a key."""
    if not all(_KEY.fullmatch(key) for key in config.api_keys):
        raise ConfigError(
            "an API key is empty or not printable ASCII without spaces, so no client can send it",
            hint="use letters, digits and punctuation",
        )
    if not is_loopback(config.host) and not config.api_keys:
        raise ConfigError(
            f"refusing to listen on {config.host} without an API key: anyone who reaches this "
            "machine could use the model",
            code="key_required",
            hint="set an API key, or listen on 127.0.0.1",
        )


class Keys:
    """Compares a key with all known ones in a time that tells nothing about them."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def match(self, given: str) -> bool:
        """Return whether the key is one of ours."""
        digest = _digest(given)
        found = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(found)


class Guard:
    """ASGI middleware before everything else: path, host, origin, key, size, request id."""

    def __init__(self, app: ASGIApp, *, config: ServeConfig, metrics: Metrics) -> None:
        self._app = app
        self._keys = Keys(config.api_keys)
        self._loopback = is_loopback(config.host)
        self._max_body_bytes = config.max_body_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        path = canonical(scope["path"])
        origin = headers.get("origin")
        allowed_origin = origin if origin and _origin_is_loopback(origin) else None
        given_id = headers.get("x-request-id", "")
        request_id = given_id if _REQUEST_ID.fullmatch(given_id) else uuid.uuid4().hex

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = MutableHeaders(scope=message)
                added["x-request-id"] = request_id
                if allowed_origin is not None:
                    added["access-control-allow-origin"] = allowed_origin
                    added.add_vary_header("Origin")
                self._metrics.request(label(path), message["status"])
            await send(message)

        scope = {**scope, "path": path, "raw_path": path.encode()}
        if scope["method"] == "OPTIONS" and allowed_origin is not None:
            await _preflight()(scope, receive, send_on)
            return
        try:
            self._check(path, headers, origin)
        except RequestError as error:
            await error_response(error, path)(scope, receive, send_on)
            return
        await self._app(scope, receive, send_on)

    def _check(self, path: str, headers: Headers, origin: str | None) -> None:
        if self._loopback and not is_loopback(_host_name(headers.get("host", ""))):
            raise RequestError(
                "this server listens on loopback and answers to loopback host names only",
                status=403,
                type="permission_error",
                code="host_not_allowed",
            )
        if not self._keys and origin is not None and _is_foreign_page(origin):
            raise RequestError(
                f"web pages from {origin} may not use this server",
                status=403,
                type="permission_error",
                code="origin_not_allowed",
            )
        if self._keys and path not in PUBLIC and not self._keys.match(_given_key(headers)):
            raise RequestError(
                "Incorrect or missing API key. Send it as 'Authorization: Bearer KEY'.",
                status=401,
                code="invalid_api_key",
            )
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length) > self._max_body_bytes:
            raise too_large(self._max_body_bytes)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _given_key(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _origin_is_loopback(origin: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and is_loopback(parts.hostname or "")


def _is_foreign_page(origin: str) -> bool:
    """Editors' own schemes (vscode-webview:, app:) are programs on this machine, not pages."""
    return origin == "null" or (
        origin.lower().startswith(("http:", "https:")) and not _origin_is_loopback(origin)
    )


def _preflight() -> Response:
    return Response(
        status_code=204,
        headers={
            "access-control-allow-methods": "GET, POST, OPTIONS",
            "access-control-allow-headers": _CORS_HEADERS,
            "access-control-max-age": "600",
        },
    )
