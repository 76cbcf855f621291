"""How commands print: data to stdout, everything else to stderr; plain when not a terminal."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Self

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID

LABEL = 10
WIDTH = 100

HINTS = {
    2: "edgekit --help shows what there is",
    65: "get the data again from its source",
    66: "check the name and the path",
    69: "edgekit fit MODEL --all-devices shows what would run it",
    70: "edgekit doctor says what is wrong and how to mend it",
    73: "free some space, or choose a place that you can write to",
    74: "check the disk, then run the same command again",
    75: "wait a little, then run the same command again",
    77: "ask for the rights, or choose another place",
    78: "check the options and config.toml",
}
"""What to do after a failure that does not say so itself, by exit code."""


def emit(record: object) -> None:
    """Print one JSON object."""
    print(json.dumps(record, indent=2, ensure_ascii=False), flush=True)


def say(label: str, text: str) -> None:
    """Print a labelled line; further lines of `text` are set under the first."""
    first, *rest = wrap(text, WIDTH - LABEL)
    print(f"{label:<{LABEL}}{first}".rstrip())
    for line in rest:
        print(f"{'':<{LABEL}}{line}")


def context(n_ctx: int, users: int) -> str:
    """Say a context and who shares it."""
    return f"context {n_ctx:,} " + ("for 1 user" if users == 1 else f"shared by {users} users")


def wrap(text: str, width: int) -> list[str]:
    """Break lines at spaces; a word longer than a line, such as a path, stays whole."""
    lines: list[str] = []
    for line in text.split("\n"):
        lines += textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""]
    return lines


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: str) -> None:
    """Print aligned columns; `right` has an "r" or "l" for each column."""
    body = [list(map(str, row)) for row in rows]
    widths = [max(len(r[i]) for r in [list(heads), *body]) for i in range(len(heads))]
    for row in [list(heads), *body]:
        cells = [
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, right, strict=True)
        ]
        print("  ".join(cells).rstrip())


def fail(error: EdgekitError, *, as_json: bool) -> int:
    """Print a failure, with what to do about it, and return its exit code."""
    if error.hint is None:
        error.hint = HINTS.get(error.exit_code)
    sys.stdout.flush()
    if as_json:
        emit(error.as_dict())
    else:
        sys.stderr.write(f"error: {error.message}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
    return error.exit_code


class StepLines:
    """Shows a deployment: a bar while a step runs on a terminal, one line when it is done."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.started = time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def begin(self, kind: str, text: str) -> None:
        """Start a step; "fetch" and "quantize" count bytes, "measure" requests, the rest time."""
        self.started = time.monotonic()
        if self.quiet or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import Progress, TextColumn

        self._close()
        self._progress = Progress(
            TextColumn(f"  {kind:<10} {{task.description}}", markup=False),
            *_columns(kind),
            console=Console(stderr=True),
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task(text, total=None)

    def progress(self, done: int, total: int) -> None:
        """Move the bar."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total)

    def end(self, kind: str, text: str) -> None:
        """Close the step with a line that says what came of it and how long it took."""
        self._close()
        if self.quiet:
            return
        seconds = time.monotonic() - self.started
        first, *rest = wrap(text, 66)
        print(f"  {kind:<10} {first:<66} {seconds:>7.1f} s".rstrip(), flush=True)
        for line in rest:
            print(f"  {'':<10} {line}", flush=True)
        self.started = time.monotonic()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None


def _columns(kind: str) -> list[ProgressColumn]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TaskProgressColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    if kind in ("quantize", "fetch"):
        return [BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    if kind in ("verify", "evaluate", "imatrix"):
        return [BarColumn(), TaskProgressColumn(), TimeRemainingColumn()]
    if kind != "measure":
        return [SpinnerColumn(), TimeElapsedColumn()]
    return [BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
