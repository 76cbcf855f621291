"""Every input that is known to end a process that uses llama.cpp, sent to the real thing.

One row per pitfall, in four tables by who could send it: a client over HTTP, our own code
(through the native wrapper, in a process of its own), whoever chose the model file or the
settings, and nobody at all (a failure from outside). Each finds the front alive and the next
request served; only a row of the last table may cost the engine child its life.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgekit_server.api.schema import CompletionRequest
from edgekit_server.app import Server
from edgekit_server.config import ServeConfig
from edgekit_server.engine import spawn
from edgekit_server.errors import ServerError
from tests.support import broken_models
from tests.support.gguf_models import write_model
from tests.support.http_server import config_for, running
from tests.support.probes import PROBES

ROOT = Path(__file__).resolve().parents[2]
N_CTX, N_BATCH = 1024, 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny.gguf")


def _config(path: Path, **engine: Any) -> ServeConfig:
    config = config_for(path)
    small = replace(config.engine, n_ctx=N_CTX, n_seq_max=4, n_batch=N_BATCH, n_ubatch=32)
    return replace(config, engine=replace(small, **engine))


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model like any other, but for one token whose embedding is not a number."""
    path = tmp_path_factory.mktemp("models") / "nan.gguf"
    with running(_config(broken_models.with_nan(model, path), flash_attn=False)) as made:
        yield made


def _post(server: Server, body: dict[str, Any], path: str = "completions") -> httpx.Response:
    return httpx.post(f"{server.url}/v1/{path}", json={"max_tokens": 2, **body}, timeout=60)


def _serves(server: Server) -> None:
    """The front is alive and the next request is served."""
    assert httpx.get(f"{server.url}/livez", timeout=20).status_code == 200
    answer = _post(server, {"prompt": [9, 10], "temperature": 0})
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 2


# -- what a client can send ----------------------------------------------------------------------


@dataclass(frozen=True)
class Sent:
    """A request, and how it must end: a status and, for errors, a code."""

    row: str
    body: dict[str, Any]
    status: int
    code: str | None = None
    path: str = "completions"


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def _schema(schema: object) -> dict[str, Any]:
    made = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return {"messages": [{"role": "user", "content": "hi"}], "response_format": made}


CHAT = "chat/completions"
SENT = [
    Sent("batch n_tokens > n_batch", {"prompt": [9] * (N_BATCH * 10)}, 200),
    Sent("batch n_tokens > n_batch", {"prompt": [[9] * 200] * 4, "n": 4}, 200),
    Sent("empty batch", {"prompt": []}, 400),
    Sent("empty batch", {"prompt": [9], "max_tokens": 0}, 400, "invalid_value"),
    Sent("token < 0 or >= n_vocab", {"prompt": [9, -1]}, 400, "bad_token"),
    Sent("token < 0 or >= n_vocab", {"prompt": [9, 272]}, 400, "bad_token"),
    Sent("token < 0 or >= n_vocab", {"prompt": [9, 2**31]}, 400, "bad_token"),
    Sent("token < 0 or >= n_vocab", {"prompt": [[9], [2**63 - 1]]}, 400),
    Sent("context full", {"prompt": [9] * (N_CTX - 1), "max_tokens": 9}, 200),
    Sent("context full", {"prompt": [9] * N_CTX}, 400, "context_length_exceeded"),
    Sent("context full", {"prompt": [[9] * 600] * 3, "max_tokens": 400}, 200),
    Sent("a word of a mebibyte (tokenizer's recursion)", {"prompt": "a" * 2**20}, 400),
    Sent("logit_bias out of range", {"prompt": [9], "logit_bias": {"272": 1}}, 400),
    Sent("logit_bias out of range", {"prompt": [9], "logit_bias": {"-1": 1}}, 400),
    Sent("logit_bias out of range", {"prompt": [9], "logit_bias": {"9999999999": 1}}, 400),
    Sent(
        "all tokens as good as forbidden",
        {"prompt": [9], "temperature": 0, "logit_bias": {str(i): -100 for i in range(272)}},
        200,
    ),
    Sent("NaN logits", {"prompt": [9, broken_models.NAN_TOKEN, 10]}, 503, "engine_error"),
    Sent(
        "NaN logits",
        {"prompt": [9] * 90 + [broken_models.NAN_TOKEN] + [9] * 90, "temperature": 0},
        503,
        "engine_error",
    ),
    Sent("top_k, penalties beyond the vocabulary", {"prompt": [9], "top_k": 2**31 - 1}, 200),
    Sent(
        "top_k, penalties beyond the vocabulary",
        {"prompt": [9], "repeat_last_n": 2**20, "repeat_penalty": 1.5, "logprobs": 20},
        200,
    ),
    Sent("bad grammar text", _schema({"type": "no such type"}), 400, path=CHAT),
    Sent("bad grammar text", _schema({"$ref": "#/nowhere"}), 400, path=CHAT),
    Sent("bad grammar text", {"prompt": [9], "grammar": "root ::= ((("}, 400),
    Sent("grammar that is left-recursive", {"prompt": [9], "grammar": 'root ::= root "a"'}, 400),
    Sent("grammar without a root", {"prompt": [9], "grammar": 'stem ::= "a"'}, 400),
    Sent(
        "grammar with a bad regex",
        _schema({"type": "string", "pattern": "(((("}),
        400,
        path=CHAT,
    ),
    Sent(
        "deeply nested GBNF",
        {"prompt": [9], "grammar": "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000},
        400,
    ),
    Sent(
        "repeating GBNF",
        {"prompt": [9], "grammar": 'root ::= ((("a"{1,9999}){1,9999}){1,9999}){1,9999}'},
        400,
    ),
    Sent("deeply nested schema", _schema(_nested(60)), 400, path=CHAT),
]


@pytest.mark.parametrize("sent", SENT, ids=lambda s: s.row)
def test_what_a_client_sends(server: Server, sent: Sent) -> None:
    if "grammar" in sent.body and "grammar" not in CompletionRequest.model_fields:
        pytest.skip("this dialect has no grammar field yet, so nothing reaches the engine")
    process = server.app.state.router.client.process
    never_nan = {"logit_bias": {str(broken_models.NAN_TOKEN): -100}}
    response = _post(server, {**never_nan, **sent.body}, sent.path)
    assert response.status_code == sent.status, response.text
    if sent.code is not None:
        assert response.json()["error"]["code"] == sent.code
    _serves(server)
    assert process.poll() is None, "it cost the engine its life"


def test_a_stream_of_no_numbers_ends_typed_and_the_others_go_on(server: Server) -> None:
    """NaN in shared memory: without flash attention it would spread to everybody's rows."""
    body: dict[str, Any] = {"prompt": [9, 11], "max_tokens": 300, "temperature": 0}
    body |= {"ignore_eos": True, "logit_bias": {str(broken_models.NAN_TOKEN): -100}}
    calm = _post(server, body).json()["choices"][0]["text"]
    with httpx.stream(
        "POST", f"{server.url}/v1/completions", json={**body, "stream": True}, timeout=60
    ) as response:
        lines = response.iter_lines()
        found = [next(lines)]
        bad = _post(server, {"prompt": [9, broken_models.NAN_TOKEN]})
        assert bad.json()["error"]["code"] == "engine_error"
        found += list(lines)
    events = [json.loads(line[6:]) for line in found if line.startswith("data: {")]
    assert "".join(event["choices"][0]["text"] for event in events) == calm
    _serves(server)


# -- what only our own code could do -------------------------------------------------------------

OWN = {
    "batch n_tokens > n_batch": "too_many_rows",
    "more outputs than n_outputs_max": "too_many_outputs",
    "n_outputs_max < n_seq_max": "outputs_below_sequences",
    "n_batch < n_seq_max": "batch_below_sequences",
    "n_seq_id = 0": "no_sequence_in_a_row",
    "ctx NULL": "closed_context",
    "type_k out of enum": "kv_type_out_of_enum",
    "empty batch": "empty_batch",
    "token < 0 or >= n_vocab": "bad_tokens",
    "seq out of range in a batch": "bad_sequences_in_a_batch",
    "position gap, decreasing": "position_gap",
    "same position twice, first position 5: accepted silently": "accepted_in_silence",
    "context full": "context_full",
    "seq_rm/cp/add with a seq out of range": "sequences_out_of_range",
    "seq_cp partial in stream mode": "partial_copy_in_streams",
    "coupled seqs in stream mode": "coupled_sequences",
    "sample on a row without logits": "sample_without_logits",
    "chain without a selecting sampler": "chain_without_a_selector",
    "bad ids to samplers": "bad_ids_shown_to_a_chain",
    "NaN or all -inf logits": "rows_of_no_number",
    "state blob corrupt or truncated": "corrupt_state",
    "V quantised without flash-attn, K-quant KV, n_seq_max > 256, huge n_ctx": "no_context",
}


class Prober:
    """A process that tries what it is told; a new one when it died over it."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._process: subprocess.Popen[str] | None = None

    def ask(self, name: str) -> str:
        """Return `ok`, what went wrong, or how the process died."""
        if self._process is None:
            paths = [str(ROOT), *(str(ROOT / n) for n in ("server", "quantize", "profiles"))]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.probes", str(self._model)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env={**spawn.environment(), "PYTHONPATH": os.pathsep.join(paths)},
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(name + "\n")
        self._process.stdin.flush()
        if answer := self._process.stdout.readline():
            return answer.strip()
        code = self._process.wait(20)
        self.close()
        return f"the process died: {code}"

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with process:
                process.kill()


@pytest.fixture(scope="module")
def prober(model: Path) -> Iterator[Prober]:
    made = Prober(model)
    yield made
    made.close()


@pytest.mark.parametrize("row", OWN)
def test_what_our_own_code_could_do(prober: Prober, row: str) -> None:
    answer = prober.ask(OWN[row])
    assert answer == "ok", answer.replace("\\n", "\n")


def test_no_probe_is_left_out() -> None:
    assert set(OWN.values()) == set(PROBES)


@pytest.mark.parametrize(
    ("row", "call"),
    [
        ("set_sampler same chain twice", "llama_set_sampler"),
        ("ON_DEVICE state from files", "ON_DEVICE"),
        ("grammars in C: bad regex, disallowed token, end too early", "sampler_init_grammar"),
        ("detokenize with a bad id", "llama_detokenize"),
        ("vocab_get_text with a bad id", "llama_vocab_get_text"),
    ],
)
def test_what_no_code_of_ours_calls(row: str, call: str) -> None:
    for file in (ROOT / "server/edgekit_server").rglob("*.py"):
        assert call not in file.read_text(), f"{file.name}: {row}"


# -- what a file or a setting can bring ------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    row: str
    code: int
    """Exit code of the error that the front raises."""
    make: Callable[[Path, Path], Path] = field(default=lambda model, path: model)
    settings: dict[str, Any] = field(default_factory=dict)


number, swap = broken_models.with_number, broken_models.with_bytes
LOADED = [
    Loaded("malformed GGUF: block_count 0", 70, number("llama.block_count", 0)),
    Loaded("malformed GGUF: block_count huge", 70, number("llama.block_count", 2**31 - 1)),
    Loaded("malformed GGUF: block_count too large", 65, number("llama.block_count", 3)),
    Loaded("malformed GGUF: no heads", 65, number("llama.attention.head_count", 0)),
    Loaded("malformed GGUF: no context", 65, number("llama.context_length", 0)),
    Loaded("malformed GGUF: bad vocab", 65, swap(b"gpt2", b"xxxx")),
    Loaded("malformed GGUF: bad pre-tokenizer", 65, swap(b"tekken", b"nothin")),
    Loaded("malformed GGUF: torn", 65, broken_models.cut_at(0.5)),
    Loaded("malformed GGUF: torn in the header", 65, broken_models.cut_at(0.001)),
    Loaded("malformed GGUF: nonsense", 65, broken_models.garbage),
    Loaded("n_batch < n_seq_max", 78, settings={"n_batch": 2, "n_ubatch": 2}),
    Loaded("type_k out of enum", 78, settings={"type_k": "q9_9"}),
    Loaded("K-quant KV type", 78, settings={"type_v": "q4_k"}),
    Loaded("V quantised, flash-attn off", 78, settings={"type_v": "q8_0", "flash_attn": False}),
    Loaded("n_seq_max > 256", 78, settings={"n_seq_max": 257, "n_batch": 512}),
    Loaded("huge n_ctx", 78, settings={"n_ctx": 2**31 - 1}),
    Loaded("huge n_ctx", 78, settings={"n_ctx": 2**40}),
    Loaded("too many threads", 78, settings={"n_threads": 10**6}),
]


@pytest.mark.parametrize("loaded", LOADED, ids=lambda loaded: loaded.row)
def test_what_does_not_load(loaded: Loaded, model: Path, tmp_path: Path) -> None:
    path = loaded.make(model, tmp_path / "bad.gguf")
    with (
        pytest.raises(ServerError) as caught,
        running(_config(path, **loaded.settings)),
    ):
        pass
    assert caught.value.exit_code == loaded.code, caught.value
    assert caught.value.message


def test_after_all_that_a_good_model_loads(model: Path) -> None:
    with running(_config(model)) as made:
        _serves(made)


@pytest.mark.parametrize("id_key", ["bos", "eos", "unknown"])
@pytest.mark.parametrize("value", [272, 2**32 - 1])
def test_bad_special_tokens_harm_nothing(
    model: Path, tmp_path: Path, id_key: str, value: int
) -> None:
    path = number(f"tokenizer.ggml.{id_key}_token_id", value)(model, tmp_path / "bad.gguf")
    with contextlib.suppress(ServerError), running(_config(path)) as made:
        _serves(made)


# -- what comes from outside -----------------------------------------------------------------------


@pytest.fixture
def mortal(model: Path) -> Iterator[Server]:
    """A short watchdog: a thread that cannot start for want of memory hangs its starter."""
    with running(replace(_config(model), watchdog_s=3.0)) as made:
        yield made


OUTSIDE = {
    "throw inside llama_decode: terminate": signal.SIGABRT,
    "a kernel of the wrong instructions": signal.SIGILL,
    "a miscompiled kernel": signal.SIGSEGV,
    "the kernel's out-of-memory killer": signal.SIGKILL,
}


@pytest.mark.parametrize("row", OUTSIDE)
def test_what_comes_from_outside(mortal: Server, row: str) -> None:
    process = mortal.app.state.router.client.process
    body = {"prompt": [9] * 20, "n": 4, "max_tokens": -1, "ignore_eos": True, "stream": True}
    url = f"{mortal.url}/v1/completions"
    with httpx.stream("POST", url, json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(OUTSIDE[row])
        last = [line for line in lines if line][-1]
    assert '"engine_died"' in last
    assert process.wait(20) == -OUTSIDE[row]
    _serves(mortal)
    assert mortal.app.state.router.client.restarts == 1


def test_allocation_failure_inside_llama_decode(mortal: Server) -> None:
    """Or wherever the child allocates next: an exception that llama.cpp lets out, or ours."""
    process = mortal.app.state.router.client.process
    resource.prlimit(process.pid, resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))
    for _ in range(50):
        answer = _post(mortal, {"prompt": [[9] * 900] * 4, "n": 4, "logprobs": 20})
        assert answer.status_code in (200, 503), answer.text
        if process.poll() is not None:
            break
    assert process.wait(20) != 0
    _serves(mortal)
