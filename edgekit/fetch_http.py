"""One ranged request: redirects followed by hand, the token kept at home, answers judged."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from edgekit.errors import BadDataError
from edgekit.fetch_retry import STATUSES, TryAgainError, parse_retry_after
from edgekit.hub_errors import map_status, redirect_loop

if TYPE_CHECKING:
    import httpx

    from edgekit.hub import RemoteFile

MAX_REDIRECTS: Final = 8
_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


@dataclass(frozen=True, slots=True)
class Home:
    """Where the listing came from: its headers, the token among them, go to its origin alone."""

    repository: str
    revision: str
    endpoint: str
    headers: Mapping[str, str]

    @property
    def has_token(self) -> bool:
        return "authorization" in self.headers


@dataclass(frozen=True, slots=True)
class Body:
    """An answer with content. `start` is 0 where the server ignores ranges, `total` the size;
    `ranged` is false when a range was asked for and ignored.

    `identity` names this content: the hub's own digest of a linked file, else the ETag.
    """

    start: int
    total: int | None
    identity: str | None
    blocks: Iterator[bytes]
    ranged: bool


@contextmanager
def open_range(
    client: httpx.Client, home: Home, file: RemoteFile, start: int, end: int
) -> Iterator[Body]:
    """Ask for the bytes [start, end) of a file and give its body while the block runs.

    Raises:
        TryAgainError: what may pass: broken connections, 429, 5xx, a CDN that refuses its link.
        DeniedError, MissingInputError, BadDataError, IoFailedError: what will not.
    """
    import httpx

    try:
        answer, linked = _follow(client, home, file, start, end)
        try:
            yield _judge(answer, linked, home, file, start, end)
        finally:
            answer.close()
    except httpx.TransportError as error:
        what = str(error) or type(error).__name__
        raise TryAgainError(f"{urlsplit(file.url).netloc}: {what}") from error
    except httpx.InvalidURL as error:
        raise _bad_redirect(file, str(error)) from error


def _follow(
    client: httpx.Client, home: Home, file: RemoteFile, start: int, end: int
) -> tuple[httpx.Response, str | None]:
    """Return the last answer of a chain of redirects, and the digest that the hub named."""
    import httpx

    url, linked = httpx.URL(file.url), None
    for _ in range(MAX_REDIRECTS + 1):
        headers = {"accept-encoding": "identity", "user-agent": home.headers.get("user-agent", "")}
        if start > 0 or end < file.size:
            headers["range"] = f"bytes={start}-{end - 1}"
        if _origin(str(url)) == _origin(home.endpoint):
            headers |= home.headers
        answer = client.send(client.build_request("GET", url, headers=headers), stream=True)
        if _origin(str(url)) == _origin(home.endpoint):
            linked = linked or plain_etag(answer.headers.get("x-linked-etag"))
        if not answer.has_redirect_location:
            return answer, linked
        answer.close()
        target = url.join(answer.headers["location"])
        if target.scheme not in ("http", "https") or (url.scheme, target.scheme) == (
            "https",
            "http",
        ):
            raise _bad_redirect(file, f"to {target.scheme}://{target.host}")
        url = target
    raise redirect_loop(file.url)


def _judge(
    answer: httpx.Response, linked: str | None, home: Home, file: RemoteFile, start: int, end: int
) -> Body:
    status, host = answer.status_code, answer.url.netloc.decode("ascii", "replace")
    if status in STATUSES:
        asked = parse_retry_after(answer.headers.get("retry-after"))
        what = "too many requests" if status == 429 else f"HTTP {status}"
        raise TryAgainError(f"{host} answers: {what}", status=status, wait_s=asked)
    identity = linked or plain_etag(answer.headers.get("etag"))
    if status == 206:
        match = _RANGE.fullmatch(answer.headers.get("content-range", ""))
        if match is None or int(match[1]) != start:
            raise TryAgainError(f"{host} answers with another range than was asked for")
        total = None if match[3] == "*" else int(match[3])
        return Body(start, total, identity, _blocks(answer, file), ranged=True)
    if status == 200:
        length = answer.headers.get("content-length", "")
        total = int(length) if length.isascii() and length.isdigit() else None
        asked_for_part = start > 0 or end < file.size
        return Body(0, total, identity, _blocks(answer, file), ranged=not asked_for_part)
    if status == 416:
        raise BadDataError(
            f"{file.name} is shorter on {host} than the {file.size:,} bytes that were listed",
            code="file_changed",
            hint="run the same command again; if it stays so, the mirror's copy is damaged",
        )
    at_home = _origin(str(answer.url)) == _origin(home.endpoint)
    if not at_home and status in (401, 403):
        # A signed link that has run out; the next request gets a new one.
        raise TryAgainError(f"{host} refuses the link that the hub gave (HTTP {status})")
    raise map_status(
        status,
        answer.headers.get("x-error-code", ""),
        home.endpoint,
        home.repository,
        home.revision,
        has_token=home.has_token,
        file=file.name,
    )


def _blocks(answer: httpx.Response, file: RemoteFile) -> Iterator[bytes]:
    if answer.headers.get("content-encoding", "identity") not in ("identity", ""):
        raise BadDataError(
            f"{answer.url.host} sends {file.name} compressed, which nobody asked for",
            code="hostile_answer",
            hint="check the mirror: it must send files as they are",
        )
    return answer.iter_raw()


def plain_etag(text: str | None) -> str | None:
    """Return an ETag without its quotes and weakness; None when there is none."""
    if text is None:
        return None
    text = text.strip().removeprefix("W/").strip('"')
    return text[:200] or None


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    default = 443 if parts.scheme == "https" else 80
    return parts.scheme, (parts.hostname or "").lower(), parts.port or default


def _bad_redirect(file: RemoteFile, where: str) -> BadDataError:
    return BadDataError(
        f"the hub redirects {file.name} {where}, which is not followed",
        code="bad_redirect",
        hint="check the mirror's configuration",
    )
