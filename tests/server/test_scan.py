from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from edgekit_server.chat.scan import Scanner


def _first_to_end(text: str, patterns: list[str]) -> tuple[str, str | None, str]:
    """The slow, obvious way."""
    for end in range(1, len(text) + 1):
        ending = [p for p in patterns if p and text[:end].endswith(p)]
        if ending:
            match = max(ending, key=len)
            return text[: end - len(match)], match, text[end:]
    return text, None, ""


def _run(chunks: list[str], patterns: list[str]) -> tuple[str, str | None]:
    scanner = Scanner(patterns)
    out = ""
    for chunk in chunks:
        scan = scanner.feed(chunk)
        out += scan.text
        if scan.match is not None:
            return out, scan.match
    return out + scanner.flush(), None


def _cut(text: str, cuts: list[int]) -> list[str]:
    places = sorted({min(c, len(text)) for c in cuts} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(places)]


letters = st.text("ab", max_size=30)


@given(letters, st.lists(st.text("ab", max_size=5), max_size=4), st.lists(st.integers(0, 30)))
def test_finds_the_match_that_ends_first_however_the_text_is_cut(
    text: str, patterns: list[str], cuts: list[int]
) -> None:
    before, match, _ = _first_to_end(text, patterns)
    assert _run(_cut(text, cuts), patterns) == (before, match)


@given(letters, st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4))
def test_holds_back_exactly_what_may_become_a_match(text: str, patterns: list[str]) -> None:
    scanner = Scanner(patterns)
    scan = scanner.feed(text)
    if scan.match is not None:
        return
    held = scanner.flush()
    assert scan.text + held == text
    starts = [
        n for n in range(len(text) + 1) if any(p[:n] == text[len(text) - n :] for p in patterns)
    ]
    assert len(held) == max(starts)
