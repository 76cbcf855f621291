"""Trials of engine settings on a real, tiny model: every setting runs, a bad one is an answer."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from edgekit_server.engine import spawn
from edgekit_server.engine.trial import parse_job
from tests.support import gguf_models

SETTINGS: list[dict[str, object]] = [
    {"flash_attn": None},
    {"flash_attn": False},
    {"flash_attn": False, "kv_unified": False},
    {"kv_unified": False, "n_threads": 2},
    {"n_ubatch": 32, "n_steps": 0},
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_models.write_model(tmp_path_factory.mktemp("m") / "tiny.gguf", quantized=True)


def job(**more: object) -> dict[str, object]:
    return {"n_threads": 1, "depths": [32, 96], "n_seq": 3, "n_steps": 3, **more}


def run(*arguments: str | Path, lines: str = "") -> tuple[int, list[dict[str, object]]]:
    done = subprocess.run(
        spawn.command("trial", *map(str, arguments)),
        input=lines,
        env=spawn.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode >= 0, done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_each_setting_is_timed_with_one_load(tiny: Path) -> None:
    jobs = json.dumps([job(**setting) for setting in SETTINGS])
    code, (ready, *answers) = run(tiny, "--json-settings", jobs)
    assert code == 0
    assert ready["ready"] is True
    assert isinstance(ready["rough_tok_s"], float)
    assert len(answers) == len(SETTINGS)
    for setting, answer in zip(SETTINGS, answers, strict=True):
        assert answer["ok"] is True, answer
        assert [n for n, _ in answer["prefill"]] == [32, 64]  # type: ignore[attr-defined]
        alone = answer["alone"]
        assert isinstance(alone, list)
        assert [depth for depth, _ in alone] == ([] if setting.get("n_steps") == 0 else [32, 96])
        assert (answer["together"] is None) == (setting.get("n_steps") == 0)
        assert all(seconds > 0 for _, seconds in alone)


def test_a_setting_that_llama_cpp_refuses_ends_nothing(tiny: Path) -> None:
    lines = [
        json.dumps(job(type_v="q8_0", flash_attn=False)),  # quantized V needs flash attention
        "no json",
        json.dumps(job(depths=[96, 32])),
        json.dumps(job()),
    ]
    code, (_, *answers) = run(tiny, "--no-extra-bufts", lines="\n".join(lines))
    assert code == 0
    assert [a["ok"] for a in answers] == [False, False, False, True]
    assert [a["error"]["code"] for a in answers[:3]] == ["bad_config", "bad_job", "bad_job"]  # type: ignore[index]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    code, (answer,) = run(tmp_path / "gone.gguf")
    assert code == 66
    assert answer["error"]["code"] == "model_missing"  # type: ignore[index]


@pytest.mark.parametrize(
    "record",
    [
        None,
        [],
        {},
        {"n_threads": 0},
        {"n_threads": True},
        {"n_threads": 1, "depths": []},
        {"n_threads": 1, "depths": [0]},
        {"n_threads": 1, "n_seq": "4"},
        {"n_threads": 1, "unknown": 1},
    ],
)
def test_a_job_that_is_none(record: object) -> None:
    with pytest.raises(ValueError, match=r"a job has|whole numbers|depths"):
        parse_job(record)
