"""What a hub or a mirror of it offers: names, sizes, digests, through the huggingface-hub client.

The client lists, finds the token and speaks to mirrors; the contents are fetched by `fetch`. It is
imported here alone and only when something is listed, so that offline use never loads it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

from edgekit import __version__
from edgekit.errors import (
    BadDataError,
    ConfigError,
    EngineFailedError,
    IoFailedError,
    MissingInputError,
)
from edgekit.fetch_retry import STATUSES, Patience, TryAgainError, parse_retry_after
from edgekit.hub_errors import map_status, redirect_loop
from edgekit.hub_names import MAX_TEXT_BYTES, WEIGHTS, LeftOut, check_names, select

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

PUBLIC_HUB: Final = "https://huggingface.co"
MAX_LISTING_BYTES: Final = 64 << 20
"""The longest listing known has 2 MB; a hostile one could fill the memory."""

LISTING_DEADLINE_S: Final = 300.0
CONNECT_RETRIES: Final = 2
"""Of the first question; a machine without a network should say so within seconds."""

_TIMEOUTS: Final = {"connect": 15.0, "read": 30.0, "write": 30.0, "pool": 30.0}
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file to fetch. `sha256` is the hub's LFS digest, `git_oid` git's for small files."""

    name: str
    url: str
    size: int
    sha256: str | None
    git_oid: str | None


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit: what would be fetched from where, and what would not."""

    repository: str
    revision: str
    endpoint: str
    files: tuple[RemoteFile, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    headers: dict[str, str]
    """For requests to `endpoint` alone; holds the token."""

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


def endpoint_of(mirror: str | None) -> str:
    """Return where to ask: `mirror`, else HF_ENDPOINT, else the public hub.

    Raises ConfigError for what is no http(s) address, or carries a password.
    """
    text = (mirror or os.environ.get("HF_ENDPOINT") or PUBLIC_HUB).strip().rstrip("/")
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and parts.hostname and not parts.query
        good = good and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good:
        raise ConfigError(
            f"{text!r} is no address of a hub",
            code="bad_mirror",
            hint="write it as https://host or https://host/path (EDGEKIT_MIRROR or HF_ENDPOINT)",
        )
    if parts.username or parts.password:
        raise ConfigError(
            "the address of the mirror holds a user name or password",
            code="bad_mirror",
            hint="put the mirror's access token into HF_TOKEN instead",
        )
    return text


def offline_asked() -> bool:
    """Say whether the environment forbids the network, by our variable or the hub client's."""
    given = (os.environ.get(n, "") for n in ("EDGEKIT_OFFLINE", "HF_HUB_OFFLINE"))
    return any(value.lower() in ("1", "on", "yes", "true") for value in given)


def list_files(
    repository: str,
    revision: str | None,
    allow: Sequence[str] = (),
    *,
    mirror: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Listing:
    """Ask a hub what there is, at a commit that is pinned from then on.

    `allow`: shell patterns of the names wanted; without any, what one checkpoint needs.

    Raises:
        DeniedError: gated, private, or the token is wrong; says which page to accept at.
        MissingInputError: no such repository, revision or usable file.
        BadDataError: hostile names, pickles only, missing shards, no sizes, broken answers.
        BusyError, IoFailedError: overloaded or unreachable after several attempts.
        ConfigError: the address or the repository's name makes no sense.
        EngineFailedError: huggingface-hub is not installed.
    """
    endpoint = endpoint_of(mirror)
    api, headers, notes = _client(endpoint)
    where = f"{repository} on {urlsplit(endpoint).netloc}"

    def ask() -> ModelInfo:
        return api.model_info(repository, revision=revision, files_metadata=True, timeout=30)

    info = _patiently(ask, endpoint, repository, revision, headers, sleep)
    commit = _commit(info.sha, revision, where)
    siblings = {s.rfilename: s for s in info.siblings or ()}
    names = check_names([s.rfilename for s in info.siblings or ()], where)
    chosen = select(names, allow, where)
    files = []
    for name in chosen.taken:
        from huggingface_hub import hf_hub_url

        sibling = siblings[name]
        lfs = sibling.lfs
        url = hf_hub_url(repository, name, revision=commit, endpoint=endpoint)
        size = lfs.size if lfs else sibling.size
        sha256, git_oid = (lfs.sha256, None) if lfs else (None, sibling.blob_id)
        file = RemoteFile(name, url, -1, sha256, git_oid)
        if isinstance(size, int):
            files.append(_checked(replace(file, size=size), where))
        else:
            # Mirrors often leave sizes out of the listing; each file's own head has them.
            files.append(_by_head(file, api, endpoint, repository, commit, headers, where, sleep))
    if not any(f.name.lower().endswith(WEIGHTS) for f in files):
        notes = (*notes, "no weights are among the files")
    return Listing(repository, commit, endpoint, tuple(files), chosen.left_out, notes, headers)


def _client(endpoint: str) -> tuple[HfApi, dict[str, str], tuple[str, ...]]:
    """Return the client, the headers of content requests, and what a person should know."""
    try:
        from huggingface_hub import HfApi, get_token, set_client_factory
    except ModuleNotFoundError as error:
        raise EngineFailedError(
            f"the Python package {error.name} is not installed",
            code="not_installed",
            hint="pip install 'edgekit[hub]', or copy the checkpoint here and pass --source DIR",
        ) from error
    from edgekit.hub_client import capped_client

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    set_client_factory(lambda: capped_client(MAX_LISTING_BYTES, LISTING_DEADLINE_S, _TIMEOUTS))
    # A login kept by `hf auth login` is one of the public hub; a mirror gets what was put into
    # the environment for it, and nothing else.
    token = get_token() if endpoint == PUBLIC_HUB else os.environ.get("HF_TOKEN", "").strip()
    headers = {"user-agent": f"edgekit/{__version__}"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    notes = []
    if endpoint.startswith("http://") and token and not _loopback(endpoint):
        notes.append("HF_TOKEN travels unencrypted: the mirror's address begins with http://")
    api = HfApi(endpoint, token or False, library_name="edgekit", library_version=__version__)
    return api, headers, tuple(notes)


def _loopback(endpoint: str) -> bool:
    return urlsplit(endpoint).hostname in ("localhost", "127.0.0.1", "::1")


def _patiently(
    ask: Callable[[], _T],
    endpoint: str,
    repository: str,
    revision: str | None,
    headers: dict[str, str],
    sleep: Callable[[float], None],
) -> _T:
    """Ask through the client, wait and ask again when that may help, map its errors."""
    import httpx2
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError

    patience, unreachable = Patience(), 0
    while True:
        try:
            return ask()
        except HFValidationError as error:
            raise ConfigError(
                f"{repository!r} cannot name a repository",
                code="bad_repository",
                hint="write it as on the hub: organisation/name",
            ) from error
        except httpx2.TooManyRedirects as error:
            raise redirect_loop(endpoint) from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status not in STATUSES:
                code = error.response.headers.get("x-error-code", "")
                if isinstance(error, GatedRepoError):
                    code = "GatedRepo"
                has_token = "authorization" in headers
                raise map_status(
                    status, code, endpoint, repository, revision, has_token=has_token
                ) from error
            asked = parse_retry_after(error.response.headers.get("retry-after"))
            what = "too many requests" if status == 429 else f"HTTP {status}"
            again = TryAgainError(f"{endpoint} answers: {what}", status=status, wait_s=asked)
        except httpx2.TransportError as error:
            again = TryAgainError(f"cannot reach {endpoint}: {error or type(error).__name__}")
            unreachable += isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
            if unreachable > CONNECT_RETRIES:
                raise IoFailedError(
                    again.why,
                    code="network_failed",
                    hint="check the network and the address of the mirror; without a network, "
                    "copy the checkpoint here and pass --source DIR",
                ) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadDataError(
                f"{endpoint} answers about {repository} with something that is no listing: "
                f"{type(error).__name__}: {_printable(str(error)[:200])}",
                code="bad_listing",
                hint="check the address of the mirror; it must speak the hub's protocol",
            ) from error
        sleep(patience.wait_s(again))


def _printable(text: str) -> str:
    """Return a server's words without what would steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _commit(sha: object, revision: str | None, where: str) -> str:
    pinned = revision if revision and _is_commit(revision) else None
    found = sha if isinstance(sha, str) and _is_commit(sha) else None
    if pinned and found and pinned != found:
        raise BadDataError(
            f"asked for commit {pinned[:12]} of {where}, got {found[:12]}",
            code="wrong_revision",
            hint="check the mirror: it serves another revision under this name",
        )
    if (commit := pinned or found) is None:
        raise BadDataError(
            f"{where} does not say which commit {revision or 'main'} is",
            code="no_commit",
            hint="name a full commit of 40 digits: MODEL@COMMIT or --revision COMMIT",
        )
    return commit


def _is_commit(text: str) -> bool:
    return len(text) == 40 and all(c in "0123456789abcdef" for c in text)


def _by_head(
    file: RemoteFile,
    api: HfApi,
    endpoint: str,
    repository: str,
    commit: str,
    headers: dict[str, str],
    where: str,
    sleep: Callable[[float], None],
) -> RemoteFile:
    """Complete a file from the head of its own address: size, and the digest as LFS etag."""
    from huggingface_hub import get_hf_file_metadata

    def ask() -> Any:
        return get_hf_file_metadata(file.url, token=api.token, timeout=30, endpoint=endpoint)

    found = _patiently(ask, endpoint, repository, commit, headers, sleep)
    etag = found.etag or ""
    return _checked(
        replace(
            file,
            size=found.size if isinstance(found.size, int) else -1,
            sha256=file.sha256 or (etag if _is_hex(etag, 64) else None),
            git_oid=file.git_oid or (etag if _is_hex(etag, 40) else None),
        ),
        where,
    )


def _is_hex(text: str, digits: int) -> bool:
    return len(text) == digits and all(c in "0123456789abcdef" for c in text)


def _checked(file: RemoteFile, where: str) -> RemoteFile:
    """Refuse sizes and digests that cannot be; whatever is no digest is none."""
    weights = file.name.lower().endswith(WEIGHTS)
    if file.size < 0 or (not weights and file.size > MAX_TEXT_BYTES) or file.size >= 1 << 50:
        said = "does not say how large it is" if file.size < 0 else f"says {file.size:,} bytes"
        raise BadDataError(
            f"{file.name} of {where} cannot be fetched: the hub {said}",
            code="bad_size",
            hint="check the repository or the mirror",
        )
    bad = file.sha256 is not None and not _is_hex(file.sha256, 64)
    if bad or (file.git_oid is not None and not _is_hex(file.git_oid, 40)):
        raise BadDataError(
            f"{where} gives {file.name} a digest that is none",
            code="bad_listing",
            hint="check the mirror",
        )
    return file


def unavailable(names: Sequence[str]) -> MissingInputError:
    """Say what is missing when the network may not be used."""
    shown = ", ".join(names)
    return MissingInputError(
        f"not on this machine, and the network may not be used: {shown}",
        code="offline",
        hint="where there is a network, run edgekit pull and copy the store here, or edgekit "
        "bundle create and carry the folder here; or pass --source DIR",
    )


def iterate(listing: Listing) -> Iterator[RemoteFile]:
    """Small files first, so that what is refused is refused early; then shards in order."""
    yield from sorted(listing.files, key=lambda f: (f.name.lower().endswith(WEIGHTS), f.name))
