"""The self-test: passes on the real server, and says what is wrong with a broken one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from edgekit.connect.answers import (
    BrokenContractError,
    Event,
    events,
    read_chat,
    read_messages,
    read_responses,
)
from edgekit.connect.clients import clients
from edgekit.connect.connecting import connection
from edgekit.connect.selftest import CHECKS, LABELS, Outcome, companion, run
from edgekit.connect.server import Served, Server, ask, choose, root
from edgekit.errors import BusyError, EngineFailedError, UsageError
from tests.support.http_server import config_for, running
from tests.support.pocket import convert_pocket


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = convert_pocket(tmp_path_factory.mktemp("gguf"), "Q4_0")
    with running(config_for(model)) as server:
        yield server.url


@pytest.mark.parametrize("name", ["zed", "codex", "claude-code", "llama-vscode", "llm"])
def test_the_real_server_passes(name: str, url: str) -> None:
    found = list(run(ask(url, None, None), clients()[name]))
    assert [o.check for o in found] == [LABELS[check] for check in clients()[name].checks]
    assert [o for o in found if o.status == "fail"] == []
    skipped = {o.check for o in found if o.status == "skip"}
    assert skipped == {"key"}


def test_what_the_real_server_says(url: str) -> None:
    server = ask(url, None, "alias")
    assert server.model.id == "tiny"
    assert server.model.n_ctx == 2048
    assert (server.model.has_fim, server.needs_key) == (True, False)


# what is wrong with a stream


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> Event:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return None, head | {"choices": [choice]} | more


USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
START, DONE = chunk({"role": "assistant", "content": ""}), (None, "[DONE]")
END = chunk({}, "stop", usage=USAGE)
FIRST = {"index": 0, "id": "a1b2c3d4e", "type": "function", "function": {"name": "f"}}


def calls(*parts: dict[str, Any]) -> list[Event]:
    deltas = [chunk({"tool_calls": [part]}) for part in parts]
    return [START, *deltas, chunk({}, "tool_calls", usage=USAGE), DONE]


def more(arguments: str, **extra: Any) -> dict[str, Any]:
    return {"index": 0, "function": {"arguments": arguments}} | extra


def test_a_good_chat_stream() -> None:
    answer = read_chat([START, chunk({"content": "hé"}), END, DONE])
    assert (answer.text, answer.finish, answer.output_tokens) == ("hé", "stop", 2)
    (call,) = read_chat(calls(FIRST, more('{"a":'), more(" 1}"))).calls
    assert (call.id, call.name, call.arguments) == ("a1b2c3d4e", "f", '{"a": 1}')


@pytest.mark.parametrize(
    ("stream", "problem"),
    [
        ([START, END], "[DONE]"),
        ([chunk({"content": "x"}), END, DONE], "no role"),
        ([START, chunk({"content": "x"}), DONE], "finish_reason"),
        ([START, chunk({}, "stop"), DONE], "no usage"),
        ([START, chunk({}, "stop", usage={"prompt_tokens": 1}), DONE], "completion_tokens"),
        ([(None, {"id": "x", "choices": []}), DONE], "lacks object, created, model"),
        ([START, (None, {"error": {"message": "boom"}}), DONE], "boom"),
        (calls(FIRST | {"id": "call_1"}, more("{}")), "not 9 letters"),
        (calls(FIRST, more("{}", id="a1b2c3d4e")), "repeats id"),
        (calls(FIRST, {"index": 0, "function": {"name": None, "arguments": "{}"}}), "repeats name"),
        (calls({k: v for k, v in FIRST.items() if k != "index"}), "no index"),
        (calls(FIRST | {"id": None}), "without id"),
        (calls(FIRST, more('{"a"')), "no JSON object"),
        ([*calls(FIRST, more("{}"))[:-2], END, DONE], "finish_reason stop"),
    ],
)
def test_a_broken_chat_stream(stream: list[Event], problem: str) -> None:
    with pytest.raises(BrokenContractError, match=problem.replace("[", r"\[")):
        read_chat(stream)


def responses(*kinds: str, **last: Any) -> list[Event]:
    made = [(k, {"type": k, "sequence_number": n, "delta": "x"}) for n, k in enumerate(kinds)]
    usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    final = {"id": "resp_1", "status": "completed", "usage": usage} | last
    made[-1][1]["response"] = final  # type: ignore[assignment]
    return list(made)


def test_responses_streams() -> None:
    created, text, done = "response.created", "response.output_text.delta", "response.completed"
    assert read_responses(responses(created, text, done)).text == "x"
    for stream, problem in (
        (responses(text, done), "not response.created"),
        (responses(created, text), "does not end"),
        (responses(created, done, id=None), "no id"),
        (responses(created, done, usage={}), "usage lacks"),
        (responses(created, "response.output_item.added", done), "not done"),
        (responses(created, "response.failed", error={"message": "boom"}), "boom"),
    ):
        with pytest.raises(BrokenContractError, match=problem):
            read_responses(stream)


def messages(*data: dict[str, Any]) -> list[Event]:
    end = {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}}
    all_ = [
        {"type": "message_start"},
        *data,
        {"type": "message_delta", **end},
        {"type": "message_stop"},
    ]
    return [(event["type"], event) for event in all_]


def block(index: int, text: str) -> list[dict[str, Any]]:
    delta = {"type": "text_delta", "text": text}
    return [
        {"type": "content_block_start", "index": index, "content_block": {"type": "text"}},
        {"type": "content_block_delta", "index": index, "delta": delta},
        {"type": "content_block_stop", "index": index},
    ]


def test_messages_streams() -> None:
    good = messages(*block(0, "a"), {"type": "ping"}, *block(1, "b"))
    assert read_messages(good).text == "ab"
    for stream, problem in (
        (good[1:], "message_start"),
        (good[:-1], "message_stop"),
        (messages(*block(0, "a")[:-1]), "not stopped"),
        (messages(*block(0, "a")[:-1], *block(1, "b")), "before the last one"),
        (messages(block(0, "a")[1]), "no open block"),
        ([(None, event) for _, event in good], "not its type"),
        (messages({"type": "error", "error": {"message": "boom"}}), "boom"),
    ):
        with pytest.raises(BrokenContractError, match=problem):
            read_messages(stream)


def test_events() -> None:
    lines = [": keep-alive", "", "event: a", 'data: {"x": 1}', "", "data: [DONE]"]
    assert events(lines) == [("a", {"x": 1}), (None, "[DONE]")]
    with pytest.raises(BrokenContractError):
        events(["data: {"])


# a server that does it wrong

Answer = Callable[[str, dict[str, Any]], tuple[int, str]]
MODELS = {"object": "list", "data": [{"id": "m", "context_length": 4096, "capabilities": ["chat"]}]}


@contextmanager
def wrong_server(answer: Answer) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(*answer(self.path, {}))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self._send(*answer(self.path, json.loads(body)))

        def _send(self, status: int, text: str) -> None:
            data = text.encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def outcomes(answer: Answer, client: str) -> dict[str, Outcome]:
    def models_too(path: str, body: dict[str, Any]) -> tuple[int, str]:
        if path == "/v1/models":
            return 200, json.dumps(MODELS)
        if path == "/v1/models/m":
            return 200, json.dumps(MODELS["data"][0])  # type: ignore[index]
        return answer(path, body)

    with wrong_server(models_too) as url:
        return {o.check: o for o in run(ask(url, None, None), clients()[client])}


def test_every_failure_says_what_to_do() -> None:
    found = outcomes(lambda path, body: (404, '{"error": {"message": "gone"}}'), "continue")
    failed = {o.check for o in found.values() if o.status == "fail"}
    assert failed == {"chat stream", "tool call", "too long"}
    assert all(o.fix for o in found.values() if o.status in ("fail", "warn"))
    assert "HTTP 404 gone" in found["chat stream"].text
    assert found["cancel"].status == "skip"


def test_a_model_without_fim_gets_a_companion() -> None:
    for name, check in (("continue", "completion"), ("llama-vim", "infill")):
        note = outcomes(lambda path, body: (500, ""), name)[check]
        assert note.status == "warn"
        assert f"edgekit deploy m {companion()}" in str(note.fix)
    assert companion().startswith("qwen2.5-coder")


def test_a_prompt_that_is_cut_is_found() -> None:
    good = "".join(f"data: {json.dumps(d)}\n\n" for _, d in (START, END)) + "data: [DONE]\n\n"
    found = outcomes(lambda path, body: (200, good), "llm")
    assert found["chat stream"].status == "ok"
    assert "was cut" in found["too long"].text
    assert "text came" in found["tool call"].text


@pytest.mark.parametrize(
    ("client", "body", "problem"),
    [
        ("llm", {"error": {"code": 400, "message": "maximum context length is 5 tokens"}}, "code"),
        ("llm", {"error": {"code": "context_length_exceeded", "message": "no"}}, "does not say"),
        ("claude-code", {"type": "error", "error": {"message": "too long"}}, "does not say"),
        ("claude-code", {"error": {"message": "prompt is too long: 5 tokens > 4 maximum"}}, "type"),
        ("codex", {"detail": "x"}, "no error object"),
    ],
)
def test_an_overflow_error_of_another_shape(client: str, body: object, problem: str) -> None:
    found = outcomes(lambda path, _: (400, json.dumps(body)), client)
    assert found["too long"].status == "fail"
    assert problem in found["too long"].text


def test_answers_of_any_shape_do_not_raise() -> None:
    for text in ("[]", "null", "x", '{"error": 3}', "data: 3\n\n", "data: {}\n\ndata: [DONE]\n\n"):
        for status in (200, 400):
            for name in ("zed", "codex", "claude-code", "llama-vscode"):
                found = outcomes(lambda path, _: (status, text), name)  # noqa: B023
                assert len(found) == len(clients()[name].checks)


# which server and models


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (503, "{}", BusyError),
        (200, "<html>", EngineFailedError),
        (200, '{"data": [3]}', EngineFailedError),
        (200, '{"data": []}', EngineFailedError),
        (200, '{"data": [{"id": "a\\u001b[2J"}]}', EngineFailedError),
        (404, "{}", EngineFailedError),
    ],
)
def test_something_else_answers(status: int, text: str, kind: type[Exception]) -> None:
    with wrong_server(lambda path, _: (status, text)) as url, pytest.raises(kind):
        ask(url, None, None)


def test_abilities_come_from_the_server_its_roles_or_a_question() -> None:
    rows = [
        {"id": "big", "capabilities": ["chat", "fim", "tools"], "roles": ["chat"]},
        {"id": "qwen2.5-coder-1.5b", "roles": ["completion"], "status": {"value": "unloaded"}},
        {"id": "silent"},
    ]
    asked: list[str] = []

    def answer(path: str, body: dict[str, Any]) -> tuple[int, str]:
        asked.extend([body["model"]] if body else [])
        return (400, "{}") if body else (200, json.dumps({"data": rows}))

    with wrong_server(answer) as url:
        server = ask(url, None, None)
    assert [(m.id, m.has_chat, m.has_fim) for m in server.models] == [
        ("big", True, False),
        ("qwen2.5-coder-1.5b", False, True),
        ("silent", None, False),
    ]
    assert asked == ["silent"]
    assert (server.model.id, server.fim and server.fim.id) == ("big", "qwen2.5-coder-1.5b")
    assert server.reason == "the first of 3 that can chat; qwen2.5-coder-1.5b completes code"


def served(name: str, *, chat: bool = True, fim: bool = False) -> Served:
    return Served(name, 4096, fim, chat)


@pytest.mark.parametrize(
    ("models", "wanted", "chat", "fim"),
    [
        ("Cf", None, "Cf", "Cf"),
        ("C Cf", None, "C", "Cf"),
        ("Cf cf", None, "Cf", "cf"),
        ("Cf cf", "Cf", "Cf", "Cf"),
        ("C", None, "C", None),
        ("cf", None, None, "cf"),
    ],
)
def test_choice(models: str, wanted: str | None, chat: str | None, fim: str | None) -> None:
    made = {m: served(m, chat="C" in m, fim="f" in m) for m in models.split()}
    found = choose(tuple(made.values()), made[wanted] if wanted else None)
    assert [m.id if m else None for m in found[:2]] == [chat, fim]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://h:1/v1/", "http://h:1"),
        ("h:1", "http://h:1"),
        ("https://h/x/v1", "https://h/x"),
    ],
)
def test_root(text: str, expected: str) -> None:
    assert root(text) == expected


@pytest.mark.parametrize("text", ["", "ftp://x", "http://", "http://h:x"])
def test_no_address(text: str) -> None:
    with pytest.raises(UsageError):
        root(text)


def test_what_is_not_known_is_not_written() -> None:
    model = Served("m", None, False, True)
    server = Server("http://h:1", None, False, (model,), model, None, "")
    plan = connection(clients()["continue"], server, config=Path("/nowhere/c.yaml"))
    (chat,) = [e.value for e in plan.files[0].edits if len(e.path) == 2]
    assert "contextLength" not in chat
    assert "None" not in json.dumps([e.value for e in plan.files[0].edits])
    assert any("does not say the context" in warning for warning in plan.warnings)


def test_a_name_cannot_get_out_of_a_vim_string() -> None:
    model = Served("m' | call system('x') | '", 4096, False, True)
    server = Server("http://h:1", None, False, (model,), model, None, "")
    plan = connection(clients()["llama-vim"], server)
    assert "'m'' | call system(''x'') | '''," in plan.files[0].edits[0].value


def test_every_check_of_a_client_exists() -> None:
    for client in clients().values():
        assert set(client.checks) <= set(CHECKS) == set(LABELS)


def test_an_answer_that_runs_on_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.connect.selftest.CANCEL_WAIT_S", 0.1)
    asked: list[str] = []

    def answer(path: str, body: dict[str, Any]) -> tuple[int, str]:
        if path == "/metrics":
            return 200, f"edgekit_requests_in_flight {len(asked)}\n"
        asked.extend([path] if "Count" in str(body) else [])
        return 200, f"data: {json.dumps(START[1])}\n\n"

    found = outcomes(answer, "llm")["cancel"]
    assert found.status == "fail"
    assert "still runs" in found.text
