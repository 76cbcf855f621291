"""A network namespace that has a loopback interface and nothing else."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

INSIDE = "EDGEKIT_CLIENTS_INSIDE"
"""Set in the process inside; holds the folder that the clients are installed in."""
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 1


def enter(arguments: list[str], folder: Path) -> int:
    """Run this program again inside such a namespace; return its exit code."""
    command = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
    inside = [*command, sys.executable, "-m", "tests.clients", *arguments]
    return subprocess.run(inside, env={**os.environ, INSIDE: str(folder)}).returncode


def raise_loopback() -> None:
    """Bring `lo` up. Linux only (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh22x", b"lo", 0)
        flags = struct.unpack("16sh22x", fcntl.ioctl(control, _GET_FLAGS, request))[1]
        fcntl.ioctl(control, _SET_FLAGS, struct.pack("16sh22x", b"lo", flags | _UP))
