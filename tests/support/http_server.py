"""A real server in a thread: uvicorn on a free loopback port, any engine child behind it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from edgekit_server.app import Server
from edgekit_server.client import Spawn
from edgekit_server.config import EngineConfig, ServeConfig


def config_for(model_path: Path, **settings: object) -> ServeConfig:
    """Return settings for a test server on a free port; keywords override ServeConfig's."""
    engine = EngineConfig(model_path=model_path, model_id="tiny", n_ctx=2048, n_threads=1)
    return replace(ServeConfig(engine=engine, port=0, aliases=("alias",)), **settings)


@contextlib.contextmanager
def running(
    config: ServeConfig, spawn: Spawn | None = None, *, wait: bool = True
) -> Iterator[Server]:
    """Run a server; `wait` until its model is loaded. Raises what its thread raised."""
    server = Server(config, spawn=spawn)
    ready = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            server.run(lambda _: ready.set())
        except BaseException as error:
            failures.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=work, name="test-server")
    thread.start()
    try:
        if wait:
            assert ready.wait(30), "the server did not become ready"
        if failures:
            raise failures[0]
        yield server
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"
