from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_server.chat.fim import (
    File,
    fim_pieces,
    layout_of,
    needed_layout,
    newest_that_fit,
)
from edgekit_server.chat.middle import Indent, Middle
from edgekit_server.chat.parser import Text, merge
from edgekit_server.engine.fimroles import CORE, roles
from edgekit_server.errors import RequestError

QWEN = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|repo_name|>",
        "<|file_sep|>", "<|im_end|>"]  # fmt: skip
STARCODER2 = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<repo_name>", "<file_sep>"]
FAMILIES = {
    "qwen": (QWEN, "<|fim_prefix|>P<|fim_suffix|>S<|fim_middle|>"),
    "codegemma": (
        [*QWEN[:3], "<|file_separator|>"],
        "<|fim_prefix|>P<|fim_suffix|>S<|fim_middle|>",
    ),
    "starcoder2": (STARCODER2, "<fim_prefix>P<fim_suffix>S<fim_middle>"),
    "mistral": (["[PREFIX]", "[SUFFIX]", "[MIDDLE]"], "[SUFFIX]S[PREFIX]P"),
    "codestral": (["[PREFIX]", "[SUFFIX]"], "[SUFFIX]S[PREFIX]P"),
    "codellama": (["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"], "▁<PRE>P▁<SUF>S▁<MID>"),
    "deepseek": (
        ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
        "<｜fim▁begin｜>P<｜fim▁hole｜>S<｜fim▁end｜>",
    ),
    "glm": (
        ["<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"],
        "<|code_prefix|>P<|code_suffix|>S<|code_middle|>",
    ),
    "seed-coder": (
        ["<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>"],
        "<[fim-suffix]>S<[fim-prefix]>P<[fim-middle]>",
    ),
}


def _text(pieces: list[tuple[str, bool]]) -> str:
    return "".join(text for text, _ in pieces)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("named", [False, True])
def test_each_family_s_layout(family: str, named: bool) -> None:
    """Whether llama.cpp names the tokens by role or only the vocabulary has them."""
    controls, expected = FAMILIES[family]
    by_role = dict(zip(("prefix", "suffix", "middle"), controls, strict=False))
    fim = roles(by_role if named and len(controls) > 2 else {}, controls, "llama")
    layout = layout_of(fim)
    assert layout is not None
    pieces = layout.pieces("P", "S")
    assert _text(pieces) == expected
    given_texts = [text for text, special in pieces if not special]
    assert given_texts == (["S", "P"] if layout.suffix_first else ["P", "S"])
    assert pieces == fim_pieces("P", "S", fim)


def test_files_go_first_between_the_model_s_own_tokens() -> None:
    files = [File("a\n", "x.py"), File("b\n", "y.py")]
    qwen, star = layout_of(roles({}, QWEN, None)), layout_of(roles({}, STARCODER2, None))
    assert qwen is not None
    assert star is not None
    assert _text(qwen.pieces("P", "S", files)) == (
        "<|repo_name|>project\n<|file_sep|>x.py\na\n<|file_sep|>y.py\nb\n<|file_sep|>current\n"
        "<|fim_prefix|>P<|fim_suffix|>S<|fim_middle|>"
    )
    assert _text(star.pieces("P", "S", files)).startswith("<repo_name>project\n<file_sep>x.py\na\n")
    assert qwen.stops == star.stops == []


def test_files_without_such_tokens_are_plain_text_with_a_stop() -> None:
    files = [File("a\n", "[SUFFIX].py")]
    mistral = layout_of(roles({}, FAMILIES["mistral"][0], None))
    deepseek = layout_of(roles({}, FAMILIES["deepseek"][0], None))
    assert mistral is not None
    assert deepseek is not None
    first = mistral.pieces("P", "S", files)[0]
    assert first == ("\n+++++ [SUFFIX].py\na\n", False)
    assert mistral.stops == ["\n+++++ "]
    assert deepseek.pieces("P", "S", files)[0] == ("\n\n--- snippet ---\n\na\n", False)
    assert deepseek.stops == ["\n--- snippet ---\n"]


def test_no_tokens_or_no_contract() -> None:
    for controls, architecture in (
        (["<s>"], "llama"), (QWEN, "llama4"), (QWEN, "phi3"), (["[PREFIX]"], "llama"),
        (["<|fim_prefix|>", "<|fim_suffix|>"], "qwen2"),
    ):  # fmt: skip
        fim = roles({}, controls, architecture)
        assert layout_of(fim) is None
        with pytest.raises(RequestError) as caught:
            needed_layout(fim)
        assert (caught.value.status, caught.value.code) == (501, "no_fim_tokens")
        assert "no FIM tokens" in caught.value.message
        assert "Qwen2.5-Coder" in caught.value.message


def test_what_the_file_names_is_never_overruled() -> None:
    assert roles({"prefix": "<pre>"}, ["<pre>", *QWEN], None)["prefix"] == "<pre>"
    assert len({text for line in CORE for text in line}) == 3 * len(CORE)


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(-5, 120))
def test_the_newest_files_stay(sizes: list[int], room: int) -> None:
    kept = newest_that_fit(sizes, room)
    assert sum(sizes[len(sizes) - kept :]) <= max(room, 0)
    if kept < len(sizes):
        assert sum(sizes[len(sizes) - kept - 1 :]) > room


PIECES = st.lists(
    st.tuples(
        st.sampled_from([b"a", b" ", b"\n", b"  x", b"\xc3", b"\xa9", b"END"]), st.just(False)
    )
    | st.just((b"<|fim_pad|>", True)),
    max_size=20,
)


def _middle(pieces: list[Any], chunks: int, **options: Any) -> tuple[list[Any], Middle]:
    parser = Middle(stop=["END"], **options)
    events: list[Any] = []
    for at in range(0, len(pieces), chunks):
        events += parser.feed(pieces[at : at + chunks])
    return merge([*events, *parser.finish()]), parser


@given(PIECES, st.integers(1, 5), st.integers(0, 3))
def test_any_chunks_give_the_same_middle(pieces: list[Any], chunks: int, n_indent: int) -> None:
    assert _middle(pieces, chunks, n_indent=n_indent)[0] == _middle(
        pieces, max(1, len(pieces)), n_indent=n_indent
    )[0]  # fmt: skip


@given(PIECES)
def test_a_middle_ends_at_the_first_control_token(pieces: list[Any]) -> None:
    text = b"".join(b"\0" if special else data for data, special in pieces)
    expected = text.split(b"\0")[0].decode("utf-8", "replace").split("END")[0]
    events, parser = _middle(pieces, 1)
    assert "".join(e.text for e in events if isinstance(e, Text)) == expected
    assert parser.ended_by_token == (b"\0" in text and b"END" not in text.split(b"\0")[0])


@pytest.mark.parametrize(
    ("text", "least", "shown"),
    [
        ("a\n  b\n c", 2, "a\n  b"),
        ("  a\nb", 1, "  a"),
        ("a\n    b\n    c", 4, "a\n    b\n    c"),
        ("a\n\n  b", 2, "a"),
        ("a\n\tb\nc", 1, "a\n\tb"),
        ("no line break", 8, "no line break"),
        ("a\n ", 2, "a\n "),
    ],
)
def test_a_dedent_ends_it(text: str, least: int, shown: str) -> None:
    for size in (1, 2, len(text)):
        indent = Indent(least)
        found = [indent.feed(text[i : i + size]) for i in range(0, len(text), size)]
        assert "".join([*found, indent.flush()]) == shown
