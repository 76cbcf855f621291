"""The real command line in a process of its own, with every folder of its in a temporary place."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
POCKET = ROOT / "profiles" / "edgekit_profiles" / "pocket"
SOURCES = [ROOT, ROOT / "server", ROOT / "quantize", ROOT / "profiles"]


@dataclass(frozen=True)
class Cli:
    """Runs `python -m edgekit` with its data, store and settings under `home`."""

    home: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def store(self) -> Path:
        return Path(self.env.get("EDGEKIT_STORE", self.home / "store"))

    @property
    def config(self) -> Path:
        return self.home / "config"

    def environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("EDGEKIT_")}
        return {
            **clean,
            "PYTHONPATH": os.pathsep.join(map(str, SOURCES)),
            "EDGEKIT_DATA_DIR": str(self.data),
            "EDGEKIT_STORE": str(self.home / "store"),
            "EDGEKIT_CONFIG_DIR": str(self.config),
            "EDGEKIT_CACHE_DIR": str(self.home / "cache"),
            "OMP_NUM_THREADS": "1",
            "EDGEKIT_TUNE": "off",
            "EDGEKIT_BUNDLE_VERIFY": "off",
            **self.env,
        }

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env=self.environment(),
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def json(self, *arguments: str | Path) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr + done.stdout
        return json.loads(done.stdout)

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environment(),
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "edgekit", *map(str, arguments)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    """Wait for something that happens in another process."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not in {timeout_s:.0f} s: {what}"
        time.sleep(0.005)
