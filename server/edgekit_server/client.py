"""The front's handle on one engine child: start it, talk to it, outlive it.

One task supervises: spawn, wait for Hello, read until the child is gone, fail what was open,
wait (doubling up to a limit), spawn again. All state is touched on the event loop only.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from .asking import SUSPECT_POLL_S, Asking
from .call import Call
from .config import EngineConfig
from .engine import wire
from .errors import EngineDiedError, RequestError, ServerError, WireError
from .refusals import kills_engine, load_failure, rejection
from .suspects import Suspects, content_key
from .watchdog import Watchdog, end

log = logging.getLogger("edgekit_server")

Spawn = Callable[[EngineConfig], tuple["subprocess.Popen[bytes]", socket.socket]]

FIRST_BACKOFF_S = 0.25
STEADY_S = 60.0
"""An engine that lived this long is healthy: the next restart waits the first back-off again."""
RESTART_PATIENCE_S = 10.0
"""How long a request waits for an engine that is restarting before it gets a 503."""
STOP_PATIENCE_S = 5.0
LOADING_RETRY_S = 10
READ_BYTES = 1 << 18


class State(StrEnum):
    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(slots=True)
class _Open:
    """A request the child knows of."""

    request: wire.Generate
    key: bytes
    index: int
    param: str
    call: Call
    verdict: asyncio.Future[int]


class EngineClient(Asking):
    """One engine child. `start` once, then `generate` from any task of the same loop."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        spawn: Spawn,
        max_backoff_s: float = 30.0,
        watchdog_s: float | None = None,
        suspects: Suspects | None = None,
    ) -> None:
        """`watchdog_s`: how long the child may get nothing done; None: for ever. `suspects`:
        what killed earlier children of this model."""
        super().__init__()
        self.config = config
        self.state = State.LOADING
        self.hello: wire.Hello | None = None
        self.failure: ServerError | None = None
        self.restarts = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._spawn = spawn
        self._max_backoff_s = max_backoff_s
        self._suspects = Suspects() if suspects is None else suspects
        self._ids = itertools.count(1)
        self._open: dict[int, _Open] = {}
        self._leaving: dict[int, _Open] = {}
        """Cancelled, but the engine has not said yet that it let go of them."""
        self._writer: asyncio.StreamWriter | None = None
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._fatal: wire.Fatal | None = None
        self._watchdog_s = watchdog_s
        self._watchdog: Watchdog | None = None
        self._stalled: str | None = None
        self.pulse: wire.Pulse | None = None
        """What the present child has done so far; None until it has done something."""

    @property
    def in_flight(self) -> int:
        return len(self._open)

    def start(self) -> None:
        """Begin loading; returns at once."""
        self._task = asyncio.create_task(self._supervise(), name="engine-client")

    async def wait_settled(self) -> None:
        """Wait until the first load succeeded; raise why not if it failed."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: self.state in (State.READY, State.FAILED, State.STOPPED)
            )
        if self.failure is not None:
            raise self.failure

    async def ready(self) -> wire.Hello:
        """Return the loaded model. Waits through a restart; RequestError 503 while loading."""
        if self.state is State.RESTARTING:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RESTART_PATIENCE_S), self._changed:
                    await self._changed.wait_for(lambda: self.state is not State.RESTARTING)
        if self.state is State.READY and self.hello is not None:
            return self.hello
        raise not_ready(self.state)

    async def generate(
        self, requests: Sequence[wire.Generate], *, param: str, deadline_s: float | None = None
    ) -> Call:
        """Hand requests to the engine; return once it accepted each of them.

        The ids are set here, and the deadline, seconds from now; `param` names the field to
        blame. RequestError when one of them is refused (none of them runs then);
        EngineDiedError when the child died over it.
        """
        await self.ready()
        keys = _keys(requests, param)
        while self._suspects.must_wait(keys, self.running_keys()):
            await asyncio.sleep(SUSPECT_POLL_S)
            await self.ready()
        call = Call(self._forget)
        opened: list[_Open] = []
        try:
            for index, (given, key) in enumerate(zip(requests, keys, strict=True)):
                if deadline_s is not None:
                    given = replace(given, deadline_s=deadline_s)
                opened.append(self._send(given, key, index, param, call))
            await self._drain()
            call.n_prompt = [await entry.verdict for entry in opened]
        except BaseException:
            call.cancel()
            for entry in opened:
                entry.verdict.cancel()
                if entry.verdict.done() and not entry.verdict.cancelled():
                    entry.verdict.exception()
            raise
        return call

    def _inside(self) -> list[_Open]:
        """What the engine may be working on."""
        return [*self._open.values(), *self._leaving.values()]

    def running_keys(self) -> set[bytes]:
        """Return the content keys of what the engine may be working on."""
        return {*(entry.key for entry in self._inside()), *self.asked_keys()}

    def _forget(self, request_id: int) -> None:
        """Cancel a request in the engine; nothing more of it is delivered."""
        entry = self._open.pop(request_id, None)
        if entry is not None:
            self._leaving[request_id] = entry
            self._cancel_in_engine(request_id)

    async def stop(self) -> None:
        """Stop the child: ask, then terminate, then kill."""
        self._set_state(State.STOPPED)
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.write(wire.encode(wire.Stop()))
        process = self.process
        if process is not None:
            await asyncio.to_thread(_end_process, process)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.end_open()

    def end_open(self) -> None:
        """End every open request with a typed error: the server is about to go."""
        for request_id in list(self._open):
            self._cancel_in_engine(request_id)
        self._fail_open(EngineDiedError("the server is shutting down", code="shutting_down"))

    def _cancel_in_engine(self, request_id: int) -> None:
        if self._writer is not None:
            self._writer.write(wire.encode(wire.Cancel(request_id)))

    def _send(self, given: wire.Generate, key: bytes, index: int, param: str, call: Call) -> _Open:
        if self._suspects.refused(key):
            raise kills_engine(param)
        if self._writer is None:
            raise not_ready(self.state)
        request = replace(given, id=next(self._ids))
        verdict: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        entry = _Open(request, key, index, param, call, verdict)
        self._open[request.id] = entry
        call.add(index, request.id)
        self._writer.write(wire.encode(request))
        return entry

    async def _drain(self) -> None:
        if self._writer is not None:
            # A child that died meanwhile is the reader's business, which fails the verdicts.
            with contextlib.suppress(OSError):
                await self._writer.drain()

    async def _supervise(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while True:
            began = time.monotonic()
            self._fatal = self._stalled = None
            reason = await self._live_once()
            if self.state is State.STOPPED:
                return
            if self.hello is None:
                self.failure = load_failure(self._fatal, reason)
                log.error("the engine did not load: %s", self.failure)
                self._set_state(State.FAILED)
                return
            self._set_state(State.RESTARTING)
            self._suspects.blame(self.running_keys())
            self._leaving.clear()
            code = "engine_stalled" if self._stalled else None
            message = f"the engine died ({reason}) and is being restarted"
            self._fail_open(EngineDiedError(message, code=code))
            if time.monotonic() - began >= STEADY_S:
                backoff_s = FIRST_BACKOFF_S
            log.warning("the engine died (%s); restarting in %.2f s", reason, backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, self._max_backoff_s)
            self.restarts += 1

    async def _live_once(self) -> str:
        """Run one child from spawn to death; return how it died."""
        try:
            process, sock = await asyncio.to_thread(self._spawn, self.config)
        except OSError as error:
            return f"cannot start it: {error}"
        self.process = process
        sock.setblocking(False)
        reader, self._writer = await asyncio.open_connection(sock=sock)
        watch = asyncio.create_task(self._watch(process), name="engine-watchdog")
        try:
            await self._read(reader)
            reason = ""
        except (OSError, WireError) as error:
            reason = str(error)
        finally:
            watch.cancel()
            writer, self._writer = self._writer, None
            writer.close()
            code = await asyncio.to_thread(_reap, process)
        if self._stalled is not None:
            return self._stalled
        if self._fatal is not None:
            return f"{self._fatal.code}: {self._fatal.message}"
        return reason or (f"signal {-code}" if code < 0 else f"exit status {code}")

    async def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """End the child when it gets nothing done though someone waits for it."""
        if self._watchdog_s is None:
            return
        dog = self._watchdog = Watchdog(self._watchdog_s)
        while self._stalled is None:
            await asyncio.sleep(dog.interval_s)
            # While it loads, no request can be open.
            waits = [entry.verdict.done() for entry in self._inside()]
            waits += [True] * self.n_computing()
            self._stalled = dog.stalled(running=any(waits), unanswered=not all(waits))
        log.error("the engine is being ended: %s", self._stalled)
        await asyncio.to_thread(end, process)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        decoder = wire.Decoder()
        while data := await reader.read(READ_BYTES):
            for message in decoder.feed(data):
                self._handle(message)

    def _handle(self, message: wire.Message) -> None:
        if self._answered(message):
            return
        match message:
            case wire.Pulse():
                self.pulse = message
                if self._watchdog is not None:
                    self._watchdog.pulse(message.worked, message.taken)
            case wire.Step():
                if self._watchdog is not None:
                    self._watchdog.output()
                for output in message.outputs:
                    self._output(output)
            case wire.Accepted():
                entry = self._open.get(message.id)
                if entry is not None and not entry.verdict.done():
                    entry.verdict.set_result(message.n_prompt)
            case wire.Rejected():
                self._leaving.pop(message.id, None)
                entry = self._open.pop(message.id, None)
                if entry is not None and not entry.verdict.done():
                    entry.verdict.set_exception(rejection(message, self.hello, entry.param))
            case wire.Hello():
                self.hello = message
                for what, reason in message.reasons.items():
                    log.info("%s: %s", what, reason)
                self._set_state(State.READY)
            case wire.Fatal():
                self._fatal = message
            case _:
                log.warning("the engine sent %s, which nobody asked for", type(message).__name__)

    def _output(self, output: wire.Output) -> None:
        entry = self._open.get(output.id)
        if entry is None:
            if output.finish is not None:
                self._leaving.pop(output.id, None)
            return
        if output.finish is not None:
            del self._open[output.id]
            if output.finish in ("stop", "length"):
                self._suspects.clear(entry.key)
        entry.call.put(entry.index, output)

    def _fail_open(self, error: EngineDiedError) -> None:
        self._fail_asked(error)
        entries, self._open = list(self._open.values()), {}
        for entry in entries:
            if entry.verdict.done():
                entry.call.put(entry.index, error)
            else:
                entry.verdict.set_exception(error)

    def _set_state(self, state: State) -> None:
        if self.state is State.STOPPED:
            return
        self.state = state

        async def notify() -> None:
            async with self._changed:
                self._changed.notify_all()

        self._notify = asyncio.create_task(notify())


def _keys(requests: Sequence[wire.Generate], param: str) -> list[bytes]:
    try:
        return [content_key(request) for request in requests]
    except WireError as error:
        raise RequestError(error.message, param=param, code="invalid_value") from error


def not_ready(state: State) -> RequestError:
    """Return the 503 that clients know how to wait out."""
    message = (
        "Loading model" if state in (State.LOADING, State.RESTARTING) else "Engine unavailable"
    )
    return RequestError(
        message,
        status=503,
        type="unavailable_error",
        code="model_loading",
        retry_after_s=LOADING_RETRY_S if state is State.LOADING else 2,
    )


def _reap(process: subprocess.Popen[bytes]) -> int:
    """Wait for a child whose socket has closed; kill it if it lingers. Returns its exit code."""
    try:
        return process.wait(STOP_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _end_process(process: subprocess.Popen[bytes]) -> None:
    for signal_it in (None, process.terminate, process.kill):
        if signal_it is not None:
            signal_it()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_PATIENCE_S if signal_it is None else 2.0)
            return
    process.wait()
