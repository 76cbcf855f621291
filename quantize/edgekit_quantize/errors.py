"""Every failure of this package.

QuantizeError
├── UnknownFileTypeError    2   no such file type
├── BadRecipeError          2   types that this model or this call cannot have
├── BadCheckpointError     65   the source folder's bytes are wrong, torn or of an unknown kind
├── BadGgufError           65   a GGUF header that does not add up
├── BadImatrixError        65   a file that is no importance matrix, or not of this model
├── MissingFileError       66   a folder, shard or tokenizer that is not there
├── EngineFailedError      70   llama.cpp would not load a model or run it
├── CannotCreateError      73   no room, or the destination is not writable
├── IoFailedError          74   reading or writing broke half-way
└── BusyError              75   another process writes the same destination

The number is the exit code. `code` is stable and meant for scripts, `hint` names the fix.
"""

from __future__ import annotations

from typing import ClassVar


class QuantizeError(Exception):
    """Base of the tree: a message, a stable code, a hint and an exit code."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, code: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.hint = hint


class UnknownFileTypeError(QuantizeError):
    exit_code = 2


class BadRecipeError(QuantizeError):
    exit_code = 2


class BadCheckpointError(QuantizeError):
    exit_code = 65


class BadGgufError(QuantizeError):
    exit_code = 65


class BadImatrixError(QuantizeError):
    exit_code = 65


class MissingFileError(QuantizeError):
    exit_code = 66


class EngineFailedError(QuantizeError):
    exit_code = 70


class CannotCreateError(QuantizeError):
    exit_code = 73


class IoFailedError(QuantizeError):
    exit_code = 74


class BusyError(QuantizeError):
    exit_code = 75
