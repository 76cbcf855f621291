"""Every failure edgekit reports.

EdgekitError
├── UsageError          2   the command line makes no sense
├── BadDataError       65   bytes that are there but wrong, torn or unsigned
├── MissingInputError  66   a file, model or weight that is not there
├── NoDeviceError      69   no device can run this
├── EngineFailedError  70   the inference engine died or would not start
├── CannotCreateError  73   the disk is full or the place is not writable
├── IoFailedError      74   reading or writing broke half-way
├── BusyError          75   a port or a lock is taken; try again
├── DeniedError        77   permission, or a licence not accepted
└── ConfigError        78   a setting is wrong

The number is the exit code (sysexits.h where it has one). `code` is stable and meant for
scripts; `hint` is one sentence that names the fix.
"""

from __future__ import annotations

import errno
from typing import ClassVar


class EdgekitError(Exception):
    """Base of the tree: a message, a stable code, a hint and an exit code."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, code: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.hint = hint

    def as_dict(self) -> dict[str, dict[str, str | None]]:
        """Return the JSON form that every `--json` command prints on failure."""
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}


class UsageError(EdgekitError):
    exit_code = 2


class BadDataError(EdgekitError):
    exit_code = 65


class MissingInputError(EdgekitError):
    exit_code = 66


class NoDeviceError(EdgekitError):
    exit_code = 69


class EngineFailedError(EdgekitError):
    exit_code = 70


class CannotCreateError(EdgekitError):
    exit_code = 73


class IoFailedError(EdgekitError):
    exit_code = 74


class BusyError(EdgekitError):
    exit_code = 75


class DeniedError(EdgekitError):
    exit_code = 77


class ConfigError(EdgekitError):
    exit_code = 78


BY_EXIT_CODE: dict[int, type[EdgekitError]] = {
    c.exit_code: c for c in EdgekitError.__subclasses__()
}


def from_foreign(error: Exception) -> EdgekitError:
    """Map an error of `edgekit_quantize`, `edgekit_server` or the system onto this tree.

    Both packages carry `exit_code`, `code` and `hint` on their own roots and know nothing of
    edgekit; an error without them is returned as an `EngineFailedError` with code `internal`.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return from_os(error)
    if isinstance(error, ModuleNotFoundError):
        return EngineFailedError(
            f"the Python package {error.name} is not installed",
            code="not_installed",
            hint="pip install 'edgekit[all]'",
        )
    kind = BY_EXIT_CODE.get(getattr(error, "exit_code", -1))
    if kind is None:
        return EngineFailedError(
            f"{type(error).__name__}: {error}",
            code="internal",
            hint="run the command again with --debug and report what it prints",
        )
    code, hint = getattr(error, "code", "internal"), getattr(error, "hint", None)
    return kind(str(error), code=code, hint=hint)


def from_os(error: OSError) -> EdgekitError:
    """Map what the system said about a file: no room or no access, not there, or broken."""
    kind: type[EdgekitError] = IoFailedError
    code, hint = "io_error", "check the disk, then run the same command again"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        kind, code, hint = CannotCreateError, "disk_full", "free some space, or choose another disk"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR):
        kind, code, hint = CannotCreateError, "not_writable", "choose a place that you can write to"
    elif error.errno == errno.ENOENT:
        kind, code, hint = MissingInputError, "file_missing", "check the path"
    where = f"{error.filename}: " if error.filename else ""
    return kind(f"{where}{error.strerror or error}", code=code, hint=hint)
