"""Compare: verdicts, licence duties and what is not known, side by side within 100 columns."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.catalogue import find_device, find_model, load_models, named_models
from edgekit.cli.compare import fold
from edgekit.compare import Comparison, Wanted, air_gap, compare, conditions, decide
from edgekit.compare_record import compare_record, compare_rows
from edgekit.compare_words import rows, score_name
from edgekit.facts import Licence
from tests.support.inside import Inside

FLAGSHIP = ("compare", "code-llama-4", "mistral-3-small", "--device", "a10")
NEAREST = ["llama-4-scout", "llama-4-maverick", "codellama-70b", "llama-3.3-70b"]
FREE = find_model("mistral-3-small").licence


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Inside:
    inside = Inside(tmp_path)
    inside.attach(monkeypatch, capsys)
    return inside


def side_by_side(*names: str, device: str = "a10", users: int = 4) -> Comparison:
    wanted = [Wanted(name, *named_models(name)) for name in names]
    return compare(wanted, find_device(device), users=users)


def cells(found: Comparison, label: str) -> dict[str, str]:
    row = next(r for r in rows(found) if r.label == label)
    return dict(zip([c.card.id for c in found.columns], row.cells, strict=True))


def test_the_flagship_says_it_as_a_decision_maker_reads(cli: Inside) -> None:
    done = cli.run(*FLAGSHIP)
    text, flat = done.stdout, " ".join(done.stdout.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "Code Llama 4: none published under this name" in flat
    summary = [line for line in text.splitlines() if "  not deployable here today  " in line]
    assert [line.split()[0] for line in summary[:4]] == NEAREST
    lines = {line.split()[0]: line for line in text.splitlines() if "  deploy  " in line}
    assert {"mistral-small-24b-2501", "muse-glimmer-30b"} <= lines.keys()
    for words in (
        "needs 64.1 GiB at Q4_K_M, 21.2 GiB may be used",
        'show "Built with Llama"',
        "EU",
        "no price found",
        "700 million users a month",
        "MMLU-Pro 74.3",
        "JonathanChavezTamales/llm-leaderboard",
        "--csv FILE",
        "edgekit deploy mistral-small-24b-2501",
        "edgekit buy llama-4-scout",
    ):
        assert words in flat or all(word in flat for word in words.split()), words


def test_the_flagship_as_json(cli: Inside) -> None:
    record = cli.json(*FLAGSHIP)
    assert record["schema"] == "edgekit.compare/1"
    assert [a["id"] for a in record["absent"]] == ["code-llama-4"]
    found = {row["model"]: row for row in record["rows"]}
    assert set(NEAREST) < found.keys()
    mistral, scout = found["mistral-small-24b-2501"], found["llama-4-scout"]
    assert (mistral["verdict"], mistral["fit"]["filetype"]) == ("deploy", "Q5_K_M")
    assert (scout["verdict"], scout["asked_as"]) == ("not deployable here today", "code-llama-4")
    assert scout["fit"]["decode_tok_s"] is None or scout["fit"]["verdict"] == "tight"
    assert scout["licence"]["mau_limit"] == 700_000_000
    assert scout["licence"]["text_shipped"] is False
    # The A10 has no price, so a token has none; its power is known.
    assert mistral["cost"]["usd_per_million_tokens"] is None
    assert mistral["cost"]["missing"] == ["price"]
    assert mistral["cost"]["power_part"] > 0


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7])
def test_any_number_of_models_fits_the_width(cli: Inside, count: int) -> None:
    names = ["phi-4", "gemma-3-27b", "codestral-22b-v0.1", "llama-4-maverick", "gpt-oss-20b"]
    names += ["mistral-small-4-119b-2603", "deepseek-coder-v2-lite"]
    text = cli.run("compare", *names[:count], "--device", "rtx-4090").stdout
    assert all(len(line) <= 100 for line in text.splitlines())
    heads = [line for line in text.splitlines() if line.startswith(" ") and "phi-4" in line]
    assert len(heads) == 1
    assert len(heads[0].split()) == (count if count <= 4 else 3)
    assert ("--csv FILE" in text) == (count > 4)


@pytest.mark.parametrize(
    ("licence", "verdict", "why"),
    [
        (FREE, "deploy", "fits with"),
        (replace(FREE, commercial_use=False), "evaluate only", "no commercial use"),
        (replace(FREE, commercial_use=None), "evaluate only", "nobody has read"),
    ],
)
def test_a_licence_can_stand_in_the_way(licence: Licence, verdict: str, why: str) -> None:
    best = side_by_side("mistral-3-small").columns[0].best
    found = decide(licence, best)
    assert found[0] == verdict
    assert why in found[1]


@pytest.mark.parametrize(
    ("device", "model", "verdict", "why"),
    [
        ("a10", "llama-3.3-70b", "not deployable here today", "needs 45.0 GiB at Q4_K_M"),
        ("mcu-esp32-s3", "pocket", "not deployable here today", "llama.cpp does not run on"),
        ("rtx-4090", "codestral-22b-v0.1", "evaluate only", "no commercial use"),
        ("rtx-3060-12g", "phi-4", "evaluate only", "try it on your own tasks first"),
        ("l4", "phi-4", "deploy", "Q8_0 fits with"),
    ],
)
def test_verdicts(device: str, model: str, verdict: str, why: str) -> None:
    column = side_by_side(model, device=device).columns[0]
    assert column.verdict == verdict
    assert why in column.why


def test_models_that_do_not_fit_are_shown_at_one_quality() -> None:
    found = side_by_side("code-llama-4")
    missing = [c for c in found.columns if c.verdict == "not deployable here today"]
    assert {c.best.filetype.id for c in missing} == {"Q4_K_M"}
    assert all("of 21.2 GiB" in cells(found, "Memory")[c.card.id] for c in missing)


@pytest.mark.parametrize(
    ("model", "suitable", "words"),
    [
        ("mistral-3-small", True, "fetched without an account"),
        ("llama-4-scout", None, "account and consent"),
        ("codellama-70b", None, "licence's text"),
        ("pocket", True, "built in"),
    ],
)
def test_air_gap(model: str, suitable: bool | None, words: str) -> None:
    found = air_gap(find_model(model), 10**9)
    assert found.suitable is suitable
    assert words in found.why


def test_conditions_name_every_hurdle() -> None:
    assert conditions(find_model("mistral-3-small")) == ()
    assert conditions(find_model("llama-4-scout")) == (
        "consent on the hub",
        "accept the licence",
        "at most 700 million users a month",
        "not for the EU",
    )


def test_nothing_read_is_not_nothing_asked() -> None:
    card = replace(find_model("phi-4"), licence=Licence("unread", None, None, False, None))
    found = compare([Wanted("mine", None, (card,))], find_device("a10"))
    for label in ("Users", "EU", "Credit", "Duties"):
        assert cells(found, label)["phi-4"] == "–"
    assert found.columns[0].verdict == "evaluate only"


def test_scores_in_common_come_first_and_none_is_said() -> None:
    found = side_by_side("phi-4", "mistral-3-small", "ministral-3-14b-2512")
    scores = cells(found, "Scores")
    assert scores["ministral-3-14b-2512"] == "none in the catalogue"
    first = [score_name(s.rsplit(" ", 1)[0]) for s in scores["phi-4"].split("; ")[:3]]
    theirs = {score_name(e.name) for e in find_model("mistral-3-small").evidence}
    assert set(first) <= theirs
    assert "more" in scores["phi-4"]


@pytest.mark.parametrize(
    ("name", "short"),
    [("MMLU-Pro 5-shot", "mmlu-pro"), ("GPQA diamond", "gpqa diamond"), ("MATH (4-shot)", "math")],
)
def test_a_benchmark_has_one_name(name: str, short: str) -> None:
    assert score_name(name) == short


def test_every_model_of_the_catalogue_can_be_compared() -> None:
    wanted = [Wanted(card.id, None, (card,)) for card in load_models().values()]
    found = compare(wanted, find_device("h100-sxm"), users=2)
    assert len(found.columns) == len(wanted)
    json.dumps(compare_record(found), allow_nan=False)
    table = compare_rows(found)
    assert len({tuple(row) for row in table}) == 1
    for row in rows(found):
        assert len(row.cells) == len(wanted)
        assert "None" not in " ".join(row.cells), row


def test_a_model_under_two_names_stands_once(cli: Inside) -> None:
    record = cli.json("compare", "mistral-3-small", "mistral-small-24b", "--device", "a10")
    assert len(record["rows"]) == 1
    record = cli.json("compare", "phi-4:Q4_K_M", "phi-4:Q8_0", "--device", "a10")
    assert [row["fit"]["filetype"] for row in record["rows"]] == ["Q4_K_M", "Q8_0"]


def test_the_table_file(cli: Inside, tmp_path: Path) -> None:
    cli.run(*FLAGSHIP, "--csv", str(tmp_path / "models.csv"))
    with (tmp_path / "models.csv").open() as file:
        found = {row["model"]: row for row in csv.DictReader(file)}
    assert len(found) == 6
    assert found["llama-4-scout"]["decode_tok_s"] == ""
    assert "Built with Llama" in found["llama-4-scout"]["credit"]
    assert float(found["mistral-small-24b-2501"]["decode_tok_s"]) > 0


@given(st.text(st.characters(codec="ascii", categories=("L", "N", "P", "Zs"))), st.integers(8, 60))
def test_a_cell_keeps_its_words_and_its_width(text: str, width: int) -> None:
    lines = fold(text, width)
    assert all(len(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_a_token_costs_the_same_whichever_command_says_it(cli: Inside) -> None:
    same = ("--device", "rtx-4090", "--users", "4", "--ctx", "8192", "--json")
    compared = json.loads(cli.run("compare", "mistral-3-small:Q4_K_M", *same).stdout)["rows"][0]
    fitted = cli.run("fit", "mistral-3-small", "--filetype", "Q4_K_M", *same)
    row = json.loads(fitted.stdout)["rows"][0]
    one, other = (r["cost"]["usd_per_million_tokens"] for r in (row, compared))
    assert one == pytest.approx(other, rel=1e-3)
