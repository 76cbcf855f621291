"""Take the models of a bundle into the store: nothing unproven gets a name there.

The seal is read first. Each file is shared with the bundle where the disk can do that, else copied
once while it is hashed; with `in_place` the store gets links to the medium and no bytes at all.
A run that was killed, or whose medium was pulled out, goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from edgekit.bundle.bring import (
    CHUNK_BYTES,
    Progress,
    Wanted,
    bring,
    brought_bytes,
    hash_file,
    hash_source,
)
from edgekit.bundle.delta import check_needs
from edgekit.bundle.keys import Trust
from edgekit.bundle.model import BundledModel
from edgekit.bundle.opened import Opened, open_bundle
from edgekit.checkpoints import Checkpoints
from edgekit.errors import BusyError, CannotCreateError, EdgekitError, from_os
from edgekit.placing import share
from edgekit.store import Entry, Part, Store, entry_bytes, sync_folder, write_durably
from edgekit.store_check import head_digest
from edgekit.store_previous import remember
from edgekit.surroundings import free_bytes, nearest_existing
from edgekit.units import MIB

MARGIN: Final = 1.02
SPARE_BYTES: Final = 512 * MIB
"""Left free beside what is copied: a disk that is full to the brim breaks other things."""

EVALUATION: Final = "evaluation.json"
How = Literal["reflink", "hardlink", "copy", "in place", "kept"]


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model that the store now holds. `how` says for each file how it got there."""

    entry: Entry
    name: str
    licence: str
    path: Path
    how: tuple[How, ...]


@dataclass(frozen=True, slots=True)
class Installed:
    """What an installation did. `copied_bytes` are those that were written."""

    root: Path
    signer: str | None
    reason: str
    models: tuple[InstalledModel, ...]
    copied_bytes: int


@dataclass(frozen=True, slots=True)
class Room:
    """What an installation needs of the disk and what is there. None: cannot be asked."""

    file_bytes: int
    copy_bytes: int
    free_bytes: int | None

    @property
    def needed_bytes(self) -> int:
        """Nothing where nothing is copied."""
        return int(self.copy_bytes * MARGIN) + SPARE_BYTES if self.copy_bytes else 0

    @property
    def enough(self) -> bool:
        return self.free_bytes is None or self.free_bytes >= self.needed_bytes


def install(
    root: Path,
    store: Store,
    trust: Trust,
    *,
    in_place: bool = False,
    progress: Callable[[int, int], None] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Installed:
    """Bring every model of the bundle at `root` into the store. `progress(bytes done, of all)`.

    Raises:
        BadDataError, DeniedError: signature or bytes are not what this machine trusts.
        CannotCreateError: no room, said before anything is written; the store cannot be written.
        IoFailedError: the medium is gone (`medium_gone`); the same command goes on.
        BusyError: another process installs the same model.
    """
    found = open_bundle(root, trust)
    check_needs(found.needs, store)
    check_space(store, room_for(found, store, in_place=in_place))
    done, total = 0, sum(model.file_bytes for model in found.models)

    def told(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(min(done, total), total)

    models = tuple(
        _install(found, model, store, in_place, told, chunk_bytes) for model in found.models
    )
    copied = sum(
        part.bytes
        for model in models
        for part, how in zip(model.entry.parts, model.how, strict=True)
        if how == "copy"
    )
    return Installed(root, found.seal.signer, found.seal.reason, models, copied)


def room_for(found: Opened, store: Store, *, in_place: bool = False) -> Room:
    """Return what the models take of the store's disk. Writes nothing that stays."""
    files = {file.hex: file.size for model in found.models for file in model.files}
    if in_place or _can_share(found.root, store):
        return Room(sum(files.values()), 0, free_bytes(nearest_existing(store.root)))
    left = 0
    for model in found.models:
        place = Checkpoints(store.root).partial / _work_name(model)
        for file in model.files:
            size = files.pop(file.hex, 0)
            if not _is_whole(_blob(store, file.hex), size):
                left += size - brought_bytes(*_work_files(place, file.hex))
    return Room(
        sum(model.file_bytes for model in found.models),
        left,
        free_bytes(nearest_existing(store.root)),
    )


def check_space(store: Store, room: Room) -> None:
    """Raise CannotCreateError (`disk_full`) with the figures when there is not enough room."""
    if room.enough:
        return
    raise CannotCreateError(
        f"{store.root} has {room.free_bytes:,} bytes free and {room.needed_bytes:,} are needed: "
        f"{room.copy_bytes:,} of model files, 2 % and {SPARE_BYTES:,} to spare",
        code="disk_full",
        hint="free some space, set EDGEKIT_STORE to a larger disk, or add --in-place to serve "
        "from the medium",
    )


def _install(
    found: Opened,
    model: BundledModel,
    store: Store,
    in_place: bool,
    told: Progress,
    chunk_bytes: int,
) -> InstalledModel:
    place = Checkpoints(store.root).partial / _work_name(model)
    try:
        for folder in ("blobs", "papers", "split", f"index/{model.entry.model}", "partial"):
            (store.root / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os(error) from error
    with Checkpoints(store.root).fetching(place.name) as work:
        try:
            work.files.mkdir(parents=True, exist_ok=True)
            work.journals.mkdir(parents=True, exist_ok=True)
            ways: list[How] = []
            new: dict[Path, Path] = {}
            for file in model.files:
                blob = _blob(store, file.hex)
                here, journal = _work_files(place, file.hex)
                wanted = Wanted(found.blob(file), file.hex, file.size)
                if _is_whole(blob, file.size) and hash_file(blob, told) == file.hex:
                    ways.append("kept")
                elif in_place:
                    hash_source(wanted, told)
                    new[blob] = _link(wanted.source.resolve(), here)
                    ways.append("in place")
                else:
                    told(brought_bytes(here, journal))
                    ways.append(
                        bring(wanted, here, journal, chunk_bytes=chunk_bytes, progress=told)
                    )
                    new[blob] = here
            papers = {name: found.read(paper) for name, paper in model.documents.items()}
            entry = _entry(found.root, model, new, store, ways)
            _publish(store, entry, new, papers)
            _keep_evaluation(store, entry)
            shutil.rmtree(place, ignore_errors=True)
        except OSError as error:
            raise from_os(error) from error
    return InstalledModel(entry, model.name, model.licence, store.path(entry), tuple(ways))


def _entry(
    root: Path,
    model: BundledModel,
    new: Mapping[Path, Path],
    store: Store,
    ways: list[How],
) -> Entry:
    parts = []
    for file in model.files:
        blob = _blob(store, file.hex)
        parts.append(Part(file.hex, file.size, head_digest(new.get(blob, blob))))
    return replace(
        model.entry,
        file_bytes=model.file_bytes,
        source=_source_here(model.entry, store),
        parts=tuple(parts),
        papers=tuple(sorted((name, paper.hex) for name, paper in model.documents.items())),
        medium=str(root.resolve()) if "in place" in ways else None,
    )


def _publish(
    store: Store, entry: Entry, new: Mapping[Path, Path], papers: Mapping[str, bytes]
) -> None:
    """Give files, links and entry their names, so that `store gc` sees all or nothing."""
    with store.publishing():
        for name, digest in entry.papers:
            # Anew each time, which mends a damaged one.
            write_durably(store.root / "papers" / digest, papers[name])
        for blob, partial in new.items():
            os.replace(partial, blob)
        sync_folder(store.root / "blobs")
        if not all(blob.is_file() for blob in store.blobs(entry)):
            raise BusyError(
                f"another process removed files of {entry.model} from {store.root}",
                code="store_changed",
                hint="run the same command again",
            )
        for link, blob in zip(store.names(entry), store.blobs(entry), strict=False):
            os.replace(_name_link(blob, link), link)
        sync_folder(store.root / "split")
        remember(store, entry)
        write_durably(
            store.root / "index" / entry.model / f"{entry.filetype}.json", entry_bytes(entry)
        )


def _name_link(blob: Path, name: Path) -> Path:
    """Make the link that gives a blob its place in a series, under a name of its own first."""
    partial = name.with_name(f".{name.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    try:
        # Relative, so that the store can be moved.
        partial.symlink_to(os.path.join("..", "blobs", blob.name))
    except OSError:
        try:
            os.link(blob, partial)
        except OSError as error:
            raise CannotCreateError(
                f"{name.parent} is on a file system without links, which a model of several files "
                f"needs: {error.strerror}",
                code="no_links",
                hint="set EDGEKIT_STORE to a folder on another file system, such as ext4 or xfs",
            ) from error
    return partial


def _link(source: Path, target: Path) -> Path:
    target.unlink(missing_ok=True)
    try:
        target.symlink_to(source)
    except OSError as error:
        raise CannotCreateError(
            f"{target.parent} is on a file system without symbolic links, which --in-place "
            f"needs: {error.strerror}",
            code="no_links",
            hint="leave --in-place out, or set EDGEKIT_STORE to a folder on another file system",
        ) from error
    return target


def _keep_evaluation(store: Store, entry: Entry) -> None:
    """Let the gate know what was found about this very content where the bundle was made."""
    from dataclasses import fields

    from edgekit.evaluation import keep
    from edgekit.quality import Quality, from_json

    paper = store.paper(entry, EVALUATION)
    if paper is None:
        return
    known = {"schema", "unchanged", *(field.name for field in fields(Quality))}
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        record = json.loads(paper.read_bytes())
        quality = from_json({k: v for k, v in record.items() if k in known})
        if quality is not None and quality.file_sha256 == entry.sha256:
            keep(store.root, quality)


def _source_here(entry: Entry, store: Store) -> str:
    """Return the mark of the weights that this machine has, for what was installed stands for
    them; the maker's mark where there are none."""
    from edgekit.catalogue import load_models
    from edgekit.located import locate

    card = load_models().get(entry.model)
    with contextlib.suppress(EdgekitError):
        if card is not None and (here := locate(card, None, store.root).source) is not None:
            return here
    return entry.source


def _can_share(root: Path, store: Store) -> bool:
    """Try it with the smallest file of a bundle."""
    probe = nearest_existing(store.root) / f".edgekit-share.{os.getpid()}.partial"
    with contextlib.suppress(OSError):
        try:
            return share(root / "oci-layout", probe) is not None
        finally:
            probe.unlink(missing_ok=True)
    return False


def _is_whole(blob: Path, size: int) -> bool:
    """Whether a file lies there itself, with the right size."""
    with contextlib.suppress(OSError):
        info = blob.lstat()
        return stat.S_ISREG(info.st_mode) and info.st_size == size
    return False


def _blob(store: Store, digest: str) -> Path:
    return store.root / "blobs" / f"{digest}.gguf"


def _work_name(model: BundledModel) -> str:
    return f"{model.entry.model}-{model.entry.filetype}-{model.entry.sha256[:12]}"


def _work_files(place: Path, digest: str) -> tuple[Path, Path]:
    return place / "files" / f"{digest}.gguf", place / "journals" / digest
