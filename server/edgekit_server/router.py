"""Model name -> engine child. One model for now; loading and unloading by name grows here."""

from __future__ import annotations

import time
from dataclasses import dataclass

from .chat.family import Spec, recognise
from .chat.template import ChatTemplate
from .client import EngineClient, Spawn
from .config import ServeConfig
from .engine.wire import Hello
from .errors import RequestError


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model and what the front derived from it."""

    id: str
    client: EngineClient
    hello: Hello
    template: ChatTemplate | None
    spec: Spec
    reason: str
    """Why this spec."""


class Router:
    """Owns the engine children of one server."""

    def __init__(self, config: ServeConfig, spawn: Spawn) -> None:
        self.model_id = config.engine.model_id
        self.aliases = config.aliases
        self.created = int(time.time())
        self.client = EngineClient(
            config.engine,
            spawn=spawn,
            max_backoff_s=config.restart_max_backoff_s,
            watchdog_s=config.watchdog_s,
        )
        self._model: Model | None = None

    def start(self) -> None:
        """Begin loading; returns at once."""
        self.client.start()

    async def wait_settled(self) -> None:
        """Wait until the model serves; raise why it does not, its chat template included."""
        await self.client.wait_settled()
        await self.model(None)

    def end_open(self) -> None:
        """End every open request with a typed error."""
        self.client.end_open()

    async def stop(self) -> None:
        """Stop every child."""
        await self.client.stop()

    def check_name(self, name: str | None) -> None:
        """Raise the 404 that clients know if the name is neither the model's id nor an alias."""
        if name is not None and name not in ("", self.model_id, *self.aliases):
            raise RequestError(
                f"The model '{name}' does not exist. This server runs '{self.model_id}'.",
                status=404,
                code="model_not_found",
                param="model",
            )

    async def model(self, name: str | None) -> Model:
        """Return the model that answers to a name; RequestError 404 or, while loading, 503."""
        self.check_name(name)
        hello = await self.client.ready()
        if self._model is None or self._model.hello is not hello:
            self._model = self._derive(hello)
        return self._model

    def _derive(self, hello: Hello) -> Model:
        spec, reason = recognise(hello.chat_template)
        template = (
            ChatTemplate(
                hello.chat_template,
                bos=hello.bos,
                eos=hello.eos,
                control_tokens=hello.control_tokens,
            )
            if hello.chat_template
            else None
        )
        return Model(self.model_id, self.client, hello, template, spec, reason)
