"""Start an engine child from the front. Imports nothing native."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

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


class Ahead:
    """Starts the first child at once, so that it loads while the front imports its libraries.

    Called like `spawn`; use as a context manager, which ends a child that nobody took.
    """

    def __init__(self, config: EngineConfig) -> None:
        """A child that cannot be started is left to the first call, which says why."""
        self._config = config
        self._first: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        if config.model_path.is_file():
            with suppress(OSError):
                self._first = spawn(config)

    def __call__(self, config: EngineConfig) -> tuple[subprocess.Popen[bytes], socket.socket]:
        if self._first is None or config != self._config:
            return spawn(config)
        first, self._first = self._first, None
        return first

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._first is None:
            return
        process, sock = self._first
        self._first = None
        sock.close()
        process.kill()
        process.wait()
