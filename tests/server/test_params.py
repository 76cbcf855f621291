"""Sampling fields: from a client's JSON to the engine's parameters."""

from __future__ import annotations

from dataclasses import fields as dataclass_fields
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import ValidationError

from edgekit_server.api.params import sampling_of
from edgekit_server.api.schema import MAX_BREAKERS, SamplingFields
from edgekit_server.engine import wire
from edgekit_server.engine.wire import Generate, Hello, Sampling

HELLO = cast(Hello, SimpleNamespace(n_vocab=4096))
SENT: dict[str, Any] = {
    "temperature": 0.1,
    "dynatemp_range": 0.2,
    "dynatemp_exponent": 1.5,
    "top_k": 7,
    "top_p": 0.5,
    "min_p": 0.25,
    "typical_p": 0.75,
    "top_n_sigma": 1.25,
    "xtc_probability": 0.5,
    "xtc_threshold": 0.25,
    "min_keep": 2,
    "repeat_penalty": 1.5,
    "repeat_last_n": 32,
    "frequency_penalty": -1.0,
    "presence_penalty": 1.0,
    "dry_multiplier": 0.5,
    "dry_base": 2.0,
    "dry_allowed_length": 3,
    "dry_penalty_last_n": -1,
    "dry_sequence_breakers": ["\n", "ä"],
    "mirostat": 2,
    "mirostat_tau": 4.0,
    "mirostat_eta": 0.5,
    "seed": 11,
}


def parsed(body: dict[str, Any]) -> Sampling:
    return sampling_of(SamplingFields.model_validate(body), HELLO, None)


def test_every_field_arrives() -> None:
    """All of Sampling: what a client cannot send would be listed here."""
    expected = Sampling(**SENT, logit_bias={5: -1.5})
    assert parsed({**SENT, "logit_bias": {"5": -1.5}}) == expected
    known = {field.name for field in dataclass_fields(Sampling)}
    assert known == {*SENT, "logit_bias", "n_logprobs"}
    frame = wire.encode(Generate(1, [1], sampling=expected))
    assert wire.decode(frame[wire.HEADER.size :]) == Generate(1, [1], sampling=expected)


def test_nothing_sent_is_llama_servers_default() -> None:
    assert parsed({}) == Sampling()
    assert parsed(dict.fromkeys(SENT)) == Sampling()


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ({"top_k": -1}, "top_k", 0),
        ({"repetition_penalty": 1.25}, "repeat_penalty", 1.25),
        ({"seed": -1}, "seed", None),
        ({"repeat_last_n": -1}, "repeat_last_n", -1),
        ({"tfs_z": 0.5}, "temperature", 0.8),
    ],
)
def test_other_spellings(body: dict[str, Any], field: str, value: object) -> None:
    assert getattr(parsed(body), field) == value


@pytest.mark.parametrize(
    "body",
    [
        {"dynatemp_range": -1},
        {"dynatemp_exponent": 1e9},
        {"top_n_sigma": -2},
        {"xtc_probability": 1.5},
        {"xtc_threshold": -0.1},
        {"min_keep": -1},
        {"dry_multiplier": -1},
        {"dry_base": 0.5},
        {"dry_allowed_length": -1},
        {"dry_penalty_last_n": 2**21},
        {"dry_sequence_breakers": []},
        {"dry_sequence_breakers": [""]},
        {"dry_sequence_breakers": ["a\0b"]},
        {"dry_sequence_breakers": ["\ud800"]},
        {"dry_sequence_breakers": ["ä" * 21]},
        {"dry_sequence_breakers": ["a"] * (MAX_BREAKERS + 1)},
        {"dry_sequence_breakers": "[]"},
        {"mirostat": 3},
        {"mirostat_tau": -1},
        {"mirostat_eta": 2},
        {"top_n_sigma": float("nan")},
    ],
)
def test_what_makes_no_sense_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SamplingFields.model_validate(body)
