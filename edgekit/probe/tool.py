"""The one seam between the probe and other programs: run a tool, come back in time.

Nothing here interprets output; parsers elsewhere are pure functions of the text returned.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

# After a kill, how long to wait for the corpse. A process stuck inside a driver call cannot be
# killed at all, and waiting for it would hang the probe with it.
_REAP_S: Final = 0.5

# Windows reports a crash as an NTSTATUS exit code rather than a signal.
_NTSTATUS: Final = {
    0xC0000005: "access violation",
    0xC000001D: "illegal instruction",
    0xC0000094: "integer division by zero",
    0xC00000FD: "stack overflow",
    0xC0000374: "heap corruption",
    0xC0000409: "fast fail (abort)",
}


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What a finished, killed or missing tool left behind; `exit_code` None = none was had."""

    exit_code: int | None
    stdout: str = ""
    stderr: str = ""
    timed_out: bool = False
    missing: bool = False

    @property
    def ok(self) -> bool:
        return self.exit_code == 0

    @property
    def died_of(self) -> str | None:
        """The signal (or Windows exception) that ended it, by name: "SIGSEGV"; None if none did."""
        code = self.exit_code
        if code is None:
            return None
        if code < 0:
            with contextlib.suppress(ValueError):
                return signal.Signals(-code).name
            return f"signal {-code}"
        return _NTSTATUS.get(code)

    @property
    def last_words(self) -> str:
        """The last line on stderr that says anything, shortened for a note; may be empty."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        return lines[-1][:200] if lines else ""


def run_tool(
    command: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None
) -> ToolOutput:
    """Run a command with a time limit and return its output. Never raises, never hangs.

    `env` is added to this process's environment. Output that is not UTF-8 is read with
    replacement characters: a tool that prints rubbish is a parser's problem, not a crash.
    """
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        return ToolOutput(None, stderr=str(error), missing=True)
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        stdout, stderr = _kill(process)
        return ToolOutput(None, stdout, stderr, timed_out=True)
    except BaseException:
        _kill(process)
        raise
    return ToolOutput(process.returncode, stdout, stderr)


def _kill(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Kill a child and collect what it had printed, without waiting for one that cannot die."""
    process.kill()
    try:
        return process.communicate(timeout=_REAP_S)
    except subprocess.TimeoutExpired:
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        # Marks it as dealt with, or the interpreter warns about a child that we gave up on.
        process.returncode = -signal.SIGTERM
        return "", ""
