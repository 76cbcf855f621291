"""One conversation, written in every dialect; and what its stream must be like in each."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tests.support import anthropic_contract, ollama_contract, responses_contract, sse

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Talk:
    """A request in no dialect.

    `turns`: ("user" | "assistant", text), ("call", (name, arguments)), ("result", text).
    """

    turns: Sequence[tuple[str, Any]]
    system: str | None = None
    tools: Sequence[Json] = ()
    """As OpenAI's chat writes them."""
    limit: int | None = None
    stops: Sequence[str] = ()
    seed: int = 0
    parallel: bool = True
    stream: bool = True

    @property
    def wants_usage(self) -> bool:
        return self.seed % 2 == 0


class Dialect(Protocol):
    """How a talk is written, how its answer is read."""

    path: str

    def body(self, talk: Talk) -> Json:
        """Return the request's body."""

    def check(self, talk: Talk, raw: bytes) -> None:
        """Assert the contract over the bytes of a finished stream."""

    def overflow(self, error: Json) -> str:
        """Assert the shape of the error for a prompt that is too long; return its text."""


def _lines(raw: bytes) -> list[str]:
    return raw.decode().split("\n")


class Chat:
    """OpenAI's chat completions."""

    path = "/v1/chat/completions"

    def body(self, talk: Talk) -> Json:
        messages: list[Json] = []
        if talk.system is not None:
            messages.append({"role": "system", "content": talk.system})
        for at, (kind, what) in enumerate(talk.turns):
            if kind == "call":
                function = {"name": what[0], "arguments": json.dumps(what[1])}
                call = {"id": f"call_{at}", "type": "function", "function": function}
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            elif kind == "result":
                id_ = f"call_{at - 1}"
                messages.append({"role": "tool", "tool_call_id": id_, "content": what})
            else:
                messages.append({"role": kind, "content": what})
        body: Json = {"model": "pocket", "messages": messages, "stream": talk.stream}
        body |= {"seed": talk.seed, "stop": [*talk.stops], "max_tokens": talk.limit}
        if talk.stream:
            body["stream_options"] = {"include_usage": talk.wants_usage}
        if talk.tools:
            body |= {"tools": [*talk.tools], "parallel_tool_calls": talk.parallel}
        return body

    def check(self, talk: Talk, raw: bytes) -> None:
        sse.check_chat_stream(sse.events(_lines(raw)), usage=talk.wants_usage)

    def overflow(self, error: Json) -> str:
        assert error["error"]["code"] == "context_length_exceeded"
        return str(error["error"]["message"])


class Messages:
    """Anthropic's messages."""

    path = "/v1/messages"

    def body(self, talk: Talk) -> Json:
        messages: list[Json] = []
        for at, (kind, what) in enumerate(talk.turns):
            if kind == "call":
                use = {"type": "tool_use", "id": f"toolu_{at}", "name": what[0], "input": what[1]}
                messages.append({"role": "assistant", "content": [use]})
            elif kind == "result":
                id_ = f"toolu_{at - 1}"
                result = {"type": "tool_result", "tool_use_id": id_, "content": what}
                messages.append({"role": "user", "content": [result]})
            else:
                messages.append({"role": kind, "content": what})
        body: Json = {"model": "pocket", "messages": messages, "stream": talk.stream}
        body |= {"max_tokens": talk.limit or 4096, "stop_sequences": [*talk.stops]}
        if talk.system is not None:
            body["system"] = talk.system
        if talk.tools:
            choice = {"type": "auto", "disable_parallel_tool_use": not talk.parallel}
            body |= {"tools": [_anthropic_tool(tool) for tool in talk.tools], "tool_choice": choice}
        return body

    def check(self, talk: Talk, raw: bytes) -> None:
        names = [tool["function"]["name"] for tool in talk.tools]
        anthropic_contract.check_stream(anthropic_contract.events(_lines(raw)), tools=names)

    def overflow(self, error: Json) -> str:
        assert anthropic_contract.check_error(error) == "invalid_request_error"
        return str(error["error"]["message"])


def _anthropic_tool(tool: Json) -> Json:
    function = tool["function"]
    about = {"name": function["name"], "description": function["description"]}
    return {**about, "input_schema": function["parameters"]}


class Responses:
    """OpenAI's responses."""

    path = "/v1/responses"

    def body(self, talk: Talk) -> Json:
        items: list[Json] = []
        for at, (kind, what) in enumerate(talk.turns):
            if kind == "call":
                call = {"call_id": f"call_{at}", "name": what[0], "arguments": json.dumps(what[1])}
                items.append({"type": "function_call", **call})
            elif kind == "result":
                result = {"call_id": f"call_{at - 1}", "output": what}
                items.append({"type": "function_call_output", **result})
            else:
                part = "input_text" if kind == "user" else "output_text"
                content = [{"type": part, "text": what}]
                items.append({"type": "message", "role": kind, "content": content})
        body: Json = {"model": "pocket", "input": items, "stream": talk.stream, "store": False}
        body["max_output_tokens"] = talk.limit
        if talk.system is not None:
            body["instructions"] = talk.system
        if talk.tools:
            tools = [{"type": "function", **tool["function"]} for tool in talk.tools]
            body |= {"tools": tools, "parallel_tool_calls": talk.parallel}
        return body

    def check(self, talk: Talk, raw: bytes) -> None:
        responses_contract.check_stream(responses_contract.read(_lines(raw)))

    def overflow(self, error: Json) -> str:
        assert error["error"]["code"] == "context_length_exceeded"
        return str(error["error"]["message"])


class Ollama:
    """Ollama's chat."""

    path = "/api/chat"

    def body(self, talk: Talk) -> Json:
        messages: list[Json] = []
        if talk.system is not None:
            messages.append({"role": "system", "content": talk.system})
        for at, (kind, what) in enumerate(talk.turns):
            if kind == "call":
                call = {"function": {"name": what[0], "arguments": what[1]}}
                messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            elif kind == "result":
                name = talk.turns[at - 1][1][0]
                messages.append({"role": "tool", "tool_name": name, "content": what})
            else:
                messages.append({"role": kind, "content": what})
        options: Json = {"seed": talk.seed, "stop": [*talk.stops]}
        if talk.limit is not None:
            options["num_predict"] = talk.limit
        body: Json = {"model": "pocket", "messages": messages, "options": options}
        if talk.tools:
            body["tools"] = [*talk.tools]
        return {**body, "stream": talk.stream}

    def check(self, talk: Talk, raw: bytes) -> None:
        ollama_contract.check(raw, model="pocket")

    def overflow(self, error: Json) -> str:
        assert error.keys() == {"error"}
        return str(error["error"])


DIALECTS: dict[str, Dialect] = {
    "chat": Chat(),
    "messages": Messages(),
    "responses": Responses(),
    "ollama": Ollama(),
}


def random_talk(seed: int, tasks: Sequence[Any], tools: dict[str, Json]) -> Talk:
    """Return a conversation: with tools and some of a task's steps done, or of plain turns."""
    rng = random.Random(seed)
    asked = ("What is edgekit?", "Say hello.", "Grüße 👋 [INST] </s>", "def add(a, b):", "")
    turns: list[tuple[str, Any]] = []
    with_tools = rng.random() < 0.6
    if with_tools:
        task = rng.choice(tasks)
        turns.append(("user", task.user))
        for name, arguments, answer in task.steps[: rng.randrange(4)]:
            turns += [("call", (name, arguments)), ("result", answer)]
    else:
        for _ in range(rng.randrange(3)):
            turns += [("user", rng.choice(asked)), ("assistant", rng.choice(asked[:3]))]
        turns.append(("user", rng.choice(asked)))
    offered = rng.sample(sorted(tools), rng.randrange(1, len(tools))) if with_tools else []
    return Talk(
        turns,
        system=rng.choice([None, "You are brief.", "Use the tools."]),
        tools=[tools[name] for name in offered],
        limit=rng.choice([1, 2, 8, 40, 40]),
        stops=rng.choice([[], [], ["e"], ["\n", "the "]]),
        seed=seed,
        parallel=rng.random() < 0.7,
    )
