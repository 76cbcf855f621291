"""What a file may lose, and the words of the verdict."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.catalogue import find_model, load_filetypes
from edgekit.quality import (
    Divergence,
    Drift,
    Quality,
    WrongTensor,
    from_json,
    judge,
    limit_for,
    to_json,
)

FOUND = Divergence(1024, 0.009, 0.0004, 0.2, 0.5, 0.93, 6.3, 6.2, 1.016, 0.002)
GOOD = Quality("ab" * 32, "m", FOUND, 24, (), 57, (), "pocket")
SMALL = find_model("mistral-3-small")


def test_limits_are_those_of_the_published_losses() -> None:
    types = load_filetypes()
    q5 = limit_for("Q5_K_M", types["Q5_K_M"].loss, 23_572_403_200)
    assert q5.kl == pytest.approx(0.0236)
    assert "2 × the 0.0108 published for Q5_K_M" in q5.reason
    assert limit_for("Q5_K_M", 0.0108, 7_800_000).kl == pytest.approx(0.0344)
    assert limit_for("BF16", 0.0, 24_000_000_000).kl == 0.002


@given(st.floats(0, 2), st.integers(1, 10**12), st.integers(1, 10**12))
def test_a_smaller_model_may_lose_more(loss: float, one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert limit_for("X", loss, small).kl >= limit_for("X", loss, large).kl


def test_limits_rank_as_file_types_do() -> None:
    losses = sorted(load_filetypes().values(), key=lambda t: t.loss)
    limits = [limit_for(t.id, t.loss, SMALL.params).kl for t in losses]
    assert limits == sorted(limits)


def test_the_line_of_a_good_file() -> None:
    verdict = judge(GOOD, limit_for("Q5_K_M", 0.0108, SMALL.params))
    assert verdict.good
    assert verdict.summary == "KL 0.009 (limit 0.0236) · 24/24 canaries unchanged"
    assert verdict.why is None


def test_drift_is_reported_and_refuses_nothing() -> None:
    drifts = (Drift("What is 2 + 2?", 0, "4", "5"), Drift("Who are you?", 3, "a", "b"))
    verdict = judge(replace(GOOD, drifts=drifts), limit_for("Q5_K_M", 0.0108, SMALL.params))
    assert verdict.good
    assert verdict.summary.endswith("22/24 canaries unchanged")


LIMIT = limit_for("Q5_K_M", 0.0108, 24_000_000_000)
WRONG = WrongTensor("blk.0.attn_k.weight", "Q5_K", 2.0, 0.13)


@pytest.mark.parametrize(
    ("quality", "why"),
    [
        (replace(GOOD, divergence=replace(FOUND, kl=0.03)), "differ by 0.03 nats"),
        (replace(GOOD, divergence=replace(FOUND, kl=None)), "no finite numbers"),
        (replace(GOOD, wrong=(WRONG,)), "blk.0.attn_k.weight (Q5_K) is off by 200%"),
        (replace(GOOD, wrong=(replace(WRONG, error=None),)), "is no number"),
        (replace(GOOD, divergence=None, wrong=(WRONG,)), "1 of 57 tensors"),
    ],
)
def test_what_is_refused_and_why(quality: Quality, why: str) -> None:
    verdict = judge(quality, LIMIT)
    assert not verdict.good
    assert why in str(verdict.why)


def test_what_could_not_be_run_is_said() -> None:
    note = "predictions not compared: the unquantized model (47.1 GB) does not fit"
    verdict = judge(replace(GOOD, divergence=None, prompts=0, note=note), LIMIT)
    assert verdict.good
    assert verdict.summary == f"{note} · 57/57 tensors match the original"
    nothing = Quality("", "m", None, 0, (), 0, (), "", "not compared: no weights")
    assert judge(nothing, LIMIT).summary == "not compared: no weights"


def test_a_record_survives_json() -> None:
    full = replace(GOOD, drifts=(Drift("a", 0, "b", "c"),), wrong=(WRONG,), reasons=("r",))
    for quality in (GOOD, full, replace(GOOD, divergence=None, note="n")):
        assert from_json(json.loads(json.dumps(to_json(quality)))) == quality


@pytest.mark.parametrize(
    "damage",
    [
        {"schema": "edgekit.other/1"},
        {"divergence": {"kl": 1}},
        {"drifts": [{"prompt": "x"}]},
        {"drifts": None},
        {"more": 1},
    ],
)
def test_what_is_no_record_is_none(damage: dict[str, object]) -> None:
    assert from_json({**to_json(GOOD), **damage}) is None
    assert from_json([1]) is None
