"""Read a request: bounded body, strict JSON, validated; and notice when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from ..errors import RequestError
from ..holding import present

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

OFF_LOOP_BYTES = 256 * 1024
"""Larger bodies are parsed in a thread, so that other streams keep their pace."""


class ClientGoneError(Exception):
    """The client closed the connection; nobody reads an answer."""


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the whole body; RequestError 413 beyond `max_bytes`."""
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise too_large(max_bytes)
        if not message.get("more_body", False):
            return bytes(body)


def too_large(max_bytes: int) -> RequestError:
    """Return the 413."""
    return RequestError(
        f"the request body is larger than {max_bytes} bytes", status=413, code="request_too_large"
    )


async def read_model(request: Request, kind: type[M]) -> M:
    """Read and validate a JSON body, whatever its content type says."""
    body = await read_body(request, request.app.state.config.max_body_bytes)
    try:
        if len(body) > OFF_LOOP_BYTES:
            read = await asyncio.to_thread(kind.model_validate_json, body)
        else:
            read = kind.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None
    holder = present()
    if holder is not None:
        holder.streams = getattr(read, "stream", None) is True
    return read


def body_document(kind: type[BaseModel]) -> dict[str, object]:
    """Return what the OpenAPI document says about a body that `read_model` reads.

    `document.py` moves the schema's parts to where its references point.
    """
    schema = kind.model_json_schema(ref_template=f"#/components/schemas/{kind.__name__}.{{model}}")
    content = {"application/json": {"schema": schema}}
    streams = "stream" in kind.model_fields
    return {"requestBody": {"required": True, "content": content}, "x-streams": streams}


def invalid(error: ValidationError) -> RequestError:
    """Turn pydantic's findings into one error that names the first field at fault."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return RequestError(f"the body is not valid JSON: {first['msg']}", code="invalid_json")
    where = ""
    for part in first["loc"]:
        # Branches of a union show up as type names; they are not the client's fields.
        if isinstance(part, int):
            where += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "ToolChoice"):
            where += f".{part}" if where else part
    others = error.error_count() - 1
    more = f" (and {others} more)" if others else ""
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return RequestError(f"{where or 'body'}: {first['msg']}{more}", code=code, param=where or None)


async def while_connected(request: Request, work: Coroutine[object, object, T]) -> T:
    """Run `work`; cancel it and raise ClientGoneError when the client closes the connection.

    The body must have been read, so that the next message can only be the disconnect.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        watch.cancel()
        task.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
