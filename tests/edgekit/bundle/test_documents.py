"""The papers of a bundle: what licences demand, bills that scanners read, the same bytes twice."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgekit.bundle.create import Item, create
from edgekit.bundle.documents import ACCEPTANCE, CONVERSION, documents_of
from edgekit.bundle.layout import DOC, FILE_PATH, Layout
from edgekit.bundle.papers import papers_of
from edgekit.bundle.sbom import bill_of_materials
from edgekit.bundle.vex import openvex, statements, vulnerabilities
from edgekit.catalogue import find_device, find_model
from edgekit.errors import MissingInputError
from edgekit.facts import ModelCard
from edgekit.licence import accept, adopt, find_acceptance
from edgekit.obligations import legal_texts
from edgekit.plan import Plan, make_plan
from edgekit.several import Wanted, share
from edgekit.store import Entry, Store
from edgekit_quantize import convert
from tests.support.cli import POCKET, ROOT, Cli
from tests.support.cyclonedx import validator

LLAMA_TEXT = b"LLAMA COMMUNITY LICENSE, as it lies in the repository\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def made(store: Store) -> tuple[Plan, Entry, Path]:
    device = find_device("rtx-4090")
    card = find_model("pocket")
    chosen = share([Wanted(card, users=2, n_ctx=4096, filetype="Q8_0")], device)[0]
    plan = make_plan(card, device, chosen.choice, store, host="", port=0)
    with store.writing("pocket", "Q8_0") as partial:
        found = convert(POCKET, partial, "Q8_0")
        entry = Entry(
            model="pocket",
            filetype="Q8_0",
            sha256=found.sha256,
            file_bytes=found.file_bytes,
            tensor_bytes=found.tensor_bytes,
            source=plan.source or "",
            made_by="edgekit 0",
        )
        return plan, entry, store.add(partial, entry)


def papers(made: tuple[Plan, Entry, Path], store: Store, data: Path) -> dict[str, bytes]:
    return documents_of(*made, store=store.root, data=data)


def llama(made: tuple[Plan, Entry, Path], folder: Path) -> tuple[Plan, Entry, Path]:
    """The same file under Llama's licence, with the texts of a repository beside it."""
    plan, entry, file = made
    folder.mkdir(exist_ok=True)
    (folder / "LICENSE").write_bytes(LLAMA_TEXT)
    (folder / "USE_POLICY.md").write_bytes(b"no harm\n")
    licence = find_model("llama-4-scout").licence
    return replace(plan, card=replace(plan.card, licence=licence), weights=folder), entry, file


def test_an_apache_model_carries_text_notice_and_changes(
    made: tuple[Plan, Entry, Path], store: Store, tmp_path: Path
) -> None:
    found = papers(made, store, tmp_path)
    assert b"Apache License" in found["LICENSE.txt"]
    assert b"quantized to Q8_0" in found["NOTICE.txt"]
    assert ACCEPTANCE not in found
    record = json.loads(found["licence.json"])
    assert (record["spdx"], record["commercial_use"]) == ("Apache-2.0", True)


def test_llama_carries_its_own_words(
    made: tuple[Plan, Entry, Path], store: Store, tmp_path: Path
) -> None:
    changed = llama(made, tmp_path / "repository")
    card = changed[0].card
    accept(card, tmp_path)
    found = papers(changed, store, tmp_path)
    assert found["LICENSE.txt"] == LLAMA_TEXT
    assert found["USE_POLICY.txt"] == b"no harm\n"
    text = found["NOTICE.txt"].decode()
    assert "Llama 4 is licensed under the Llama 4 Community License" in text
    assert "Show: Built with Llama" in text
    assert "700,000,000" in text
    assert "EU" in text
    there = tmp_path / "other machine"
    assert find_acceptance(card, there) is None
    kept = adopt(card, found[ACCEPTANCE], there)
    assert kept == find_acceptance(card, tmp_path)
    assert kept is not None


def test_an_acceptance_of_another_model_is_not_adopted(tmp_path: Path) -> None:
    scout, maverick = find_model("llama-4-scout"), find_model("llama-4-maverick")
    accept(scout, tmp_path)
    record = (tmp_path / "licences" / "llama-4-scout.json").read_bytes()
    assert adopt(maverick, record, tmp_path) is None
    assert not (tmp_path / "licences" / "llama-4-maverick.json").exists()


def test_no_copy_without_the_text_that_must_go_with_it(tmp_path: Path) -> None:
    card = find_model("llama-3.3-70b")
    with pytest.raises(MissingInputError) as caught:
        legal_texts(card, None, tmp_path)
    assert caught.value.code == "licence_text_missing"
    assert str(tmp_path) in str(caught.value.hint)
    (tmp_path / "licences").mkdir()
    (tmp_path / "licences" / "llama-3.3-70b.txt").write_bytes(b"the agreement\n")
    assert legal_texts(card, None, tmp_path) == {"LICENSE.txt": b"the agreement\n"}


def test_the_conversion_names_the_file_and_what_it_was_made_of(
    made: tuple[Plan, Entry, Path], store: Store, tmp_path: Path
) -> None:
    record = json.loads(papers(made, store, tmp_path)[CONVERSION])
    assert record["gguf"]["sha256"] == hashlib.sha256(made[2].read_bytes()).hexdigest()
    assert record["metadata"]["edgekit.source.digest"].startswith("sha256:")
    assert record["metadata"]["edgekit.quantizer"].startswith("llama-cpp-python")
    assert sum(t["bytes"] for t in record["gguf"]["tensor_types"]) <= record["gguf"]["bytes"]


def test_the_plan_says_nothing_of_this_machine(
    made: tuple[Plan, Entry, Path], store: Store, tmp_path: Path
) -> None:
    found = papers(made, store, tmp_path)
    fit = json.loads(found["fit.json"])
    assert fit["fit"]["rows"][0]["device"] == fit["plan"]["device"] == "nvidia-rtx-4090"
    assert fit["fit"]["rows"][0]["verdict"] == "fits"
    # No path of this machine; only what people accepted names one.
    assert not [n for n, text in found.items() if str(ROOT).encode() in text]
    assert not [n for n, text in found.items() if str(store.root).encode() in text]
    plan = replace(made[0], device=replace(made[0].device, probed=True))
    assert "fit.json" not in papers((plan, *made[1:]), store, tmp_path)


def bundle(
    made: tuple[Plan, Entry, Path], found: dict[str, bytes], root: Path, card: ModelCard
) -> Layout:
    create(root, [Item(card, made[1], made[2], found)], None, split_bytes=2_500_000)
    return Layout(root)


@pytest.fixture
def layout(made: tuple[Plan, Entry, Path], store: Store, tmp_path: Path) -> Layout:
    return bundle(made, papers(made, store, tmp_path), tmp_path / "b", made[0].card)


def test_the_bill_is_valid_and_lists_every_file(layout: Layout) -> None:
    bill = json.loads((layout.root / "sbom.cdx.json").read_text())
    validator().validate(bill)
    (model,) = bill["components"]
    assert model["type"] == "machine-learning-model"
    assert model["licenses"][0]["license"]["id"] == "Apache-2.0"
    weights = [c for c in model["components"] if c["name"].endswith(".gguf")]
    assert len(weights) > 2
    for part in model["components"]:
        place = next(p["value"] for p in part["properties"] if p["name"] == "edgekit:blob")
        digest = hashlib.sha256((layout.root / place).read_bytes()).hexdigest()
        assert part["hashes"] == [{"alg": "SHA-256", "content": digest}]
    references = _references(bill)
    assert len(references) == len(set(references))
    assert "vulnerabilities" not in bill  # no Python package is carried


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["bom-ref"]] if "bom-ref" in value else []
        return own + [ref for child in value.values() for ref in _references(child)]
    if isinstance(value, list):
        return [ref for child in value for ref in _references(child)]
    return []


def test_the_schema_refuses_what_is_wrong(layout: Layout) -> None:
    bill = bill_of_materials(layout)
    for spoil in ({"bomFormat": "SPDX"}, {"components": [{"name": "no type"}]}, {"more": 1}):
        with pytest.raises(jsonschema.ValidationError):
            validator().validate({**copy.deepcopy(bill), **spoil})


def test_wheels_are_libraries_and_diskcache_is_spoken_of(layout: Layout) -> None:
    wheels = {
        "diskcache-5.6.3-py3-none-any.whl": b"pickles",
        "llama_cpp_python-0.3.36-cp311-cp311-linux_x86_64.whl": b"native",
    }
    blobs = [layout.add([data], DOC, {FILE_PATH: name}) for name, data in wheels.items()]
    config = layout.add_json({}, "application/vnd.oci.empty.v1+json")
    runtime = layout.add_manifest("application/vnd.edgekit.runtime.v1+json", config, blobs, {})
    layout.write_index([*layout.index(), runtime])
    found = papers_of(layout)
    bill = json.loads(found["sbom.cdx.json"])
    validator().validate(bill)
    libraries = {c["name"]: c for c in bill["components"] if c["type"] == "library"}
    assert libraries["llama-cpp-python"]["version"] == "0.3.36"
    assert libraries["diskcache"]["hashes"][0]["content"] == hashlib.sha256(b"pickles").hexdigest()
    (said,) = bill["vulnerabilities"]
    assert said["id"] == "CVE-2025-69872"
    assert said["analysis"]["state"] == "not_affected"
    assert said["affects"] == [{"ref": libraries["diskcache"]["bom-ref"]}]
    vex = json.loads(found["vex.openvex.json"])["statements"][0]
    assert vex["products"][0]["subcomponents"] == [{"@id": "pkg:pypi/diskcache@5.6.3"}]


def test_statements_say_who_holds_them() -> None:
    for said in statements():
        assert (ROOT / said["proof"]).is_file()
        assert said["openvex"] in {
            "component_not_present",
            "vulnerable_code_not_present",
            "vulnerable_code_not_in_execute_path",
            "vulnerable_code_cannot_be_controlled_by_adversary",
            "inline_mitigations_already_exist",
        }
    document = openvex({})
    assert {"@context", "@id", "author", "timestamp", "version", "statements"} <= document.keys()
    assert vulnerabilities({}) == []


def test_two_bundles_have_the_same_papers(
    made: tuple[Plan, Entry, Path], store: Store, tmp_path: Path
) -> None:
    found = [papers(made, store, tmp_path) for _ in range(2)]
    assert found[0] == found[1]
    first = papers_of(bundle(made, found[0], tmp_path / "1", made[0].card))
    second = papers_of(bundle(made, found[1], tmp_path / "2", made[0].card))
    assert first == second
    assert set(first) >= {
        "sbom.cdx.json",
        "vex.openvex.json",
        "fit/pocket-Q8_0.json",
        "licences/pocket-Q8_0/LICENSE.txt",
    }


def test_the_command_proves_and_tells(tmp_path: Path) -> None:
    cli = Cli(tmp_path, {"EDGEKIT_BUNDLE_VERIFY": "on"})
    done = cli.run("bundle", "create", "pocket:Q8_0", "--output", "p", "--device", "rtx-4090")
    assert done.returncode == 0, done.stderr
    assert "Apache-2.0" in done.stdout
    bill = json.loads((tmp_path / "p" / "sbom.cdx.json").read_text())
    validator().validate(bill)
    metrics = bill["components"][0]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert any("KL divergence" in metric["type"] for metric in metrics)
