"""Let a running deployment serve the file that the store names now, without a pause.

The candidate is tried in a process of its own first (it decodes; it is no worse than its file
type explains; the memory holds both files for a while). The server loads it beside the old one
and switches; then the same short requests as before are timed, and if they take far longer, the
old file gets its place back.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgekit import paths
from edgekit.errors import (
    BadDataError,
    EngineFailedError,
    MissingInputError,
    NoDeviceError,
    from_os,
)
from edgekit.running import Running
from edgekit.store import Entry, Store, write_durably
from edgekit.units import MIB, format_bytes

PROBES: Final = 5
PROBE_TOKENS: Final = 16
SLOWER: Final = 2.0
"""A candidate whose median short answer takes longer than this many times the old one's goes."""

SPARE_BYTES: Final = 512 * MIB
WAIT_S: Final = 1200.0
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Switched:
    """What came of it. Times are medians of short answers, before and after, in seconds."""

    entry: Entry
    before_s: float
    after_s: float
    switch_s: float
    quality: str


def order_file(port: int) -> Path:
    """Return the file by which the server on a port is told to take another model file."""
    return paths.data_dir() / "pages" / f"{port}.swap.json"


def switch(
    store: Store,
    entry: Entry,
    running: Running,
    *,
    api_key: str | None = None,
    say: Say = lambda _: None,
) -> Switched:
    """Prove the entry's file, let it take its place, and time it.

    Raises:
        EngineFailedError: the candidate does not run, cannot be loaded, or is far slower
            (`slower`): the old file serves on, or again.
        BadDataError: the candidate lost more than its file type explains.
        NoDeviceError: the memory does not hold both for a while.
        MissingInputError: the server is none that takes orders.
    """
    file = store.path(entry)
    order = order_file(_port(running.url))
    check_memory(entry.file_bytes, _available())
    say("trying the candidate")
    quality = prove(store, entry, file)
    before = _probe(running.url, entry.model, api_key)
    say("loading it beside the old one")
    began = time.monotonic()
    old = _give(order, entry.model, file)
    switched = time.monotonic() - began
    after = _probe(running.url, entry.model, api_key)
    if after > before * SLOWER and old != file:
        _give(order, entry.model, old)
        raise EngineFailedError(
            f"{entry.model} takes {after:.2f} s for a short answer, {before:.2f} s before: the old "
            "file serves again",
            code="slower",
            hint=f"edgekit store rollback {entry.model} makes that last; edgekit bench says more",
        )
    return Switched(entry, before, after, switched, quality)


def prove(store: Store, entry: Entry, file: Path) -> str:
    """Try a file as a deployment would; return what is known of its quality.

    Raises EngineFailedError (`canary_failed`) or BadDataError (`quantization_refused`).
    """
    from edgekit import evaluation, material
    from edgekit.catalogue import find_model, load_filetypes
    from edgekit.probe import run_canary
    from edgekit.quality import judge, limit_for

    canary = run_canary(file)
    if canary.ok is not True:
        raise EngineFailedError(
            f"the engine does not run this file here: {canary.reason}",
            code="canary_failed",
            hint=f"edgekit store rollback {entry.model} goes back to what served before",
        )
    found = evaluation.kept(store.root, entry.sha256, material.gate())
    if found is None:
        return "not compared with the unquantized model"
    filetype = load_filetypes()[entry.filetype]
    limit = limit_for(filetype.id, filetype.loss, find_model(entry.model).params)
    verdict = judge(found, limit)
    if not verdict.good:
        raise BadDataError(
            f"{entry.model} {entry.filetype} is refused: {verdict.why}",
            code="quantization_refused",
            hint=f"edgekit store rollback {entry.model} goes back to what served before",
        )
    return verdict.summary


def check_memory(file_bytes: int, available: int | None) -> None:
    """Raise NoDeviceError where two files do not fit side by side. Pure."""
    if available is not None and file_bytes + SPARE_BYTES > available:
        raise NoDeviceError(
            f"the new file takes {format_bytes(file_bytes)} beside the old one for a while, and "
            f"{format_bytes(available)} are free",
            code="no_room_beside",
            hint="stop the deployment and start it again: it takes the new file then",
        )


def _give(order: Path, model: str, file: Path) -> Path:
    """Give the order and wait until it was followed; return what served before."""
    done = order.with_name(f"{order.name}.done")
    try:
        done.unlink(missing_ok=True)
    except OSError as error:
        raise from_os(error) from error
    write_durably(order, json.dumps({"model": model, "path": str(file)}).encode())
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            found = json.loads(done.read_bytes())
        except (OSError, ValueError):
            time.sleep(0.05)
            continue
        if found.get("error"):
            raise EngineFailedError(
                f"the server keeps the old file: {found['error']}",
                code="not_switched",
                hint="see the server's log",
            )
        return Path(str(found.get("old", "")))
    raise MissingInputError(
        "the server does not follow",
        code="no_orders",
        hint="it was started by another version; stop it and deploy again",
    )


def _probe(url: str, model: str, api_key: str | None) -> float:
    """Return the median time of short answers, as a client sees it."""
    import httpx

    body = {"model": model, "prompt": "def ", "max_tokens": PROBE_TOKENS, "temperature": 0}
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    times = []
    try:
        with httpx.Client(trust_env=False, timeout=300.0, headers=headers) as client:
            for _ in range(PROBES):
                began = time.monotonic()
                client.post(f"{url}/v1/completions", json=body).raise_for_status()
                times.append(time.monotonic() - began)
    except httpx.HTTPError as error:
        raise EngineFailedError(
            f"{url} does not answer: {error}", code="no_answer", hint="see the server's log"
        ) from error
    return statistics.median(times)


def _port(url: str) -> int:
    return int(url.rstrip("/").rpartition(":")[2])


def _available() -> int:
    import psutil

    return int(psutil.virtual_memory().available)
