"""One model of the server: its engine child while it is loaded, and what is known of it after."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce

from .chat.builtin import completed, fallback_of
from .chat.family import Spec, recognise
from .chat.template import ChatTemplate
from .client import EngineClient, Spawn, State
from .config import EngineConfig, ModelConfig, ServeConfig
from .engine.wire import Hello, Pulse
from .errors import ServerError
from .metrics import ModelFigures
from .room import Resident
from .suspects import Suspects


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


class Served:
    """A model that may be loaded and unloaded many times; each load is a child of its own."""

    def __init__(
        self, config: ModelConfig, server: ServeConfig, spawn: Spawn, *, preload: bool
    ) -> None:
        """`preload`: it is going to be loaded at start, so it is not there only for a while."""
        self.config = config
        self.id = config.engine.model_id
        self.aliases = config.aliases
        self.preload = preload
        self.resident = False
        """Whether it takes memory: from the start of a load until the child is gone."""
        self.on_demand = False
        """Whether the present load was asked for by a request, not by the start of the server."""
        self.leaving = False
        self.loads = 0
        self.holds = 0
        """HTTP requests that use it."""
        self.used_at = time.monotonic()
        self.failed_at: float | None = None
        """When the last load failed; None: it did not."""
        self.failure: ServerError | None = None
        self._server = server
        self._spawn = spawn
        self._suspects = Suspects()
        self._past_restarts = 0
        self._past_pulse = Pulse(0, 0)
        self._hello: Hello | None = None
        self._model: Model | None = None
        self.client = self._new_client()
        if not preload:
            self.client.state = State.STOPPED

    @property
    def hello(self) -> Hello | None:
        """What the child said of the model when it was last loaded; None before the first time."""
        return self.client.hello or self._hello

    @property
    def status(self) -> str:
        """loaded, loading or unloaded: the words of /v1/models."""
        coming = self.preload and not self.loads
        if self.leaving or not (self.resident or coming):
            return "unloaded"
        states = {State.READY: "loaded", State.LOADING: "loading", State.RESTARTING: "loading"}
        return states.get(self.client.state, "unloaded")

    @property
    def busy(self) -> bool:
        """Whether unloading it would break something off."""
        working = self.holds or self.client.in_flight or self.client.n_computing()
        return bool(working) or self.client.state is State.LOADING

    @property
    def restarts(self) -> int:
        """Restarts after a death, over all loads."""
        return self._past_restarts + self.client.restarts

    @property
    def pulse(self) -> Pulse:
        """What the children have done, over all loads."""
        return added(self._past_pulse, self.client.pulse)

    def figures(self) -> ModelFigures:
        """Return what /metrics says of it."""
        return ModelFigures(self.id, self.status == "loaded", self.loads, self.client.in_flight)

    def resident_now(self) -> Resident:
        """Return it as the arithmetic of room.py takes it."""
        taken = self.config.memory_bytes or 0
        return Resident(self.id, taken, self.used_at, self.busy, self.config.pinned)

    def hold(self) -> None:
        """Keep it loaded until `release`."""
        self.holds += 1

    def release(self) -> None:
        """End one hold."""
        self.holds -= 1
        self.used_at = time.monotonic()

    def start(self, *, on_demand: bool) -> None:
        """Begin loading; returns at once."""
        self._past_restarts = self.restarts
        self._past_pulse = self.pulse
        self._hello = self.hello
        if self.loads:
            self.client = self._new_client()
        self.client.state = State.LOADING
        self.resident, self.on_demand = True, on_demand
        self.failed_at = self.failure = None
        self.used_at = time.monotonic()
        self.loads += 1
        self.client.start()

    async def stop(self) -> None:
        """Stop the child; it takes no memory when this returns."""
        self.leaving = True
        try:
            await self.client.stop()
        finally:
            self._hello = self.hello
            self.resident = self.leaving = False

    def beside(self, engine: EngineConfig) -> EngineClient:
        """Return a child for another file of this model, not yet started."""
        return self._new_client(engine)

    def become(self, engine: EngineConfig, client: EngineClient | None) -> None:
        """Serve from another file from now on; `client` has it loaded, None: nothing is loaded.

        The old child is the caller's to end.
        """
        self.config = replace(self.config, engine=engine)
        self._suspects = Suspects()
        if client is not None:
            self._past_restarts, self._past_pulse = self.restarts, self.pulse
            self._hello = self.hello
            self.client = client
            self.loads += 1

    def model(self, hello: Hello) -> Model:
        """Return what requests work with; derived once for each load."""
        if self._model is None or self._model.hello is not hello:
            self._model = self._derive(hello)
        return self._model

    def _new_client(self, engine: EngineConfig | None = None) -> EngineClient:
        return EngineClient(
            engine or self.config.engine,
            spawn=self._spawn,
            max_backoff_s=self._server.restart_max_backoff_s,
            watchdog_s=self._server.watchdog_s,
            suspects=self._suspects if engine is None else Suspects(),
        )

    def _derive(self, hello: Hello) -> Model:
        source, why = completed(hello.chat_template, hello.control_tokens)
        spec, reason = recognise(source)
        template = (
            ChatTemplate(
                source,
                bos=hello.bos,
                eos=hello.eos,
                control_tokens=hello.control_tokens,
                limited=True,
                fallback=fallback_of(spec.family),
            )
            if source
            else None
        )
        reason = f"{why}; {reason}" if why else reason
        return Model(self.id, self.client, hello, template, spec, reason)


def added(one: Pulse, other: Pulse | None) -> Pulse:
    """Return the sum of two children's totals."""
    if other is None:
        return one
    names = Pulse.__dataclass_fields__
    return Pulse(**{name: getattr(one, name) + getattr(other, name) for name in names})


def total(pulses: Iterable[Pulse]) -> Pulse:
    """Return the sum of the totals of several models."""
    return reduce(added, pulses)
