"""Plans: the steps that are really left, a digest of what is deployed, the contract's fields."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit.catalogue import find_device, find_model
from edgekit.fit import Choice, choose
from edgekit.plan import Plan, as_record, ceiling, make_plan, others
from edgekit.store import Entry, Store, fingerprint
from tests.support.cli import POCKET

A10 = find_device("a10")


def pick(model: str = "pocket", *, users: int = 4, filetype: str | None = None) -> Choice:
    return choose(find_model(model), A10, users=users, filetype=filetype)


def plan_of(
    tmp_path: Path, model: str = "pocket", folder: Path | None = None, users: int = 4
) -> Plan:
    store = Store(tmp_path / "store")
    choice = pick(model, users=users)
    return make_plan(
        find_model(model), A10, choice, store, host="127.0.0.1", port=8484, folder=folder
    )


def fill(tmp_path: Path, model: str, filetype: str, source: str) -> Entry:
    store = Store(tmp_path / "store")
    entry = Entry(model, filetype, "ab" * 32, 3, 3, source, "test")
    with store.writing(model, filetype) as partial:
        partial.write_bytes(b"abc")
        store.add(partial, entry)
    return entry


def test_the_embedded_model_is_used_where_it_lies(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    kinds = [s.kind for s in plan.steps]
    assert kinds == ["fetch", "quantize", "verify", "tune", "serve", "measure", "receipt"]
    assert plan.steps[0].done
    assert str(POCKET) in plan.steps[0].summary
    assert plan.steps[0].bytes == sum(f.stat().st_size for f in POCKET.glob("*.safetensors"))
    assert not plan.steps[1].done
    assert not (tmp_path / "store").exists()


def test_a_hub_model_would_be_fetched(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "mistral-3-small")
    step = plan.steps[0]
    assert (step.done, plan.weights, plan.entry) == (False, None, None)
    assert "mistralai/Mistral-Small-24B-Instruct-2501@" in step.summary
    assert step.bytes is not None
    assert step.bytes > 40e9
    record = json.loads(json.dumps(as_record(plan)))
    assert record["plan"]["fetch"]["repository"] == "mistralai/Mistral-Small-24B-Instruct-2501"
    assert "tokenizer.json" in record["plan"]["fetch"]["files"]


def test_a_store_hit_leaves_two_steps_out(tmp_path: Path) -> None:
    before = plan_of(tmp_path)
    fill(tmp_path, "pocket", before.choice.filetype, fingerprint(POCKET))
    after = plan_of(tmp_path)
    assert [s.done for s in after.steps[:3]] == [True, True, False]
    assert "store hit" in after.steps[1].summary
    assert as_record(after)["plan"] != as_record(before)["plan"]
    assert after.digest == before.digest


def test_a_file_made_from_a_folder_serves_the_name_later(tmp_path: Path) -> None:
    filetype = pick("mistral-3-small").filetype
    entry = fill(tmp_path, "mistral-small-24b-2501", filetype, "some folder of last week")
    assert plan_of(tmp_path, "mistral-3-small").entry == entry


def test_a_changed_checkpoint_is_no_store_hit(tmp_path: Path) -> None:
    fill(tmp_path, "pocket", pick().filetype, "another state of the folder")
    assert plan_of(tmp_path).entry is None


def test_the_digest_names_what_is_deployed(tmp_path: Path) -> None:
    one, two = plan_of(tmp_path, users=4), plan_of(tmp_path, users=8)
    assert one.digest == plan_of(tmp_path, users=4).digest
    assert one.digest != two.digest
    assert len(one.digest) == 16


def test_the_record_keeps_the_contract(tmp_path: Path) -> None:
    record = json.loads(json.dumps(as_record(plan_of(tmp_path, "mistral-3-small"))))
    assert record["schema"] == "edgekit.plan/1"
    plan = record["plan"]
    assert {"steps", "choice", "reason", "rejected", "runners_up"} <= plan.keys()
    assert plan["choice"]["filetype"] == "Q5_K_M"
    assert plan["reason"].startswith("best expected quality")
    assert {"Q6_K", "Q8_0", "BF16"} <= {x["filetype"] for x in plan["rejected"]}
    assert all(x["why"] for x in plan["rejected"] + plan["runners_up"])


@pytest.mark.parametrize(
    ("model", "filetype", "expected"),
    [
        ("mistral-3-small", None, ["Q4_K_M"]),  # the reason speaks of Q6_K itself
        ("mistral-3-small", "Q4_K_M", ["Q5_K_S", "Q4_0"]),
        ("pocket", None, ["Q6_K"]),
    ],
)
def test_two_alternatives_at_most_and_only_useful_ones(
    model: str, filetype: str | None, expected: list[str]
) -> None:
    found = others(pick(model, filetype=filetype))
    assert [x.filetype for x in found] == expected


def test_a_better_type_that_fits_lost_because_another_was_asked_for() -> None:
    better, _ = others(pick("pocket", filetype="Q4_K_M"))
    assert "asked for" in better.why


def test_the_ceiling_is_bandwidth_over_bytes_per_step(tmp_path: Path) -> None:
    top = ceiling(plan_of(tmp_path, "mistral-3-small"))
    assert top is not None
    assert top.bytes_per_step is not None
    assert top.tok_s == pytest.approx(600e9 / top.bytes_per_step)
    assert 36 < top.tok_s < 38
