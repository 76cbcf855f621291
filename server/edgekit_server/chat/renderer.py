"""The child process in which a server renders one model's chat template."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

from .jinja import FailedError, read_answer

RENDER_S = 10.0
"""A template that takes longer is killed; the longest honest ones take a tenth of a second."""


class RenderChild:
    """Renders one request at a time, in a child that is started when first needed.

    The child dies with this object, or with the server, whose end closes its input.
    """

    def __init__(self, source: str, *, timeout_s: float = RENDER_S) -> None:
        self._source = source
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = lambda: None

    def render(self, context: dict[str, object], max_chars: int) -> str:
        """Return the output; raises what jinja.rendered raises, FailedError past its limits."""
        line = json.dumps({"context": context, "max_chars": max_chars}).encode() + b"\n"
        with self._lock:
            child = self._started()
            late = threading.Event()
            timer = threading.Timer(self._timeout_s, _kill, (child, late))
            timer.start()
            try:
                answer = _ask(child, line)
            finally:
                timer.cancel()
            if not answer.endswith(b"\n"):
                self.close()
                raise FailedError(
                    f"it took more than {self._timeout_s:.0f} s"
                    if late.is_set()
                    else "its process died, most likely of too much memory"
                )
        return read_answer(answer)

    def close(self) -> None:
        """End the child; the next request starts another."""
        self._end()
        self._child = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._child = subprocess.Popen(
                # A file, not -m: the package's own imports would cost the child 0.2 s.
                [sys.executable, "-I", str(Path(__file__).with_name("jinja.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            self._end = weakref.finalize(self, _stop, self._child)
            _write(self._child, json.dumps(self._source).encode() + b"\n")
        return self._child


def _ask(child: subprocess.Popen[bytes], line: bytes) -> bytes:
    """Return the answer's line; one without its end if the child died."""
    assert child.stdout is not None
    return child.stdout.readline() if _write(child, line) else b""


def _write(child: subprocess.Popen[bytes], line: bytes) -> bool:
    assert child.stdin is not None
    try:
        child.stdin.write(line)
        child.stdin.flush()
    except OSError:
        return False
    return True


def _kill(child: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    child.kill()


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                continue  # It had unwritten input.
