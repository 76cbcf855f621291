"""Start a server, wait until it is ready, know what it costs, and end it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from tests.benchmarks.serve import client
from tests.benchmarks.serve.contenders import Contender
from tests.benchmarks.serve.settings import Setup
from tests.support.cli import SOURCES, free_port

POLL_S = 0.01
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0


@dataclass(slots=True)
class Running:
    """A server that answered its health check."""

    contender: Contender
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    command: list[str]
    spawned: float
    """time.perf_counter when it was started."""
    ready_s: float

    @property
    def name(self) -> str:
        return self.contender.name

    def tree(self) -> list[psutil.Process]:
        """Return the process and all its descendants."""
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    def cpu_s(self) -> float:
        """CPU seconds of the whole tree so far."""
        total = 0.0
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def peak_rss_bytes(self) -> int:
        """Sum of the peaks of the tree's processes; pages they share count more than once."""
        return sum(_peak(process) for process in self.tree())

    def libraries(self) -> dict[str, str]:
        """Return the ggml and llama libraries mapped by the tree, with a digest of each."""
        found: dict[str, str] = {}
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                for region in process.memory_maps():
                    path = Path(region.path)
                    if path.name.startswith(("libggml", "libllama.")) and path.is_file():
                        found[path.name.split(".so")[0]] = _digest(path)
        return found


@contextlib.asynccontextmanager
async def running(
    contender: Contender, setup: Setup, folder: Path, *, verbose: bool = False
) -> AsyncIterator[Running]:
    """Start a server and stop it at the end. RuntimeError with its last words if it dies."""
    port = free_port()
    log = folder / f"{contender.name.replace(':', '-').replace('=', '-')}-{port}.log"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SOURCES))}
    command = contender.command(setup, port, verbose=verbose)
    spawned = time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            env=environment | dict(contender.env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        ready_s = await _ready(process, port, contender.health, spawned, log)
        yield Running(contender, port, process, log, command, spawned, ready_s)
    finally:
        await asyncio.to_thread(_end, process)


async def _ready(
    process: subprocess.Popen[bytes], port: int, health: str, spawned: float, log: Path
) -> float:
    while True:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            status, _ = await client.get(port, health)
            if status == 200:
                return time.perf_counter() - spawned
        late = time.perf_counter() - spawned > READY_TIMEOUT_S
        if late or process.poll() is not None:
            words = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"it {'is not ready' if late else 'died'}: {words}")
        await asyncio.sleep(POLL_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    tree = []
    with contextlib.suppress(psutil.NoSuchProcess):
        tree = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _peak(process: psutil.Process) -> int:
    with contextlib.suppress(OSError, psutil.Error):
        status = Path(f"/proc/{process.pid}/status")
        if not status.exists():
            return int(process.memory_info().rss)
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


@cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
