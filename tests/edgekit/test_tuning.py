"""Tuning of a deployment: what may be tried, what it means for memory, what is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit import measured_speed, paths, tuned, tuning
from edgekit.autotune import Choice, Figures, Setting
from edgekit.catalogue import find_device, find_model
from edgekit.deploy import predicted
from edgekit.fit import choose, device_from_machine
from edgekit.machine import Accelerator, Cpu, Engine, Host, Machine, Memory
from edgekit.plan import Plan, make_plan
from edgekit.store import Store
from edgekit.tuned import Row, Tuned

GIB = 1024**3
HERE = Machine(
    Host(
        "linux",
        "x86_64",
        cpu=Cpu("Xeon", 4, 8, ("avx512f",), 8),
        memory=Memory(16 * GIB, 12 * GIB, None, 20.0),
    ),
    engine=Engine("0.3.36", ("CPU",), False),
)
OFF = Setting(4, flash_attn=False)
FIGURES = Figures(0.001, ((512, 0.010), (1024, 0.014)), 0.040, 2.0, 3, 0.01)


def plan_for(
    machine: Machine = HERE, model: str = "pocket", *, users: int = 4, n_ctx: int | None = None
) -> Plan:
    device, card = device_from_machine(machine), find_model(model)
    choice = choose(card, device, users=users, n_ctx=n_ctx, filetype="Q4_K_M")
    return make_plan(card, device, choice, Store(Path("/none")), host="127.0.0.1", port=8484)


def record(plan: Plan, setting: Setting = OFF) -> Tuned:
    default = Row(Setting(4), replace(FIGURES, request_s=3.0))
    return Tuned(
        setting=setting,
        users=4,
        rows=(default, Row(OFF, FIGURES)),
        reasons={"flash_attn": "flash attention off: …"},
        left_out=("KV cells by user: …",),
        seconds=12.5,
        facts=tuning.facts(plan, HERE, "ab" * 32, extra_bufts=True),
    )


def test_streams_are_tried_where_they_take_no_context_away() -> None:
    plan = plan_for(n_ctx=16384)
    shared = tuning.space_for(plan, HERE, extra_bufts=True, threads=4)
    assert not shared.streams
    assert any("4,096 tokens of context only, not 16,384" in text for text in shared.left_out)
    assert tuning.space_for(plan_for(n_ctx=65536), HERE, extra_bufts=True, threads=4).streams
    alone = tuning.space_for(plan_for(users=1), HERE, extra_bufts=True, threads=4)
    assert not alone.streams
    assert alone.left_out == ()


def test_threads_and_buffers() -> None:
    space = tuning.space_for(plan_for(), HERE, extra_bufts=True, threads=4)
    assert space.default == Setting(4)
    assert space.threads == (8, 2)
    assert space.extra_off
    assert space.ubatches == (256, 1024)
    crashed = tuning.space_for(plan_for(), HERE, extra_bufts=False, threads=1)
    assert not crashed.extra_off
    assert not crashed.default.extra_bufts
    assert crashed.threads == (8,)


def test_a_card_that_holds_everything_leaves_the_cpu_alone() -> None:
    card = Accelerator("nvidia", "NVIDIA A10", "dedicated", 24 * 10**9, 22 * 10**9)
    machine = replace(HERE, accelerators=(card,), engine=Engine("0.3.36", ("CUDA",), True))
    space = tuning.space_for(plan_for(machine), machine, extra_bufts=True, threads=4)
    assert (space.threads, space.extra_off) == ((), False)
    assert space.ubatches == (1024, 2048)


def test_settings_that_do_not_fit_the_memory_are_left_out() -> None:
    plan = plan_for(n_ctx=16384)
    budget = plan.choice.plan.parts[0].budget
    assert budget is not None
    total = tuning.memory_of(plan, Setting(4)).total
    assert tuning.memory_of(plan, OFF).total > total + 100 * 1024**2
    # A machine with room for the default and little more.
    tight = replace(HERE, host=replace(HERE.host, memory=Memory(GIB, int(total * 8 / 7) + 2**20)))
    plan = replace(plan, device=device_from_machine(tight))
    space = tuning.space_for(plan, tight, extra_bufts=True, threads=4)
    assert not space.flash_off
    assert any("flash attention off: does not fit" in text for text in space.left_out)


def test_the_plan_takes_over_what_was_found() -> None:
    plan = plan_for(n_ctx=16384)
    done = tuning.applied(plan, record(plan))
    assert done.choice.plan.compute > plan.choice.plan.compute
    assert done.choice.candidate.plan is done.choice.plan
    assert done.digest == plan.digest
    assert tuning.applied(plan, None) is plan
    assert dict(tuning.engine_options(done.tuned)) == {
        "n_threads": 4,
        "n_ubatch": 512,
        "flash_attn": False,
        "use_extra_bufts": True,
        "kv_mode": "unified",
    }
    assert tuning.engine_options(None) == {}


def test_what_was_measured_is_the_prediction() -> None:
    plan = plan_for()
    rows = predicted(tuning.applied(plan, record(plan)), (1, 4, 8)).rows
    one, four, eight = (row.decode_tok_s for row in rows)
    assert one is not None
    assert four is not None
    assert one.basis == four.basis == "measured"
    assert one.low is not None
    assert one.low < one.value < 1 / 0.010
    assert one.value < four.value < 4 * one.value
    assert four == eight
    assert rows[0].prefill_tok_s is not None
    assert rows[0].prefill_tok_s.value == pytest.approx(1000)
    assert rows[0].ttft_ms is not None
    assert rows[0].ttft_ms.value > 512


def test_steps_between_what_was_measured() -> None:
    assert measured_speed.step_s(FIGURES, 4, 1, 512) == pytest.approx(0.010)
    assert measured_speed.step_s(FIGURES, 4, 1, 768) == pytest.approx(0.012)
    assert measured_speed.step_s(FIGURES, 4, 4, 1024) == pytest.approx(0.040)
    assert 0.014 < measured_speed.step_s(FIGURES, 4, 2, 1024) < 0.040
    assert measured_speed.step_s(FIGURES, 1, 2, 512) == pytest.approx(0.020)
    noisy = replace(FIGURES, alone=((512, 0.02), (1024, 0.001)))
    assert measured_speed.step_s(noisy, 4, 1, 4096) > 0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(tmp_path))
    assert paths.cache_dir() == tmp_path
    return tuning.folder()


def test_a_record_is_found_again_for_the_same_machine_model_and_library(folder: Path) -> None:
    plan = plan_for()
    result = record(plan)
    tuned.keep(folder, result)
    again = tuning.find(plan, HERE, "ab" * 32, extra_bufts=True)
    assert again == replace(result, cached=True)
    assert tuning.tune(plan, HERE, Path("/s") / f"{'ab' * 32}.gguf", extra_bufts=True) == again
    assert "kept" in again.summary
    assert result.summary == (
        "flash attention off: 1.50x as fast as the defaults (2 settings measured)"
    )
    other_cpu = replace(HERE, host=replace(HERE.host, cpu=Cpu("Epyc", 4, 8, ("avx2",), 8)))
    newer = replace(HERE, engine=Engine("0.4.0", ("CPU",), False))
    assert tuning.find(plan, other_cpu, "ab" * 32, extra_bufts=True) is None
    assert tuning.find(plan, newer, "ab" * 32, extra_bufts=True) is None
    assert tuning.find(plan, HERE, "cd" * 32, extra_bufts=True) is None
    assert tuning.find(plan, HERE, "ab" * 32, extra_bufts=False) is None
    assert tuning.find(plan_for(users=2), HERE, "ab" * 32, extra_bufts=True) is None
    assert tuning.find(plan, None, "ab" * 32, extra_bufts=True) is None


def test_a_default_that_won_says_so() -> None:
    won = record(plan_for(), Setting(4))
    assert won.gain == 1
    assert won.summary == "the engine's defaults are the fastest here (2 settings measured)"


def test_a_damaged_record_is_none(folder: Path) -> None:
    plan = plan_for()
    tuned.keep(folder, record(plan))
    (file,) = folder.iterdir()
    whole = json.loads(file.read_text())
    damaged: list[object] = [
        "",
        "[]",
        {**whole, "schema": "edgekit.autotune/0"},
        {**whole, "setting": {**whole["setting"], "n_threads": 0}},
        {**whole, "setting": {**whole["setting"], "n_threads": True}},
        {**whole, "setting": {**whole["setting"], "flash_attn": "off"}},
        {**whole, "setting": {**whole["setting"], "unknown": 1}},
        {**whole, "rows": []},
        {**whole, "rows": [{"setting": 3}]},
        {**whole, "facts": {}},
        {k: v for k, v in whole.items() if k != "users"},
        "[" * 100_000,
    ]
    for record_ in damaged:
        file.write_text(record_ if isinstance(record_, str) else json.dumps(record_))
        assert tuning.find(plan, HERE, "ab" * 32, extra_bufts=True) is None, record_
    file.write_text(json.dumps(whole))
    assert tuning.find(plan, HERE, "ab" * 32, extra_bufts=True) is not None


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    tuned.keep(tmp_path / "file" / "autotune", record(plan_for()))


@pytest.mark.parametrize(
    ("noise", "samples", "file_bytes", "kept"),
    [
        (0.01, 3, 5_000_000, True),
        (0.30, 3, 5_000_000, False),
        (0.0, 1, 5_000_000, False),
        (0.0, 1, 300_000_000, False),
        (0.0, 1, 14_000_000_000, True),
        (0.30, 3, 14_000_000_000, False),
    ],
)
def test_doubtful_figures_are_not_kept(
    noise: float, samples: int, file_bytes: int, kept: bool
) -> None:
    other = replace(FIGURES, noise=noise, samples=samples)
    for default, chosen in ((FIGURES, other), (other, FIGURES)):
        choice = Choice(OFF, chosen, default, {})
        assert (tuning.doubts(choice, file_bytes) is None) is kept


def test_room_for_both_layouts_of_the_weights() -> None:
    plan = plan_for()
    assert tuning.room_for_two(plan.choice.plan)
    a10 = find_device("a10")
    big = choose(find_model("mistral-3-small"), a10, users=4, filetype="Q4_K_M")
    assert not tuning.room_for_two(big.plan)
