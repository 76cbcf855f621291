"""The load generator against our own server and a real engine child on tiny weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgekit.errors import UsageError
from edgekit.latency import measure
from edgekit.report import ceiling, from_json, render_html, render_text, to_json
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
