"""The fit report as a page: complete, harmless, readable by everyone; and the working behind it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from edgekit.catalogue import find_device, find_model, load_devices, load_models
from edgekit.cli import run
from edgekit.explain import explain
from edgekit.fit import candidates
from edgekit.fit_report import flat_rows, report_record
from edgekit.report.choice_html import buy_page, compare_page
from edgekit.report.fit_html import fit_page
from edgekit.source import cards_for
from tests.edgekit.test_report import HOSTILE, Page
from tests.support.browser import launched

DEVICES = ("nvidia-a10", "rtx-4090", "m2-max", "l4")


def record_of(models: list[str], devices: list[str], users: int = 4) -> dict[str, Any]:
    absent, cards = [], []
    for name in models:
        missing, found = cards_for(name, None)
        absent += [missing] if missing else []
        cards += found
    groups = [candidates(c, find_device(d), users=users) for c in cards for d in devices]
    return report_record(groups, absent)


OPEN = """for (const group of [...document.querySelectorAll(".group")].slice(0, 2)) {
  group.open = true;
  for (const tile of group.querySelectorAll(".tile")) tile.open = true;
}"""
"""Open every figure of a page's first sections: all the others are made alike."""


class Loose(Page):
    VOID = frozenset({"meta", "input"})


@pytest.fixture(scope="module")
def single() -> dict[str, Any]:
    return record_of(["mistral-3-small"], ["a10"])


@pytest.fixture(scope="module")
def several() -> dict[str, Any]:
    return record_of(["code-llama-4"], ["a10"])


@pytest.mark.parametrize("model", ["mistral-3-small", "llama-4-scout", "pocket", "gemma-3-27b"])
@pytest.mark.parametrize("device", DEVICES)
def test_every_sum_comes_out(model: str, device: str) -> None:
    c = candidates(find_model(model), find_device(device), users=4)[0]
    figures = {figure.id: figure for figure in explain(c)}
    plan = c.plan
    for name in ("weights", "overhead"):
        assert f"{getattr(plan, name):,} B" in figures[name].filled[0], name
    assert f"{plan.kv:,} B" in figures["kv"].filled[-1]
    assert "tokens × (" in figures["compute"].filled[0]
    for line in (*figures["weights"].filled[:1], *figures["needs"].filled):
        numbers = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) B", line)]
        assert sum(numbers[:-1]) == numbers[-1], line
    if c.speed.decode is not None:
        times = re.findall(r": ([\d.,]+|-[\d.]+) ms$", "\n".join(figures["decode"].filled), re.M)
        step = 1000 / c.speed.decode.value
        assert sum(float(t.replace(",", "")) for t in times) == pytest.approx(
            step, abs=0.0006 * len(times)
        )
    assert all(f.formula and f.basis for f in figures.values())


def test_every_figure_of_the_choice_is_on_the_page(single: dict[str, Any]) -> None:
    page = unescape(fit_page(single))
    for figure in single["groups"][0]["figures"]:
        for text in (figure["name"], figure["value"], figure["formula"], *figure["filled"]):
            assert text in page
        for given in figure["inputs"]:
            assert given["value"] in page
    for row in single["rows"]:
        assert row["filetype"] in page
        assert row["reason"][1:] in page


def test_the_page_asks_for_nothing(several: dict[str, Any]) -> None:
    page = fit_page(several)
    found = Loose(page)
    for _, attributes in found.tags:
        assert not {"src", "srcset", "data", "action", "onclick", "style"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in page
    assert "@import" not in page
    assert "http://" not in page
    ids = [a["id"] for _, a in found.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = {(a["href"] or "")[1:] for tag, a in found.tags if tag == "a"}
    assert links <= set(ids)


def test_hostile_names_stay_text(single: dict[str, Any]) -> None:
    record = json.loads(json.dumps(single))
    for named in (record["models"], record["devices"]):
        for entry in named.values():
            entry["name"] = HOSTILE
    for row in record["rows"]:
        row["reason"] = row["filetype"] = HOSTILE
        row["notes"] = [HOSTILE]
    record["absent"] = [{"id": "x", "name": HOSTILE, "why": HOSTILE, "nearest": [HOSTILE]}]
    record["remedies"] = [
        {"model": r["model"], "device": r["device"], "text": HOSTILE, "option": HOSTILE}
        for r in record["rows"][:1]
    ]
    page = fit_page(record)
    assert page.count("<script>") == 1
    assert "alert('x')" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    Loose(page)


def test_a_name_without_weights_is_said_first(several: dict[str, Any]) -> None:
    page = fit_page(several)
    assert "no weights are published under this name" in page
    assert page.index("About the name") < page.index("All verdicts")


def test_all_models_on_all_devices_stay_small() -> None:
    groups = [
        candidates(m, d, users=4, n_ctx=4096)
        for m in list(load_models().values())[:3]
        for d in load_devices().values()
        if d.id != "this"
    ]
    record = report_record(groups)
    page = fit_page(record)
    assert record["shortened"] is True
    assert page.count("<tr ") == len(groups)
    assert len(page.encode()) / len(groups) < 5_000_000 / (len(load_models()) * 175)


def test_one_model_on_all_devices_opens_and_stays_small() -> None:
    record = record_of(["mistral-3-small"], [d for d in load_devices() if d != "this"])
    assert record["shortened"] is False
    assert len(fit_page(record).encode()) < 5_000_000


def test_the_table_file_has_a_row_for_each_candidate(single: dict[str, Any]) -> None:
    rows = flat_rows(single)
    assert len(rows) == len(single["rows"])
    assert rows[0]["decode_tok_s"] == single["rows"][0]["decode_tok_s"]["value"]
    assert len({tuple(row) for row in rows}) == 1


def test_the_commands_write_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / name for name in ("fit.html", "fit.csv", "compare.html", "buy.html")]
    a10 = ["--device", "a10"]
    runs = [
        ["fit", "pocket", *a10, "--explain", "--html", str(files[0]), "--csv", str(files[1])],
        ["compare", "code-llama-4", "mistral-3-small", *a10, "--html", str(files[2])],
        ["buy", "mistral-3-small", "--users", "4", "--html", str(files[3])],
    ]
    for command in runs:
        assert run(command) == 0
        shown = capsys.readouterr().out
        assert max(map(len, shown.splitlines())) <= 100
    for file in files:
        assert file.stat().st_size > 1000
        if file.suffix == ".html":
            assert "<script>" not in Loose(file.read_text()).text


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = {
        "single": fit_page(record_of(["mistral-3-small"], ["a10"])),
        "several": fit_page(
            record_of(["mistral-3-small", "llama-4-scout", "pocket"], ["a10", "rtx-4090"])
        ),
    }
    from edgekit.buy import Need, buy
    from edgekit.buy_record import buy_record
    from edgekit.compare import Wanted, compare
    from edgekit.compare_record import compare_record
    from edgekit.running_cost import Assumptions

    cards = [find_model(name) for name in ("mistral-3-small", "llama-4-scout")]
    wanted = [Wanted(card.id, None, [card], None) for card in cards]
    assumed = Assumptions()
    side = compare(wanted, find_device("a10"), users=4, n_ctx=None, assumed=assumed)
    found["compare"] = compare_page(compare_record(side))
    need = Need(card=cards[0], users=4, n_ctx=32768, tok_s=20.0, budget_usd=3000.0)
    found["buy"] = buy_page(buy_record(buy(need, assumed)))
    paths = {}
    for name, text in found.items():
        paths[name] = folder / f"{name}.html"
        paths[name].write_text(text)
    return paths


@pytest.mark.parametrize(
    "name",
    ["single", *(pytest.param(n, marks=pytest.mark.slow) for n in ("several", "compare", "buy"))],
)
def test_everyone_can_read_it(browser: Any, pages: dict[str, Path], name: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for width, scheme, media in ((1280, "light", "screen"), (390, "dark", "screen"),
                                 (720, "light", "print")):  # fmt: skip
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        wrong: list[str] = []
        page = context.new_page()
        asked: list[str] = []
        page.on("console", lambda m, wrong=wrong: wrong.append(m.text))
        page.on("pageerror", lambda e, wrong=wrong: wrong.append(str(e)))
        page.on("request", lambda r, asked=asked: asked.append(r.url))
        page.emulate_media(media=media, color_scheme=scheme)
        page.goto(pages[name].as_uri())
        page.evaluate(OPEN)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, width
        found = axe.run(page).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"][:120]) for v in found] == [], (width, media)
        assert wrong == []
        assert asked == [pages[name].as_uri()]
        context.close()


def test_the_overview_filters_and_sorts(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(pages["several"].as_uri())
    rows = page.locator("#overview tbody tr:visible")
    everything = rows.count()
    page.fill("[name=words]", "pocket 4090")
    assert rows.count() == 1
    assert page.locator(".group:visible").count() == 1
    assert page.inner_text("#count") == f"1 of {everything} shown"
    page.fill("[name=words]", "")
    page.uncheck("[value=no]")
    assert page.locator("#overview tr:visible .badge.no").count() == 0
    page.select_option("[name=order]", "speed")
    shown = rows.locator(".s").all_inner_texts()
    speeds = [float(t.split()[0].replace(",", "")) for t in shown if t != "–"]
    assert speeds == sorted(speeds, reverse=True)
    page.locator("#overview a:visible").first.click()
    assert page.locator("details.group[open]").count() == 1
    page.close()


def test_it_is_whole_without_scripts(browser: Any, pages: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["several"].as_uri())
    assert not page.is_visible("#filter")
    assert page.locator("#overview tbody tr").count() == page.locator(".group").count()
    context.close()
