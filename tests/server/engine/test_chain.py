"""Sampler chains as data: which samplers, in which order, with which arguments."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from edgekit_server.engine.chain import history, is_plain_greedy, samplers, shortlist_size
from edgekit_server.engine.chains import SELECTING, Sampler
from edgekit_server.engine.parameters import Sampling

GREEDY = Sampling(temperature=0.0)
ORDER = (
    "penalties", "dry", "top_n_sigma", "top_k", "typical", "top_p", "min_p", "xtc", "temp_ext",
    "dist",
)  # fmt: skip
"""common_params_sampling::samplers in llama.cpp's common/common.h, then the draw."""
ALL_ON = Sampling(
    repeat_penalty=1.1,
    dry_multiplier=0.8,
    top_n_sigma=1.5,
    typical_p=0.9,
    xtc_probability=0.5,
)
OFF: dict[str, dict[str, float]] = {
    "penalties": {"repeat_penalty": 1.0},
    "dry": {"dry_multiplier": 0.0},
    "top_n_sigma": {"top_n_sigma": -1.0},
    "top_k": {"top_k": 0},
    "typical": {"typical_p": 1.0},
    "top_p": {"top_p": 1.0},
    "min_p": {"min_p": 0.0},
    "xtc": {"xtc_probability": 0.0},
}


def chain(sampling: Sampling) -> list[Sampler]:
    return samplers(sampling, n_vocab=300, n_ctx=64, seed=1)


def names(sampling: Sampling) -> list[str]:
    return [name for name, _ in chain(sampling)]


def test_llama_servers_defaults() -> None:
    assert chain(Sampling()) == [
        ("top_k", (40,)),
        ("top_p", (0.95, 0)),
        ("min_p", (0.05, 0)),
        ("temp_ext", (0.8, 0.0, 1.0)),
        ("dist", (1,)),
    ]


def test_llama_servers_order_whatever_is_on() -> None:
    assert names(ALL_ON) == list(ORDER)
    for count in range(len(OFF) + 1):
        for off in itertools.combinations(OFF, count):
            fields = {field: value for name in off for field, value in OFF[name].items()}
            changed = replace(ALL_ON, **fields)  # type: ignore[arg-type]
            assert names(changed) == [name for name in ORDER if name not in off]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(repeat_penalty=1.1, repeat_last_n=0), None),
        (Sampling(repeat_penalty=1.1, repeat_last_n=9), (300, 9, 1.1, 0.0, 0.0)),
        (Sampling(frequency_penalty=0.5), (300, 64, 1.0, 0.5, 0.0)),
        (Sampling(presence_penalty=1.0, repeat_last_n=-1), (300, 64, 1.0, 0.0, 1.0)),
        (Sampling(presence_penalty=1.0, repeat_last_n=10**9), (300, 64, 1.0, 0.0, 1.0)),
    ],
)
def test_penalties_look_back_no_further_than_the_context(
    sampling: Sampling, expected: tuple[float, ...] | None
) -> None:
    assert dict(chain(sampling)).get("penalties") == expected


def test_arguments_of_the_rest() -> None:
    sampling = Sampling(
        dry_multiplier=0.8,
        dry_allowed_length=3,
        dry_penalty_last_n=-1,
        dry_sequence_breakers=["\n", "ä"],
        top_k=10**6,
        xtc_probability=0.5,
        min_keep=10**9,
        dynatemp_range=0.5,
        dynatemp_exponent=2.0,
    )
    found = dict(chain(sampling))
    assert found["dry"] == (0.8, 1.75, 3, 64, (b"\n", "ä".encode()))
    assert found["top_k"] == (300,)
    assert found["top_p"] == (0.95, 300)
    assert found["xtc"] == (0.5, 0.1, 300, 1)
    assert found["temp_ext"] == (0.8, 0.5, 2.0)


@pytest.mark.parametrize("threshold", [0.51, 1.0])
def test_xtc_above_one_half_is_off(threshold: float) -> None:
    assert "xtc" not in names(Sampling(xtc_probability=1.0, xtc_threshold=threshold))


def test_mirostat_stands_instead_of_all_but_the_temperature() -> None:
    first = replace(ALL_ON, mirostat=1, mirostat_tau=4.0, mirostat_eta=0.2)
    assert chain(first) == [("temp", (0.8,)), ("mirostat", (300, 1, 4.0, 0.2, 100))]
    second = replace(first, mirostat=2)
    assert chain(second) == [("temp", (0.8,)), ("mirostat_v2", (1, 4.0, 0.2))]
    assert history(second, 64) == 0


def test_every_chain_ends_in_a_draw() -> None:
    for sampling in (Sampling(), ALL_ON, GREEDY, replace(ALL_ON, mirostat=1)):
        assert names(sampling)[-1] in SELECTING


@pytest.mark.parametrize(
    ("changes", "greedy"),
    [
        ({}, True),
        ({"top_k": 3, "top_p": 0.1, "min_p": 0.9, "top_n_sigma": 1.0}, True),
        ({"mirostat": 2, "repeat_penalty": 1.1}, True),
        ({"frequency_penalty": 0.1}, False),
        ({"frequency_penalty": 0.1, "repeat_last_n": 0}, True),
        ({"dry_multiplier": 0.1}, False),
        ({"dry_multiplier": 0.1, "dry_penalty_last_n": 0}, True),
        ({"typical_p": 0.5}, False),
        ({"xtc_probability": 0.5}, False),
        ({"dynatemp_range": 0.5}, False),
        ({"temperature": 0.1}, False),
    ],
)
def test_what_counts_as_greedy(changes: dict[str, float], greedy: bool) -> None:
    assert is_plain_greedy(replace(GREEDY, **changes)) is greedy  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), 40),
        (Sampling(top_k=5, typical_p=0.5, xtc_probability=1.0, mirostat_tau=1.0), 5),
        (Sampling(repeat_penalty=1.1), 40 + 64),
        (Sampling(dry_multiplier=1.0, dry_penalty_last_n=100), 40 + 100),
        (Sampling(dry_multiplier=1.0, repeat_penalty=1.1, repeat_last_n=8), 40 + 64),
        (Sampling(repeat_penalty=1.1, repeat_last_n=-1), None),
        (Sampling(top_k=0), None),
        (Sampling(top_n_sigma=1.0), None),
        (Sampling(mirostat=1), None),
    ],
)
def test_when_the_largest_few_decide(sampling: Sampling, expected: int | None) -> None:
    assert shortlist_size(sampling, n_ctx=4096) == expected
