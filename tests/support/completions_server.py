"""A little completions server whose timing and manners a test sets, on a real socket."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Manners:
    """How the server behaves. Delays are seconds; counts are tokens."""

    prefill_s: float = 0.0
    token_s: float = 0.0
    tokens_per_event: int = 1
    token_burst: int = 1
    """Events of this many tokens leave in one write, as from a server that fell behind."""
    running_usage: bool = False
    says_usage: bool = True
    cached_tokens: int | None = 0
    takes_ids: bool = True
    tokens_per_word: int = 1
    extra_prompt_tokens: int = 0
    """What the server adds to each prompt (a BOS token)."""
    obeys_ignore_eos: bool = True
    short_answer: int = 5
    api_key: str | None = None
    model: str = "tiny"
    max_prompt: int = 100_000
    fail_with: dict[int, str] = field(default_factory=dict)
    """Number of the measured request (from 0) -> `503`, `cut`, `error`, `hang`, `empty`."""
    seen: list[dict[str, object]] = field(default_factory=list)
    n_measured: int = 0


@contextmanager
def completions_server(manners: Manners) -> Iterator[str]:
    """Serve on a free loopback port in a thread; yields the base URL without /v1."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    ports: list[int] = []
    stop = asyncio.Event()

    async def main() -> None:
        tasks: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await _serve_one(reader, writer, manners):
                    pass
            writer.close()
            tasks.discard(task)

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        await stop.wait()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    assert ready.wait(10)
    try:
        yield f"http://127.0.0.1:{ports[0]}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


async def _serve_one(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, manners: Manners
) -> bool:
    """Answer one request; False closes the connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    body = json.loads(await reader.readexactly(int(headers.get("content-length", "0"))))
    manners.seen.append(body)
    path = head.split(" ")[1]
    refusal = _refusal(path, headers, body, manners)
    if refusal is not None:
        status, code, message = refusal
        await _plain(writer, status, {"error": {"code": code, "message": message}})
        return True
    if not body.get("stream"):
        await _plain(writer, 200, {"choices": [{"text": "x"}]})
        return True
    fault = None
    if body["max_tokens"] > 4:
        fault = manners.fail_with.get(manners.n_measured)
        manners.n_measured += 1
    if fault == "503":
        await _plain(writer, 503, {"error": {"code": "queue_full", "message": "busy"}})
        return True
    return await _stream(writer, body, manners, fault)


def _refusal(
    path: str, headers: dict[str, str], body: dict[str, object], manners: Manners
) -> tuple[int, str, str] | None:
    if path != "/v1/completions":
        return 404, "not_found", "no such path"
    if manners.api_key and headers.get("authorization") != f"bearer {manners.api_key}":
        return 401, "invalid_api_key", "wrong key"
    if body["model"] != manners.model:
        return 404, "model_not_found", "no such model"
    prompt = body["prompt"]
    if isinstance(prompt, list) and not manners.takes_ids:
        return 400, "bad_prompt", "prompt must be a string"
    if _prompt_tokens(prompt, manners) > manners.max_prompt:
        return 400, "context_length_exceeded", "This model's maximum context length is exceeded."
    return None


def _prompt_tokens(prompt: object, manners: Manners) -> int:
    assert isinstance(prompt, list | str)
    own = len(prompt) if isinstance(prompt, list) else len(prompt.split()) * manners.tokens_per_word
    return own + manners.extra_prompt_tokens


async def _stream(
    writer: asyncio.StreamWriter, body: dict[str, object], manners: Manners, fault: str | None
) -> bool:
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    wanted = body["max_tokens"]
    assert isinstance(wanted, int)
    count = wanted if manners.obeys_ignore_eos else min(wanted, manners.short_answer)
    usage: dict[str, object] = {
        "prompt_tokens": _prompt_tokens(body["prompt"], manners),
        "completion_tokens": count,
    }
    if manners.cached_tokens is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": manners.cached_tokens}
    if fault == "hang":
        await asyncio.sleep(30)
    await asyncio.sleep(manners.prefill_s)
    done = 0
    held: list[bytes] = []
    while done < count and fault != "empty":
        if done:
            await asyncio.sleep(manners.token_s * min(manners.tokens_per_event, count - done))
        done = min(count, done + manners.tokens_per_event)
        event: dict[str, object] = {"choices": [{"index": 0, "text": "ab ", "finish_reason": None}]}
        if manners.running_usage:
            event["usage"] = {"completion_tokens": done}
        held.append(_framed(event))
        if len(held) == manners.token_burst or done == count:
            writer.write(b"".join(held))
            await writer.drain()
            held.clear()
        if done >= count // 2 and fault == "cut":
            return False
        if done >= count // 2 and fault == "error":
            await _event(writer, {"error": {"code": "engine_died", "message": "gone"}})
            break
    await _event(writer, {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
    if manners.says_usage:
        await _event(writer, {"choices": [], "usage": usage})
    writer.write(_framed(None) + b"0\r\n\r\n")
    await writer.drain()
    return True


async def _event(writer: asyncio.StreamWriter, event: dict[str, object]) -> None:
    writer.write(_framed(event))
    await writer.drain()


def _framed(event: dict[str, object] | None) -> bytes:
    """One server-sent event as one HTTP chunk; None is the end of the stream."""
    data = f"data: {'[DONE]' if event is None else json.dumps(event)}\n\n".encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def _plain(writer: asyncio.StreamWriter, status: int, body: dict[str, object]) -> None:
    data = json.dumps(body).encode()
    writer.write(
        f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n".encode()
        + data
    )
    await writer.drain()
