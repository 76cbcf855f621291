"""Start an engine child from the front. Imports nothing native."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

from edgekit_server.config import EngineConfig
from edgekit_server.engine import wire

ENVIRONMENT = {
    "GGML_NO_BACKTRACE": "1",
    # OpenMP's workers spin after every step and would take the cores from sampling and from the
    # front: GCC's library counts turns, LLVM's milliseconds.
    "GOMP_SPINCOUNT": "2000",
    "KMP_BLOCKTIME": "1",
}
"""What a child gets unless the caller's environment says otherwise."""


def environment() -> dict[str, str]:
    """Return the child's environment: ours, and this package importable as it is here."""
    root = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH")
    paths = [root, *([inherited] if inherited else [])]
    return {**ENVIRONMENT, **os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def command(module: str, *arguments: str) -> list[str]:
    """Return the command line of a child module; -P keeps the working directory off its path."""
    return [sys.executable, "-P", "-m", f"edgekit_server.engine.{module}", *arguments]


def spawn(
    config: EngineConfig, *, stderr: int | IO[bytes] | None = None
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a child and send it its settings; return the process and our end of the socket.

    The first message to come is Hello or Fatal. Close the socket to end the child; it ignores
    Ctrl-C. The socket is blocking: use `sock.setblocking(False)` before giving it to asyncio.
    """
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = subprocess.Popen(
                command("worker", "--fd", str(theirs.fileno())),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=environment(),
            )
        with suppress(BrokenPipeError, ConnectionResetError):  # it died: end of file says so
            ours.sendall(wire.encode_config(config))
    except BaseException:
        ours.close()
        raise
    return process, ours
