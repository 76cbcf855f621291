"""What reading an answer costs per token, beside parsing the whole text anew at each token."""

from __future__ import annotations

import time

import pytest

from edgekit_server.chat.family import load_specs
from edgekit_server.chat.parser import Parser

pytestmark = pytest.mark.bench

N_TOKENS = 2000


def test_parser_per_token() -> None:
    spec = next(s for s in load_specs() if s.family == "mistral-v13")
    call = [
        (b"[TOOL_CALLS]", True), (b"write_file", False), (b"[ARGS]", True), (b'{"text": "', False),
    ]  # fmt: skip
    words = [(word.encode(), False) for word in ("The", " quick", " brown", ", `fox", "`\\n")]
    body = (words * N_TOKENS)[: N_TOKENS - len(call) - 1]
    for name, tokens in (("text", body), ("arguments", [*call, *body, (b'"}', False)])):
        stops = ["```", "\n\n\n", "/src/"]
        began = time.perf_counter()
        parser = Parser(spec, stop=stops)
        for token in tokens:
            parser.feed([token])
        parser.finish()
        incremental_s = time.perf_counter() - began
        began = time.perf_counter()
        for end in range(1, len(tokens) + 1, 10):  # every tenth, then scaled
            again = Parser(spec, stop=stops)
            again.feed(tokens[:end])
            again.finish()
        whole_s = 10 * (time.perf_counter() - began)
        per_token_us = incremental_s / len(tokens) * 1e6
        print(
            f"\nparser, {name}: {per_token_us:.2f} us per token; "
            f"parsing anew at each of {len(tokens)} tokens costs {whole_s / incremental_s:.0f} x"
        )
