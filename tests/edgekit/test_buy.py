"""Buy: prices, cost, ranking and near misses; properties for what must never turn round."""

from __future__ import annotations

import csv
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import buy as module
from edgekit import fit
from edgekit.buy import Answer, Need, Offer, buy, default_ctx, variants
from edgekit.buy_record import buy_record, buy_rows
from edgekit.catalogue import find_device, find_filetype, find_model, load_devices
from edgekit.cli.csv_file import write_csv
from edgekit.errors import MissingInputError, UsageError
from edgekit.facts import GIB
from edgekit.price import price_of
from edgekit.running_cost import Assumptions, check, cost
from edgekit.speed import Estimate, Speed
from tests.support.inside import Inside

MISTRAL = find_model("mistral-3-small")
NAMES = "a10 l4 p40 rtx-3060-12g rtx-3090 rtx-4090 m5-max-40c m5-ultra-80c strix-halo-128 gb10"
SOME = [
    *(find_device(n) for n in NAMES.split()),
    *(find_device(n) for n in ("epyc-9004", "rpi-5-8", "qualcomm-8-gen-3", "mcu-esp32-s3")),
]
IDS = [device.id for device in SOME]
NEED = Need(MISTRAL, users=4, n_ctx=32768)
A10 = find_device("a10")


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Inside:
    inside = Inside(tmp_path)
    inside.attach(monkeypatch, capsys)
    return inside


def ask(**changes: object) -> Answer:
    return buy(replace(NEED, **changes), devices=SOME)  # type: ignore[arg-type]


def bases(offers: tuple[Offer, ...]) -> set[str]:
    return {offer.base for offer in offers}


@pytest.mark.parametrize(
    ("changes", "usd", "words"),
    [
        (
            {"price_usd": 999.0, "price_note": "list 2026-08", "price_date": "2026-08"},
            999.0,
            "list",
        ),
        ({"price_usd": 999.0, "price_note": "list", "price_date": None}, 999.0, "undated"),
        ({"price_usd": 999.0, "price_note": "list", "price_date": "2026"}, 999.0, "list, 2026"),
        ({"price_usd": None, "price_note": None}, None, "no price found"),
        (
            {"price_usd": None, "price_note": "no purchase price found in public pages; rental 1"},
            None,
            "no price found; rental 1",
        ),
        ({"price_usd": 3000.0, "price_note": "Mac base"}, None, "no price found with 22 GiB"),
        (
            {"price_usd": 3000.0, "price_note": "Mac base", "memory_options_gib": (16, 24)},
            None,
            "3,000 USD is for: Mac base",
        ),
    ],
)
def test_a_price_belongs_to_what_it_was_asked_for(
    changes: dict[str, object], usd: float | None, words: str
) -> None:
    price = price_of(replace(A10, **changes))  # type: ignore[arg-type]
    assert price.usd == usd
    assert words in price.note


def test_a_base_price_is_for_the_smallest_memory() -> None:
    small, middle, large = variants(find_device("m5-max-40c"), 4)
    assert [d.memory_bytes for d in (small, middle, large)] == [48 * GIB, 64 * GIB, 128 * GIB]
    assert price_of(small).usd == 3599
    assert price_of(middle).usd is price_of(large).usd is None


def test_cost_of_a_million_tokens_is_price_and_power() -> None:
    speed = Speed(Estimate(25, 20, 40, "family"), None, None, None, users=4)
    found = cost(1000, 200, speed, Assumptions(years=2, utilisation=0.5, kwh_price=0.3))
    tokens = 100 * 2 * 365.25 * 24 * 3600 * 0.5
    assert found.price == pytest.approx(1000 / tokens * 1e6)
    assert found.power == pytest.approx(0.2 * (1e6 / 100 / 3600) * 0.3)
    assert found.total is not None
    assert found.low == pytest.approx(found.total * 25 / 40)
    assert found.high == pytest.approx(found.total * 25 / 20)
    assert f"{found.price:.3f} USD" in found.formula[0]
    assert f"{found.power:.3f} USD" in found.formula[1]


@pytest.mark.parametrize(
    ("price", "watts", "decode", "missing"),
    [
        (None, 200.0, 25.0, ("price",)),
        (1000.0, None, 25.0, ("power draw",)),
        (None, None, None, ("price", "power draw", "speed")),
    ],
)
def test_what_is_not_known_is_named_and_never_counted_as_nothing(
    price: float | None, watts: float | None, decode: float | None, missing: tuple[str, ...]
) -> None:
    estimate = None if decode is None else Estimate(decode, decode / 2, decode * 2, "family")
    found = cost(price, watts, Speed(estimate, None, None, None, 1), Assumptions())
    assert found.total is None
    assert found.missing == missing


@pytest.mark.parametrize("bad", [{"years": 0}, {"utilisation": 0}, {"utilisation": 1.1},
                                 {"kwh_price": -1}, {"years": float("nan")}])  # fmt: skip
def test_assumptions_make_sense(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        check(Assumptions(**bad))


def test_priced_ones_come_first_and_cheapest_first() -> None:
    found = buy(NEED)
    prices = [offer.price.usd for offer in found.meets]
    known = [p for p in prices if p is not None]
    assert prices[: len(known)] == sorted(known)
    assert set(prices[len(known) :]) == {None}
    assert {"nvidia-a10", "nvidia-l4"} <= {o.device.id for o in found.meets if o.price.usd is None}
    sizes = [o.candidate.plan.parts[0].budget or 0 for o in found.meets if o.price.usd is None]
    assert sizes == sorted(sizes)
    # Each device is tried, and comes once among those that do.
    tried = {o.base for o in (*found.meets, *found.undecided, *found.misses)}
    assert tried == {i for i, d in load_devices().items() if not d.probed and "-mig-" not in i}
    assert len(bases(found.meets)) == len(found.meets)


def test_without_a_target_the_file_type_is_the_one_that_fit_takes() -> None:
    for offer in ask().meets:
        chosen = fit.choose(MISTRAL, offer.device, users=4, n_ctx=32768)
        assert offer.candidate.filetype.id == chosen.filetype
        assert offer.candidate.filetype.loss <= fit.GOOD_LOSS


def test_a_smaller_file_type_is_taken_where_speed_asks_for_it() -> None:
    def at(tok_s: float | None) -> Offer:
        found = buy(replace(NEED, tok_s=tok_s), devices=[find_device("rtx-pro-6000-bw-ws")])
        return next(o for o in (*found.meets, *found.misses) if o.device.count == 1)

    free = at(None)
    assert free.candidate.filetype.id == "Q8_0"
    assert free.candidate.speed.decode is not None
    hurried = at(free.candidate.speed.decode.value * 1.1)
    assert hurried.status == "meets"
    assert hurried.candidate.filetype.loss > free.candidate.filetype.loss
    assert at(1e5).status == "misses"


def test_cards_are_added_only_where_one_is_too_small() -> None:
    found = ask()
    counts = {o.base: o.device.count for o in found.meets}
    assert counts["nvidia-rtx-3090"] == 1
    assert counts["nvidia-rtx-3060-12g"] == 2
    pair = next(o for o in found.meets if o.base == "nvidia-rtx-3060-12g")
    one = find_device("rtx-3060-12g")
    assert pair.price.usd == 2 * (one.price_usd or 0)
    assert pair.device.watts == 2 * (one.watts or 0)
    alone = {o.base for o in ask(gpus=1).meets}
    assert "nvidia-rtx-3060-12g" not in alone
    assert {o.device.count for o in ask(gpus=1).meets} == {1}


def test_what_has_no_price_is_open_against_a_budget_and_never_counted_in() -> None:
    found = ask(budget_usd=2000.0)
    assert all(o.price.usd is not None and o.price.usd <= 2000 for o in found.meets)
    a10 = next(o for o in found.undecided if o.device.id == "nvidia-a10")
    assert a10.unknown == ("price",)
    assert buy_record(found)["answer"] == found.meets[0].device.id
    # An M5 Ultra is priced as its base model, of which the memory is not known.
    ultra = [o for o in (*found.meets, *found.undecided) if o.base == "apple-m5-ultra-80c"]
    assert [(o.price.usd, o.status) for o in ultra] == [(None, "open")]


@pytest.mark.parametrize(
    ("changes", "device", "what", "text"),
    [
        ({"gpus": 1}, "nvidia-rtx-3060-12g", "memory", "GiB short at this context"),
        ({"tok_s": 1000.0}, "nvidia-rtx-4090", "speed", "tok/s a user, asked 1000"),
        ({"ttft_ms": 10.0}, "nvidia-rtx-4090", "ttft", "ms, asked 10"),
        ({"budget_usd": 1000.0}, "nvidia-rtx-4090", "budget", "1,599 USD, 599 over the budget"),
        ({"watts": 300.0}, "nvidia-rtx-4090", "watts", "450 W, asked 300"),
        ({}, "qualcomm-8-gen-3", "kind", "a phone is no machine to serve from"),
        ({}, "mcu-esp32-s3", "kind", "microcontroller"),
    ],
)
def test_a_near_miss_says_what_is_missing(
    changes: dict[str, object], device: str, what: str, text: str
) -> None:
    offer = next(o for o in ask(**changes).misses if o.device.id == device)
    assert what in {m.what for m in offer.misses}
    assert any(text in m.text for m in offer.misses if m.what == what)


def test_the_context_that_a_near_miss_names_would_fit() -> None:
    tight = replace(find_device("a10"), id="small", usable_bytes=19 * GIB, aliases=())
    found = buy(replace(NEED, gpus=1), devices=[tight])
    (offer,) = found.misses
    assert "Q4_K_M would fit with" in offer.misses[0].text
    largest = offer.candidate.largest_ctx
    assert f"{largest:,} tokens" in offer.misses[0].text
    assert buy(replace(NEED, gpus=1, n_ctx=largest), devices=[tight]).meets
    assert not buy(replace(NEED, gpus=1, n_ctx=largest + 256), devices=[tight]).meets
    # At what loss the context asked for would fit is said too.
    assert "expected to lose more (KL " in offer.misses[0].text


def test_a_device_that_is_short_is_no_near_miss_where_it_is_slow_too() -> None:
    found = buy(replace(NEED, tok_s=5000))
    assert found.misses[0].misses[0].what == "speed"
    short = next(o for o in found.misses if o.device.id == "amd-rx-7900-xt")
    assert [m.what for m in short.misses] == ["memory", "speed"]
    hopeless = next(o for o in found.misses if o.device.id == "nvidia-gtx-1080")
    assert [m.what for m in hopeless.misses] == ["memory"]
    assert hopeless.unknown == ("speed",)


def test_near_misses_stand_nearest_first_and_once_a_device() -> None:
    found = buy(replace(NEED, tok_s=20, budget_usd=1500))
    counts = [len(o.misses) + len(o.unknown) for o in found.misses]
    assert counts == sorted(counts)
    near = [o.base for o in found.nearest]
    assert len(set(near)) == len(near)
    done = bases((*found.meets, *found.undecided))
    assert not [o for o in found.nearest if o.base in done and o.device.count > 1]


def test_sure_asks_for_the_slow_end() -> None:
    found = ask(tok_s=20.0)
    doubtful = {o.device.id for o in found.meets if o.doubts}
    sure = {o.device.id for o in ask(tok_s=20.0, sure=True).meets if not o.device.count > 1}
    assert doubtful
    assert not sure & {
        o.device.id for o in found.meets if o.doubts and o.candidate.filetype.id == "Q4_K_M"
    }
    for offer in ask(tok_s=20.0, sure=True).meets:
        assert offer.candidate.speed.decode is not None
        assert offer.candidate.speed.decode.low >= 20


def test_a_named_file_type_is_kept() -> None:
    found = ask(filetype="Q2_K")
    assert {o.candidate.filetype.id for o in (*found.meets, *found.misses)} == {"Q2_K"}
    with pytest.raises(MissingInputError):
        ask(filetype="Q9_Z")


def test_a_context_nobody_can_use_is_refused() -> None:
    with pytest.raises(UsageError, match="4 users can use at most 131,072"):
        ask(n_ctx=131_073)


@pytest.mark.parametrize(("users", "n_ctx"), [(1, 32768), (4, 32768), (16, 65536)])
def test_the_default_context(users: int, n_ctx: int) -> None:
    assert default_ctx(MISTRAL, users) == n_ctx


BUDGET = st.floats(100, 12_000)


@settings(max_examples=6, deadline=None)
@given(st.tuples(BUDGET, BUDGET), st.sampled_from([None, 5.0, 20.0]))
def test_a_smaller_budget_never_adds_a_device(
    budgets: tuple[float, float], tok_s: float | None
) -> None:
    less, more = (ask(budget_usd=b, tok_s=tok_s) for b in sorted(budgets))
    ids = [o.device.id for o in more.meets]
    assert [o.device.id for o in less.meets] == [
        i for i in ids if i in {o.device.id for o in less.meets}
    ]
    assert {o.device.id for o in less.undecided} == {o.device.id for o in more.undecided}


@settings(max_examples=6, deadline=None)
@given(st.tuples(st.integers(1, 16), st.integers(1, 16)), st.sampled_from([None, 8.0, 15.0]))
def test_more_users_never_make_a_device_do(users: tuple[int, int], tok_s: float | None) -> None:
    few, many = (ask(users=u, tok_s=tok_s, n_ctx=16384) for u in sorted(users))
    assert bases(many.meets) <= bases(few.meets)


@settings(max_examples=6, deadline=None)
@given(st.tuples(st.integers(1, 128), st.integers(1, 128)))
def test_more_context_never_makes_a_device_do(cells: tuple[int, int]) -> None:
    less, more = (ask(n_ctx=c * 256) for c in sorted(cells))
    assert bases(more.meets) <= bases(less.meets)


def test_more_memory_is_tried_where_it_holds_a_faster_file_type() -> None:
    """On an M1 Max K-quants are slower than Q8_0, which only the larger memory holds."""
    device = find_device("apple-m1-max-32c")
    for cells in (21 * 256, 412 * 256):
        need = replace(NEED, users=5, n_ctx=cells, tok_s=5.0)
        assert [o.device.id for o in buy(need, devices=[device]).meets] == ["apple-m1-max-32c@64"]


@settings(max_examples=6, deadline=None)
@given(st.tuples(st.floats(1, 60), st.floats(1, 60)), st.booleans())
def test_a_higher_speed_never_makes_a_device_do(asked: tuple[float, float], sure: bool) -> None:
    slow, fast = (ask(tok_s=a, sure=sure) for a in sorted(asked))
    assert bases(fast.meets) <= bases(slow.meets)


def test_the_record_and_the_table_say_the_same() -> None:
    found = ask(budget_usd=2000.0)
    record = buy_record(found)
    assert record["schema"] == "edgekit.buy/1"
    json.dumps(record, allow_nan=False)
    rows = buy_rows(found)
    assert len(rows) == len(found.meets) + len(found.undecided) + len(found.misses)
    assert [r["device"] for r in rows if r["status"] == "meets"] == [
        r["device"]
        for r in record["rows"]  # type: ignore[attr-defined]
    ]
    assert [r["rank"] for r in rows][: len(found.meets)] == list(range(1, len(found.meets) + 1))
    assert find_filetype(found.floor).loss <= fit.GOOD_LOSS


def test_the_command_prints_a_page_that_fits(cli: Inside) -> None:
    done = cli.run("buy", "mistral-3-small", "--users", "4", "--tok-s", "20", "--budget", "3000")
    text = done.stdout
    assert (done.returncode, done.stderr) == (0, "")
    assert all(len(line) <= 100 for line in text.splitlines())
    assert len(text.splitlines()) <= 70
    for word in ("Need ", "Answer ", "Near misses", "Cost ", "Speed ", "Next ", "USD/M tok"):
        assert word in text
    assert "price over 3 years at 30 % use, and power at 0.25 USD a kWh" in " ".join(text.split())
    assert cli.run(*_next(text)).returncode == 0


def _next(text: str) -> list[str]:
    """The command that the page offers."""
    import shlex

    command = next(line for line in text.splitlines() if line.startswith("Next"))
    return shlex.split(command.removeprefix("Next").strip().removeprefix("edgekit "))


def test_a_whole_machine_is_told_from_a_card(cli: Inside) -> None:
    text = " ".join(
        cli.run("buy", "mistral-3-small", "--users", "1", "--watts", "150").stdout.split()
    )
    assert "amd-strix-halo-128" in text
    assert "whole machines; the others need one around them" in text
    found = ask(watts=150.0)
    whole = {r["device"]: r["whole_machine"] for r in buy_record(found)["rows"]}  # type: ignore[attr-defined]
    assert (whole["amd-strix-halo-128"], whole["nvidia-l4"]) == (True, False)


def test_explain_opens_each_figure(cli: Inside) -> None:
    text = cli.run("buy", "qwen2.5-coder-7b", "--users", "1", "--explain").stdout
    for word in ("memory: weights", "decode:", "basis:", "price: ", "power: ", "device facts:"):
        assert word in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_nothing_meets_it_with_the_nearest(cli: Inside, tmp_path: Path) -> None:
    arguments = ("buy", "mistral-3-small", "--tok-s", "5000", "--csv", str(tmp_path / "all.csv"))
    done = cli.run(*arguments)
    assert done.returncode == 69
    assert "no device of the catalogue is known to meet all of it" in done.stdout
    assert "error: no device" in done.stderr
    assert "the nearest is" in done.stderr
    done = cli.run(*arguments, "--json")
    record = json.loads(done.stdout)
    assert (done.returncode, record["schema"], record["rows"]) == (69, "edgekit.buy/1", [])
    assert record["error"]["code"] == "nothing_meets"
    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["status"] for row in rows} == {"misses"}
    assert {row["price_usd"] for row in rows if row["device"] == "nvidia-a10"} == {""}


def test_a_table_holds_no_formula(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", [{"name": "=1+1", "value": -1.5, "none": None, "n": -2}])
    assert (tmp_path / "t.csv").read_text().splitlines() == ["name,value,none,n", "'=1+1,-1.5,,-2"]


def test_only_unpriced_ones_are_not_known_to_meet_a_budget(cli: Inside) -> None:
    done = cli.run("buy", "mistral-3-small", "--budget", "100")
    assert done.returncode == 69
    assert "their price is not known" in done.stderr
    assert "nvidia-" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("code-llama-4",), 66, "what exists"),
        (("mistral-3-small", "--ctx", "999999"), 2, "--ctx"),
        (("mistral-3-small", "--utilisation", "2"), 2, "--utilisation"),
    ],
)
def test_refusals_say_what_to_do(
    cli: Inside, arguments: tuple[str, ...], code: int, says: str
) -> None:
    status, _, hint = cli.error("buy", *arguments)
    assert (status, says in hint) == (code, True)


def test_it_needs_no_network_and_no_heavy_package(cli: Inside) -> None:
    import sys

    code = (
        "import sys\n"
        "for name in ('numpy', 'llama_cpp', 'fastapi', 'rich', 'httpx'): sys.modules[name] = None\n"
        "from edgekit.cli import run\n"
        "assert run(['buy', 'pocket', '--users', '1', '--json']) == 0\n"
        "assert run(['compare', 'pocket', 'phi-4', '--device', 'a10']) == 0\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=cli.environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert module.NO_SERVERS.keys() == {"phone", "mcu"}
