"""Write a client's files so that each can be put back byte for byte.

A record per client holds, for each file, what stood there before we first wrote and what we
wrote last. Both are kept as plain files that only the user can read.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.connect.merge import merge
from edgekit.connect.textedit import edit_text
from edgekit.connect.values import Edit, NotEditableError
from edgekit.errors import BadDataError, BusyError, DeniedError, from_os
from edgekit.store import write_durably

SCHEMA = "edgekit.connect-record/1"
_READABLE = stat.S_IRGRP | stat.S_IROTH


class EditedError(BadDataError):
    """A file was changed after we wrote it; `diff` shows how."""

    def __init__(self, path: Path, diff: str, hint: str) -> None:
        message = f"{path} was changed after edgekit connect wrote it"
        super().__init__(message, code="edited_since", hint=hint)
        self.diff = diff


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file that a client needs, and the edits."""

    path: Path
    kind: str
    edits: tuple[Edit, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One file as it is, as it will be, and as `undo` will leave it; None is no file."""

    path: Path
    """The file itself, where `path` of the client is a link."""
    before: bytes | None
    after: bytes | None
    original: bytes | None

    @property
    def is_one(self) -> bool:
        """Whether anything changes."""
        return self.before != self.after

    def diff(self) -> str:
        """Return the change as a unified diff."""
        return _diff(self.path, self.before, self.after)


@dataclass(frozen=True, slots=True)
class _Kept:
    path: Path
    original: bytes | None
    written: bytes
    made: tuple[Path, ...]
    """Folders that we made for it."""


@contextmanager
def locked(folder: Path, *, only_read: bool = False) -> Iterator[None]:
    """Hold the record of a client. Raises BusyError when another run holds it."""
    if only_read:
        yield
        return
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(folder / "lock", timeout=5):
            yield
    except Timeout:
        raise BusyError(
            "another edgekit connect is at work", code="connect_locked", hint="wait for it"
        ) from None


def plan(
    wanted: Sequence[Wanted], folder: Path, *, secret: str | None, force: bool
) -> list[Change]:
    """Return what will be written; nothing is touched.

    Raises:
        BadDataError: a file cannot be edited safely; EditedError: it was changed since we wrote
            it, in a way that cannot be told from what we wrote (`force` takes it as it is).
        DeniedError: a secret would get into a file that others can read.
    """
    kept = {entry.path: entry for entry in _read_record(folder)}
    changes = []
    for one in wanted:
        path = Path(os.path.realpath(one.path))
        before = _read(path)
        after = _edited(path, one, before)
        original = _original(path, one.kind, before, kept.get(path), force=force)
        if secret is not None and secret.encode() in after:
            _refuse_if_readable(path)
        changes.append(Change(path, before, after, original))
    return changes


def write(changes: Sequence[Change], folder: Path) -> None:
    """Write the record, then each file that changes.

    Raises CannotCreateError or IoFailedError; BusyError when a file changed in the meantime.
    """
    kept = {entry.path: entry for entry in _read_record(folder)}
    for change in changes:
        assert change.after is not None
        made = kept[change.path].made if change.path in kept else ()
        made = made or tuple(p for p in change.path.parents if not p.exists())
        if change.is_one or change.path in kept:
            kept[change.path] = _Kept(change.path, change.original, change.after, made)
    _write_record(folder, list(kept.values()))
    for change in changes:
        _put(change)


def plan_undo(folder: Path, *, force: bool) -> list[Change]:
    """Return what `undo` will do; an empty list if there is nothing to put back.

    With `force`, what was changed since is carried over where the lines allow it, and lost
    where not; a copy stays in `folder`. Raises EditedError without it.
    """
    changes = []
    for entry in _read_record(folder):
        now, goal = _read(entry.path), entry.original
        if now not in (entry.written, entry.original):
            if not force:
                raise EditedError(
                    entry.path,
                    _diff(entry.path, entry.written, now),
                    "edgekit connect CLIENT --undo --force takes out what edgekit wrote and keeps "
                    "these changes where it can",
                )
            goal = _carried(entry, now) if now is not None else now
        changes.append(Change(entry.path, now, goal, goal))
    return changes


def undo(changes: Sequence[Change], folder: Path) -> None:
    """Put the files back, take away the folders that we made, and forget the record."""
    entries = {entry.path: entry for entry in _read_record(folder)}
    for change in changes:
        entry = entries[change.path]
        if change.before is not None and change.before not in (entry.written, entry.original):
            _private(folder / f"{change.path.name}.edited", change.before)
        _put(change)
        for made in entry.made:
            with contextlib.suppress(OSError):
                made.rmdir()
    for file in folder.glob("*"):
        if file.name != "lock" and file.suffix != ".edited":
            file.unlink()


def _original(
    path: Path, kind: str, now: bytes | None, kept: _Kept | None, *, force: bool
) -> bytes | None:
    """Return what `undo` has to restore, given that the file may have been changed since."""
    if kept is None or now is None:
        return now
    if now in (kept.written, kept.original):
        return kept.original
    carried = _carried(kept, now)
    if carried is not None and kept.original is not None and carried != kept.original:
        with contextlib.suppress(NotEditableError):
            edit_text(kind, carried.decode("utf-8", "replace"), ())
            return carried
    if force:
        return now
    raise EditedError(
        path,
        _diff(path, kept.written, now),
        "edgekit connect CLIENT --force goes on; --undo will then restore the file as it is now",
    )


def _carried(kept: _Kept, now: bytes) -> bytes | None:
    texts = [_text(data) for data in (kept.written, kept.original or b"", now)]
    merged = merge(*texts)
    if merged is None or (kept.original is None and not merged.strip()):
        return kept.original
    return merged.encode("utf-8", "surrogateescape")


def _edited(path: Path, one: Wanted, before: bytes | None) -> bytes:
    try:
        text = None if before is None else before.decode("utf-8")
        return edit_text(one.kind, text, one.edits).encode("utf-8")
    except (NotEditableError, UnicodeDecodeError) as error:
        raise BadDataError(
            f"{path} is left as it is: {error}",
            code="not_editable",
            hint="correct it and run the same command again, or give another file: --config PATH",
        ) from None


def _refuse_if_readable(path: Path) -> None:
    if path.exists() and path.stat().st_mode & _READABLE:
        raise DeniedError(
            f"the API key would go into {path}, which other users can read",
            code="readable_secret",
            hint=f"chmod 600 '{path}', then run the same command again",
        )


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise from_os(error) from error


def _put(change: Change) -> None:
    """Replace one file whole, with its mode and owner; remove it if it was not there."""
    if not change.is_one:
        return
    if _read(change.path) != change.before:
        raise BusyError(
            f"{change.path} changed while edgekit connect was at work",
            code="changed_meanwhile",
            hint="run the same command again",
        )
    try:
        if change.after is None:
            change.path.unlink(missing_ok=True)
            return
        change.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _replace(change.path, change.after)
    except OSError as error:
        raise from_os(error) from error


def _replace(path: Path, data: bytes) -> None:
    old = path.stat() if path.exists() else None
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if old is not None:
                # Root may edit a user's file; it stays the user's.
                with contextlib.suppress(OSError, AttributeError):
                    os.chown(partial, old.st_uid, old.st_gid)
                os.chmod(partial, stat.S_IMODE(old.st_mode))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _private(path: Path, data: bytes) -> None:
    """Write a file that only the user can read."""
    path.touch(mode=0o600)
    os.chmod(path, 0o600)
    path.write_bytes(data)


def _read_record(folder: Path) -> list[_Kept]:
    file = folder / "record.json"
    if not file.exists():
        return []
    try:
        record = json.loads(file.read_bytes())
        if record["schema"] != SCHEMA:
            raise ValueError(record["schema"])
        return [_entry(folder, row) for row in record["files"]]
    except (ValueError, LookupError, TypeError) as error:
        raise BadDataError(
            f"the record of edgekit connect cannot be read: {file} ({error})",
            code="bad_record",
            hint=f"what it wrote over is kept in {folder}; copy it back by hand",
        ) from None
    except OSError as error:
        raise from_os(error) from error


def _entry(folder: Path, row: dict[str, Any]) -> _Kept:
    original = row["original"]
    return _Kept(
        Path(row["path"]),
        None if original is None else (folder / original).read_bytes(),
        (folder / row["written"]).read_bytes(),
        tuple(Path(made) for made in row["made"]),
    )


def _write_record(folder: Path, entries: Sequence[_Kept]) -> None:
    new = folder / "new"
    rows = []
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        for number, entry in enumerate(entries):
            row: dict[str, Any] = {"path": str(entry.path), "made": [str(m) for m in entry.made]}
            for role, data in (("original", entry.original), ("written", entry.written)):
                row[role] = None if data is None else f"{number}-{entry.path.name}.{role}"
                if data is not None:
                    _private(new / row[role], data)
            rows.append(row)
        for file in new.iterdir():
            os.replace(file, folder / file.name)
        new.rmdir()
    except OSError as error:
        raise from_os(error) from error
    text = json.dumps({"schema": SCHEMA, "files": rows}, indent=2)
    write_durably(folder / "record.json", text.encode())


def _diff(path: Path, old: bytes | None, new: bytes | None) -> str:
    lines = difflib.unified_diff(
        _text(old or b"").splitlines(keepends=True),
        _text(new or b"").splitlines(keepends=True),
        "/dev/null" if old is None else str(path),
        "/dev/null" if new is None else str(path),
    )
    return "".join(x if x.endswith("\n") else f"{x}\n\\ No newline at end of file\n" for x in lines)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
