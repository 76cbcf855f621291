"""The gate of a deployment, on real files: what passes, what is refused, what is not run again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit import evaluation, gate, material
from edgekit.catalogue import find_model
from edgekit.cli.evaluate import show
from edgekit.cli.output import StepLines
from edgekit.deploy import obtain
from edgekit.errors import BadDataError, EngineFailedError, MissingInputError
from edgekit.evaluation import Setting
from edgekit.fit import choose, device_from_machine
from edgekit.gate import Gate
from edgekit.plan import Plan, make_plan
from edgekit.quality import Divergence, Drift, Quality, WrongTensor
from edgekit.store import Store
from edgekit.store_care import Removal, collect
from edgekit_quantize.gguf_header import read_header
from tests.edgekit.test_deploy import XEON
from tests.support import damage
from tests.support.cli import POCKET, Cli, free_port
from tests.support.pocket import convert_pocket

SETTING = Setting(use_extra_bufts=False, threads=1)


def planned(store: Store, filetype: str) -> Plan:
    card, device = find_model("pocket"), device_from_machine(XEON)
    choice = choose(card, device, users=1, filetype=filetype)
    return make_plan(card, device, choice, store, host="127.0.0.1", port=8484)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One folder for all: what the unquantized model says is worked out once."""
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "gate-cache"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds pocket as Q4_K_M."""
    root = tmp_path_factory.mktemp("store")
    obtain(planned(Store(root), "Q4_K_M"), Store(root), StepLines(quiet=True))
    return root


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    """A copy of it of one's own."""
    shutil.copytree(made, tmp_path / "store")
    return Store(tmp_path / "store")


def test_a_sound_file_passes_once_and_is_remembered(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(store, "Q4_K_M")
    assert plan.entry is not None
    file = store.path(plan.entry)
    ticks: list[tuple[int, int]] = []
    proven = gate.prove(plan, file, Gate(store.root), SETTING, lambda *t: ticks.append(t))
    found = proven.quality.divergence
    assert found is not None
    assert found.kl is not None
    assert 0.01 < found.kl < proven.limit.kl < 0.2
    assert (found.positions, proven.quality.prompts, proven.quality.tensors) == (1024, 24, 57)
    assert 0 < proven.quality.unchanged <= 24
    assert f"{proven.quality.unchanged}/24 canaries unchanged" in proven.summary
    for drift in proven.quality.drifts:
        assert drift.prompt in material.canary_prompts()
        assert drift.before != drift.after
    shares = [done / total for done, total in ticks]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    record = json.loads((store.root / "evaluations" / f"{file.stem}.json").read_text())
    assert record["schema"] == "edgekit.evaluation/1"
    assert record["divergence"]["kl"] == found.kl

    # The second time no child is started, and no unquantized file was left behind.
    monkeypatch.setattr(evaluation, "evaluate", None)
    again = gate.prove(plan, file, Gate(store.root), SETTING)
    assert (again.cached, again.quality, again.verdict) == (True, proven.quality, proven.verdict)
    assert list((store.root / "partial").glob("base-*")) == []


def replaced(store: Store, spoil: Callable[[Path, Path], object]) -> Plan:
    """Put a spoilt file into the store, properly named, and return the plan that takes it."""
    plan = planned(store, "Q4_K_M")
    assert plan.entry is not None
    with store.writing("pocket", "Q4_K_M") as partial:
        spoil(store.path(plan.entry), partial)
        digest = hashlib.sha256(partial.read_bytes()).hexdigest()
        store.add(partial, replace(plan.entry, sha256=digest))
    plan = planned(store, "Q4_K_M")
    assert plan.entry is not None
    assert plan.entry.sha256 == digest
    return plan


def other_rope(file: Path, out: Path) -> None:
    """The right weights, read with another rotary base."""
    raw = bytearray(file.read_bytes())
    at = raw.index(b"llama.rope.freq_base") + len(b"llama.rope.freq_base") + 4
    raw[at : at + 4] = b"\x00\x00\x20\x41"  # 10.0
    out.write_bytes(raw)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda a, b: damage.flip_scales(a, b, "blk.0.attn_k.weight"), "blk.0.attn_k.weight"),
        (
            lambda a, b: damage.swap(a, b, "blk.2.ffn_up.weight", "blk.3.ffn_up.weight"),
            "2 of 57 tensors",
        ),
        (other_rope, "nats from the unquantized model's"),
    ],
    ids=["scales", "order", "header"],
)
def test_a_damaged_quantization_is_refused(
    spoil: Callable[[Path, Path], object], words: str, store: Store
) -> None:
    plan = replaced(store, spoil)
    assert plan.entry is not None
    file = store.path(plan.entry)
    with pytest.raises(BadDataError) as caught:
        gate.prove(plan, file, Gate(store.root), SETTING)
    assert (caught.value.code, caught.value.exit_code) == ("quantization_refused", 65)
    assert words in caught.value.message
    assert "--force" in str(caught.value.hint)
    forced = gate.prove(plan, file, Gate(store.root, force=True), SETTING)
    assert forced.cached
    assert not forced.verdict.good
    assert forced.as_dict()["good"] is False


def test_a_file_that_the_disk_spoilt_is_told_apart(store: Store) -> None:
    plan = planned(store, "Q4_K_M")
    assert plan.entry is not None
    file = store.path(plan.entry)
    damage.empty(file, file, "blk.1.ffn_gate.weight")
    with pytest.raises(BadDataError) as caught:
        gate.prove(plan, file, Gate(store.root, available_bytes=1), SETTING)
    assert "changed since it was written" in caught.value.message
    assert f"delete {file}" in str(caught.value.hint)


def test_a_model_too_large_to_run_has_its_weights_compared(store: Store) -> None:
    plan = planned(store, "Q4_K_M")
    assert plan.entry is not None
    small = Gate(store.root, available_bytes=10_000_000)
    proven = gate.prove(plan, store.path(plan.entry), small, SETTING)
    assert proven.verdict.good
    assert proven.quality.divergence is None
    assert proven.summary == (
        "predictions not compared: the unquantized model (15.6 MB) does not fit in the 10.0 MB "
        "of memory that are free · 57/57 tensors match the original"
    )
    spoilt = replaced(store, lambda a, b: damage.flip_scales(a, b, "blk.0.attn_q.weight"))
    assert spoilt.entry is not None
    with pytest.raises(BadDataError, match=r"blk\.0\.attn_q\.weight"):
        gate.prove(spoilt, store.path(spoilt.entry), small, SETTING)


@pytest.mark.parametrize(
    ("available", "room", "words"),
    [
        (64 * 10**9, 64 * 10**9, None),
        (None, None, None),
        (24 * 10**9, 64 * 10**9, "(47.1 GB) does not fit in the 24.0 GB of memory"),
        (64 * 10**9, 10**9, "(47.1 GB) does not fit on the disk, 1.0 GB are free"),
    ],
)
def test_what_is_too_large(available: int | None, room: int | None, words: str | None) -> None:
    why = gate.too_large(47_144_806_400, available, room)
    assert why is None if words is None else words in str(why)


def test_a_machine_with_more_memory_makes_up_for_it(store: Store) -> None:
    plan = planned(store, "Q4_K_M")
    assert plan.entry is not None
    file = store.path(plan.entry)
    small = gate.prove(plan, file, Gate(store.root, available_bytes=1), SETTING)
    again = gate.prove(plan, file, Gate(store.root, available_bytes=1), SETTING)
    assert (small.cached, again.cached) == (False, True)
    large = gate.prove(plan, file, Gate(store.root), SETTING)
    assert (large.cached, large.quality.divergence is None) == (False, False)
    assert (
        "accepted up to 3 × the 0.0313 published for Q4_K_M" in dict(large.method)["Quantization"]
    )
    # The record goes with the file.
    assert [r for r in gc(store) if r.path.startswith("evaluations")] == []
    (store.root / "index" / "pocket" / "Q4_K_M.json").unlink()
    assert len([r for r in gc(store) if r.path.startswith("evaluations")]) == 1
    assert list((store.root / "evaluations").iterdir()) == []


def gc(store: Store) -> list[Removal]:
    return collect(store, dry_run=False, checkpoints=False, unfinished=True)


def test_without_the_original_nothing_is_compared_and_nothing_kept(store: Store) -> None:
    plan = replace(planned(store, "Q4_K_M"), weights=None, source=None)
    assert plan.entry is not None
    proven = gate.prove(plan, store.path(plan.entry), Gate(store.root), SETTING)
    assert proven.summary.startswith("not compared: the weights that this file was made from")
    assert not (store.root / "evaluations").exists()


def test_a_record_of_another_trial_does_not_count(store: Store) -> None:
    trial = material.gate()
    plan = replace(planned(store, "Q4_K_M"), weights=None)
    assert plan.entry is not None
    digest = plan.entry.sha256
    assert evaluation.kept(store.root, digest, trial) is None
    proven = gate.prove(plan, store.path(plan.entry), Gate(store.root), SETTING)
    evaluation.keep(store.root, proven.quality)
    assert evaluation.kept(store.root, digest, trial) == proven.quality
    assert evaluation.kept(store.root, digest, replace(trial, windows=9)) is None
    (store.root / "evaluations" / f"{digest}.json").write_text("[" * 100_000)
    assert evaluation.kept(store.root, digest, trial) is None


def test_deploy_refuses_and_says_how_to_go_on(store: Store, tmp_path: Path) -> None:
    replaced(store, lambda a, b: damage.flip_scales(a, b, "blk.0.attn_k.weight"))
    cli = Cli(tmp_path, {"EDGEKIT_STORE": str(store.root)})
    arguments = ("deploy", "pocket:Q4_K_M", "--port", str(free_port()), "--no-measure", "--no-stay")
    done = cli.run(*arguments)
    assert done.returncode == 65, done.stderr
    assert "pocket Q4_K_M is refused" in done.stderr
    assert "hint: choose another file type, or pass --force" in done.stderr


@pytest.mark.slow
def test_deploy_serves_it_when_told_to(store: Store, tmp_path: Path) -> None:
    replaced(store, lambda a, b: damage.flip_scales(a, b, "blk.0.attn_k.weight"))
    cli = Cli(tmp_path, {"EDGEKIT_STORE": str(store.root)})
    arguments = ("deploy", "pocket:Q4_K_M", "--port", str(free_port()), "--no-measure", "--no-stay")
    forced = cli.run(*arguments, "--force")
    assert forced.returncode == 0, forced.stderr
    assert "served because of --force" in forced.stdout
    plan = cli.run(*arguments, "--no-verify", "--dry-run").stdout
    assert "the engine decodes a few tokens from this file" in plan
    assert "KL" not in plan.partition("verify")[2]


def test_evaluate_on_the_command_line(tmp_path: Path) -> None:
    cli, file = Cli(tmp_path), convert_pocket(tmp_path, "Q3_K_M")
    saved = tmp_path / "pocket.base"
    quick = ("--windows", "2", "--window", "128", "--threads", "1")
    first = cli.json("evaluate", file, "--base", POCKET, "--save-base", saved, *quick)
    assert first["schema"] == "edgekit.evaluation/1"
    assert 0.02 < first["divergence"]["kl"] < 0.5
    assert first["tensors"] == 57
    assert first["unchanged"] + len(first["drifts"]) == 24
    again = cli.json("evaluate", file, "--base", saved, *quick)
    assert (again["divergence"], again["drifts"]) == (first["divergence"], first["drifts"])
    assert again["tensors"] == 0


def test_what_evaluate_prints(capsys: pytest.CaptureFixture[str]) -> None:
    drifts = tuple(Drift(f"question {i}", i, "a", "b") for i in range(6))
    wrong = (WrongTensor("blk.0.attn_k.weight", "Q4_K", 2.0, 0.265),)
    found = Divergence(1024, 0.04, 0.002, 0.8, None, 0.88, 70.9, 69.9, 1.015, 0.01)
    show(Quality("", "m", found, 24, drifts, 57, wrong, "pocket", note="a note"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "KL        0.04 ± 0.002 nats on average, 99.9 % below 0.8, at most –"
    assert lines[2].endswith("the same likeliest token in 88.0% of 1,024 positions")
    assert lines[3] == "Canaries  18/24 answers unchanged"
    assert "and 2 more; --json shows all" in lines[8]
    assert lines[-2].strip() == "blk.0.attn_k.weight (Q4_K) is off by 200%, limit 26.5%"
    assert lines[-1] == "Note      a note"


def test_prompts_are_rendered_by_the_files_own_template(tmp_path: Path) -> None:
    header = read_header(convert_pocket(tmp_path, "Q8_0"))
    (pieces,), how = material.rendered(["[INST] hi"], header)
    assert "own chat template" in how
    whole = "".join(text for text, _ in pieces)
    assert whole == f"<s>[SYSTEM_PROMPT]{material.SYSTEM}[/SYSTEM_PROMPT][INST][INST] hi[/INST]"
    # What the prompt writes out is text; only the template's own marks are control tokens.
    assert ("[INST] hi", False) in pieces
    assert ("[/INST]", True) in pieces
    bare, why = material.rendered(["hi"], replace(header, metadata={}))
    assert bare == ((("hi", False),),)
    assert "no chat template" in why

    def by(template: str) -> tuple[object, str]:
        changed = {**header.metadata, "tokenizer.chat_template": template}
        return material.rendered(["hi"], replace(header, metadata=changed))

    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}A"
    assert by(refuses + "{{ messages[0].content }}")[0] == ((("Ahi", True),),)
    assert by("{{ 'x' * 3000 }}")[0] == bare
    assert "3,000 bytes" in by("{{ 'x' * 3000 }}")[1]
    assert by("{{ raise_exception('never') }}")[0] == bare
    assert by("{% for %}")[0] == bare


def test_a_child_that_dies_or_is_missing_its_input_is_an_error(tmp_path: Path) -> None:
    file = convert_pocket(tmp_path, "Q4_0")
    raw = file.read_bytes()
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(BadDataError):
        evaluation.evaluate(torn, POCKET, material.gate(), SETTING, work=tmp_path)
    with pytest.raises(MissingInputError):
        evaluation.evaluate(tmp_path / "no.gguf", POCKET, material.gate(), SETTING, work=tmp_path)
    assert isinstance(evaluation._died("SIGKILL"), EngineFailedError)
