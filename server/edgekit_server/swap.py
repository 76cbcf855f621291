"""Another file takes a model's place while requests run: the new one loads beside the old one.

Requests that began go on where they are; those that come after the switch get the new file. The
order is given by a small file (`ServeConfig.swap`), looked at every second:

    {"model": "<id>", "path": "/…/new.gguf"}

Both files are in memory for a while: whoever gives the order has seen to it that there is room.
What came of it stands in `<swap>.done`: {"path": …, "old": …, "error": null or a sentence}.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .client import EngineClient, State
from .errors import ModelMissingError, ServerError
from .served import Served

log = logging.getLogger("edgekit_server")

LOOK_S = 1.0
QUIET_S = 2.0
"""An old engine that had no request for so long gets none any more."""
LONGEST_DRAIN_S = 600.0


async def watch(served: Sequence[Served], order: Path) -> None:
    """Follow the orders in a file until cancelled."""
    followed = _stamp(order)
    while True:
        await asyncio.sleep(LOOK_S)
        if (stamp := _stamp(order)) is None or stamp == followed:
            continue
        followed = stamp
        path, old, error = "", "", None
        try:
            record = json.loads(order.read_bytes())
            path = str(record["path"])
            wanted = next(s for s in served if s.id == record["model"])
            began, old = time.monotonic(), str(wanted.config.engine.model_path)
            await swap(wanted, Path(path))
            log.info("%s is served from %s after %.1f s", wanted.id, path, time.monotonic() - began)
        except StopIteration:
            error = "no such model is served"
        except (OSError, ValueError, LookupError, TypeError, ServerError) as failure:
            error = str(failure) or type(failure).__name__
        if error is not None:
            log.error("the file %s does not take its place: %s", path, error)
        _say(order.with_name(f"{order.name}.done"), path, old, error)


async def swap(served: Served, path: Path) -> None:
    """Load a file beside the one that serves, let it take its place, end the old one when idle.

    Raises ServerError when it cannot be loaded; the old one goes on then.
    """
    if not path.is_file():
        raise ModelMissingError(f"there is no file {path}")
    engine = replace(served.config.engine, model_path=path)
    if _is_away(served):
        served.become(engine, None)
        return
    candidate = served.beside(engine)
    candidate.start()
    try:
        await candidate.wait_settled()
    except BaseException:
        await candidate.stop()
        raise
    if _is_away(served):
        await candidate.stop()
        served.become(engine, None)
        return
    old = served.client
    served.become(engine, candidate)
    try:
        await _idle(old)
    finally:
        await old.stop()


def _is_away(served: Served) -> bool:
    """Whether nothing is loaded that a file could be loaded beside."""
    return not served.resident or served.leaving


async def _idle(client: EngineClient) -> None:
    """Wait until an engine has had nothing to do for a while, at most LONGEST_DRAIN_S."""
    began = quiet_since = time.monotonic()
    while client.state is State.READY:
        now = time.monotonic()
        if client.in_flight or client.n_computing():
            quiet_since = now
        if now - quiet_since >= QUIET_S or now - began >= LONGEST_DRAIN_S:
            return
        await asyncio.sleep(0.05)


def _stamp(order: Path) -> tuple[int, int] | None:
    try:
        found = order.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _say(path: Path, which: str, old: str, error: str | None) -> None:
    with contextlib.suppress(OSError):
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps({"path": which, "old": old, "error": error}))
        os.replace(partial, path)
