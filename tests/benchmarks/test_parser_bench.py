"""What reading an answer costs per token, beside parsing the whole text anew at each token."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from edgekit_server.chat.family import Spec, load_specs
from edgekit_server.chat.parser import Parser

pytestmark = pytest.mark.bench

N_TOKENS = 2000
STOPS = ["```\n\n", "\n\n\n", "/src/"]
OFFERED = {"write_file": {"properties": {"text": {"type": "string"}}}}
WORDS = ("The", " quick", " brown", ", `fox", "` <b", ">", " {x}", "\\n")
CALLS: dict[str, tuple[list[tuple[str, bool]], str]] = {
    "mistral-v13": (
        [("[TOOL_CALLS]", True), ("write_file", False), ("[ARGS]", True), ('{"text": "', False)],
        '"}',
    ),
    "hermes": (
        [('<tool_call>\n{"name": "write_file", "arguments": {"text": "', False)],
        '"}}\n</tool_call>',
    ),
    "qwen3-coder": (
        [("<tool_call>\n<function=write_file>\n<parameter=text>\n", False)],
        "\n</parameter>\n</function>\n</tool_call>",
    ),
    "llama4": ([('[write_file(text="', False)], '")]'),
    "deepseek": (
        [
            ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>", False),
            ('write_file\n```json\n{"text": "', False),
        ],
        '"}\n```<｜tool▁call▁end｜>',
    ),
}
SPECS = {spec.family: spec for spec in load_specs()}


def _read(spec: Spec, tokens: Sequence[tuple[bytes, bool]], *, whole: bool) -> int:
    parser = Parser(spec, stop=STOPS, offered=OFFERED)  # type: ignore[arg-type]
    if whole:
        parser.feed(tokens)
    else:
        for token in tokens:
            parser.feed([token])
    parser.finish()
    return parser.n_calls


def test_parser_per_token() -> None:
    words = [(word.encode(), False) for word in WORDS]
    for name, (opening, closing) in CALLS.items():
        begin = [(text.encode(), real) for text, real in opening]
        body = (words * N_TOKENS)[: N_TOKENS - len(begin) - 1]
        thought = [(b"<think>", False), *body, (b"</think>", False)]
        call = [*begin, *body, (closing.encode(), False)]
        for kind, tokens in (("text", body), ("a call", call), ("reasoning", thought)):
            if kind == "reasoning" and not SPECS[name].text_markers:
                continue
            costs = []
            for _ in range(5):
                began = time.perf_counter()
                n_calls = _read(SPECS[name], tokens, whole=False)
                costs.append(time.perf_counter() - began)
            assert n_calls == (kind == "a call")
            began = time.perf_counter()
            for end in range(1, len(tokens) + 1, 20):  # every 20th, then scaled
                _read(SPECS[name], tokens[:end], whole=True)
            whole_s = 20 * (time.perf_counter() - began)
            print(
                f"\nparser, {name}, {kind}: {min(costs) / len(tokens) * 1e6:.2f} us per token; "
                f"parsing anew at each of {len(tokens)} tokens costs {whole_s / min(costs):.0f} x"
            )
