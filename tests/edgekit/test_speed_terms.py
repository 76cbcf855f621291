"""The terms of a step: what grows with what."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import memory, speed, speed_terms
from edgekit.catalogue import find_benchmark_shape, find_device, find_filetype, load_devices
from edgekit.work import Work, work


def of(model: str, filetype: str = "Q4_K_M") -> Work:
    card = find_benchmark_shape(model).card()
    return work(card, memory.weights(card, filetype), find_filetype(filetype).unpack)


DENSE, SPARSE = of("llama-3-8b"), of("qwen3-30b-a3b")
WINDOWED = of("gemma-3-27b")
A10 = find_device("a10")
SHOWN = [d for d in load_devices().values() if d.bandwidth_gb_s and d.runs_engine]


def test_parameters_and_bytes_are_those_of_the_model() -> None:
    assert DENSE.used_params == pytest.approx(7.50e9, rel=0.01)  # 8.03 B less the embedding table
    assert SPARSE.used_params == pytest.approx(3.04e9, rel=0.02)
    assert DENSE.read_bytes() == pytest.approx(4.30 * 1024**3, rel=0.01)
    assert SPARSE.read_bytes() < 0.12 * 17.3 * 1024**3


def test_a_batch_touches_more_experts_and_never_more_than_there_are() -> None:
    one, eight, many = (SPARSE.experts_touched(n) for n in (1, 8, 4096))
    assert one == pytest.approx(8 / 128)
    assert eight == pytest.approx(1 - (1 - 8 / 128) ** 8)
    assert one < eight < many <= 1
    assert DENSE.experts_touched(8) == 0
    assert DENSE.read_bytes(8) == DENSE.read_bytes()


def test_windows_bound_what_is_read_of_the_cache() -> None:
    short, long = WINDOWED.cache_bytes(512), WINDOWED.cache_bytes(32768)
    assert long / short < 15 < 64
    assert DENSE.cache_bytes(32768) == pytest.approx(64 * DENSE.cache_bytes(512))
    assert DENSE.cache_bytes(1) == 131_072  # 32 layers x 8 heads x 128 x 2 x 2 bytes


@pytest.mark.parametrize("device", SHOWN, ids=lambda d: d.id)
def test_every_device_predicts_something_sane(device: speed_terms.Device) -> None:
    for w in (DENSE, SPARSE):
        step = speed.step_seconds(w, device, 512)
        rate = speed_terms.bandwidth(device)
        assert rate is not None
        assert step >= (w.read_bytes() + w.cache_bytes(512)) / rate * 0.999
        prefill = speed.prefill_estimate(w, device, 512)
        if prefill is not None:
            assert prefill.value > 0.5 / step, "a prompt is never slower than its tokens one by one"


@settings(max_examples=80, deadline=None)
@given(
    device=st.sampled_from(SHOWN),
    w=st.sampled_from([DENSE, SPARSE, WINDOWED]),
    depth=st.integers(1, 100_000),
    more=st.integers(0, 30_000),
    users=st.integers(1, 64),
)
def test_more_work_takes_longer(
    device: speed_terms.Device, w: Work, depth: int, more: int, users: int
) -> None:
    near = speed.step_seconds(w, device, depth, users)
    assert speed.step_seconds(w, device, depth + more, users) >= near
    assert speed.step_seconds(w, device, depth, users + 1) >= near
    # Together they never do worse than one after another.
    assert near <= users * speed.step_seconds(w, device, depth) * 1.0001


def test_short_prompts_are_slow_and_long_ones_pay_for_attention() -> None:
    rates = [speed.prefill_estimate(DENSE, A10, n) for n in (16, 128, 512, 16384)]
    short, middle, usual, long = (r.value for r in rates if r is not None)
    assert short < 0.5 * usual
    assert short < middle < usual
    assert long < usual


def test_cards_in_a_row_help_long_prompts_only() -> None:
    two = find_device("a10*2")
    one_long, two_long = (speed.prefill_estimate(DENSE, d, 4096) for d in (A10, two))
    one_short, two_short = (speed.prefill_estimate(DENSE, d, 512) for d in (A10, two))
    assert one_long is not None and two_long is not None  # noqa: PT018
    assert one_short is not None and two_short is not None  # noqa: PT018
    assert 1.2 < two_long.value / one_long.value < 2
    assert two_short.value == pytest.approx(one_short.value, rel=0.02)
    assert speed.step_seconds(DENSE, two, 512) >= speed.step_seconds(DENSE, A10, 512)


def test_flash_attention_off_costs_more_with_depth() -> None:
    with_it = speed.step_seconds(DENSE, A10, 8192)
    without = speed.step_seconds(DENSE, A10, 8192, flash=False)
    assert without > with_it


def test_published_factors_move_the_estimate_and_its_basis() -> None:
    device = find_device("l4")
    own = speed.decode_estimate(DENSE, device, 512)
    kin = speed.decode_estimate(DENSE, replace(device, published=None), 512)
    assert (own.basis, kin.basis) == ("published", "family")
    assert own.value == pytest.approx(kin.value, rel=0.25)
