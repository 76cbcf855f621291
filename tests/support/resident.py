"""What a deployment really takes: the server's processes, in a memory cgroup where one can be made.

The group is made below the process's own, so that its limits still hold.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path("/sys/fs/cgroup/memory")


def own_group() -> Path | None:
    """The memory cgroup (version 1) of this process; None where there is none to write in."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            folder = ROOT / path.strip("/")
            return folder if os.access(folder, os.W_OK) else None
    return None


@dataclass(frozen=True, slots=True)
class Group:
    """A cgroup with a limit; whoever exceeds it is killed."""

    path: Path

    def value(self, name: str) -> int:
        return int((self.path / name).read_text().split()[0])

    @property
    def peak_bytes(self) -> int:
        """Anonymous memory and page cache together, as the kernel counts them."""
        return self.value("memory.max_usage_in_bytes")

    @property
    def kills(self) -> int:
        for line in (self.path / "memory.oom_control").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
        return 0


@contextlib.contextmanager
def group(limit_bytes: int) -> Iterator[Group]:
    """A group with a limit, removed afterwards."""
    parent = own_group()
    assert parent is not None
    path = parent / f"edgekit_test_{os.getpid()}"
    path.mkdir()
    try:
        (path / "memory.limit_in_bytes").write_text(str(limit_bytes))
        yield Group(path)
    finally:
        for _ in range(100):
            with contextlib.suppress(OSError):
                path.rmdir()
                break
            time.sleep(0.1)


@contextlib.contextmanager
def serving(
    model: Path, options: Sequence[str], within: Group | None = None
) -> Iterator[tuple[str, list[psutil.Process]]]:
    """Run `python -m edgekit_server`; yield its address and its processes once it answers."""
    command = [sys.executable, "-m", "edgekit_server", str(model), "--port", "0", *options]

    def join() -> None:
        if within is not None:
            (within.path / "cgroup.procs").write_text(str(os.getpid()))

    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=join,
    )
    try:
        address = _address(process)
        parent = psutil.Process(process.pid)
        yield address, [parent, *parent.children(recursive=True)]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if "http://" in line:
            return "http://" + line.split("http://", 1)[1].split()[0].strip("/,;")
    raise AssertionError(f"the server did not start: {''.join(seen)[-2000:]}")


def complete(address: str, model: str, prompt: str, n: int) -> dict[str, object]:
    """One completion, as a client asks for it."""
    body = {"model": model, "prompt": prompt, "max_tokens": n, "temperature": 0}
    request = urllib.request.Request(
        f"{address}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        found: dict[str, object] = json.load(answer)
    return found


def peak_bytes(processes: Sequence[psutil.Process]) -> list[int]:
    """The most that each process had resident so far, mapped files included."""
    found = []
    for process in processes:
        status = Path(f"/proc/{process.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        found.append(int(fields["VmHWM"].split()[0]) * 1024)
    return found
