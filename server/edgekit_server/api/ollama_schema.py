"""What Ollama's clients send, and the same as one of our own requests. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, cast

from pydantic import Field, ValidationError
from pydantic import JsonValue as Json

from ..errors import RequestError
from .body import invalid
from .params import MOST_TOKENS
from .schema import ChatRequest, Lenient

Name = Annotated[str, Field(min_length=1)]
Think = bool | Literal["low", "medium", "high"]

LATEST = ":latest"
"""The tag that Ollama's clients put behind a name that has none."""
_SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "stop", "repeat_penalty",
    "repeat_last_n", "presence_penalty", "frequency_penalty", "mirostat", "mirostat_tau",
    "mirostat_eta",
)  # fmt: skip
"""Options whose name and meaning are ours too. The others (num_ctx, num_gpu, num_thread, ...) set
up a model, which is done when a request comes; nothing is ever cut to num_ctx."""


class CallFunction(Lenient):
    name: Name
    arguments: dict[str, Json] | str | None = None


class Call(Lenient):
    function: CallFunction
    id: str | None = None


class Message(Lenient):
    role: str
    content: Json = None
    thinking: str | None = None
    images: list[Json] | None = None
    tool_calls: list[Call] | None = None
    tool_name: str | None = None
    name: str | None = None
    """What older clients send instead of `tool_name`."""
    tool_call_id: str | None = None


class Asking(Lenient):
    """Fields that chat and generate share. A stream, unless told otherwise."""

    model: Name
    stream: bool | None = None
    format: str | dict[str, Json] | None = None
    options: dict[str, Json] | None = None
    think: Think | None = None
    keep_alive: str | float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @property
    def streams(self) -> bool:
        return self.stream is not False

    @property
    def lets_go(self) -> bool:
        """Whether the client needs the model no longer: it keeps it alive for no time."""
        given = self.keep_alive
        return given == 0 or (isinstance(given, str) and given.strip("hmsuµn") in ("0", "0.0"))


class ChatBody(Asking):
    messages: list[Message] | None = None
    tools: list[dict[str, Json]] | None = None


class GenerateBody(Asking):
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    raw: bool | None = None
    images: list[Json] | None = None


class ShowBody(Lenient):
    model: str | None = None
    name: str | None = None
    """What `model` was called before."""


class EmbedBody(Lenient):
    model: Name
    input: str | list[str] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None


class EmbeddingsBody(Lenient):
    model: Name
    prompt: str | None = None


def spellings(name: str) -> tuple[str, str]:
    """Return the names to look for: the one given, and with the tag `latest` added or taken off."""
    return name, name.removesuffix(LATEST) if name.endswith(LATEST) else name + LATEST


def listed_name(model_id: str) -> str:
    """Return a model's name with a tag, as Ollama lists it: Open WebUI looks for no other."""
    return model_id if ":" in model_id else model_id + LATEST


def no_images(images: Sequence[Json] | None, where: str) -> None:
    """Raise RequestError where there are any."""
    if images:
        raise RequestError(
            f"{where}: this model takes text only", code="unsupported_content", param=where
        )


def turns(messages: Sequence[Message]) -> list[dict[str, Json]]:
    """Return OpenAI's form: calls have ids, and results name the call that they answer.

    Ollama's clients may send neither: then a result belongs to the first call of its name that
    has none yet, or to the first call if it names none. RequestError for images.
    """
    made: list[dict[str, Json]] = []
    waiting: list[tuple[str, str]] = []
    for at, message in enumerate(messages):
        no_images(message.images, f"messages[{at}].images")
        turn: dict[str, Json] = {"role": message.role, "content": message.content}
        if message.thinking:
            turn["reasoning_content"] = message.thinking
        if message.tool_calls:
            calls = [
                {
                    "id": call.id or f"call.{at}.{number}",
                    "type": "function",
                    "function": call.function.model_dump(),
                }
                for number, call in enumerate(message.tool_calls)
            ]
            turn["tool_calls"] = cast("Json", calls)
            named = zip(calls, message.tool_calls, strict=True)
            waiting = [(str(made["id"]), call.function.name) for made, call in named]
        if message.role == "tool":
            name = message.tool_name or message.name
            answered = message.tool_call_id or _first(waiting, name)
            waiting = [pair for pair in waiting if pair[0] != answered]
            turn |= {"tool_call_id": answered} if answered else {}
            turn |= {"name": name} if name else {}
        made.append(turn)
    return made


def request_of(
    body: Asking,
    name: str,
    messages: list[dict[str, Json]],
    tools: list[dict[str, Json]] | None = None,
) -> ChatRequest:
    """Return our request for a model called `name`. RequestError names the option at fault."""
    options = body.options or {}
    if body.top_logprobs and not body.logprobs:
        raise RequestError(
            "top_logprobs needs logprobs to be true", code="invalid_value", param="top_logprobs"
        )
    fields: dict[str, object] = {
        **{key: options[key] for key in _SAMPLING if options.get(key) is not None},
        "model": name,
        "messages": messages,
        "tools": tools or None,
        "max_tokens": _limit(options.get("num_predict")),
        "response_format": _format(body.format),
        "logprobs": body.logprobs,
        "top_logprobs": body.top_logprobs or None,
        "stream": True,  # Each token when it is there: the durations of an answer count from it.
    }
    if body.think is not None:
        fields["chat_template_kwargs"] = {"enable_thinking": bool(body.think)}
        fields["reasoning_effort"] = body.think if isinstance(body.think, str) else None
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise invalid(error) from None


def _first(waiting: Sequence[tuple[str, str]], name: str | None) -> str | None:
    return next((call_id for call_id, called in waiting if name in (None, called)), None)


def _limit(num_predict: Json) -> int | None:
    """Return the most tokens of an answer; 0 and below (-1 endless, -2 to the end of the context)
    mean all the room there is."""
    if num_predict is None:
        return None
    whole = isinstance(num_predict, int) and not isinstance(num_predict, bool)
    if isinstance(num_predict, float):
        whole = num_predict.is_integer() or math.isinf(num_predict)
    if not whole:
        raise RequestError(
            "options.num_predict must be a whole number",
            code="invalid_value",
            param="options.num_predict",
        )
    number = cast("float", num_predict)
    return int(min(number, MOST_TOKENS)) if number >= 1 else None


def _format(given: str | dict[str, Json] | None) -> dict[str, Json] | None:
    if given is None or given == "":
        return None
    if isinstance(given, dict):
        return {"type": "json_schema", "json_schema": {"schema": given}}
    if given != "json":
        raise RequestError(
            'format must be "json" or a JSON schema', code="invalid_value", param="format"
        )
    return {"type": "json_object"}
