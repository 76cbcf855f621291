from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from edgekit_server.app import Server
from tests.support.http_server import config_for, running
from tests.support.stub_engine import Rule, StubEngine, said

WEATHER = [
    ["[TOOL_CALLS]", True], ["get_", False], ["weather", False], ["[ARGS]", True],
    ['{"city":', False], [' "Bern"}', False],
]  # fmt: skip
RULES = [
    Rule("call once", WEATHER),
    Rule("call twice", [["Both. ", False], *WEATHER, *WEATHER]),
    Rule("torn call", WEATHER[:5]),
    Rule("cut call", WEATHER[:5], finish="length"),
    Rule("think", [["[THINK]", True], *said("hm"), ["[/THINK]", True], *said("yes")]),
    Rule("count", said("one two three four"), pause_s=0.01),
    Rule("limit", said("aaaa"), finish="length"),
    Rule("slow call", [*WEATHER[:4], *said('{"city": "Bern"}')], pause_s=0.02),
    Rule("split character", [["\udcc3", False], ["\udca9", False]]),
    Rule("long", said("x" * 2000), pause_s=0.02),
    Rule("silent", said("late"), silent_s=0.5),
    Rule("overflow", reject="context_length_exceeded"),
    Rule("crowded", reject="queue_full"),
    Rule("gibberish", reject="tokenizer_failed"),
    Rule("fails", said("ab"), finish="error"),
    Rule("dies at once", said("x"), die_after=0),
    Rule("dies later", said("abcd"), die_after=2, pause_s=0.02),
    Rule("hangs", said("ab"), hang=True),
]


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for the front to see; the stub never reads it."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    path.write_bytes(b"GGUF")
    return path


@pytest.fixture
def stub(tmp_path: Path) -> StubEngine:
    return StubEngine(RULES, tmp_path / "stub.log")


@pytest.fixture(scope="module")
def shared_stub(tmp_path_factory: pytest.TempPathFactory) -> StubEngine:
    return StubEngine(RULES, tmp_path_factory.mktemp("stub") / "stub.log")


@pytest.fixture(scope="module")
def server(shared_stub: StubEngine, gguf: Path) -> Iterator[Server]:
    """One server for the tests of a module that do it no harm."""
    with running(config_for(gguf, keepalive_s=0.1), shared_stub.spawn) as running_server:
        yield running_server


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as made:
        yield made
