"""Devices of the catalogue: facts that hold together, groups of cards, cloud machines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit import budget, speed_terms
from edgekit.catalogue import find_device, load_devices, load_families, load_instances
from edgekit.errors import MissingInputError, UsageError
from edgekit.facts import GIB

DEVICES = load_devices()
ENGINE = {"cuda", "rocm", "vulkan", "metal", "cpu", "opencl"}


def test_every_device_has_what_a_verdict_needs() -> None:
    assert len(DEVICES) > 150
    for device in DEVICES.values():
        if device.id == "this":
            continue
        assert device.source, device.id
        assert device.backend in ENGINE, device.id
        assert budget.device_budget(device).bytes is not None, device.id
        assert device.bandwidth_gb_s, device.id
        if device.price_usd is not None:
            assert device.price_note or device.source, device.id
        if device.cores is None and device.runs_engine and device.id != "qualcomm-8-elite-gen5":
            assert device.peak_tflops, device.id


def test_usable_memory_is_less_than_nominal() -> None:
    for device in DEVICES.values():
        limit = budget.device_budget(device).limit_bytes
        if limit is not None and device.memory_bytes is not None:
            assert limit <= device.memory_bytes, device.id


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("a10", 22.19, 22.21),  # 22,731 MiB, not 24 GiB
        ("t4", 14.5, 15.0),  # ECC on
        ("l4", 22.0, 22.5),
        ("rtx-4060-ti-16g", 15.5, 16.0),
        ("a16", 15.5, 16.0),  # one of four, never 64 and never 4
        ("m2-max@32", 21.3, 21.4),  # two thirds
        ("m2-max@64", 48.0, 48.1),  # three quarters
        ("m3-pro-18c", 23.9, 24.1),  # 36 GiB: not observed, so the lower share
    ],
)
def test_usable_memory(name: str, low: float, high: float) -> None:
    limit = budget.device_budget(find_device(name)).limit_bytes
    assert limit is not None
    assert low <= limit / GIB <= high


def test_families_inherit_from_one_that_exists_and_know_their_other_backends() -> None:
    families = load_families()
    for family in families.values():
        assert family.parent is None or family.parent in families
        assert set(family.other_backends.values()) <= set(families)
        assert set(family.decode) <= set(speed_terms.DECODE_TERMS)
        assert 0 < family.decode_spread < 1
        assert 0 < family.prefill_spread < 1
        assert all(value > 0 for value in (*family.decode.values(), *family.prefill.values()))


def test_no_hardware_runs_where_the_engine_does_not() -> None:
    from edgekit.candidate import Case, judge
    from edgekit.catalogue import find_filetype, find_model
    from edgekit.memory import weights

    card = find_model("pocket")
    case = Case(card, find_device("esp32-s3"), find_filetype("Q4_0"), 1, weights(card, "Q4_0"))
    found = judge(case, 256)
    assert found.verdict == "no"
    assert "does not run" in found.reason


def test_two_cards_add_memory_and_not_speed() -> None:
    one, two = find_device("a10"), find_device("a10*2")
    assert (two.id, two.count, two.name) == ("nvidia-a10*2", 2, "2 x NVIDIA A10 24GB")
    own, both = (budget.device_budget(d).bytes or 0 for d in (one, two))
    assert own < both < 2 * own
    assert two.bandwidth_gb_s == one.bandwidth_gb_s
    assert speed_terms.clock_share(two) == pytest.approx(speed_terms.clock_share(one))


def test_unlike_cards_run_one_after_another() -> None:
    mixed = find_device("a10+l4")
    assert mixed.count == 2
    assert 300 < (mixed.bandwidth_gb_s or 0) < 600
    assert mixed.published is None


@pytest.mark.parametrize("name", ["a10*0", "a10*17", "m2-max*2", "a10+7900-xtx", "xeon-8488c-1s*2"])
def test_what_cannot_be_grouped_is_refused(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_device(name)
    assert caught.value.hint


def test_a_group_of_unknown_devices_names_near_ones() -> None:
    with pytest.raises(MissingInputError):
        find_device("a11*2")


def test_a_cloud_machine_is_its_devices() -> None:
    assert find_device("g5.xlarge").name == find_device("a10g").name
    assert find_device("G5.12xlarge").count == 4
    for name in load_instances():
        assert find_device(name).id == name


def test_a_card_with_little_power_does_not_hold_its_clock() -> None:
    shares = {n: speed_terms.clock_share(find_device(n)) for n in ("t4", "l4", "a10", "a40")}
    assert shares["t4"] < 0.6
    assert shares["l4"] < 0.7
    assert shares["a10"] < shares["a40"] <= 1


def test_two_sockets_are_planned_with_one_sockets_bandwidth() -> None:
    one, two = find_device("xeon-8488c-1s"), find_device("xeon-8488c-2s")
    near = speed_terms.bandwidth(one)
    assert near is not None
    assert speed_terms.bandwidth(two) == pytest.approx(near, rel=0.05)
    assert speed_terms.bandwidth(replace(two, bandwidth_gb_s=None)) is None
