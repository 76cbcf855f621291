"""The program that scores predictions resolves names, leaves devices out, keeps its block."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from tests.benchmarks import fit_accuracy, speed_rows

HEAD = [
    *("source", "url_or_thread", "date", "device_id", "n_devices", "backend", "model"),
    *("params_b", "quant", "model_gib", "flash_attn", "test", "n_prompt", "n_gen", "depth"),
    *("concurrency", "tok_s", "active_b", "trust", "engine_build", "power_w", "ttft_ms", "note"),
]


def write(path: Path, *rows: dict[str, str]) -> Path:
    usual = {"n_devices": "1", "backend": "cuda", "model": "llama-2-7b", "params_b": "6.74",
             "quant": "Q4_0", "model_gib": "3.56", "flash_attn": "1", "test": "tg", "trust": "A",
             "n_gen": "128", "device_id": "nvidia-l4"}  # fmt: skip
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, HEAD)
        out.writeheader()
        for row in rows:
            out.writerow({**usual, **row})
    return path


def test_a_file_is_scored_and_what_is_not_known_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(
        tmp_path / "m.csv",
        {"tok_s": "57.2"},
        {"test": "pp", "n_prompt": "512", "n_gen": "0", "tok_s": "3062"},
        {"device_id": "nvidia-a40", "tok_s": "110"},
        {"device_id": "nvidia-x1", "tok_s": "57.2"},
        {"model": "no-such-model", "tok_s": "57.2"},
        {"backend": "vllm", "tok_s": "57.2"},
        {"trust": "C", "tok_s": "1"},
    )
    for mode in (["--shipped"], []):
        out = tmp_path / "out.json"
        assert fit_accuracy.main([str(path), "--json", str(out), *mode]) == 0
        record = json.loads(out.read_text())
        assert record["rows"] == 3
        assert sum(record["unresolved"].values()) == 3
        assert record["decode"]["cells"] == 2
        assert 0 < record["decode"]["median"] < 0.5
        printed = capsys.readouterr().out
        assert "nvidia-x1" in printed
        assert "no-such-model" in printed


def test_a_left_out_device_has_no_say_in_its_prediction(tmp_path: Path) -> None:
    same = [{"device_id": "nvidia-a40", "tok_s": "110"}, {"device_id": "nvidia-rtx-a6000",
            "tok_s": "120"}]  # fmt: skip
    errors = []
    for own in ("57.2", "30"):
        rows, _ = speed_rows.read(write(tmp_path / "m.csv", {"tok_s": own}, *same))
        found = {s.row.device.id: s for s in fit_accuracy.left_out(rows, "tg")}
        errors.append(float(own) * found["nvidia-l4"].ratio)
    # The predicted speed of the L4 is the same whatever its own row says.
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


def test_the_shipped_file_resolves_and_the_shipped_constants_fit_it() -> None:
    rows, lost = speed_rows.read(fit_accuracy.DATA)
    assert len(rows) > 2600
    assert sum(lost.values()) < 40
    for test, name in fit_accuracy.TESTS.items():
        found = fit_accuracy.score(fit_accuracy.shipped(rows, test))
        assert found is not None
        assert found.median <= fit_accuracy.TARGETS[name][0]
        assert found.covered is not None
        assert found.covered >= 0.85


def test_the_page_holds_the_block_that_the_program_writes(tmp_path: Path) -> None:
    text = fit_accuracy.README.read_text(encoding="utf-8")
    block = text.split(fit_accuracy.BEGIN)[1].split(fit_accuracy.END)[0].strip().splitlines()
    assert re.fullmatch(
        r"[\d,]+ rows of trust AB, \d+ devices, \d+ models; leave one device out\.", block[0]
    )
    table = [line for line in block if line.startswith("| ")]
    for name in ("decode", "prefill"):
        row = rf"\| {name} \| \d+ \| [\d.]+% \| \d+% \| [+-][\d.]+% \| \d+% \|"
        assert any(re.fullmatch(row, line) for line in table), name
    page = tmp_path / "FIT.md"
    page.write_text(text, encoding="utf-8")
    record = {"rows": 1, "trust": "A", "devices": 1, "models": 1, "mode": "leave one device out",
              "decode": None, "prefill": None, "ttft": None, "roofline": None,
              "bandwidth_over_size_x_0.55": None, "decode_by_family": {},
              "prefill_by_family": {}}  # fmt: skip
    fit_accuracy.write_readme(record, page)
    again = page.read_text(encoding="utf-8")
    assert "1 rows of trust A" in again
    assert again.split(fit_accuracy.BEGIN)[0] == text.split(fit_accuracy.BEGIN)[0]
    assert again.split(fit_accuracy.END)[1] == text.split(fit_accuracy.END)[1]
