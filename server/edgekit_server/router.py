"""The models of one server: which of them a request means, and the way to it.

`model` is what dialects call. The model that it returns is loaded, and stays so until the HTTP
request has been answered (holding.py); keeper.py loads and unloads.
"""

from __future__ import annotations

import asyncio
import time

from .client import EngineClient, Spawn, State
from .config import ServeConfig
from .errors import RequestError
from .keeper import Keeper
from .newest import Newest
from .roles import check_models, pick
from .served import Model, Served
from .swap import watch

__all__ = ["Model", "Router", "Served"]


class Router:
    """Owns the engine children of one server."""

    def __init__(self, config: ServeConfig, spawn: Spawn) -> None:
        """Raises ConfigError for models that contradict each other."""
        check_models(config)
        self.served = [
            Served(model, config, spawn, preload=i == 0 or model.preload or model.pinned)
            for i, model in enumerate(config.served())
        ]
        """All models, the first one first."""
        self.newest = Newest()
        self.created = int(time.time())
        self.memory_budget_bytes = config.memory_budget_bytes
        self._orders = config.swap
        self._watching: asyncio.Task[None] | None = None
        self._keeper = Keeper(self.served, config)
        self._by_name = {name: s for s in self.served for name in (s.id, *s.aliases)}

    @property
    def model_id(self) -> str:
        """The first model's id."""
        return self.served[0].id

    @property
    def aliases(self) -> tuple[str, ...]:
        """The first model's other names."""
        return self.served[0].aliases

    @property
    def client(self) -> EngineClient:
        """The first model's engine child; another one after the model was unloaded."""
        return self.served[0].client

    @property
    def waiting(self) -> int:
        """How many requests wait for their model to be loaded."""
        return self._keeper.waiting

    def preloaded(self) -> list[Served]:
        """Return the models that are loaded at start."""
        return [served for served in self.served if served.preload]

    def start(self) -> None:
        """Begin loading what is to be loaded at start; returns at once."""
        self._keeper.start(self.preloaded())
        if self._orders is not None:
            self._watching = asyncio.create_task(watch(self.served, self._orders), name="swap")

    async def wait_settled(self) -> None:
        """Wait until the preloaded models serve; raise why one does not, its template included."""
        await asyncio.gather(*(served.client.wait_settled() for served in self.preloaded()))
        for served in self.preloaded():
            await self.model(served.id)

    def unready(self) -> Served | None:
        """Return a model that was loaded at start and does not serve at present.

        One that was unloaded since is no fault: it is loaded again when somebody asks for it.
        """
        for served in self.preloaded():
            coming = served.on_demand and served.client.state is State.LOADING
            away = served.loads and (not served.resident or served.leaving)
            if not away and not coming and served.client.state is not State.READY:
                return served
        return None

    def end_open(self) -> None:
        """End every open request with a typed error."""
        self._keeper.end_open()
        for served in self.served:
            served.client.end_open()

    async def stop(self) -> None:
        """Stop every child."""
        if self._watching is not None:
            # A file that is being loaded is let go of on the way.
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._keeper.stop()

    def find(self, name: str | None, *, role: str = "chat") -> Served:
        """Return the model that answers to a name, or the first of a role if there is no name.

        `role` is one of config.ROLES, or `fim`. Raises the 404 that clients know.
        """
        if not name:
            return self.served[pick(self.served, role)]
        # Ollama's clients put this tag behind names, under /v1 as well.
        found = self._by_name.get(name) or self._by_name.get(name.removesuffix(":latest"))
        if found is None:
            ids = ", ".join(f"'{served.id}'" for served in self.served)
            raise RequestError(
                f"The model '{name}' does not exist. This server runs {ids}.",
                status=404,
                code="model_not_found",
                param="model",
            )
        return found

    async def model(self, name: str | None, *, role: str = "chat") -> Model:
        """Return a loaded model, see `find`. It may have to be loaded first, and to wait for room.

        RequestError 404; 503 while the server starts, or when the model cannot be loaded in time.
        """
        served = self.find(name, role=role)
        return served.model(await self._keeper.use(served))
