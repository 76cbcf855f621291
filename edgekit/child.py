"""Children of our own: started with one JSON request, answering in JSON lines, ending with us.

The request is the first line of the child's standard input, which then stays open: when it
closes, whoever started the child is gone, however that happened, and the child ends too.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, Final

from edgekit import egress
from edgekit.errors import BY_EXIT_CODE, EdgekitError, EngineFailedError

GRACE_S: Final = 15.0
"""How long a child may take to put things away before it is killed."""


def start(module: str, request: Mapping[str, object], stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start `python -m module` with a request. Its standard output is a pipe of JSON lines.

    It gets a session of its own, so that Ctrl-C reaches us alone and we end it in order.
    """
    # The child must find the same packages, also when they were put on the path by hand.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=env,
        start_new_session=True,
    )
    assert process.stdin is not None
    # A child that died at once closed its end; its exit says why.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
    return process


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended: its last answer, whether it exited with 0, the signal it died of, and
    the last line it wrote to standard error."""

    answer: dict[str, Any]
    ok: bool
    signal: str | None
    words: str | None


def ask(
    module: str,
    request: Mapping[str, object],
    progress: Callable[[int, int], None] | None = None,
) -> Ended:
    """Run a child to its end, passing on the `done` and `total` that it answers on the way.

    Raises the error that the child reports.
    """
    last: dict[str, Any] = {}
    with tempfile.TemporaryFile() as log:
        process = start(module, request, log)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                last = parse(line) or last
                done, total = last.get("done"), last.get("total")
                if progress is not None and isinstance(done, int) and isinstance(total, int):
                    progress(done, total)
            process.wait()
        finally:
            stop(process)
        if (error := error_of(last)) is not None:
            raise error
        log.seek(0)
        words = log.read().decode(errors="replace").strip().splitlines()
    said = words[-1] if words else None
    return Ended(last, process.returncode == 0, signal_name(process), said)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a child and wait for it; killed if it takes longer than GRACE_S."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def signal_name(process: subprocess.Popen[bytes]) -> str | None:
    """Return the signal that a child died of, "SIGBUS", or None."""
    code = process.poll()
    if code is None or code >= 0:
        return None
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def parse(line: bytes) -> dict[str, object]:
    """Read one answer; a line that is none of ours is empty."""
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def error_of(answer: Mapping[str, object]) -> EdgekitError | None:
    """Return the error that an answer carries, if it does."""
    error = answer.get("error")
    if not isinstance(error, dict):
        return None
    kind = BY_EXIT_CODE.get(error.get("exit_code") or 0, EngineFailedError)
    hint = error.get("hint")
    return kind(str(error["message"]), code=str(error["code"]), hint=hint and str(hint))


def read_request() -> dict[str, object]:
    """In the child: read the request, then end this process when standard input does.

    From here on the child keeps to the machine if its parent was told to.
    """
    egress.follow()
    line = bytearray()
    # Byte by byte through the bare descriptor: a buffered reader would hold a lock at exit.
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            raise SystemExit(130)
        line += byte

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os._exit(130)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
    return parse(bytes(line))


def answer(record: Mapping[str, object]) -> None:
    """In the child: send one line; a parent that is gone does not matter any more."""
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(record).encode() + b"\n")


def answer_error(error: EdgekitError) -> None:
    """In the child: send a failure."""
    answer({"error": {**error.as_dict()["error"], "exit_code": error.exit_code}})
