"""Trials in real children on a tiny model: bounded in time, and alive after anything."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest

from edgekit import autotune, trials
from edgekit.autotune import Load, Sample, Setting, Space
from edgekit_server.engine import spawn
from tests.support import gguf_models

DEFAULT = Setting(1)
SPACE = Space(DEFAULT, streams=True, ubatches=(256,))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("m") / "tiny.gguf"
    return gguf_models.write_model(path, quantized=True, n_ctx_train=4096)


def run(
    model: Path, budget_s: float, where: Space = SPACE, *, several: bool = True
) -> trials.Trials:
    return trials.run(
        model,
        where,
        n_gpu_layers=-1,
        users=3,
        n_ctx=3072,
        budget_s=budget_s,
        several=several,
    )


@pytest.mark.parametrize("several", [True, False])
def test_a_search_on_a_real_engine(tiny: Path, several: bool) -> None:
    found = run(tiny, 6.0, several=several)
    assert found.load is not None
    assert found.load.users == 3
    assert found.refused == {}
    assert {replace(DEFAULT, flash_attn=False, streams=True), DEFAULT} <= set(found.history)
    assert any(not s.extra_bufts for s in found.history)
    choice = autotune.choose(SPACE, found.history, 3)
    assert choice is not None
    assert choice.gain >= 1
    assert found.seconds < 15


def test_no_time_at_all_still_measures_the_default(tiny: Path) -> None:
    found = run(tiny, 0.0)
    assert list(found.history) == [DEFAULT]
    assert found.note == "not everything was tried in 0 s"


def test_a_file_that_does_not_load(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF and no more")
    found = run(path, 5.0)
    assert found.history == {}
    assert found.note is not None
    assert "did not load the model" in found.note


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Children of our own making in the engine's place: a script, given to `python -c`."""
    script: list[str] = []
    monkeypatch.setattr(spawn, "command", lambda *_: [sys.executable, "-c", script[0]])
    return script


READY = "import sys, json; print(json.dumps({'ready': True, 'rough_tok_s': 9e3}), flush=True)\n"
TIMING = "{'ok': True, 'prefill': [[256, 0.1]], 'alone': [[256, 0.01]], 'together': 0.02}"
SERVE = f"{READY}for line in sys.stdin:\n job = json.loads(line)\n "
ANSWER = f"print(json.dumps({TIMING}), flush=True)\n"


def test_a_setting_that_kills_the_engine_is_left_out(tiny: Path, fake: list[str]) -> None:
    fake.append(
        f"{SERVE}import os\n if job['flash_attn'] is False: os.kill(os.getpid(), 11)\n {ANSWER}"
    )
    found = run(tiny, 5.0, Space(DEFAULT, extra_off=False))
    assert len(found.history[DEFAULT]) >= 1
    (why,) = found.refused.values()
    assert why == "died of signal 11"


def test_a_setting_that_hangs_is_cut_off(tiny: Path, fake: list[str]) -> None:
    fake.append(f"{SERVE}import time\n if job['flash_attn'] is False: time.sleep(60)\n {ANSWER}")
    began = monotonic()
    found = run(tiny, 0.5, Space(DEFAULT, extra_off=False))
    assert monotonic() - began < 10
    assert "no answer" in "".join(found.refused.values())


@pytest.mark.parametrize(
    "script",
    [
        "raise SystemExit(3)",
        "print('[]', flush=True)",
        "print('rubbish', flush=True)",
        "print('{}')",
    ],
)
def test_a_child_that_says_nothing_sensible(tiny: Path, fake: list[str], script: str) -> None:
    fake.append(script)
    found = run(tiny, 1.0)
    assert found.history == {}
    assert found.note


def test_answers_are_read_with_care() -> None:
    good = {"prefill": [[10, 0.1], [10, 0.3]], "alone": [[20, 0.5]], "together": None}
    assert trials.sample(good) == Sample(0.02, ((20, 0.5),), None)
    for bad in (
        {},
        {**good, "prefill": []},
        {**good, "prefill": 3},
        {**good, "alone": [[1]]},
        {**good, "together": "x"},
    ):
        with pytest.raises(trials.TrialError):
            trials.sample(bad)


def test_a_job_says_everything() -> None:
    setting = Setting(2, n_ubatch=256, flash_attn=False, streams=True)
    load = Load((128, 256), 4)
    assert trials.job(setting, load)["kv_unified"] is False
    assert trials.job(setting, load)["depths"] == [128, 256]
    short = trials.job(setting, load, short=True)
    assert (short["depths"], short["n_steps"]) == ([256], 0)
