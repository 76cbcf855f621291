"""Constrained answers over real HTTP, from a real engine whose weights have learnt nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pydantic
import pytest

from edgekit_server.app import Server
from tests.support import sse
from tests.support.gguf_models import vocabulary, write_model
from tests.support.http_server import config_for, running
from tests.support.pocket import SOURCE, convert_pocket

MARKERS = {
    "mistral-v7": ["[TOOL_CALLS]"],
    "mistral-v11": ["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"],
    "mistral-v13": ["[TOOL_CALLS]", "[ARGS]"],
}
THINK = ["[THINK]", "[/THINK]"]
TEMPLATE = "{{ bos_token }}{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}"
CITY = {"type": "string", "maxLength": 12}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"enum": [1, 2, 5]}},
                "required": ["city", "days"],
                "$defs": {"city": CITY},
            },
        },
    },
    {"type": "web_search"},
    {"type": "function", "function": {"name": "get_time"}},
    {
        "type": "function",
        "function": {
            "name": 'say "it"\\now',
            "parameters": {
                "type": "object",
                "properties": {"words": {"type": "array", "items": CITY, "maxItems": 3}},
                "required": ["words"],
            },
        },
    },
]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
PARAMETERS = {
    t["function"]["name"]: t["function"].get("parameters", {"additionalProperties": False})
    for t in TOOLS
    if "function" in t
}
FAR = 1200
FIRST_MORE = len(vocabulary())
"""The id of a test model's first additional control token: [TOOL_CALLS]."""


def _template(family: str, end: str = "") -> str:
    # The name of a marker is all that the family is told by.
    return TEMPLATE + "{% if false %}" + "".join(MARKERS[family]) + "{% endif %}" + end


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("random")


def _serve(path: Path) -> Any:
    config = config_for(path, keepalive_s=0.5)
    return running(replace(config, engine=replace(config.engine, n_seq_max=4, n_ctx=8192)))


@pytest.fixture(scope="module", params=list(MARKERS))
def family(request: pytest.FixtureRequest, folder: Path) -> Iterator[Server]:
    name = request.param
    path = folder / f"{name}.gguf"
    write_model(path, more_control=[*MARKERS[name], *THINK], template=_template(name))
    with _serve(path) as server:
        yield server


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    path = folder / "plain.gguf"
    write_model(path, more_control=MARKERS["mistral-v13"], template=_template("mistral-v13"))
    with _serve(path) as server:
        yield server


@pytest.fixture(scope="module")
def thinker(folder: Path) -> Iterator[Server]:
    """Its template has opened the reasoning when the answer begins."""
    path = folder / "thinker.gguf"
    template = _template("mistral-v13", end="[THINK]")
    write_model(path, more_control=[*MARKERS["mistral-v13"], *THINK], template=template)
    with _serve(path) as server:
        yield server


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not list(SOURCE.glob("*.safetensors")):
        pytest.skip("pocket's weights are not built yet")
    with _serve(convert_pocket(tmp_path_factory.mktemp("pocket"))) as server:
        yield server


@pytest.fixture
def api(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        yield client


def _chat(server: Server, **more: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "Say it."}], "max_tokens": FAR, **more}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)


def _answer(server: Server, **more: Any) -> Any:
    response = _chat(server, **more)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def _format(schema: object) -> dict[str, Any]:
    made = {"name": "x", "strict": True, "schema": schema}
    return {"type": "json_schema", "json_schema": made}


def _random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """Return a schema whose answers are of bounded length, but for the digits of a number."""
    kinds = ["string", "integer", "number", "enum", "const", "null"]
    kind = rng.choice([*kinds, "array", "object", "object", "any"] if depth < 3 else kinds)
    texts = ["a", "zwölf", "日本", "😀", 'q"uote', "back\\slash", "new\nline", ""]
    low = rng.randint(-1000, 1000)
    match kind:
        case "string":
            patterns = ["^[A-Z]{2}-[0-9]{3}$", "^(ja|nein)$", "^[α-ω]{1,5}$"]
            return rng.choice(
                [
                    {"type": "string", "maxLength": rng.randint(0, 15)},
                    {"type": "string", "pattern": rng.choice(patterns)},
                    {"type": "string", "format": rng.choice(["date", "uuid", "ipv4"])},
                ]
            )
        case "integer":
            return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 500)}
        case "number":
            return {"type": "number", "minimum": low / 8, "maximum": low / 8 + rng.randint(1, 9)}
        case "enum":
            return {"enum": rng.sample([*texts, 1, -2.5, None, True, [1, "x"]], 3)}
        case "const":
            return {"const": rng.choice([*texts, {"a": [1, 2, {"b": None}]}])}
        case "array":
            least = rng.randint(0, 2)
            most = least + rng.randint(0, 3)
            items = _random_schema(rng, depth + 1)
            return {"type": "array", "items": items, "minItems": least, "maxItems": most}
        case "object":
            names = rng.sample([*texts[1:], "x", "y z", "naïve", "$ref"], rng.randint(0, 4))
            properties = {name: _random_schema(rng, depth + 1) for name in names}
            required = [name for name in names if rng.random() < 0.7]
            return {"type": "object", "properties": properties, "required": required}
        case "any":
            return {"anyOf": [_random_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]}
    return {"type": "null"}


def _check_outputs(server: Server, n: int, seed: int, *, loops: bool = False) -> None:
    """`loops`: the model may write digits for ever, as small ones do; then it must say so."""
    rng = random.Random(seed)
    with httpx.Client(base_url=server.url, timeout=120) as client:
        for turn in range(n):
            schema = _random_schema(rng)
            body = {
                "messages": [{"role": "user", "content": f"Turn {turn}."}],
                "response_format": _format(schema),
                "max_tokens": 1000,
                "seed": turn,
                **rng.choice([{}, {"temperature": 0}, {"temperature": 1.5, "top_k": 0}]),
            }
            response = client.post("/v1/chat/completions", json=body)
            assert response.status_code == 200, (schema, response.text)
            choice = response.json()["choices"][0]
            if loops and '"number"' in json.dumps(schema) and choice["finish_reason"] == "length":
                continue
            assert choice["finish_reason"] == "stop", (schema, choice)
            jsonschema.validate(json.loads(choice["message"]["content"]), schema)


def test_50_outputs_fit_their_schemas(server: Server) -> None:
    _check_outputs(server, 50, seed=1)


@pytest.mark.slow
def test_500_outputs_fit_their_schemas(server: Server) -> None:
    _check_outputs(server, 500, seed=2)


def test_pocket_s_outputs_fit_too(pocket: Server) -> None:
    _check_outputs(pocket, 15, seed=3, loops=True)


class Item(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=10)
    price: float = pydantic.Field(ge=0, le=1000)


class Order(pydantic.BaseModel):
    items: list[Item] = pydantic.Field(max_length=3)
    state: str = pydantic.Field(pattern="^(open|paid)$")
    note: str | None = pydantic.Field(max_length=10)


def test_the_official_client_parses_its_models(api: openai.OpenAI) -> None:
    answer = api.chat.completions.parse(
        model="tiny",
        messages=[{"role": "user", "content": "An order."}],
        response_format=Order,
        max_tokens=FAR,
    )
    assert isinstance(answer.choices[0].message.parsed, Order)


def test_the_official_client_streams_them(api: openai.OpenAI) -> None:
    with api.chat.completions.stream(
        model="tiny",
        messages=[{"role": "user", "content": "An order."}],
        response_format=Order,
        max_tokens=FAR,
    ) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Order)


SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 22, 333]}}, "required": ["n"]}
SAME: list[tuple[str, dict[str, Any]]] = [
    ("openai", {"response_format": _format(SCHEMA)}),
    ("beside the type", {"response_format": {"type": "json_schema", "schema": SCHEMA}}),
    ("llama.cpp format", {"response_format": {"type": "json_object", "schema": SCHEMA}}),
    ("llama.cpp", {"json_schema": SCHEMA}),
    ("vllm", {"guided_json": SCHEMA}),
    ("vllm text", {"guided_json": json.dumps(SCHEMA)}),
    ("vllm 0.12", {"structured_outputs": {"json": SCHEMA}}),
    ("gbnf", {"grammar": 'root ::= "{\\"n\\": " ("1" | "22" | "333") "}"'}),
    ("lark", {"grammar": '%llguidance {}\nstart: "{\\"n\\": " ("1" | "22" | "333") "}"'}),
    ("vllm gbnf", {"guided_grammar": 'root ::= "{\\"n\\": " ("1" | "22" | "333") "}"'}),
    ("vllm regex", {"guided_regex": r'\{"n": (1|22|333)\}'}),
    ("vllm choice", {"guided_choice": ['{"n": 1}', '{"n": 22}', '{"n": 333}']}),
    ("vllm 0.12 regex", {"structured_outputs": {"regex": r'\{"n": (1|22|333)\}', "json": None}}),
]


@pytest.mark.parametrize("fields", [s[1] for s in SAME], ids=[s[0] for s in SAME])
def test_every_dialect_s_fields(server: Server, fields: dict[str, Any]) -> None:
    assert json.loads(_answer(server, **fields)["message"]["content"])["n"] in (1, 22, 333)
    body = {"prompt": "x", "max_tokens": 100, **fields}
    response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    choice = response.json()["choices"][0]
    assert json.loads(choice["text"])["n"] in (1, 22, 333)
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "text"}},
        {"response_format": None, "grammar": "", "structured_outputs": {}},
        {"structured_outputs": {"regex": None, "disable_any_whitespace": True}},
    ],
)
def test_no_constraint(server: Server, fields: dict[str, Any]) -> None:
    assert _answer(server, max_tokens=5, ignore_eos=True, **fields)["finish_reason"] == "length"


def test_json_object(server: Server) -> None:
    choice = _answer(server, response_format={"type": "json_object"}, max_tokens=200)
    assert choice["message"]["content"].startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)


def test_the_stream_and_the_count_have_the_forced_tokens(server: Server) -> None:
    body = {
        "messages": [{"role": "user", "content": "x"}],
        "guided_choice": ["one fixed answer"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    events = sse.post(f"{server.url}/v1/chat/completions", body)[1]
    sse.check_chat_stream(events, usage=True, n=1)
    text = "".join(
        e["choices"][0]["delta"].get("content", "")
        for e in events
        if e != "[DONE]" and e["choices"]
    )
    assert text == "one fixed answer"
    usage = next(e["usage"] for e in events if e != "[DONE]" and e.get("usage"))
    assert usage["completion_tokens"] == len("one fixed answer") - 2  # " a" and "er" are one each


def test_each_choice_has_its_own_state(server: Server) -> None:
    choices = _chat(server, response_format=_format(SCHEMA), n=6, seed=1).json()["choices"]
    assert len(choices) == 6
    assert all("n" in json.loads(choice["message"]["content"]) for choice in choices)


def test_max_tokens_inside_a_grammar_is_length(server: Server) -> None:
    choice = _answer(server, response_format=_format(SCHEMA), max_tokens=3)
    assert choice["finish_reason"] == "length"
    assert '{"n": 333}'.startswith(choice["message"]["content"][:5])


def test_ignore_eos_does_not_unmake_the_end_of_a_grammar(server: Server) -> None:
    choice = _answer(server, guided_choice=["yes", "no"], ignore_eos=True)
    assert (choice["message"]["content"] in ("yes", "no"), choice["finish_reason"]) == (
        True,
        "stop",
    )


def _deep(depth: int) -> dict[str, Any]:
    return {"items": _deep(depth - 1)} if depth else {}


NESTED = "response_format.json_schema.schema"
VLLM = "structured_outputs"
BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("schema", {"response_format": _format({"type": "x"})}, "invalid_grammar", NESTED),
    ("keyword", {"json_schema": {"not": {}}}, "invalid_grammar", "json_schema"),
    ("deep", {"json_schema": _deep(60)}, "invalid_grammar", "json_schema"),
    ("huge", {"json_schema": {"enum": ["x" * 300_000]}}, "invalid_grammar", "json_schema"),
    ("regex", {"guided_regex": "(["}, "invalid_grammar", "guided_regex"),
    ("lark", {"grammar": "%llguidance {}\nstart: nowhere"}, "invalid_grammar", "grammar"),
    ("gbnf", {"grammar": "root ::= ((("}, "invalid_grammar", "grammar"),
    ("choice", {"guided_choice": []}, "invalid_grammar", "guided_choice"),
    ("json text", {"guided_json": "{"}, "invalid_grammar", "guided_json"),
    ("structured", {VLLM: {"regex": "["}}, "invalid_grammar", f"{VLLM}.regex"),
    ("tags", {VLLM: {"structural_tag": {}}}, "invalid_value", f"{VLLM}.structural_tag"),
    ("two", {"grammar": "root ::= x", "json_schema": {}}, "invalid_value", "grammar"),
    ("type", {"response_format": {"type": "x"}}, "invalid_value", "response_format.type"),
    ("no schema", {"response_format": {"type": "json_schema"}}, "invalid_value", NESTED),
]  # fmt: skip


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
@pytest.mark.parametrize(("fields", "code", "param"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_held_is_refused(
    server: Server, fields: dict[str, Any], code: str, param: str, path: str, stream: bool
) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "prompt": "x", "stream": stream}
    response = httpx.post(f"{server.url}/v1/{path}", json={**body, **fields}, timeout=60)
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert error["param"] == param
    assert _answer(server, guided_choice=["alive"])["message"]["content"] == "alive"


def test_a_grammar_that_grows_too_complex_is_the_client_s_error(server: Server) -> None:
    response = _chat(server, guided_regex="a{1000000}")
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_grammar"
    assert _answer(server, guided_choice=["alive"])["message"]["content"] == "alive"


def _check_calls(choice: Any, names: set[str]) -> list[Any]:
    """All of the answer is calls that the client can run."""
    assert choice["finish_reason"] == "tool_calls", choice
    assert not choice["message"]["content"]
    calls = choice["message"]["tool_calls"]
    for call in calls:
        assert call["function"]["name"] in names
        arguments = json.loads(call["function"]["arguments"])
        assert isinstance(arguments, dict)
        jsonschema.validate(arguments, PARAMETERS[call["function"]["name"]])
        assert len(call["id"]) == 9
    assert calls
    return list(calls)


@pytest.mark.parametrize("seed", range(4))
def test_required_means_calls(family: Server, seed: int) -> None:
    choice = _answer(
        family, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, seed=seed
    )
    assert len(_check_calls(choice, set(PARAMETERS))) == 1


def test_required_allows_several(family: Server) -> None:
    counts = set()
    more = {"2": -4, str(vocabulary().index(",")): 4}  # against an end, for another item
    for seed in range(8):
        choice = _answer(family, tools=TOOLS, tool_choice="required", seed=seed, logit_bias=more)
        if choice["finish_reason"] == "tool_calls":
            counts.add(len(_check_calls(choice, set(PARAMETERS))))
    assert max(counts) > 1


def test_named_means_one_call_of_that_tool(family: Server) -> None:
    for seed in range(4):
        choice = _answer(family, tools=TOOLS, tool_choice=NAMED, seed=seed)
        assert len(_check_calls(choice, {"get_weather"})) == 1


@pytest.mark.parametrize("choose", ["required", NAMED], ids=["required", "named"])
def test_pocket_calls_when_it_must(pocket: Server, choose: Any) -> None:
    names = {"get_weather"} if choose is NAMED else set(PARAMETERS)
    choice = _answer(pocket, tools=TOOLS, tool_choice=choose, parallel_tool_calls=False)
    _check_calls(choice, names)


def test_calls_come_through_a_stream(family: Server) -> None:
    with openai.OpenAI(base_url=f"{family.url}/v1", api_key="x", max_retries=0) as client:
        tools: Any = [tool for tool in TOOLS if "function" in tool]
        named: Any = NAMED
        with client.chat.completions.stream(
            model="tiny",
            messages=[{"role": "user", "content": "x"}],
            tools=tools,
            tool_choice=named,
            max_tokens=FAR,
        ) as stream:
            choice = stream.get_final_completion().choices[0].model_dump()
    _check_calls(choice, {"get_weather"})


def test_auto_leaves_text_free_and_holds_calls(family: Server) -> None:
    """The model is made to like the token that opens a call; what follows must be a call."""
    open_call = FIRST_MORE
    choice = _answer(family, tools=TOOLS, logit_bias={str(open_call): 100}, temperature=0)
    calls = choice["message"].get("tool_calls")
    assert calls
    for call in calls:
        schema = PARAMETERS[call["function"]["name"]]
        jsonschema.validate(json.loads(call["function"]["arguments"]), schema)
    free = _answer(family, tools=TOOLS, logit_bias={str(open_call): -100}, max_tokens=20)
    assert free["message"]["content"]


def test_auto_takes_schemas_that_cannot_be_held(family: Server) -> None:
    """Agents send them; nothing was promised about the arguments."""
    odd = {"type": "function", "function": {"name": "odd", "parameters": {"not": {}}}}
    free = _answer(family, tools=[*TOOLS, odd], max_tokens=5)
    assert free["finish_reason"] in ("length", "stop", "tool_calls")
    response = _chat(family, tools=[*TOOLS, odd], tool_choice="required")
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["code"], error["param"]) == ("invalid_grammar", "tools[4].function.parameters")


def test_tools_with_a_schema_for_the_text(family: Server) -> None:
    for seed in range(6):
        choice = _answer(family, tools=TOOLS, response_format=_format(SCHEMA), seed=seed)
        if choice["message"].get("tool_calls"):
            _check_calls(choice, set(PARAMETERS))
        else:
            jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)
    refused = _chat(family, tools=TOOLS, guided_regex="x")
    assert refused.json()["error"]["param"] == "guided_regex"


def test_reasoning_comes_first_and_is_free(thinker: Server) -> None:
    """Where the prompt has opened it, the grammar begins when it is closed."""
    close = FIRST_MORE + len(MARKERS["mistral-v13"]) + 1
    choice = _answer(thinker, response_format=_format(SCHEMA), logit_bias={str(close): 6}, seed=1)
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["reasoning_content"]
    jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)


def test_a_model_whose_template_knows_no_tools_calls_them_all_the_same(folder: Path) -> None:
    path = folder / "no-tools.gguf"
    write_model(path)
    with _serve(path) as server:
        for choice, names in (("required", set(PARAMETERS)), (NAMED, {"get_weather"})):
            answer = _answer(server, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
            _check_calls(answer, names)
        assert _answer(server, tools=TOOLS, max_tokens=3)["message"]
