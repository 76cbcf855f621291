"""The command line inside this process: as `Cli`, without starting an interpreter each time."""

from __future__ import annotations

import json
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Cli


@dataclass(frozen=True)
class Inside(Cli):
    """Runs commands through `edgekit.cli.run`; for commands that start no server."""

    captures: list[pytest.CaptureFixture[str]] = field(default_factory=list)

    def attach(self, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self.captures.append(capture)
        for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "EDGEKIT_OFFLINE"):
            patch.delenv(name, raising=False)
        for name, value in self.environment().items():
            if name.startswith(("EDGEKIT_", "HF_")):
                patch.setenv(name, value)
        patch.chdir(self.home)

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        from edgekit import catalogue
        from edgekit.cli import run

        capture = self.captures[-1]
        capture.readouterr()
        catalogue.forget()
        before = signal.getsignal(signal.SIGTERM)
        try:
            code = run([str(a) for a in arguments])
        finally:
            signal.signal(signal.SIGTERM, before)
        out, err = capture.readouterr()
        return subprocess.CompletedProcess([], code, out, err)

    def error(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Return the exit code, the code and the hint of a failure."""
        done = self.run(*arguments, "--json")
        error: dict[str, Any] = json.loads(done.stdout)["error"]
        return done.returncode, error["code"], error["hint"] or ""


def attached(cli: Cli, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> Inside:
    """Return the same folders and settings, inside this process."""
    inside = Inside(cli.home, cli.env)
    inside.attach(patch, capture)
    return inside
