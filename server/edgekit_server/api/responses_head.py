"""The response object before there is an answer in it."""

from __future__ import annotations

import time
from typing import cast

from pydantic import JsonValue as Json

from ..engine.wire import Sampling
from ..errors import ServerError
from .responses_out import Typed, Writer, new_id
from .responses_schema import ResponsesRequest
from .responses_tools import Toolbox


def head_of(body: ResponsesRequest, shown: Toolbox, model_id: str) -> dict[str, Json]:
    """Return the response object without what the answer adds: true values, not the asked ones."""
    default = Sampling()
    verbosity = body.text.verbosity if body.text else None
    return {
        "id": new_id("response"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens or body.max_tokens,
        "max_tool_calls": None,
        "metadata": cast("Json", body.metadata or {}),
        "model": model_id,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {
            "effort": body.reasoning.effort if body.reasoning else None,
            "summary": None,
        },
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": default.temperature if body.temperature is None else body.temperature,
        "text": {"format": _format(body), "verbosity": verbosity or "medium"},
        "tool_choice": body.tool_choice or "auto",
        "tools": shown.echo(),
        "top_logprobs": body.top_logprobs or 0,
        "top_p": default.top_p if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }


def _format(body: ResponsesRequest) -> Json:
    given = body.text.format if body.text else None
    if given is None or given.type != "json_schema":
        return {"type": given.type if given else "text"}
    said = given.model_dump(exclude_none=True, exclude={"schema_"})
    return {**said, "schema": given.schema_}


def refused(code: str, message: str) -> list[Typed]:
    """Return the events of a request that was refused after its stream had to begin.

    Codex knows `response.failed` only: after an `error` event it asks five times more.
    """
    head = head_of(ResponsesRequest.model_validate({"input": "", "store": False}), Toolbox(), "")
    writer = Writer(head, Toolbox())
    return [*writer.begin(), *writer.fail(ServerError(message, code=code))]
