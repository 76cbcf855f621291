"""Tokens in, tokens out: an OpenAI-compatible front over llama.cpp engine children."""

from __future__ import annotations

from collections.abc import Callable

from .config import EngineConfig, ServeConfig
from .errors import ServerError

__all__ = ["EngineConfig", "ServeConfig", "ServerError", "serve"]


def serve(config: ServeConfig, *, on_ready: Callable[[str], object] | None = None) -> None:
    """Serve the models of `config` until SIGINT or SIGTERM.

    `on_ready(url)` is called in its own thread once those of the start answer. Raises ServerError
    subclasses: ConfigError, ModelMissingError and PortInUseError before anything is loaded,
    BadModelError or EngineDiedError if the model does not load.
    """
    # Planning code imports this package for its settings on machines without fastapi.
    from .engine.spawn import Ahead

    with Ahead(config.engine) as spawn:
        from .app import Server

        Server(config, spawn=spawn).run(on_ready)
