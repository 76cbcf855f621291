"""How commands print: data to stdout, everything else to stderr; plain when not a terminal."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LABEL = 10
WIDTH = 100


def emit(record: object) -> None:
    """Print one JSON object."""
    print(json.dumps(record, indent=2, ensure_ascii=False))


def say(label: str, text: str) -> None:
    """Print a labelled line; further lines of `text` are set under the first."""
    first, *rest = _wrap(text, WIDTH - LABEL)
    print(f"{label:<{LABEL}}{first}".rstrip())
    for line in rest:
        print(f"{'':<{LABEL}}{line}")


def _wrap(text: str, width: int) -> list[str]:
    import textwrap

    lines = [part for line in text.split("\n") for part in textwrap.wrap(line, width) or [""]]
    return lines or [""]


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
    """Print a failure and return its exit code."""
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

    def begin(self, kind: str, text: str) -> None:
        self.started = time.monotonic()
        if self.quiet or not sys.stderr.isatty() or "NO_COLOR" in os.environ:
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._close()
        self._progress = Progress(
            TextColumn(f"  {kind:<10} {{task.description}}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task(text, total=None)

    def progress(self, done: int, total: int) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total)

    def end(self, kind: str, text: str) -> None:
        self._close()
        if self.quiet:
            return
        seconds = time.monotonic() - self.started
        print(f"  {kind:<10} {text:<66} {seconds:>7.1f} s".rstrip(), flush=True)
        self.started = time.monotonic()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None
