"""The load generator against a real socket whose timing is known."""

from __future__ import annotations

import os
import random
import socket
from dataclasses import replace

import pytest

from edgekit.errors import DeniedError, EngineFailedError, MissingInputError, UsageError
from edgekit.latency import Progress, api_root, busy_client, measure
from edgekit.latency_prompts import TOKEN_IDS, Prompts
from edgekit.report import LatencyRecord
from tests.support.completions_server import Manners, completions_server


def run(manners: Manners, url: str, **changes: object) -> LatencyRecord:
    options: dict[str, object] = {
        "users": [1],
        "prompt_tokens": 32,
        "output_tokens": 10,
        "requests_per_user": 3,
        "timeout_s": 10.0,
    }
    return measure(url, manners.model, **(options | changes))  # type: ignore[arg-type]


def notes(record: LatencyRecord) -> list[str]:
    """The notes, less the one that depends on how busy this machine is."""
    return [note for note in record.notes if "load generator" not in note]


def test_times_are_near_the_truth() -> None:
    manners = Manners(prefill_s=0.10, token_s=0.02)
    with completions_server(manners) as url:
        row = run(manners, url, output_tokens=11).rows[0]
    assert row.errors == 0
    assert row.requests == 3
    # Loose above: the machine may be busy. A sleep never ends early, so tight below.
    assert 95 < row.ttft_ms.p50 < 500
    assert 15 < row.itl_ms.p50 < 100
    assert 19 < row.tpot_ms.p50 < 100
    assert 290 < row.e2e_ms.p50 < 1500
    assert 10 < row.decode_tok_s < 52
    assert 60 < row.prefill_tok_s < 340
    assert row.throughput_tok_s < row.decode_tok_s
    assert row.itl_ms.samples == 30


def test_users_run_at_the_same_time() -> None:
    manners = Manners(prefill_s=0.02, token_s=0.02)
    with completions_server(manners) as url:
        one, four = run(manners, url, users=[1, 4], requests_per_user=2).rows
    assert (one.requests, four.requests) == (2, 8)
    assert four.decode_tok_s > 1.5 * one.decode_tok_s


def test_lengths_are_the_servers_count_and_prompts_never_repeat() -> None:
    manners = Manners()
    with completions_server(manners) as url:
        record = run(manners, url, users=[1, 2], requests_per_user=4)
    for row in record.rows:
        assert (row.prompt_tokens_min, row.prompt_tokens, row.prompt_tokens_max) == (32, 32, 32)
        assert (row.output_tokens_min, row.output_tokens_max) == (10, 10)
        assert row.cached_tokens_max == 0
    assert record.cache_cold is True
    assert notes(record) == []
    prompts = [body["prompt"] for body in manners.seen]
    first = [prompt[0] for prompt in prompts if isinstance(prompt, list)]
    assert len(set(first)) >= len(first) - 1  # calibration draws from its own deck
    assert all(body["ignore_eos"] is True for body in manners.seen)
    assert all(body["speculative.n_max"] == 0 for body in manners.seen)


def test_added_bos_is_taken_out_of_the_prompt() -> None:
    manners = Manners(extra_prompt_tokens=1)
    with completions_server(manners) as url:
        record = run(manners, url)
    assert record.rows[0].prompt_tokens == 32
    assert notes(record) == []


@pytest.mark.parametrize("per_word", [1, 3])
def test_words_when_ids_are_refused(per_word: int) -> None:
    manners = Manners(takes_ids=False, extra_prompt_tokens=2, tokens_per_word=per_word)
    with completions_server(manners) as url:
        record = run(manners, url)
    assert record.rows[0].prompt_tokens == 32
    assert any("no token ids" in note for note in record.notes)


@pytest.mark.parametrize("running_usage", [True, False])
def test_several_tokens_in_one_event_share_the_gap(running_usage: bool) -> None:
    manners = Manners(token_s=0.02, tokens_per_event=4, running_usage=running_usage)
    with completions_server(manners) as url:
        row = run(manners, url, output_tokens=16, requests_per_user=2).rows[0]
    assert row.output_tokens == 16
    assert 15 < row.itl_ms.p50 < 100
    assert row.itl_ms.samples == (24 if running_usage else 6)


def test_failures_are_counted_and_stay_out_of_the_percentiles() -> None:
    faults = {1: "503", 3: "cut", 4: "error", 5: "empty", 6: "hang"}
    manners = Manners(fail_with=faults)
    with completions_server(manners) as url:
        record = run(manners, url, requests_per_user=8, timeout_s=1.5)
    row = record.rows[0]
    assert (row.requests, row.errors) == (8, 5)
    assert dict(row.error_kinds) == {
        "http_503": 1,
        "cut": 1,
        "stream_engine_died": 1,
        "no_text": 1,
        "timeout": 1,
    }
    assert row.ttft_ms.samples == 3
    assert row.ttft_ms.p50 < 1400
    assert any("5 of 8 failed" in note for note in record.notes)


def test_a_level_where_all_fail_has_no_figures() -> None:
    manners = Manners(fail_with=dict.fromkeys(range(9), "503"))
    with completions_server(manners) as url:
        row = run(manners, url).rows[0]
    assert (row.requests, row.errors) == (3, 3)
    assert row.ttft_ms.p50 is None
    assert row.decode_tok_s is None
    assert row.prompt_tokens is None


def test_nothing_is_claimed_that_the_server_did_not_say() -> None:
    manners = Manners(says_usage=False)
    with completions_server(manners) as url:
        record = run(manners, url)
    row = record.rows[0]
    assert (row.prompt_tokens, row.output_tokens, row.cached_tokens_max) == (None, None, None)
    assert (row.decode_tok_s, row.prefill_tok_s, row.tpot_ms.p50) == (None, None, None)
    assert row.ttft_ms.p50 is not None
    assert record.cache_cold is None
    assert len(notes(record)) == 3


def test_short_answers_and_warm_caches_are_said() -> None:
    manners = Manners(obeys_ignore_eos=False, cached_tokens=8)
    with completions_server(manners) as url:
        record = run(manners, url)
    assert record.rows[0].output_tokens == 5
    assert record.cache_cold is False
    assert "answers were 5 tokens, asked 10" in record.notes
    assert any("reused up to 8" in note for note in record.notes)


def test_key_is_sent_and_progress_told() -> None:
    manners = Manners(api_key="sesame")
    steps: list[Progress] = []
    with completions_server(manners) as url:
        run(manners, url + "/v1/", api_key="sesame", progress=steps.append)
    assert [step.done for step in steps] == [0, 1, 2, 3]
    assert {step.total for step in steps} == {3}


def test_more_requests_where_a_level_would_have_too_few() -> None:
    manners = Manners()
    with completions_server(manners) as url:
        rows = run(manners, url, users=[1, 8], requests_per_user=2, min_requests=20).rows
    assert [row.requests for row in rows] == [20, 24]
    assert rows[0].ttft_ms.p95 is not None
    assert rows[0].ttft_ms.p99 is None


def test_a_level_can_be_cut_short_and_says_so() -> None:
    manners = Manners(prefill_s=0.1)
    with completions_server(manners) as url:
        record = run(manners, url, requests_per_user=50, level_limit_s=0.3)
    assert 1 <= record.rows[0].requests < 50
    assert any("stopped after" in note for note in record.notes)


def test_memory_of_processes_is_watched() -> None:
    manners = Manners()
    with completions_server(manners) as url:
        seen = run(manners, url, pids=[os.getpid()]).peak_memory_bytes
        assert run(manners, url).peak_memory_bytes is None
        assert run(manners, url, pids=[2**22 + 7]).peak_memory_bytes is None
    assert seen is not None
    assert seen > 10_000_000


@pytest.mark.parametrize(
    ("change", "error", "code"),
    [
        ({"api_key": "sesame"}, DeniedError, "bench_denied"),
        ({"model": "other"}, MissingInputError, "no_such_model"),
        ({"max_prompt": 16}, UsageError, "prompt_too_long"),
    ],
)
def test_a_refused_first_request_ends_the_run(
    change: dict[str, object], error: type[Exception], code: str
) -> None:
    manners = replace(Manners(), **change)  # type: ignore[arg-type]
    with completions_server(manners) as url, pytest.raises(error) as caught:
        measure(url, "tiny", users=[1], prompt_tokens=32, output_tokens=8, requests_per_user=1)
    assert caught.value.code == code  # type: ignore[attr-defined]
    assert caught.value.hint  # type: ignore[attr-defined]


def test_no_server_there() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        with pytest.raises(EngineFailedError) as caught:
            run(Manners(), f"http://127.0.0.1:{port}")
    assert caught.value.code == "bench_unreachable"


@pytest.mark.parametrize(
    ("given", "root"),
    [
        ("http://127.0.0.1:8484", "http://127.0.0.1:8484/v1"),
        ("http://127.0.0.1:8484/v1/", "http://127.0.0.1:8484/v1"),
        ("localhost:8484", "http://localhost:8484/v1"),
        ("https://me:pw@host/llm", "https://host/llm/v1"),
    ],
)
def test_api_root(given: str, root: str) -> None:
    assert api_root(given) == root


@pytest.mark.parametrize("bad", ["", "ftp://x", "http://"])
def test_bad_address(bad: str) -> None:
    with pytest.raises(UsageError):
        api_root(bad)


def test_a_busy_load_generator_is_said() -> None:
    assert busy_client(8, 0.5, 1.0) == []
    assert "90 % of one core" in busy_client(8, 0.9, 1.0)[0]
    assert busy_client(1, 0.0, 0.0) == []


def test_nothing_to_measure() -> None:
    with pytest.raises(UsageError):
        run(Manners(), "http://127.0.0.1:1", users=[])
    with pytest.raises(UsageError):
        run(Manners(), "http://127.0.0.1:1", output_tokens=0)


def test_prompts_have_the_size_asked_and_their_own_first_token() -> None:
    prompts = Prompts.new(random.Random(1), as_ids=True)
    made = [prompts.make(5) for _ in range(len(TOKEN_IDS))]
    assert all(len(prompt) == 5 for prompt in made)
    assert len({prompt[0] for prompt in made}) == len(TOKEN_IDS)
    assert len(prompts.make(1)) == 1
    words = Prompts.new(random.Random(1), as_ids=False).make(7)
    assert isinstance(words, str)
    assert len(words.split()) == 7


def test_pieces_of_one_read_arrive_together() -> None:
    manners = Manners(token_s=0.02, token_burst=4, running_usage=True)
    with completions_server(manners) as url:
        row = run(manners, url, output_tokens=16, requests_per_user=2).rows[0]
    assert row.output_tokens == 16
    assert 15 < row.itl_ms.p50 < 100
    assert row.itl_ms.samples == 24
