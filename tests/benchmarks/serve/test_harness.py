"""The harness itself: statistics, settings, command lines, log reading, and the light client."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.serve import bare, report, texts
from tests.benchmarks.serve.client import Answer, RefusedError, get, post
from tests.benchmarks.serve.contenders import contender
from tests.benchmarks.serve.figures import (
    Run,
    Spread,
    Target,
    compare,
    gaps,
    judge,
    medians,
    orders,
    percentile,
    spread,
)
from tests.benchmarks.serve.models import _merges
from tests.benchmarks.serve.scenarios import SCENARIOS
from tests.benchmarks.serve.settings import Setup, options
from tests.benchmarks.serve.targets import TARGETS

SETUP = Setup(Path("m.gguf"), n_seq=8, longest=1000, n_threads=2)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([5.0], 0.99, 5.0), ([3, 1, 2], 0.5, 2), (list(range(1, 21)), 0.95, 19), ([1, 2], 1.0, 2)],
)
def test_percentile(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0.01, 1.0))
def test_a_percentile_covers_its_share(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(v <= found for v in values) >= round(share * len(values), 9) - 1e-9


def test_a_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)
    with pytest.raises(ValueError, match="share"):
        percentile([1.0], 0.0)


def runs(ours: list[float | None], peer: list[float | None]) -> list[Run]:
    return [
        Run("s", server, number, {} if value is None else {"f": value})
        for server, values in (("a", ours), ("b", peer))
        for number, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("ratio", Spread(2.0, 1.0, 3.0, 3)),
        ("difference", Spread(2.0, 0.0, 4.0, 3)),
        ("value", Spread(5.0, 2.0, 9.0, 4)),
    ],
)
def test_compare_pairs_by_round(how: str, expected: Spread) -> None:
    found = runs([2.0, 4.0, 6.0, 9.0, None], [2.0, 2.0, 2.0, None, 5.0])
    assert compare(found, "f", "a", "b", how) == expected


def test_nothing_to_compare() -> None:
    assert compare(runs([1.0], [None]), "f", "a", "b", "ratio") is None
    assert compare(runs([1.0], [0.0]), "f", "a", "b", "ratio") is None
    assert spread([]) is None
    assert medians(runs([1.0, 3.0, None], [])) == {"a": {"f": 2.0}}


@pytest.mark.parametrize(
    ("sign", "limit", "held"), [(">=", 2.0, True), (">=", 2.1, False), ("<=", 2.0, True)]
)
def test_judge(sign: str, limit: float, held: bool) -> None:
    target = Target("x", "s", "f", sign, limit, peer="b", ours="a")
    assert judge(target, runs([4.0], [2.0])).held is held
    assert judge(target, []).held is None


def test_everyone_goes_first_in_turn() -> None:
    assert orders(["a", "b"], 3) == [["a", "b"], ["b", "a"], ["a", "b"]]
    assert orders([], 2) == [[], []]


def test_gaps_that_overlap_a_window() -> None:
    assert gaps([0.0, 1.0, 3.0, 6.0, 10.0], 1.5, 5.0) == [2.0, 3.0]
    assert gaps([1.0], 0.0, 9.0) == []


def test_options_from_the_environment() -> None:
    plain = options({}, {"llama-server": "/usr/bin/llama-server"})
    assert (plain.n_pairs, plain.quick, plain.llama_server) == (
        5,
        False,
        Path("/usr/bin/llama-server"),
    )
    assert all(plain.wants(scenario.name) for scenario in SCENARIOS)
    some = options({"EDGEKIT_BENCH_QUICK": "1", "EDGEKIT_BENCH_SCENARIOS": "users, json-cost"}, {})
    assert (some.n_pairs, some.llama_server, some.llama_cpp_python) == (1, None, None)
    assert {s.name for s in SCENARIOS if some.wants(s.name)} == {
        "users-1", "users-4", "users-8", "users-16", "json-cost",
    }  # fmt: skip
    with pytest.raises(ValueError, match="EDGEKIT_BENCH_PAIRS"):
        options({"EDGEKIT_BENCH_PAIRS": "none"}, {})


def test_every_server_gets_the_same_settings() -> None:
    found = options({"EDGEKIT_BENCH_LLAMA_CPP_PYTHON": "py"}, {"llama-server": "ls"})
    ours = contender("edgekit:speculation=off,n_threads=1", found).command(SETUP, 1)
    engine = json.loads(ours[-1])["engine"]
    assert engine == {
        "n_ctx": 8192, "n_seq_max": 8, "n_batch": 2048, "n_ubatch": 512, "n_threads": 1,
        "speculation": "off",
    }  # fmt: skip
    peer = contender("llama-server", found).command(SETUP, 1)
    flags = dict(zip(peer[1::2], peer[2::2], strict=False))
    assert [flags[f] for f in ("-c", "-np", "-t", "-tb", "-b", "-ub")] == [
        "8192", "8", "2", "2", "2048", "512",
    ]  # fmt: skip
    assert peer[-1] == "-kvu"
    streams = contender("llama-server:streams,KMP_BLOCKTIME=1", found)
    assert streams.command(SETUP, 1)[-1] == "-no-kvu"
    assert streams.env == {"KMP_BLOCKTIME": "1"}
    assert "--n_ctx" in contender("llama_cpp.server", found).command(SETUP, 1)
    assert contender("llama_cpp.server", options({}, {})).program is None
    for wrong in ("vllm", "llama-server:fast", "llama_cpp.server:x"):
        with pytest.raises(ValueError, match=wrong.partition(":")[0]):
            contender(wrong, found)


def test_targets_name_what_is_measured() -> None:
    named = {scenario.name: scenario.servers for scenario in SCENARIOS}
    for target in TARGETS:
        if target.scenario in ("memory", "cold-start"):
            continue
        assert target.ours in named[target.scenario]
        assert target.how == "value" or target.peer in named[target.scenario]


def test_buffers_of_both_logs() -> None:
    peer = (
        "0.00.019.200 I load_tensors:          AMX model buffer size =     4.50 MiB\n"
        "0.00.019.212 I load_tensors:   CPU_Mapped model buffer size =     3.00 MiB\n"
        "0.00.026.067 I llama_context:        CPU  output buffer size =     0.25 MiB\n"
        "0.00.030.998 I sched_reserve:        CPU compute buffer size =    12.00 MiB\n"
    )
    ours = "AMX model buffer size = 4.50 MiB; CPU_Mapped model buffer size = 3.00 MiB; "
    ours += "CPU output buffer size = 0.25 MiB; CPU compute buffer size = 12.00 MiB"
    expected = {
        "model": {"AMX": 4718592, "CPU_Mapped": 3145728},
        "output": {"CPU": 262144},
        "compute": {"CPU": 12582912},
    }
    assert bare.buffers(peer) == bare.buffers(ours) == expected
    assert bare.buffers("nothing") == {}


def test_the_report_shows_medians_and_ratios() -> None:
    found = [
        Run("s", "a", 0, {"tokens_per_s": 30.0, "cost": 0.031}),
        Run("s", "b", 0, {"tokens_per_s": 20.0}),
        Run("s", "b", 1, error="429"),
    ]
    text = "\n".join(report.table("s: about", ["a", "b"], found))
    assert "30.0 tok/s" in text
    assert "20.0 tok/s  x1.50 (1.50-1.50)" in text
    assert "3.1%" in text
    assert "b, round 1: 429" in text
    target = Target("rate", "s", "tokens_per_s", ">=", 2.0, peer="b", ours="a")
    (_, line, other) = report.targets([judge(target, found), judge(target, [])])
    assert "1.500" in line
    assert line.endswith("MISSED")
    assert "not measured" in other


def test_texts_are_seeded_and_their_schemas_valid() -> None:
    assert texts.edit(random.Random(1), 3) == texts.edit(random.Random(1), 3)
    assert texts.words(random.Random(1), 9) != texts.words(random.Random(2), 9)
    compile(texts.code(random.Random(3), 4), "code", "exec")
    for schema in (*texts.SCHEMAS, texts.item_schema(4)):
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_merge_joins_what_came_before() -> None:
    known: set[str] = set()
    for _, (left, right) in zip(range(20_000), _merges(), strict=False):
        assert len(left) == 1 or left in known
        assert left + right not in known
        known.add(left + right)


def served(reply: bytes, ask: Callable[[int], Awaitable[object]]) -> object:
    """Answer one connection with these bytes while `ask` runs against the port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for i in range(0, len(reply), 7):  # in small pieces: nothing may depend on where they end
            writer.write(reply[i : i + 7])
            await writer.drain()
        writer.close()

    async def play() -> object:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            return await ask(server.sockets[0].getsockname()[1])

    return asyncio.run(play())


def chunked(*events: object) -> bytes:
    lines = [f"data: {e if isinstance(e, str) else json.dumps(e)}\n\n".encode() for e in events]
    body = b"".join(b"%x\r\n%s\r\n" % (len(line), line) for line in lines)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "prompt_tokens_details": {"cached_tokens": 1},
}


def test_the_client_reads_a_stream() -> None:
    reply = chunked(
        {"choices": [{"text": "", "finish_reason": None}]},
        {"choices": [{"delta": {"content": "ab"}, "finish_reason": None}]},
        {"choices": [{"text": "c", "finish_reason": "length"}]},
        {"choices": [], "usage": USAGE},
        "[DONE]",
    )
    answer = served(reply, lambda port: post(port, "/x", {"stream": True}))
    assert isinstance(answer, Answer)
    assert (answer.text, answer.finish, len(answer.times)) == ("abc", "length", 2)
    assert (answer.n_prompt, answer.n_answer, answer.n_cached) == (3, 2, 1)
    assert answer.began <= answer.times[0] <= answer.ended


def test_the_client_reads_a_whole_answer() -> None:
    body = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": USAGE}
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n" + json.dumps(body).encode()
    answer = served(reply, lambda port: post(port, "/x", {}))
    assert isinstance(answer, Answer)
    assert (answer.text, answer.n_answer, answer.times) == ("hi", 2, [])


def test_refusals_are_errors() -> None:
    refused = b"HTTP/1.1 429 Too Many\r\n\r\nlater"
    with pytest.raises(RefusedError, match="429: later"):
        served(refused, lambda port: post(port, "/x", {}))
    broken = chunked({"error": {"message": "the engine died"}})
    with pytest.raises(RefusedError, match="the engine died"):
        served(broken, lambda port: post(port, "/x", {"stream": True}))
    assert served(refused, lambda port: get(port, "/health")) == (429, b"later")
