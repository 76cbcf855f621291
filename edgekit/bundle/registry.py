"""A client of OCI registries: manifests and blobs, with the logins that registries ask for.

Nobody, a user and a password (EDGEKIT_REGISTRY_AUTH=user:password, or Docker's config.json), or a
token that is fetched with them. Source: OCI distribution specification 1.1.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

from edgekit.bundle.layout import INDEX_TYPE, MANIFEST_TYPE, MAX_JSON_BYTES
from edgekit.bundle.oci_address import Address, find_login, parse_challenge
from edgekit.errors import BadDataError, DeniedError, EdgekitError, IoFailedError, MissingInputError

if TYPE_CHECKING:
    import httpx

LOGIN: Final = "EDGEKIT_REGISTRY_AUTH"
PART_BYTES: Final = 4 << 20
TIMEOUT_S: Final = 60.0
Body = bytes | Callable[[], Iterator[bytes]]


class Registry:
    """One repository of a registry. Use as a context manager."""

    def __init__(self, address: Address) -> None:
        import httpx

        self.address = address
        self._client = httpx.Client(timeout=TIMEOUT_S, follow_redirects=False)
        self._authorization: str | None = None

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def headers(self) -> dict[str, str]:
        """Return what the registry's own address must be sent with each request."""
        found = {"user-agent": "edgekit"}
        return found | ({"authorization": self._authorization} if self._authorization else {})

    def manifest(self, reference: str) -> tuple[bytes, str]:
        """Return a manifest's bytes and media type. Raises EdgekitError, BadDataError."""
        accept = {"accept": f"{MANIFEST_TYPE}, {INDEX_TYPE}"}
        answer = self._ask("GET", f"manifests/{reference}", headers=accept)
        data = answer.content
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if reference.startswith("sha256:") and digest != reference:
            raise BadDataError(
                f"{self.address.host} gives other bytes for {reference[:19]}… than it should",
                code="digest_mismatch",
                hint="check the registry and whatever lies between it and this machine",
            )
        if len(data) > MAX_JSON_BYTES:
            raise BadDataError(f"{self.address} is far too large", code="bad_layout")
        return data, answer.headers.get("content-type", "").partition(";")[0].strip()

    def login_again(self) -> None:
        """Forget the token, and get another: they live for minutes."""
        self._authorization = None
        self.manifest(self.address.reference)

    def has_blob(self, digest: str) -> bool:
        """Say whether the repository holds a blob. Raises EdgekitError."""
        return self._ask("HEAD", f"blobs/{digest}", missing=True).status_code == 200

    def push_blob(self, digest: str, size: int, body: Body) -> bool:
        """Send a blob that is not there yet; return whether it was sent. Raises EdgekitError."""
        if self.has_blob(digest):
            return False
        begun = self._ask("POST", "blobs/uploads/", headers={"content-length": "0"})
        # The place to send it to may be relative, and may have a query of its own.
        place = urljoin(self.address.url("blobs/uploads/"), begun.headers.get("location", ""))
        place += f"{'&' if urlsplit(place).query else '?'}digest={digest}"
        headers = {"content-type": "application/octet-stream", "content-length": str(size)}
        self._ask("PUT", place, headers=headers, body=body)
        return True

    def push_manifest(self, reference: str, data: bytes, media_type: str) -> None:
        """Send a manifest under a tag or its digest. Raises EdgekitError."""
        self._ask("PUT", f"manifests/{reference}", headers={"content-type": media_type}, body=data)

    def _ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        missing: bool = False,
    ) -> httpx.Response:
        """Send one request, twice where the registry wants to know who asks.

        `missing`: a 404 is an answer. Raises EdgekitError for every other refusal.
        """
        import httpx

        url = path if "://" in path else self.address.url(path)
        try:
            answer = self._send(method, url, headers or {}, body)
            if answer.status_code == 401:
                self._authorization = self._log_in(answer.headers.get("www-authenticate", ""))
                answer = self._send(method, url, headers or {}, body)
        except httpx.HTTPError as error:
            raise IoFailedError(
                f"{self.address.host} cannot be asked: {error}",
                code="registry_unreachable",
                hint="check the address; oci+http:// is for a registry without TLS",
            ) from error
        if answer.status_code >= 300 and not (missing and answer.status_code == 404):
            raise refused(self.address, answer.status_code, answer.text)
        return answer

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: Body | None
    ) -> httpx.Response:
        content = body() if callable(body) else body
        # A place to upload to may lie on another host, which has no business with the login.
        own = self.headers() if urlsplit(url).netloc == self.address.host else {}
        return self._client.request(method, url, headers={**own, **headers}, content=content)

    def _log_in(self, header: str) -> str:
        scheme, asked = parse_challenge(header)
        login = stored_login(self.address.host)
        basic = f"Basic {base64.b64encode(login.encode()).decode()}" if login else None
        realm = asked.get("realm", "")
        if scheme == "basic" and basic is not None:
            return basic
        if scheme != "bearer" or not _may_be_told(realm, self.address):
            raise refused(self.address, 401, "")
        answer = self._client.get(
            realm,
            params={key: asked[key] for key in ("service", "scope") if key in asked},
            headers={"authorization": basic} if basic else {},
        )
        try:
            found = answer.json()
            token = found.get("token") or found.get("access_token")
        except (ValueError, AttributeError):
            token = None
        if answer.status_code != 200 or not isinstance(token, str):
            raise refused(self.address, answer.status_code or 401, answer.text)
        return f"Bearer {token}"


def refused(address: Address, status: int, said: str) -> EdgekitError:
    """Return the error for a registry's answer that no repetition will change. Pure."""
    if status in (401, 403):
        return DeniedError(
            f"{address.host} gives no access to {address.repository} (HTTP {status})",
            code="registry_denied",
            hint=f"docker login {address.host}, or set {LOGIN}=user:password",
        )
    if status == 404:
        return MissingInputError(
            f"{address} is not there",
            code="not_in_registry",
            hint="check the repository and the tag",
        )
    return IoFailedError(
        f"{address.host} answers HTTP {status}: {said[:200]}",
        code="registry_refused",
        hint="see what the registry logs",
    )


def stored_login(host: str) -> str | None:
    """Return `user:password` for a registry, None for none."""
    if (given := os.environ.get(LOGIN)) and ":" in given:
        return given
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    try:
        return find_login(host, (folder / "config.json").read_text())
    except (OSError, UnicodeDecodeError):
        return None


def file_parts(path: Path) -> Callable[[], Iterator[bytes]]:
    """Return what gives a file's bytes, from the start each time it is called."""

    def parts() -> Iterator[bytes]:
        with path.open("rb") as file:
            while part := file.read(PART_BYTES):
                yield part

    return parts


def _may_be_told(realm: str, address: Address) -> bool:
    """Whether a login may go to who gives the tokens: never unsealed to another machine."""
    url = urlsplit(realm)
    if url.scheme == "https":
        return True
    return url.scheme == "http" and url.hostname == urlsplit(address.endpoint).hostname
