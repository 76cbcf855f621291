"""A real engine child and our end of its socket, as the front has them."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit_server.config import EngineConfig
from edgekit_server.engine import spawn, wire
from edgekit_server.engine.wire import Generate, Output, Sampling

GREEDY = Sampling(temperature=0.0)


@dataclass
class Child:
    process: subprocess.Popen[bytes]
    sock: socket.socket
    hello: wire.Hello | None = None

    def next(self) -> wire.Message:
        """Return the next message that is not just a sign of life."""
        while isinstance(message := wire.receive(self.sock), wire.Pulse):
            pass
        assert message is not None, "the child is gone"
        return message

    def send(self, message: wire.Message) -> None:
        wire.send(self.sock, message)

    def until(self, done: Callable[[wire.Message], bool]) -> list[wire.Message]:
        seen = [self.next()]
        while not done(seen[-1]):
            seen.append(self.next())
        return seen

    def answer(self, message: Generate) -> list[Output]:
        """Send one request and return its outputs."""
        self.send(message)
        seen = self.until(lambda m: any(o.id == message.id and o.finish for o in outputs(m)))
        assert isinstance(seen[0], wire.Accepted)
        return [o for m in seen for o in outputs(m) if o.id == message.id]

    def answer_after_rest(self, message: Generate) -> list[Output]:
        """Like `answer`, but replies to earlier messages may still come before."""
        self.send(message)
        seen = self.until(lambda m: any(o.id == message.id and o.finish for o in outputs(m)))
        return [o for m in seen for o in outputs(m) if o.id == message.id]

    def ends(self, timeout: float = 20) -> int:
        return self.process.wait(timeout)


def outputs(message: wire.Message) -> list[Output]:
    return message.outputs if isinstance(message, wire.Step) else []


def settings(path: Path, **changes: object) -> EngineConfig:
    base = EngineConfig(
        model_path=path, model_id="tiny", n_ctx=1024, n_seq_max=4, n_threads=1, n_gpu_layers=0
    )
    return replace(base, **changes)  # type: ignore[arg-type]


@contextmanager
def child(config: EngineConfig) -> Iterator[Child]:
    process, sock = spawn.spawn(config)
    try:
        with sock:
            sock.settimeout(60)
            yield Child(process, sock)
    finally:
        process.kill()
        process.wait()
