"""Verdicts over many devices: where they flip, that they are in order, and what is computed."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import fit, memory, search, speed, weights
from edgekit.candidate import Candidate, Case, Targets, judge, last_below
from edgekit.catalogue import find_device, find_filetype, find_model, load_devices, load_models
from edgekit.errors import NoDeviceError
from edgekit.facts import Device, ModelCard
from edgekit.remedy import remedies
from edgekit.search import Search, automatic

GIB = 1024**3
MISTRAL = find_model("mistral-3-small")
ORDER = {"fits": 0, "tight": 1, "no": 2}
HOST_SHORT = replace(find_device("a10"), host_bytes=3 * GIB)
KINDS = [
    *("a10", "h100", "m2-max", "m1", "gb10", "rpi-5-8", "epyc-9004", "a10*2", "a10+l4"),
    *("g5.12xlarge", "strix-halo", "orin-nano", "nvidia-a100-sxm-40-mig-2g.10gb"),
]
SHAPES = [
    "mistral-3-small",
    "gemma-3-27b",
    "gpt-oss-20b",
    "llama-4-scout",
    "deepseek-coder-v2-lite",
    "pocket",
]


DEVICES = [*(find_device(name) for name in KINDS), HOST_SHORT]
CARDS = [find_model(name) for name in SHAPES]


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.id)
def test_a_verdict_flips_one_token_over_the_limit(device: Device) -> None:
    flips = 0
    for card, name, users in product(CARDS, ("Q2_K", "Q4_K_M", "Q8_0"), (1, 5)):
        case = Case(card, device, find_filetype(name), users, memory.weights(card, name))
        most = case.largest_ctx()
        assert most % 256 == 0
        if most:
            assert case.plan(most).fits
            assert judge(case, most).verdict == "fits"
        if most + 1 <= case.useful_ctx:
            assert not case.plan(most + 1).fits
            assert judge(case, most + 1).verdict != "fits"
            flips += 1
        elif most:
            assert judge(case, case.useful_ctx + 1).binding == "context"
    assert flips


@given(
    bends=st.lists(st.tuples(st.integers(1, 4000), st.integers(0, 900)), max_size=4),
    high=st.integers(2, 4000),
    limit=st.integers(0, 2_000_000),
)
def test_the_last_that_fits_is_found_in_few_steps(
    bends: list[tuple[int, int]], high: int, limit: int
) -> None:
    asked: Counter[int] = Counter()

    def over(k: int) -> int:
        asked[k] += 1
        return k + sum(slope * max(0, k - at) for at, slope in bends) - limit

    if over(1) > 0 or over(high) <= 0:
        return
    found = last_below(over, 1, high)
    assert over(found) <= 0 < over(found + 1)
    assert asked.total() <= 44


@settings(max_examples=60, deadline=None)
@given(
    device=st.sampled_from(DEVICES),
    card=st.sampled_from(CARDS),
    n_ctx=st.integers(256, 200_000),
    more=st.integers(0, 100_000),
    users=st.integers(1, 9),
)
def test_more_context_is_never_a_better_verdict_nor_less_memory(
    device: Device, card: ModelCard, n_ctx: int, more: int, users: int
) -> None:
    one = Search(card, device, users)
    less, greater = one.best(n_ctx), one.best(n_ctx + more)
    assert ORDER[less.verdict] <= ORDER[greater.verdict]
    if less.verdict == greater.verdict == "fits":
        assert less.filetype.loss <= greater.filetype.loss or less.filetype.id == "Q6_K"
    case = one.case("Q4_K_M")
    assert case.plan(n_ctx).total <= case.plan(n_ctx + more).total


@settings(max_examples=60, deadline=None)
@given(
    device=st.sampled_from([d for d in DEVICES if d.usable_bytes or d.memory_bytes]),
    share=st.floats(0.05, 4),
    more=st.floats(1, 3),
    card=st.sampled_from(CARDS),
    n_ctx=st.sampled_from([4096, 32_768]),
    tok_s=st.one_of(st.none(), st.floats(1, 200)),
)
def test_more_memory_is_never_worse(
    device: Device, share: float, more: float, card: ModelCard, n_ctx: int, tok_s: float | None
) -> None:
    def verdict(scale: float) -> int:
        size = int((device.usable_bytes or device.memory_bytes or 0) * scale)
        fitted = replace(device, usable_bytes=size)
        return ORDER[Search(card, fitted, 2, targets=Targets(tok_s)).best(n_ctx).verdict]

    assert verdict(share * more) <= verdict(share)


def test_a_survey_answers_as_the_single_question_does() -> None:
    contexts = (8192, 32_768, None)
    found = fit.survey(CARDS, DEVICES, contexts, users=4)
    for (card, device, n_ctx), best in zip(product(CARDS, DEVICES, contexts), found, strict=True):
        alone = fit.candidates(card, device, users=4, n_ctx=n_ctx)[0]
        assert (best.verdict, best.filetype.id, best.plan) == (
            alone.verdict,
            alone.filetype.id,
            alone.plan,
        )
        assert best.largest_ctx == alone.largest_ctx


def test_a_survey_computes_everything_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()

    def counted(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            counts[name] += 1
            return real(*args, **options)

        return call

    from edgekit_quantize import recipe

    weights._weights.cache_clear()
    monkeypatch.setattr(recipe, "assign", counted("recipes", recipe.assign))
    monkeypatch.setattr(speed, "predict", counted("speeds", speed.predict))
    monkeypatch.setattr(memory, "site", counted("budgets", memory.site))
    devices = [d for d in load_devices().values() if not d.probed]
    models = list(load_models().values())[:4]
    contexts = (8192, 16_384, 32_768)
    n = sum(1 for _ in fit.survey(models, devices, contexts, users=4))
    pairs = len(models) * len(devices)
    assert n == len(contexts) * pairs
    assert counts["recipes"] <= len(models) * len(automatic())
    assert counts["budgets"] == pairs
    # The chosen type at most once a context, and Q8_0 against Q6_K.
    assert counts["speeds"] <= 3 * pairs


@pytest.mark.parametrize(
    ("targets", "verdict", "filetype", "words"),
    [
        (Targets(), "fits", "Q5_K_M", "best expected quality"),
        (Targets(tok_s=13), "fits", "Q4_K_M", "best expected quality"),
        (Targets(tok_s=1000), "tight", None, "tok/s a user where 1000 were asked for"),
        (Targets(ttft_ms=1), "tight", None, "first token after about"),
        (Targets(tok_s=5, ttft_ms=60_000), "fits", "Q5_K_M", "best expected quality"),
    ],
)
def test_targets_choose_and_bind(
    targets: Targets, verdict: str, filetype: str | None, words: str
) -> None:
    best = fit.candidates(MISTRAL, find_device("a10"), users=4, n_ctx=32_768, targets=targets)[0]
    assert (best.verdict, best.binding) == (verdict, "memory" if verdict == "fits" else "speed")
    assert filetype in (None, best.filetype.id)
    assert words in best.reason


@pytest.mark.parametrize(
    ("usable", "n_ctx", "part"),
    [(7, 4096, "weights"), (16, 32_768, "kv"), (20.3, 32_768, "compute")],
)
def test_the_part_that_binds_is_named(usable: float, n_ctx: int, part: str) -> None:
    device = replace(find_device("a10"), usable_bytes=int(usable * GIB), memory_kind="unified")
    found = fit.candidates(MISTRAL, device, n_ctx=n_ctx, filetype="Q4_K_M")[0]
    assert (found.binding, found.binding_part) == ("memory", part)


@pytest.mark.parametrize(
    ("model", "device", "users", "n_ctx"),
    [
        ("mistral-3-small", "rtx-3060", 4, None),
        ("mistral-3-small", "a10", 64, None),
        ("llama-4-scout", "a10", 4, None),
        ("mistral-3-small", "raspberry-pi-5", 4, 8192),
        ("mistral-3-small", "a10", 1, 100_000),
    ],
)
def test_every_remedy_does_what_it_says(
    model: str, device: str, users: int, n_ctx: int | None
) -> None:
    card = find_model(model)
    rows = fit.candidates(card, find_device(device), users=users, n_ctx=n_ctx)
    ways = remedies(rows, n_ctx=n_ctx)
    assert rows[0].verdict != "fits"
    assert ways
    for way in ways:
        words = shlex.split(way.option)
        asked = dict(zip(words[::2], words[1::2], strict=True))
        name = asked.get("--device", device)
        if "--gpus" in asked:
            name = f"{name}*{asked['--gpus']}"
        best: Candidate = fit.candidates(
            card,
            find_device(name),
            users=int(asked.get("--users", users)),
            n_ctx=int(asked["--ctx"]) if "--ctx" in asked else n_ctx,
            filetype=asked.get("--filetype"),
            n_gpu_layers=int(asked["--offload"]) if "--offload" in asked else None,
        )[0]
        assert best.verdict == ("tight" if "--offload" in asked else "fits"), way


def test_what_fits_needs_no_remedy_and_no_device_may_be_enough() -> None:
    assert remedies(fit.candidates(MISTRAL, find_device("a10"), users=4)) == ()
    assert fit.cheapest(MISTRAL, n_ctx=32_768, users=4, targets=Targets(tok_s=1e6)) is None
    found = fit.cheapest(MISTRAL, n_ctx=32_768, users=4)
    assert found is not None
    assert found.device.price_usd


@pytest.mark.parametrize("name", ["phone", "esp32-s3", "stm32h7", "snapdragon-8-elite-gen5"])
def test_what_runs_no_server_says_no_and_why(name: str) -> None:
    best = fit.candidates(find_model("pocket"), find_device(name))[0]
    assert (best.verdict, best.binding) == ("no", "engine")
    assert "does not run" in best.reason
    with pytest.raises(NoDeviceError):
        fit.choose(find_model("pocket"), find_device(name))


@pytest.mark.parametrize(
    ("few", "many"), [("a10", "a10*2"), ("a10*2", "a10*3"), ("l4", "a10+l4"), ("t4", "t4*4")]
)
def test_more_cards_hold_more(few: str, many: str) -> None:
    for card in CARDS:
        for n_ctx in (8192, 32_768):
            small, large = (Search(card, find_device(name), 4).best(n_ctx) for name in (few, many))
            assert ORDER[large.verdict] <= ORDER[small.verdict]
            assert large.largest_ctx >= small.largest_ctx or large.filetype != small.filetype


def test_file_types_that_are_chosen_are_in_order_of_loss() -> None:
    losses = [f.loss for f in automatic()]
    assert losses == sorted(losses)
    assert find_filetype("Q4_K_M").loss < search.GOOD_LOSS
