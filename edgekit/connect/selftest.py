"""Does the server do what a client needs? One small request or two for each thing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgekit.connect.answers import Answer, BrokenContractError, events, must
from edgekit.connect.clients import Client, fim_format
from edgekit.connect.dialects import DIALECTS, TOOL, Body, Dialect
from edgekit.connect.server import Server, client_for
from edgekit.report.clean import printable

if TYPE_CHECKING:
    import httpx

Status = Literal["ok", "warn", "fail", "skip"]

FIM_TARGET_MS = 300.0
"""What people wait for a completion before they type on; clients cut off at 300 to 375 ms."""
REQUEST_TIMEOUT_S = 120.0
CANCEL_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check found, and what to do about it."""

    check: str
    status: Status
    text: str
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """What a check works with."""

    http: httpx.Client
    server: Server
    client: Client
    dialect: Dialect

    @property
    def model(self) -> str:
        return self.server.model.id

    def stream(self, body: Body) -> Answer:
        """Send a streamed request and read it strictly. Raises BrokenContractError."""
        with self.http.stream("POST", self.dialect.path, json=body) as response:
            if response.status_code != 200:
                response.read()
                raise BrokenContractError(_refusal(response))
            return self.dialect.read(events(response.iter_lines()))


def run(server: Server, client: Client) -> Iterator[Outcome]:
    """Make the client's checks one after the other; a check never raises."""
    import httpx

    with client_for(server.url, server.key, REQUEST_TIMEOUT_S) as http:
        probe = Probe(http, server, client, DIALECTS[client.dialect])
        for name in client.checks:
            fix: str | None = _FIXES[name]
            status: Status = "fail"
            try:
                found = CHECKS[name](probe)
                status, text, fix = found.status, found.text, found.fix
            except BrokenContractError as error:
                text = str(error)
            except httpx.TimeoutException:
                text = f"no answer in {REQUEST_TIMEOUT_S:.0f} s"
            except httpx.HTTPError as error:
                text = f"the connection broke ({type(error).__name__})"
            except (LookupError, TypeError, AttributeError, ValueError) as error:
                text = f"an answer has another shape than clients expect ({error!r})"
            # It quotes the server, and ends on a terminal.
            yield Outcome(LABELS[name], status, printable(text), fix)


def _models(probe: Probe) -> Outcome:
    response = probe.http.get("/v1/models")
    must(response.status_code == 200, _refusal(response))
    one = probe.http.get(f"/v1/models/{probe.model}")
    must(one.status_code == 200 and one.json()["id"] == probe.model, "a single model is not found")
    size = probe.server.model.n_ctx
    listed = ", ".join(model.id for model in probe.server.models)
    return Outcome(LABELS["models"], "ok", f"{listed} · context {size:,}" if size else listed)


def _chat(probe: Probe) -> Outcome:
    began = time.perf_counter()
    answer = probe.stream(probe.dialect.plain(probe.model, "Say hello.", 16))
    spent = time.perf_counter() - began
    return Outcome(LABELS["chat"], "ok", f"{answer.output_tokens} tokens in {_ms(spent)}")


def _tools(probe: Probe) -> Outcome:
    answer = probe.stream(probe.dialect.tools(probe.model))
    must(len(answer.calls) >= 1, f"a call was demanded, text came ({answer.finish})")
    call = answer.calls[0]
    must(call.name == TOOL, f"a tool that does not exist was called: {call.name}")
    must(json.loads(call.arguments) == {"path": "README.md"}, f"wrong arguments {call.arguments}")
    probe.stream(probe.dialect.result(probe.model, call))
    return Outcome(LABELS["tools"], "ok", f"{call.name}({call.arguments}), result taken")


def _schema(probe: Probe) -> Outcome:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
    }
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}
    body = probe.dialect.plain(probe.model, "Name a city.", 64) | {"response_format": form}
    answer = probe.stream(body)
    value = json.loads(answer.text)
    must(value.get("city") in ("Paris", "Rome"), f"the answer does not fit it: {answer.text[:60]}")
    return Outcome(LABELS["schema"], "ok", answer.text)


def _fim(probe: Probe) -> Outcome:
    model = probe.server.fim
    if model is None:
        return _no_fim(LABELS["fim"], probe)
    form, body = fim_format(model.id), {"model": model.id, "max_tokens": 16, "temperature": 0}
    if form is not None:
        asked: Body = {"prompt": form.prompt("def add(a, b):\n    return ", "\n"), "stream": True}
    else:
        asked = {"prompt": "def add(a, b):\n    return ", "suffix": "\n", "stream": True}
    spent = 0.0
    for _ in range(2):  # the second one finds its prefix kept, as it is while someone types
        began = time.perf_counter()
        with probe.http.stream("POST", "/v1/completions", json=body | asked) as response:
            if response.status_code != 200:
                response.read()
                raise BrokenContractError(_refusal(response))
            chunks = [e for _, e in events(response.iter_lines()) if isinstance(e, dict)]
        spent = time.perf_counter() - began
    must(chunks and all(chunk.get("id") for chunk in chunks), "a chunk has no id")
    if probe.client.fim_by_name and (form is None or not form.continues):
        return Outcome(
            LABELS["fim"],
            "warn",
            f"{probe.client.name} does not know from the name {model.id!r} which tokens to write",
            f"serve it under a name with {_known_words()} in it, if it is one of those",
        )
    return _timed(LABELS["fim"], spent)


def _infill(probe: Probe) -> Outcome:
    if probe.server.fim is None:
        return _no_fim(LABELS["infill"], probe)
    body = {
        "model": probe.server.fim.id,
        "input_prefix": "def add(a, b):\n",
        "input_suffix": "\n",
        "input_extra": [],
        "prompt": "    return ",
        "n_predict": 16,
        "t_max_predict_ms": 500,
        "cache_prompt": True,
        "stream": False,
    }
    spent = 0.0
    for _ in range(2):
        began = time.perf_counter()
        response = probe.http.post("/infill", json=body)
        spent = time.perf_counter() - began
        must(response.status_code == 200, _refusal(response))
    must(isinstance(response.json()["content"], str), "the answer has no content")
    return _timed(LABELS["infill"], spent)


def _cancel(probe: Probe) -> Outcome:
    before = _in_flight(probe)
    if before is None:
        return Outcome(LABELS["cancel"], "skip", "the server does not show what runs (/metrics)")
    body = probe.dialect.plain(probe.model, "Count to a thousand.", 2048) | {"ignore_eos": True}
    with probe.http.stream("POST", probe.dialect.path, json=body) as response:
        if response.status_code != 200:
            response.read()
            raise BrokenContractError(_refusal(response))
        lines = response.iter_lines()  # kept: to let go of it is to close the stream
        while not next(lines, "data:").startswith("data:"):
            pass
        during = _in_flight(probe) or 0.0
    if during <= before:
        return Outcome(LABELS["cancel"], "skip", "the answer was over before it could be dropped")
    began = time.perf_counter()
    while (now := _in_flight(probe)) is not None and now > before and now >= during:
        waited = time.perf_counter() - began
        if waited > CANCEL_WAIT_S and before > 0:
            return Outcome(LABELS["cancel"], "skip", "others use the server, so it cannot be told")
        must(waited < CANCEL_WAIT_S, f"the answer still runs {waited:.0f} s after it was dropped")
        time.sleep(0.02)
    return Outcome(LABELS["cancel"], "ok", f"stopped within {_ms(time.perf_counter() - began)}")


def _overflow(probe: Probe) -> Outcome:
    size = probe.server.model.n_ctx
    if size is None:
        return Outcome(LABELS["overflow"], "skip", "the server does not say its context")
    # Each number is a token at least, in every vocabulary that we know.
    text = " ".join(str(number) for number in range(size + 64))
    body = probe.dialect.plain(probe.model, text, 16)
    with probe.http.stream("POST", probe.dialect.path, json=body) as response:
        response.read()
    must(response.status_code != 200, "a prompt that is too long was taken, so it was cut")
    probe.dialect.check_overflow(response.status_code, response.json())
    return Outcome(
        LABELS["overflow"], "ok", f"refused as {probe.client.name} expects it, nothing cut"
    )


def _key(probe: Probe) -> Outcome:
    if not probe.server.needs_key:
        return Outcome(LABELS["key"], "skip", "the server has no keys")
    wrong = {"authorization": "Bearer wrong-key", "x-api-key": "wrong-key"}
    body = probe.dialect.plain(probe.model, "hello", 1)
    response = probe.http.post(probe.dialect.path, json=body, headers=wrong)
    must(response.status_code == 401, f"a wrong key got HTTP {response.status_code}, not 401")
    must("error" in response.json(), "the refusal is not an error in JSON")
    return Outcome(LABELS["key"], "ok", "the key works, a wrong one is refused")


def _no_fim(label: str, probe: Probe) -> Outcome:
    return Outcome(
        label,
        "warn",
        f"no: {probe.model} has no tokens for filling in the middle, so no tab completion",
        f"serve {companion()} beside it: edgekit deploy {probe.model} {companion()}; then connect "
        "again",
    )


def companion() -> str:
    """Return the smallest model of the catalogue that clients can complete code with."""
    from edgekit.catalogue import load_models

    able = [c for c in load_models().values() if c.fim and (f := fim_format(c.id)) and f.continues]
    return min(able, key=lambda card: card.params).id


def _timed(label: str, seconds: float) -> Outcome:
    text = f"16 tokens at most in {_ms(seconds)}"
    if seconds * 1000 <= FIM_TARGET_MS:
        return Outcome(label, "ok", text)
    fix = f"a smaller model beside this one, such as {companion()}, answers sooner"
    return Outcome(label, "warn", f"{text}; {FIM_TARGET_MS:.0f} ms is what feels instant", fix)


def _known_words() -> str:
    from edgekit.connect.clients import fim_formats

    return ", ".join("+".join(f.words) for f in fim_formats() if f.continues)


def _in_flight(probe: Probe) -> float | None:
    response = probe.http.get("/metrics")
    rows = [x for x in response.text.splitlines() if x.startswith("edgekit_requests_in_flight")]
    if response.status_code != 200 or not rows:
        return None
    return sum(float(row.split()[-1]) for row in rows)


def _refusal(response: httpx.Response) -> str:
    """Say what a server answered instead of what was asked for."""
    said: Any
    try:
        said = response.json()["error"]
        said = said.get("message") if isinstance(said, dict) else said
    except (ValueError, LookupError, TypeError):
        said = response.text
    where = f"{response.request.method} {response.request.url.path}"
    return f"{where}: HTTP {response.status_code} {str(said)[:160]}".rstrip()


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"


CHECKS: dict[str, Callable[[Probe], Outcome]] = {
    "models": _models,
    "chat": _chat,
    "tools": _tools,
    "schema": _schema,
    "fim": _fim,
    "infill": _infill,
    "cancel": _cancel,
    "overflow": _overflow,
    "key": _key,
}
LABELS = {
    "models": "model list",
    "chat": "chat stream",
    "tools": "tool call",
    "schema": "JSON schema",
    "fim": "completion",
    "infill": "infill",
    "cancel": "cancel",
    "overflow": "too long",
    "key": "key",
}
_NEWER = "edgekit doctor checks the installation; another server than edgekit's may lack this"
_FIXES = dict.fromkeys(CHECKS, _NEWER) | {
    "tools": "deploy a model that is trained for tools (edgekit models shows which), or chat only",
    "key": "restart the server with --api-key, and connect with the same key",
}
