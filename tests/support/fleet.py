"""A server of several stub models: each name has its own rules, size and time to load."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from edgekit_server.app import Server
from edgekit_server.config import EngineConfig, ModelConfig, ServeConfig
from tests.support.http_server import running
from tests.support.stub_engine import Rule, StubEngine, said

RULES = [
    Rule("long", said("x" * 2000), pause_s=0.01),
    Rule("second", said("x" * 20), pause_s=0.05),
    Rule("hangs", said("ab"), hang=True),
    Rule("dies", said("abcd"), die_after=2, pause_s=0.02),
]


@dataclass
class Fleet:
    """The stubs by model id, and the server over them once it runs."""

    stubs: dict[str, StubEngine]
    server: Server = field(init=False)
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=20))

    def spawn(self, config: EngineConfig) -> tuple[subprocess.Popen[bytes], socket.socket]:
        return self.stubs[config.model_id].spawn(config)

    def status(self) -> dict[str, str]:
        """Return the status of each model, as clients see it."""
        found = self.http.get(f"{self.server.url}/v1/models").json()["data"]
        return {model["id"]: model["status"]["value"] for model in found}

    def loaded(self) -> set[str]:
        return {name for name, status in self.status().items() if status == "loaded"}

    def loads(self, name: str) -> int:
        return int(self.model(name).loads)

    def model(self, name: str) -> Any:
        return next(s for s in self.server.app.state.router.served if s.id == name)

    def post(self, path: str = "chat/completions", **body: object) -> httpx.Response:
        """Ask for a few words; `model` and `text` are what varies."""
        text = str(body.pop("text", "hi"))
        asked = {"messages": [{"role": "user", "content": text}]}
        if path == "completions":
            asked = {"prompt": text}
        return self.http.post(f"{self.server.url}/v1/{path}", json={**asked, **body})

    def answer(self, name: str) -> str:
        """Have a model answer; return the name that the answer bears."""
        answered = self.post(model=name)
        assert answered.status_code == 200, answered.text
        return str(answered.json()["model"])


@contextlib.contextmanager
def fleet(
    folder: Path,
    *models: ModelConfig,
    load_s: float = 0.0,
    stubs: dict[str, StubEngine] | None = None,
    wait: bool = True,
    **settings: object,
) -> Iterator[Fleet]:
    """Run a server of these models; `settings` are ServeConfig's."""
    made = {
        m.engine.model_id: StubEngine(RULES, folder / f"{m.engine.model_id}.log", load_s=load_s)
        for m in models
    }
    found = Fleet({**made, **(stubs or {})})
    config = ServeConfig(engine=models[0].engine, port=0, models=models, keepalive_s=0.1)
    with found.http, running(replace(config, **settings), found.spawn, wait=wait) as server:
        found.server = server
        yield found


def model(folder: Path, name: str, **settings: object) -> ModelConfig:
    """Return one model of a fleet, one byte large unless said otherwise."""
    path = folder / "stub.gguf"
    path.write_bytes(b"GGUF")
    base = ModelConfig(EngineConfig(model_path=path, model_id=name), memory_bytes=1)
    return replace(base, **settings)
