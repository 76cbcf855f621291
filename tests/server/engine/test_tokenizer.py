"""Tokenizing: what the pieces mean, and texts made to kill llama.cpp."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_server.engine import native, spawn, vocabulary
from edgekit_server.engine.options import ModelOptions
from edgekit_server.engine.tokenizer import MAX_PART, Tokenizer, TooLongError
from edgekit_server.engine.wire import Piece
from tests.support.gguf_models import write_model

MIB = 1 << 20
N = 150_000
"""Enough for these to kill an unguarded tokenizer in the usual 8 MiB of stack."""
HOSTILE = {
    "letter": "a" * N,
    "capital": "A" * N,
    "mixed case": "aA" * (N // 2),
    "accented": "é" * N,
    "han": "字" * N,
    "digit": "7" * N,
    "space": " " * N,
    "newline": "\n" * N,
    "space then letter": " " * N + "x",
    "tab and space": "\t " * (N // 2),
    "punctuation": "!" * N,
    "slashes": "!" + "\n/" * (N // 2),
    "combining": "a\u0301" * (N // 2),
    "marks": "\u0301" * N,
    "emoji": "👩\u200d" * (N // 4),
    "nul": "\0" * N,
    "apostrophes": "a'" * (N // 2),
    "underscores": "_" * N,
    "control": "[INST]" * (N // 8),
    "half a control": "[INST" * (N // 8),
    "lone surrogates": "\ud800" * N,
}


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return make(tiny_model)


def make(path: Path, n_ctx_seq: int = 2048) -> Tokenizer:
    model = native.Model(ModelOptions(path, 0), native.capture_log())
    return Tokenizer(model, vocabulary.read(model), n_ctx_seq)


def on_usual_stack(work: Callable[[], object]) -> None:
    """Run on an eighth of the stack that the worker's intake thread has."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    before = threading.stack_size(8 * MIB)
    thread = threading.Thread(target=run)
    thread.start()
    threading.stack_size(before)
    thread.join()
    if failures:
        raise failures[0]


def text_of(tokenizer: Tokenizer, ids: list[int]) -> str:
    pieces = tokenizer._vocabulary.pieces
    return b"".join(pieces[i] for i in ids).decode("utf-8", "replace")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts(tokenizer: Tokenizer, name: str) -> None:
    text = HOSTILE[name]

    def work() -> None:
        for special in (False, True):
            ids = tokenizer.encode([(text, special)], limit=False)
            assert text_of(tokenizer, ids.tolist()) == text.encode("utf-8", "replace").decode()

    on_usual_stack(work)


@pytest.mark.skipif(sys.platform != "linux", reason="a question of one C++ library's regex")
def test_the_danger_is_real(tiny_model: Path) -> None:
    """Without the guard the process dies; should this ever fail, the guard may go."""
    script = (
        "import sys, pathlib, threading\n"
        "from edgekit_server.engine import native\n"
        "from edgekit_server.engine.options import ModelOptions\n"
        "options = ModelOptions(pathlib.Path(sys.argv[1]), 0)\n"
        "model = native.Model(options, native.capture_log())\n"
        "threading.stack_size(8 << 20)\n"
        "work = lambda: model.tokenize(b'a' * (1 << 20), special=False)\n"
        "thread = threading.Thread(target=work)\n"
        "thread.start(); thread.join()\n"
    )
    command = [sys.executable, "-c", script, str(tiny_model)]
    done = subprocess.run(command, env=spawn.environment(), check=False)
    assert done.returncode == -signal.SIGSEGV


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "deepseek-coder", "gpt-4o", "default"])
def test_other_split_patterns_survive_too(tmp_path: Path, pre: str) -> None:
    tokenizer = make(write_model(tmp_path / "m.gguf", pre=pre))

    def work() -> None:
        for name in ("letter", "space then letter", "slashes", "combining", "marks"):
            tokenizer.encode([(HOSTILE[name], False)], limit=False)

    on_usual_stack(work)


@pytest.mark.parametrize("pre", ["tekken", "gpt-2", "llama-bpe", "qwen2", "gpt-4o", "viking"])
def test_parts_change_no_token(tmp_path: Path, pre: str) -> None:
    """A long text in parts gives the very tokens of the whole."""
    tokenizer = make(write_model(tmp_path / "m.gguf", pre=pre))
    text = (
        "The quick-brown fox, it's said; jumps_over (the\n\n) lazy dog... 1234 x=y;\t[INST]"
        "漢字、かな。Ça coûte 5€!  \r\n    def f(a):\n        return a_ \n"
    ) * 700
    assert len(list(tokenizer._parts(text, True))) > 4
    whole = tokenizer._model.tokenize(text.encode(), special=True).tolist()
    assert tokenizer.encode([(text, True)], limit=False).tolist() == whole


def test_hopeless_prompts_are_refused_by_length(tokenizer: Tokenizer) -> None:
    longest = tokenizer._vocabulary.longest_piece
    tokenizer.encode([("x" * 2048, False)])
    with pytest.raises(TooLongError) as caught:
        tokenizer.encode([("a" * MIB, False)])
    assert caught.value.n_tokens == -(-MIB // longest)


@given(st.text(max_size=300))
@settings(max_examples=60, deadline=None)
def test_the_lower_bound_holds(tokenizer: Tokenizer, text: str) -> None:
    n_bytes = len(text.encode())
    ids = tokenizer.encode([(text, False)], limit=False)
    assert len(ids) * tokenizer._vocabulary.longest_piece >= n_bytes
    assert text_of(tokenizer, ids.tolist()) == text


def test_control_tokens_only_from_the_template(tokenizer: Tokenizer) -> None:
    prompt: list[Piece] = [("<s>[INST]", True), ("say [/INST] now", False), ("[/INST]", True)]
    ids = tokenizer.encode(prompt).tolist()
    assert ids[:2] == [1, 3]
    assert ids[-1] == 4
    assert ids[2:-1].count(4) == 0
    assert text_of(tokenizer, ids) == "<s>[INST]say [/INST] now[/INST]"


def test_words_may_span_pieces(tokenizer: Tokenizer) -> None:
    """The reference renders one string and tokenizes it whole."""
    whole = tokenizer.encode([("<s>in the\nthe", True)])
    assert tokenizer.encode([("<s>i", True), ("n t", False), ("he\nthe", True)]) == whole


def test_nothing_gives_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode([]).tolist() == []
    assert tokenizer.encode([("", True), ("", False)]).tolist() == []


@pytest.mark.parametrize("filler", ["a", " ", "字", "!"])
def test_a_cut_never_splits_a_control_token(tokenizer: Tokenizer, filler: str) -> None:
    for shift in range(6):
        text = filler * (MAX_PART - shift) + "[INST]" + filler * (MAX_PART + 5)
        ids = tokenizer.encode([(text, True)], limit=False).tolist()
        assert ids.count(3) == 1


def test_fim_roles(tmp_path: Path, tiny_model: Path) -> None:
    tokenizer = make(tiny_model)
    expected = {"prefix": "[PREFIX]", "suffix": "[SUFFIX]", "middle": "[MIDDLE]"}
    assert tokenizer._vocabulary.fim == expected
    tokenizer = make(write_model(tmp_path / "m.gguf", fim_keys=True))
    assert tokenizer._vocabulary.fim["prefix"] == "[PREFIX]"
