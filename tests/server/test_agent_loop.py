"""The embedded model itself makes three chained tool calls through the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.http_server import config_for, running
from tests.support.pocket import convert_pocket


def _tool(name: str, about: str, /, **parameters: str) -> dict[str, Any]:
    properties = {
        key: {"type": "number", "description": key}
        if text == "number"
        else {"type": "string", "description": text}
        for key, text in parameters.items()
    }
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    function = {"name": name, "description": about, "parameters": schema}
    return {"type": "function", "function": function}


TOOLS = {
    tool["function"]["name"]: tool
    for tool in (
        _tool("get_weather", "Current weather in a city", city="city name"),
        _tool("find_file", "Find a file by name and return its path", name="file name"),
        _tool("read_file", "Return the text of a file", path="path of the file"),
        _tool("write_file", "Write text to a file", path="path of the file", text="text to write"),
        _tool("count_lines", "Count the lines of a file", path="path of the file"),
        _tool("lookup_user", "Return a person's e-mail address", name="first name"),
        _tool("send_message", "Send a text message", to="name or address", text="text to send"),
        _tool("add", "Add two numbers", a="number", b="number"),
        _tool("multiply", "Multiply two numbers", a="number", b="number"),
        _tool("service_status", "State of a service", service="service name"),
        _tool("restart_service", "Restart a service", service="service name"),
    )
}


@dataclass(frozen=True, slots=True)
class Task:
    user: str
    steps: tuple[tuple[str, dict[str, Any], str], ...]
    """Name, arguments, and what the tool answers."""


TASKS = (
    Task(
        "Find report.txt, count its lines and send the number to Grace.",
        (
            ("find_file", {"name": "report.txt"}, "/docs/report.txt"),
            ("count_lines", {"path": "/docs/report.txt"}, "42"),
            ("send_message", {"to": "Grace", "text": "42 lines"}, "sent"),
        ),
    ),
    Task(
        "Copy the text of config.ini into /backup/config.txt.",
        (
            ("find_file", {"name": "config.ini"}, "/etc/config.ini"),
            ("read_file", {"path": "/etc/config.ini"}, "green door"),
            ("write_file", {"path": "/backup/config.txt", "text": "green door"}, "ok"),
        ),
    ),
    Task(
        "Look up Ada and send the weather in Bern there.",
        (
            ("lookup_user", {"name": "Ada"}, "ada@harbor.org"),
            ("get_weather", {"city": "Bern"}, '{"degrees": 12, "sky": "sunny"}'),
            ("send_message", {"to": "ada@harbor.org", "text": "12 degrees, sunny"}, "sent"),
        ),
    ),
    Task(
        "Check nginx, restart it and tell Linus.",
        (
            ("service_status", {"service": "nginx"}, "failed"),
            ("restart_service", {"service": "nginx"}, "running"),
            ("send_message", {"to": "Linus", "text": "nginx was failed, now running"}, "sent"),
        ),
    ),
    Task(
        "Add 12 and 30, multiply the sum by 2 and send the result to Olga.",
        (
            ("add", {"a": 12, "b": 30}, "42"),
            ("multiply", {"a": 42, "b": 2}, "84"),
            ("send_message", {"to": "Olga", "text": "84"}, "sent"),
        ),
    ),
)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    path: Path = convert_pocket(tmp_path_factory.mktemp("pocket"))
    config = config_for(path)
    config = replace(config, engine=replace(config.engine, model_id="pocket"))
    with (
        running(config) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
    ):
        yield client


def _play(api: openai.OpenAI, task: Task) -> bool:
    """Return whether the model made exactly the task's calls, in order, and then answered."""
    messages: list[Any] = [{"role": "user", "content": task.user}]
    tools: Any = [TOOLS[name] for name in sorted({name for name, _, _ in task.steps})]
    for name, arguments, result in task.steps:
        try:
            with api.chat.completions.stream(
                model="pocket", messages=messages, tools=tools, temperature=0, max_tokens=96
            ) as stream:
                choice = stream.get_final_completion().choices[0]
        except openai.LengthFinishReasonError:
            return False
        calls = choice.message.tool_calls or []
        if [(c.function.name, json.loads(c.function.arguments)) for c in calls] != [
            (name, arguments)
        ]:
            return False
        assert choice.finish_reason == "tool_calls"
        messages += [
            choice.message.model_dump(exclude_none=True, exclude={"parsed"}),
            {"role": "tool", "tool_call_id": calls[0].id, "content": result},
        ]
    last = api.chat.completions.create(
        model="pocket", messages=messages, tools=tools, temperature=0, max_tokens=96
    )
    return last.choices[0].finish_reason == "stop" and bool(last.choices[0].message.content)


def test_the_model_chains_three_calls(api: openai.OpenAI) -> None:
    finished = [_play(api, task) for task in TASKS]
    assert sum(finished) >= 3, finished
