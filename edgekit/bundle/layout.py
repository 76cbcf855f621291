"""An OCI image layout on disk: content-addressed blobs, an index, ModelPack types.

    oci-layout  index.json  blobs/sha256/<hex>

The folder is what registries speak: oras, skopeo and crane copy it as it is. Writing is
deterministic: no times, sorted keys, one byte sequence for one content.
Sources: OCI image-layout and image-index specifications 1.1; CNCF ModelPack 0.0.7.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from edgekit.bundle.journal import Journal
from edgekit.errors import BadDataError, MissingInputError, from_os
from edgekit.store import sync_folder, write_durably

LAYOUT_VERSION: Final = {"imageLayoutVersion": "1.0.0"}
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
MODEL_ARTIFACT: Final = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG: Final = "application/vnd.cncf.model.config.v1+json"
WEIGHT: Final = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG: Final = "application/vnd.cncf.model.weight.config.v1.raw"
DOC: Final = "application/vnd.cncf.model.doc.v1.raw"
FILE_PATH: Final = "org.cncf.model.filepath"
REF_NAME: Final = "org.opencontainers.image.ref.name"

MAX_JSON_BYTES: Final = 16 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob by digest, with its type, size and annotations."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str | None = None
    platform: Mapping[str, str] | None = None

    @property
    def hex(self) -> str:
        return self.digest.removeprefix("sha256:")

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form, without what is not set."""
        optional = {
            "annotations": dict(sorted(self.annotations.items())),
            "artifactType": self.artifact_type,
            "platform": self.platform,
        }
        return {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
            **{key: value for key, value in optional.items() if value},
        }


@dataclass(frozen=True, slots=True)
class Manifest:
    """One artifact: its own descriptor, its configuration and its layers."""

    descriptor: Descriptor
    artifact_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]

    def named(self) -> dict[str, Descriptor]:
        """Return the layers by the file names they carry."""
        return {
            layer.annotations[FILE_PATH]: layer
            for layer in self.layers
            if FILE_PATH in layer.annotations
        }


class Layout:
    """A layout folder. Blobs appear whole under their digest or not at all."""

    def __init__(
        self,
        root: Path,
        journal: Journal | None = None,
        sealed: Mapping[str, str] | None = None,
    ) -> None:
        """`sealed`: digests by path that what is read must have, the blobs' names aside."""
        self.root = root
        self._journal = journal
        self._sealed = sealed
        self.elsewhere: Mapping[str, tuple[str, int]] = {}
        """(digest, bytes) by key of what another folder holds: neither read nor written here."""

    def blob(self, digest: str) -> Path:
        """Return where a blob lies. Raises BadDataError for what is no sha256 digest."""
        if not _DIGEST.fullmatch(digest):
            raise BadDataError(
                f"{digest[:80]!r} is no sha256 digest",
                code="bad_digest",
                hint="get the folder again from its maker",
            )
        return self.root / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def start(self) -> None:
        """Make the folder. Raises EdgekitError when it cannot be made."""
        try:
            (self.root / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os(error) from error
        write_durably(self.root / "oci-layout", encode(LAYOUT_VERSION))

    def add(
        self,
        chunks: Iterable[bytes],
        media_type: str,
        annotations: Mapping[str, str] | None = None,
        progress: Callable[[int], None] | None = None,
        key: str | None = None,
    ) -> Descriptor:
        """Write a blob, hashing it on the way.

        `key` names the content for the journal: a blob noted there is not read again. What a run
        that was killed left of a blob is compared and kept, not written again. Raises
        EdgekitError when the disk is full or the source cannot be read.
        """
        notes = annotations or {}
        if key is not None and key in self.elsewhere:
            return Descriptor(media_type, *self.elsewhere[key], notes)
        if key is not None and self._journal is not None:
            digest, size = self._journal.find(key)
            blob = self.blob(digest) if digest else None
            if blob is not None and blob.is_file() and blob.stat().st_size == size:
                return Descriptor(media_type, digest, size, notes)
        partial = self.root / "blobs" / f".{notes.get(FILE_PATH, 'blob')}.partial"
        sha, size = hashlib.sha256(), 0
        try:
            with partial.open("r+b" if partial.exists() else "w+b") as file:
                same = True
                for chunk in chunks:
                    sha.update(chunk)
                    if same and file.read(len(chunk)) != chunk:
                        same = False
                        file.seek(size)
                        file.truncate()
                    if not same:
                        file.write(chunk)
                    size += len(chunk)
                    if progress is not None:
                        progress(len(chunk))
                file.truncate(size)
                file.flush()
                os.fsync(file.fileno())
            digest = f"sha256:{sha.hexdigest()}"
            if key is not None and self._journal is not None:
                # Before the name: a blob without a note would be written a second time.
                self._journal.note(key, digest, size)
            os.replace(partial, self.blob(digest))
            sync_folder(partial.parent)
        except OSError as error:
            raise from_os(error) from error
        return Descriptor(media_type, digest, size, notes)

    def add_json(self, value: object, media_type: str) -> Descriptor:
        """Write a JSON blob. Raises as `add`."""
        return self.add([encode(value)], media_type)

    def add_manifest(
        self,
        artifact_type: str,
        config: Descriptor,
        layers: Iterable[Descriptor],
        annotations: Mapping[str, str],
        platform: Mapping[str, str] | None = None,
    ) -> Descriptor:
        """Write a manifest and return its entry for the index. Raises as `add`."""
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": artifact_type,
            "config": config.as_dict(),
            "layers": [layer.as_dict() for layer in layers],
            "annotations": dict(sorted(annotations.items())),
        }
        found = self.add_json(manifest, MANIFEST_TYPE)
        return Descriptor(
            MANIFEST_TYPE, found.digest, found.size, annotations, artifact_type, platform
        )

    def write_index(self, manifests: Iterable[Descriptor]) -> None:
        """Write the index, the last file of a layout. Raises EdgekitError as writing does."""
        entries = [manifest.as_dict() for manifest in manifests]
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}
        write_durably(self.root / "index.json", encode(index))

    def index(self) -> list[Descriptor]:
        """Return the manifests of the layout.

        Raises MissingInputError (`no_bundle`) or BadDataError (`bad_layout`).
        """
        if not (self.root / "oci-layout").is_file():
            raise MissingInputError(
                f"{self.root} is no bundle: it has no oci-layout",
                code="no_bundle",
                hint="pass the folder that edgekit bundle create made",
            )
        if self._read("oci-layout") != LAYOUT_VERSION:
            raise _bad("oci-layout", "is of another version")
        entries = self._read("index.json").get("manifests")
        if not isinstance(entries, list):
            raise _bad("index.json", "lists no manifests")
        return [_descriptor(entry, "index.json") for entry in entries]

    def manifest(self, descriptor: Descriptor) -> Manifest:
        """Read a manifest and check it against its digest. Raises BadDataError."""
        found = self.json(descriptor)
        config, layers = found.get("config"), found.get("layers")
        artifact, notes = found.get("artifactType"), found.get("annotations", {})
        if not isinstance(layers, list) or not isinstance(artifact, str) or not _texts(notes):
            raise _bad(descriptor.digest, "is no artifact manifest")
        return Manifest(
            descriptor,
            artifact,
            _descriptor(config, descriptor.digest),
            tuple(_descriptor(layer, descriptor.digest) for layer in layers),
            notes,
        )

    def json(self, descriptor: Descriptor) -> dict[str, Any]:
        """Read a small JSON blob and check it against its digest. Raises BadDataError."""
        raw = _small(self.blob(descriptor.digest))
        if hashlib.sha256(raw).hexdigest() != descriptor.hex:
            raise _bad(descriptor.digest, "does not hold what its name says")
        return _object(raw, descriptor.digest)

    def _read(self, name: str) -> dict[str, Any]:
        raw = _small(self.root / name)
        if self._sealed is not None and hashlib.sha256(raw).hexdigest() != self._sealed.get(name):
            raise _bad(name, "does not hold what was signed")
        return _object(raw, name)


def encode(value: object) -> bytes:
    """Return the one JSON form that this package writes."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def _small(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise from_os(error) from error
    if len(raw) > MAX_JSON_BYTES:
        raise _bad(path.name, "is far too large")
    return raw


def _object(raw: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _bad(name, "is no JSON") from error
    if not isinstance(value, dict):
        raise _bad(name, "is no JSON object")
    return value


def _descriptor(value: object, where: str) -> Descriptor:
    entry = value if isinstance(value, dict) else {}
    media_type, digest, size = (entry.get(key) for key in ("mediaType", "digest", "size"))
    notes, artifact = entry.get("annotations", {}), entry.get("artifactType")
    platform = entry.get("platform")
    sound = (
        isinstance(media_type, str)
        and isinstance(digest, str)
        and _DIGEST.fullmatch(digest)
        and type(size) is int
        and size >= 0
        and _texts(notes)
        and isinstance(artifact, str | None)
        and (platform is None or _texts(platform))
    )
    if not sound:
        raise _bad(where, "holds an entry that describes no blob")
    return Descriptor(str(media_type), str(digest), int(str(size)), notes, artifact, platform)


def _texts(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and isinstance(text, str) for key, text in value.items()
    )


def _bad(what: str, why: str) -> BadDataError:
    return BadDataError(
        f"{what} {why}", code="bad_layout", hint="get the folder again from its maker"
    )
