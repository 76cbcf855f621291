"""One record as text, JSON and HTML."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import BadDataError
from edgekit.report import from_json, render_html, render_text, to_json
from edgekit.report.charts import ticks
from edgekit.report.record import Estimate, LatencyRecord
from edgekit.report.text import estimate
from tests.support.latency_records import bare_record, full_record

TEXT = """\
Ceiling   35.7 tok/s for one user: 600 GB/s ÷ 16.8 GB per step; measured 89 % of it

Latency, NVIDIA A10, mistral-3-small Q5_K_M      prompt 512, answer 128 tokens, cache cold
  users   TTFT p50        p95   ITL p50       p99    E2E p50   tok/s each    all          predicted
      1     412 ms     556 ms   31.0 ms   49.6 ms   4,349 ms         31.8   31.8             33 ± 3
      2     700 ms     945 ms   33.0 ms   52.8 ms   4,891 ms         29.4   58.1             60 ± 8
      4   1,190 ms   1,606 ms   38.0 ms   60.8 ms   6,016 ms         25.9    104            98 ± 14
      8   2,410 ms   3,254 ms   55.0 ms   88.0 ms   9,395 ms         17.8    139   150 (110 to 200)
Memory    20.7 GiB used, 20.6 GiB predicted"""

HOSTILE = "<script>alert('x')</script>\"&\x1b[31m\u202e"


def quiet(record: LatencyRecord) -> LatencyRecord:
    rows = tuple(replace(row, errors=0, error_kinds=()) for row in record.rows)
    return replace(record, rows=rows, notes=())


class Page(HTMLParser):
    """Checks that tags balance and keeps text, tags and attributes."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data + "\n"


def test_text_is_the_picture() -> None:
    assert render_text(quiet(full_record())) == TEXT


def test_errors_and_notes_are_shown() -> None:
    text = render_text(full_record())
    assert "2 of 24" in text
    assert "Note      8 users: 2 of 24 failed (http_503 × 2)" in text


@pytest.mark.parametrize("width", [56, 60, 80, 100, 160])
def test_text_fits_its_width_and_says_what_it_hides(width: int) -> None:
    text = render_text(replace(full_record(), model="a-model-with-a-very-long-name-" * 4), width)
    assert max(map(len, text.splitlines())) <= width
    assert ("Hidden" in text) == (width < 160)


def test_unknown_is_a_dash_everywhere() -> None:
    text = render_text(bare_record())
    assert text.startswith("Ceiling   –\n")
    assert "prompt –, answer – tokens, cache unknown" in text
    assert "Memory    – used, – predicted" in text
    assert "None" not in text
    assert "nan" not in text
    page = Page(render_html(bare_record()))
    assert "None" not in page.text
    assert "No request succeeded" in page.text


@pytest.mark.parametrize(
    ("guess", "shown"),
    [
        (None, "–"),
        (Estimate(33.2), "33.2"),
        (Estimate(33, 30, 36), "33 ± 3"),
        (Estimate(150, 110, 200), "150 (110 to 200)"),
        (Estimate(3.4, 3.1, 3.7), "3.4 ± 0.3"),
        (Estimate(1180, 1000, 1360), "1,180 ± 180"),
    ],
)
def test_estimates(guess: Estimate | None, shown: str) -> None:
    assert estimate(guess) == shown


def test_text_cannot_steer_the_terminal() -> None:
    text = render_text(bare_record(HOSTILE))
    assert all(char.isprintable() for char in text.replace("\n", ""))


def test_json_keeps_the_contract() -> None:
    data = to_json(full_record())
    assert data["schema"] == "edgekit.bench/1"
    for key in ("rows", "device", "model", "filetype", "n_ctx", "predicted", "peak_memory_bytes",
                "plan_digest"):  # fmt: skip
        assert data[key] is not None
    row = json.loads(json.dumps(data))["rows"][0]
    assert {"users", "prompt_tokens", "output_tokens", "requests", "errors", "decode_tok_s",
            "prefill_tok_s", "tpot_ms"} <= row.keys()  # fmt: skip
    for key in ("ttft_ms", "itl_ms", "e2e_ms", "tpot_percentiles_ms"):
        assert {"p50", "p95", "p99"} <= row[key].keys()
    assert row["tpot_ms"] == row["tpot_percentiles_ms"]["p50"] == 32


@pytest.mark.parametrize("record", [full_record(), bare_record()])
def test_json_round_trip(record: LatencyRecord) -> None:
    assert from_json(json.loads(json.dumps(to_json(record)))) == record


def test_json_from_a_newer_edgekit_is_read() -> None:
    data = to_json(full_record()) | {"later": {"x": 1}}
    assert from_json(data) == full_record()


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "edgekit.bench/2"},
        {"rows": None},
        {"rows": 3},
        {"rows": [7]},
        {"rows": [{"users": "1"}]},
        {"rows": [{"users": 1, "requests": 1, "errors": 0, "ttft_ms": []}]},
        {"model": None},
        {"n_ctx": True},
        {"ceiling": "fast"},
        {"predicted": {"rows": [{}]}},
    ],
)
def test_bad_json_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadDataError) as caught:
        from_json(to_json(full_record()) | change)
    assert caught.value.exit_code == 65


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_json_is_read_or_refused(data: object) -> None:
    with pytest.raises(BadDataError):
        from_json(data)


def test_html_asks_the_network_for_nothing() -> None:
    html = render_html(full_record())
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed", "base"}
        assert not {"src", "href", "srcset", "action", "data", "background"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\(|@import", html)
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy


def test_html_shows_the_figures_with_a_table_behind_each_chart() -> None:
    page = Page(render_html(full_record()))
    for figure in ("412 ms", "1,606 ms", "88.0 ms", "139", "98 ± 14", "20.7 GiB", "35.7 tok/s",
                   "2 failed", "http_503", "sha256:3b1f", "32,768"):  # fmt: skip
        assert figure in page.text
    charts = [a for tag, a in page.tags if tag == "svg" and a.get("aria-hidden") is None]
    assert len(charts) == 4
    assert all(a["role"] == "img" and a["aria-label"] for a in charts)
    assert sum(tag == "table" for tag, _ in page.tags) >= len(charts)
    assert all(a.get("scope") for tag, a in page.tags if tag == "th")
    assert ("html", {"lang": "en"}) in page.tags
    assert sum(tag == "h1" for tag, _ in page.tags) == 1


def test_html_escapes_hostile_names() -> None:
    record = replace(
        full_record(), model=HOSTILE, device=HOSTILE, notes=(HOSTILE,), method=((HOSTILE, "x"),),
        endpoint=HOSTILE, plan_digest=HOSTILE, created_at=HOSTILE, filetype=HOSTILE,
    )  # fmt: skip
    html = render_html(record)
    page = Page(html)
    assert "<script" not in html
    assert all(tag != "script" for tag, _ in page.tags)
    assert "alert('x')" in page.text
    assert "\x1b" not in html


@pytest.mark.parametrize("largest", [1e-6, 0.7, 1, 3, 99, 100, 4096, 1e9])
def test_ticks_cover_and_are_few(largest: float) -> None:
    marks = ticks(largest)
    assert marks[0] == 0
    assert marks[-1] >= largest * (1 - 1e-9)
    assert 3 <= len(marks) <= 7
