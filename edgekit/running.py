"""Deployments that run now, one small file each, so that `bench` knows what it measures."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from edgekit.errors import EdgekitError
from edgekit.report.record import LatencyRecord, from_json, to_json
from edgekit.store import write_durably

SCHEMA = "edgekit.running/1"


@dataclass(frozen=True, slots=True)
class Running:
    """A deployment: the server's process, where it answers, and the report's head without rows."""

    pid: int
    url: str
    head: LatencyRecord


@contextmanager
def announced(folder: Path, running: Running, number: int = 0) -> Iterator[None]:
    """Keep the deployment's file in `folder` while the block runs.

    `number` tells the models of one server apart; 0 is the first.

    Raises CannotCreateError or IoFailedError when it cannot be written.
    """
    file = folder / (f"{running.pid}-{number}.json" if number else f"{running.pid}.json")
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "schema": SCHEMA,
        "pid": running.pid,
        "url": running.url,
        "report": to_json(running.head),
    }
    write_durably(file, json.dumps(record, indent=2).encode())
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def find(folder: Path, wanted: str | None) -> Running | None:
    """Return the live deployment of a model, at an address, or (None) any; the newest of several.

    Files of deployments that were killed are skipped: their process is gone.
    """
    for file in sorted(folder.glob("*.json"), key=_age):
        running = _read(file)
        if running is None or not _alive(running.pid, -_age(file)):
            continue
        if wanted in (None, running.head.model) or _same_place(wanted or "", running.url):
            return running
    return None


def _age(file: Path) -> float:
    try:
        return -file.stat().st_mtime
    except OSError:
        return 0.0


def _alive(pid: int, announced_at: float) -> bool:
    """Is it still the process that was announced? Ids are given to new processes again."""
    import psutil

    try:
        return psutil.Process(pid).create_time() <= announced_at + 1
    except psutil.Error:
        return False


def _read(file: Path) -> Running | None:
    try:
        record = json.loads(file.read_bytes())
        if record["schema"] != SCHEMA:
            return None
        return Running(int(record["pid"]), str(record["url"]), from_json(record["report"]))
    except (OSError, ValueError, LookupError, TypeError, EdgekitError):
        return None


def _same_place(wanted: str, url: str) -> bool:
    """Compare host and port; `localhost` is 127.0.0.1."""
    try:
        places = [urlsplit(x if "://" in x else f"http://{x}") for x in (wanted, url)]
        hosts = [(p.hostname or "").replace("localhost", "127.0.0.1") for p in places]
        return hosts[0] == hosts[1] and places[0].port == places[1].port
    except ValueError:
        return False
