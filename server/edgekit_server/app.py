"""The HTTP front: routes, middleware, and the life of the server around them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Generator

import uvicorn
from fastapi import FastAPI

from .api import (
    chat,
    completions,
    embeddings,
    fim,
    health,
    licence,
    llamacpp,
    lora,
    messages,
    models,
    ollama,
    page,
    rerank,
    responses,
    tokens,
)
from .api.document import install_document
from .api.early import EarlyStreams
from .api.failures import install
from .api.responses_store import ResponseStore
from .client import Spawn
from .config import ServeConfig
from .errors import ConfigError, ModelMissingError, PortInUseError
from .holding import Holding
from .metrics import Metrics
from .roles import check_models
from .router import Router
from .security import Guard, check_exposure

log = logging.getLogger("edgekit_server")

BACKLOG = 512
GRACE_S = 3
"""How long open responses may go on after a stop was asked for."""
IDLE_CONNECTION_S = 75
"""Longer than clients keep unused connections, so that it is they who close them."""


def create_app(config: ServeConfig, *, spawn: Spawn | None = None) -> FastAPI:
    """Return the application; the engine children start and stop with its lifespan.

    `spawn` starts an engine child; the default is `engine.spawn.spawn`.
    """
    if spawn is None:
        from .engine.spawn import spawn as spawn_engine

        spawn = spawn_engine
    router = Router(config, spawn)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        router.start()
        try:
            yield
        finally:
            await router.stop()

    # The framework's documentation pages load scripts from the internet: left out.
    app = FastAPI(
        title="edgekit", lifespan=lifespan, redirect_slashes=False, docs_url=None, redoc_url=None
    )
    app.state.config = config
    app.state.router = router
    app.state.metrics = Metrics()
    app.state.responses = ResponseStore()
    install(app)
    install_document(app)
    for part in (
        chat, completions, responses, messages, ollama, llamacpp, fim,
        embeddings, rerank, tokens, lora, models, health, licence, page,
    ):  # fmt: skip
        app.include_router(part.routes)
    app.add_middleware(EarlyStreams)
    app.add_middleware(Holding)
    app.add_middleware(Guard, config=config, metrics=app.state.metrics)
    return app


class Server:
    """One server from bind to shutdown. `run` blocks; `stop` may be called from any thread."""

    def __init__(self, config: ServeConfig, *, spawn: Spawn | None = None) -> None:
        """Check the settings and take the port. Raises ConfigError, ModelMissingError,
        PortInUseError; nothing heavy has happened by then."""
        check_exposure(config)
        check_models(config)
        for model in config.served():
            if not model.engine.model_path.is_file():
                raise ModelMissingError(f"there is no file {model.engine.model_path}")
        self.config = config
        self._socket = bind(config.host, config.port)
        self.url = _url(self._socket)
        self.app = create_app(config, spawn=spawn)
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                self.app,
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_keep_alive=IDLE_CONNECTION_S,
                # One second for the typed error to reach the clients.
                timeout_graceful_shutdown=GRACE_S + 1,
            ),
            self.app.state.router.end_open,
        )

    def run(self, on_ready: Callable[[str], object] | None = None) -> None:
        """Serve until SIGINT, SIGTERM or `stop`.

        `on_ready(url)` is called in a thread of its own once the models of the start are loaded,
        so it may use the server. Raises what kept one from loading, or what `on_ready` raised.
        """
        try:
            asyncio.run(self._run(on_ready))
        finally:
            self._socket.close()

    def stop(self) -> None:
        """Ask the server to end; `run` returns soon after."""
        self._uvicorn.should_exit = True

    async def _run(self, on_ready: Callable[[str], object] | None) -> None:
        watch = asyncio.create_task(self._watch(on_ready))
        try:
            await self._uvicorn.serve(sockets=[self._socket])
        finally:
            if not watch.done():
                watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        if not watch.cancelled() and (error := watch.exception()) is not None:
            raise error

    async def _watch(self, on_ready: Callable[[str], object] | None) -> None:
        try:
            await self.app.state.router.wait_settled()
            names = ", ".join(model.engine.model_id for model in self.config.served())
            log.info("serving %s at %s", names, self.url)
            if on_ready is not None:
                await asyncio.to_thread(on_ready, self.url)
        except Exception:
            self.stop()
            raise


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. PortInUseError if taken; ConfigError for any other refusal."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"cannot resolve {host}: {error}", hint="use an address") from error
    sock = socket.socket(family, kind, protocol)
    try:
        # On Windows this option would let two servers share a port.
        if hasattr(signal, "SIGHUP"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"port {port} on {host} is in use",
                hint="stop the other server or choose another port with --port",
            ) from error
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return sock


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Uvicorn(uvicorn.Server):
    """Ends `run` on a signal by returning, where uvicorn would raise the signal once more."""

    def __init__(self, config: uvicorn.Config, end_open: Callable[[], None]) -> None:
        super().__init__(config)
        self._end_open = end_open

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        timer = asyncio.get_running_loop().call_later(GRACE_S, self._end_open)
        await super().shutdown(sockets)
        timer.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
