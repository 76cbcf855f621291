"""Speed predictions: sane against published rows, monotone, honest about what is unknown."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import memory, speed
from edgekit.catalogue import find_device, find_filetype, find_model
from edgekit.facts import Device
from tests.support import published

MISTRAL = find_model("mistral-3-small")
A10 = find_device("a10")
TABLES = {n: memory.weights(MISTRAL, n) for n in ("Q4_K_M", "Q8_0", "BF16", "Q2_K")}


def predict(
    device: Device = A10,
    filetype: str = "Q4_K_M",
    *,
    users: int = 1,
    n_gpu_layers: int | None = None,
    prompt_tokens: int = 512,
) -> speed.Speed:
    table = TABLES[filetype]
    plan = memory.predict(
        MISTRAL, device, table, n_ctx=32768, users=users, n_gpu_layers=n_gpu_layers
    )
    return speed.predict(
        MISTRAL, device, table, plan, find_filetype(filetype), prompt_tokens=prompt_tokens
    )


def value(estimate: speed.Estimate | None) -> float:
    assert estimate is not None
    return estimate.value


@pytest.mark.parametrize(
    ("device", "test", "median", "inside"),
    [
        ("nvidia-rtx-4090", "tg", 0.15, 0.9),
        ("apple-m2-max-30c", "tg", 0.08, 0.9),
        ("apple-m2-max-30c", "pp", 0.12, 0.9),
        ("apple-m2-max-38c", "tg", 0.08, 0.9),
        ("cpu-xeon-8488c-1s", "tg", 0.35, 0.9),
        ("cpu-epyc-9r45-1s", "pp", 0.35, 0.9),
    ],
)
def test_published_rows_lie_near_and_in_range(
    device: str, test: str, median: float, inside: float
) -> None:
    found = published.errors([r for r in published.rows() if (r.device, r.test) == (device, test)])
    assert statistics.median(error for error, _ in found) <= median
    assert sum(held for _, held in found) / len(found) >= inside


def test_the_ceiling_is_bandwidth_over_bytes_read() -> None:
    found = predict()
    read = TABLES["Q4_K_M"].read_per_token + (512 + 64) * 163_840
    assert found.ceiling_tok_s == pytest.approx(600e9 / read)
    assert value(found.decode) < (found.ceiling_tok_s or 0)


def test_estimates_carry_a_range_and_a_basis() -> None:
    found = predict()
    for estimate in (found.decode, found.prefill, found.ttft_ms):
        assert estimate is not None
        assert estimate.low < estimate.value < estimate.high
        assert estimate.basis == "family"
    on_4090 = predict(find_device("rtx-4090"))
    assert on_4090.decode is not None
    assert on_4090.decode.basis == "published"


def test_more_users_share_a_step_and_wait_for_each_other() -> None:
    one, four = predict(users=1), predict(users=4)
    assert value(four.decode) < value(one.decode) < (four.all_users_tok_s or 0)
    assert value(four.prefill) == value(one.prefill)
    assert value(four.ttft_ms) > 2 * value(one.ttft_ms)


def test_layers_on_the_host_cost_a_multiple() -> None:
    whole, split = predict(), predict(n_gpu_layers=21)
    assert value(split.decode) < value(whole.decode) / 3
    assert split.prefill is None
    assert split.decode is not None
    assert split.decode.basis == "physics"


def test_unknown_hardware_has_no_speed() -> None:
    found = predict(replace(A10, bandwidth_gb_s=None, peak_tflops=None))
    assert (found.decode, found.prefill, found.ttft_ms, found.ceiling_tok_s) == (None,) * 4
    assert found.all_users_tok_s is None


def test_few_cores_are_bound_by_unpacking_and_not_by_memory() -> None:
    row = next(r for r in published.rows() if r.device == "cpu-epyc-9r45-1s")
    many = published.device(row.device)
    few = replace(many, cores=2)
    assert value(predict(few).decode) < value(predict(many).decode) / 5
    assert value(predict(few).prefill) < value(predict(many).prefill) / 20


@settings(max_examples=60, deadline=None)
@given(
    bandwidth=st.floats(10, 8000),
    faster=st.floats(1, 4),
    peak=st.floats(1, 3000),
    users=st.integers(1, 16),
    filetype=st.sampled_from(sorted(TABLES)),
    tokens=st.integers(1, 20_000),
)
def test_better_hardware_is_never_slower(
    bandwidth: float, faster: float, peak: float, users: int, filetype: str, tokens: int
) -> None:
    base = replace(A10, bandwidth_gb_s=bandwidth, peak_tflops=peak)
    better = replace(A10, bandwidth_gb_s=bandwidth * faster, peak_tflops=peak * faster)
    a = predict(base, filetype, users=users, prompt_tokens=tokens)
    b = predict(better, filetype, users=users, prompt_tokens=tokens)
    assert value(a.decode) <= value(b.decode) * 1.0000001
    assert value(a.prefill) <= value(b.prefill) * 1.0000001
    assert value(a.ttft_ms) * 1.0000001 >= value(b.ttft_ms)
    assert value(a.decode) <= (a.ceiling_tok_s or 0)


def test_json_figures_have_three_digits() -> None:
    estimate = speed.Estimate(31.8432, 27.0667, 37.4626, "family")
    assert estimate.as_dict() == {"value": 31.8, "low": 27.1, "high": 37.5, "basis": "family"}
