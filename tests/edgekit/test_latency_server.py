"""The load generator against our own server and a real engine child on tiny weights."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

import pytest

from edgekit.errors import UsageError
from edgekit.latency import measure
from edgekit.report import ceiling, from_json, render_html, render_text, to_json
from edgekit_quantize.convert import convert
from tests.support.gguf_models import write_model
from tests.support.http_server import config_for, running


def test_a_real_server_is_measured(tmp_path: Path) -> None:
    config = config_for(write_model(tmp_path / "tiny.gguf"))
    with running(config) as server:
        record = measure(
            server.url,
            config.engine.model_id,
            users=[1, 4],
            prompt_tokens=64,
            output_tokens=32,
            requests_per_user=5,
            pids=[os.getpid()],
            ceiling=ceiling(20.0, 500_000, "made up"),
            timeout_s=60.0,
        )
        with pytest.raises(UsageError) as caught:
            measure(
                server.url,
                config.engine.model_id,
                users=[1],
                prompt_tokens=3000,
                output_tokens=8,
                requests_per_user=1,
            )
    assert caught.value.code == "prompt_too_long"
    one, four = record.rows
    assert (one.requests, one.errors, four.requests, four.errors) == (5, 0, 20, 0)
    for row in record.rows:
        assert (row.output_tokens_min, row.output_tokens_max) == (32, 32)
        assert row.cached_tokens_max == 0
        assert row.prompt_tokens_min is not None
        assert row.ttft_ms.p50 is not None
        assert row.decode_tok_s is not None
    assert record.peak_memory_bytes is not None
    assert from_json(to_json(record)) == record
    assert "cache cold" in render_text(record)
    assert render_html(record).startswith("<!doctype html>")


def test_pocket_gets_prompts_of_the_exact_length(tmp_path: Path) -> None:
    source = Path(str(files("edgekit_profiles") / "pocket"))
    gguf = convert(source, tmp_path / "pocket.gguf", "Q8_0", threads=1).path
    config = config_for(gguf)
    with running(config) as server:
        record = measure(
            server.url,
            config.engine.model_id,
            users=[2],
            prompt_tokens=100,
            output_tokens=12,
            requests_per_user=2,
            timeout_s=60.0,
        )
    row = record.rows[0]
    assert (row.requests, row.errors) == (4, 0)
    assert (row.prompt_tokens_min, row.prompt_tokens_max) == (100, 100)
    assert (row.output_tokens_min, row.output_tokens_max) == (12, 12)
    assert record.cache_cold is True
    assert not [note for note in record.notes if "prompts" in note or "answers" in note]
