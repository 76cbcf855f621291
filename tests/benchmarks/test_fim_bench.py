"""Fill in the middle as an editor asks for it: how long from keystroke to suggestion.

Editors give up between 300 and 375 ms, so p50 should be under 300 ms.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.support.http_server import config_for, running
from tests.support.pocket import convert_pocket

pytestmark = pytest.mark.bench
KEYSTROKES = 40
SOURCE = Path(json.__file__).with_name("decoder.py").read_text()
SUFFIX = SOURCE[3000 + KEYSTROKES : 4000]


def infill(prefix: str, suffix: str) -> tuple[str, dict[str, object]]:
    body = {"input_prefix": prefix, "input_suffix": suffix, "n_predict": 32, "cache_prompt": True}
    return "/infill", body


def completion(prefix: str, suffix: str) -> tuple[str, dict[str, object]]:
    return "/v1/completions", {"prompt": prefix, "suffix": suffix, "max_tokens": 32}


@pytest.mark.parametrize("ask", [infill, completion])
def test_keystroke_to_suggestion(
    tmp_path: Path, ask: Callable[[str, str], tuple[str, dict[str, object]]]
) -> None:
    """Type new text into a file of the standard library, one character a keystroke."""
    config = config_for(convert_pocket(tmp_path, "Q4_K_M"))
    engine = replace(config.engine, n_ctx=8192, n_seq_max=4, n_threads=None)
    took_ms: list[float] = []
    with (
        running(replace(config, engine=engine)) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        for stroke in range(KEYSTROKES):
            at = 3000 + stroke
            path, body = ask(SOURCE[:at], SUFFIX)
            began = time.perf_counter()
            assert http.post(path, json=body).status_code == 200
            took_ms.append(1000 * (time.perf_counter() - began))
    p50, p95 = statistics.median(took_ms), sorted(took_ms)[int(0.95 * len(took_ms))]
    print(f"\n{ask.__name__}: p50 {p50:.0f} ms, p95 {p95:.0f} ms, first {took_ms[0]:.0f} ms")
