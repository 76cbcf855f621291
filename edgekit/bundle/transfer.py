"""A bundle's folder into a registry and out of it, file by file, with the same digests.

The tag names one artifact: every file of the folder is a layer with its relative path as title,
so any OCI client brings the folder back whole, signature included. The manifests inside (models,
runtimes) are pushed beside it under tags of their own, where registries show them as models.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgekit.bundle.layout import EMPTY_TYPE, MANIFEST_TYPE, REF_NAME, Layout, encode
from edgekit.bundle.oci_address import Address
from edgekit.bundle.registry import Registry, file_parts
from edgekit.bundle.tree import hash_files, list_files
from edgekit.errors import BadDataError, CannotCreateError, DeniedError, from_os
from edgekit.fetch import Progress, fetch, silent, works_for
from edgekit.fetch_http import Home
from edgekit.hub import RemoteFile
from edgekit.placing import place
from edgekit.preflight import check_room

BUNDLE_ARTIFACT: Final = "application/vnd.edgekit.bundle.v1"
TITLE: Final = "org.opencontainers.image.title"
FILE_TYPE: Final = "application/octet-stream"
PARTIAL: Final = ".edgekit-pull"
_BLOB: Final = re.compile(r"blobs/sha256/([0-9a-f]{64})")
_NAME: Final = re.compile(r"(?!/)(?!.*(?:^|/)\.{0,2}(?:/|$))[^\\\0:]{1,255}")
_TAG: Final = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
Places = Callable[[str], Sequence[Path]]


@dataclass(frozen=True, slots=True)
class Moved:
    """What went over the network, and the digest of the artifact that names it all."""

    digest: str
    files: int
    bytes: int
    moved_bytes: int
    resumed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TitledFile:
    """A file of the folder as its manifest lists it."""

    name: str
    sha256: str
    size: int


def push(root: Path, address: Address, progress: Callable[[int], None] = silent) -> Moved:
    """Send a sealed folder to a registry; blobs that are there stay there.

    Raises EdgekitError: no bundle, no access, a registry that refuses.
    """
    layout = Layout(root)
    inner = layout.index()
    names = list_files(root)
    digests = {n: m[1] for n in names if (m := _BLOB.fullmatch(n))}
    digests |= hash_files(root, {n: 0 for n in names if n not in digests})
    data = folder_manifest([TitledFile(n, digests[n], size) for n, size in names.items()])
    sent = 0
    with Registry(address) as registry:
        registry.push_blob(_digest(b"{}"), 2, b"{}")
        for name, size in names.items():
            if registry.push_blob(f"sha256:{digests[name]}", size, file_parts(root / name)):
                sent += size
            progress(size)
        for entry in inner:
            tag = entry.annotations.get(REF_NAME, "")
            reference = tag if _TAG.fullmatch(tag) else entry.digest
            raw = layout.blob(entry.digest).read_bytes()
            registry.push_manifest(reference, raw, entry.media_type)
        reference = address.reference
        registry.push_manifest(reference, data, MANIFEST_TYPE)
    return Moved(_digest(data), len(names), sum(names.values()), sent)


def pull(
    address: Address,
    target: Path,
    *,
    here: Places = lambda _: (),
    progress: Progress = silent,
) -> Moved:
    """Bring a folder out of a registry; a run that was cut goes on where it was.

    `here(sha256)` names files that may hold a blob already. Nothing is believed that was not
    hashed; who made the folder is asked by `edgekit bundle check`. Raises EdgekitError.
    """
    work = target / PARTIAL
    try:
        if target.exists() and any(target.iterdir()) and not work.is_dir():
            raise CannotCreateError(
                f"{target} is not empty",
                code="not_empty",
                hint="choose a new folder; one whose pull was cut is gone on with",
            )
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os(error) from error
    with Registry(address) as registry:
        data, _ = registry.manifest(address.reference)
        files = titled_files(data)
        for file in files:
            _use_what_is_here(file, target, here)
        wanted = [_remote(file, address) for file in files if not (target / file.name).exists()]
        check_room(target, sum(f.size for f in wanted) - _bytes(work))
        fetched, resumed = _fetch(registry, wanted, target, work, progress)
    _clear(work)
    return Moved(_digest(data), len(files), sum(f.size for f in files), fetched, resumed)


def folder_manifest(files: Sequence[TitledFile]) -> bytes:
    """Return the manifest of a folder; one folder, one spelling. Pure."""
    layers = [
        {
            "mediaType": FILE_TYPE,
            "digest": f"sha256:{file.sha256}",
            "size": file.size,
            "annotations": {TITLE: file.name},
        }
        for file in sorted(files, key=lambda f: f.name)
    ]
    return encode(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": BUNDLE_ARTIFACT,
            "config": {"mediaType": EMPTY_TYPE, "digest": _digest(b"{}"), "size": 2},
            "layers": layers,
        }
    )


def titled_files(manifest: bytes) -> list[TitledFile]:
    """Return the files that a folder's manifest lists. Raises BadDataError (`bad_layout`). Pure.

    Clients that know base names only title a blob with its digest: its place is known then.
    """
    try:
        layers: list[dict[str, Any]] = json.loads(manifest)["layers"]
        found = [
            TitledFile(
                str(layer["annotations"][TITLE]),
                str(layer["digest"]).removeprefix("sha256:"),
                int(layer["size"]),
            )
            for layer in layers
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _bad("it is no artifact with titled files") from error
    placed = [
        TitledFile(f"blobs/sha256/{f.sha256}" if f.name == f.sha256 else f.name, f.sha256, f.size)
        for f in found
    ]
    for file in placed:
        if not _NAME.fullmatch(file.name) or file.name.startswith(PARTIAL):
            raise _bad(f"it holds a file called {file.name[:80]!r}")
        if not re.fullmatch(r"[0-9a-f]{64}", file.sha256) or file.size < 0:
            raise _bad(f"{file.name} has no sha256 or no size")
    if len({f.name.casefold() for f in placed}) != len(placed):
        raise _bad("it holds two files of one name")
    return placed


def _fetch(
    registry: Registry, wanted: list[RemoteFile], target: Path, work: Path, progress: Progress
) -> tuple[int, int]:
    """Fetch beside the target, then move: under its name a file is whole and checked."""
    address, before, resumed = registry.address, -1, 0
    while True:
        works = works_for(wanted, work / "files", work / "journals")
        home = Home(address.repository, address.reference, address.endpoint, registry.headers())
        try:
            result = fetch(works, home, progress=progress)
            break
        except DeniedError:
            # A token that ran out on the way; one that brought nothing is refused in earnest.
            if (now := sum(w.bytes_here for w in works)) <= before:
                raise
            before = now
            registry.login_again()
    resumed = result.resumed_bytes
    try:
        for file in wanted:
            (target / file.name).parent.mkdir(parents=True, exist_ok=True)
            (work / "files" / file.name).replace(target / file.name)
    except OSError as error:
        raise from_os(error) from error
    return result.new_bytes, resumed


def _remote(file: TitledFile, address: Address) -> RemoteFile:
    url = address.url(f"blobs/sha256:{file.sha256}")
    return RemoteFile(file.name, url, file.size, file.sha256, None)


def _use_what_is_here(file: TitledFile, target: Path, here: Places) -> None:
    if (target / file.name).exists():
        return
    for known in here(file.sha256):
        if known.is_file() and known.stat().st_size == file.size:
            found = hash_files(known.parent, {known.name: 0})[known.name]
            if found == file.sha256:
                place(known, target / file.name)
                return


def _clear(work: Path) -> None:
    import shutil

    shutil.rmtree(work, ignore_errors=True)


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_blocks * 512 for p in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _bad(why: str) -> BadDataError:
    return BadDataError(
        f"what the registry gives is no bundle: {why}",
        code="bad_layout",
        hint="push the folder with edgekit bundle push, or each file with its path as title",
    )
