"""Short-lived children: the canary and the dry load; and what they parse."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit_server.engine import spawn
from edgekit_server.engine.breakdown import Breakdown, Row, from_log, merge
from edgekit_server.engine.log import Log
from edgekit_server.engine.options import ContextOptions
from edgekit_server.engine.threads import default_threads
from edgekit_server.errors import ConfigError


def run(module: str, *arguments: str) -> tuple[int, dict[str, object]]:
    done = subprocess.run(
        spawn.command(module, *arguments),
        env=spawn.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    (line,) = done.stdout.splitlines()
    return done.returncode, json.loads(line)


def test_canary(tiny_quantized: Path) -> None:
    code, record = run("canary", str(tiny_quantized), "--n-threads", "1", "--n-gpu-layers", "0")
    assert (code, record["ok"], record["gpu_offload"]) == (0, True, record["gpu_offload"])
    assert len(record["tokens"]) == 9  # type: ignore[arg-type]
    assert "CPU" in record["backends"]  # type: ignore[operator]
    plain_code, plain = run("canary", str(tiny_quantized), "--n-threads", "1", "--no-extra-bufts")
    assert plain_code == 0
    assert plain["tokens"] == record["tokens"]


def test_canary_says_what_is_wrong(tmp_path: Path) -> None:
    assert run("canary", str(tmp_path / "none.gguf"))[0] == 66
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"not a model")
    code, record = run("canary", str(bad))
    assert (code, record["ok"]) == (65, False)
    assert record["error"]["code"] == "bad_model"  # type: ignore[index]


def test_dry_load(tiny_model: Path) -> None:
    arguments = ("--n-ctx", "1024", "--n-seq-max", "4", "--n-ubatch", "128")
    code, record = run("dryload", str(tiny_model), *arguments)
    assert code == 0
    # 2 layers x 1024 cells x (K and V of 2 heads x 16) x 2 bytes
    assert record["kv_bytes"] == 2 * 1024 * 2 * 32 * 2
    assert record["output_bytes"] == 4 * 272 * 4
    assert sum(record["compute_bytes"].values()) > 0  # type: ignore[attr-defined]
    assert sum(record["weights_bytes"].values()) == 435456  # type: ignore[attr-defined]


def test_dry_load_refuses(tiny_model: Path) -> None:
    code, record = run(
        "dryload", str(tiny_model), "--n-ctx", "512", "--type-v", "q8_0", "--flash-attn", "off"
    )
    assert code == 78
    assert "flash attention" in record["error"]["message"]  # type: ignore[index]


LINES = [
    "load_tensors:   CPU_Mapped model buffer size =     0.00 MiB",
    "llama_context:        CPU  output buffer size =     3.91 MiB",
    "llama_kv_cache:        CPU KV buffer size =     0.00 MiB",
    "llama_kv_cache: size =  128.00 MiB (  8192 cells,  16 layers,  8/8 seqs), K (f16):   64.00",
    "sched_reserve:        CPU compute buffer size =    37.01 MiB",
    "sched_reserve:      CUDA0 compute buffer size =   254.50 MiB",
]
LOGGED = Breakdown({"all": 7}, 128 << 20, {"CPU": 38807798, "CUDA0": 266862592}, 4096000, "log")


def test_the_log_is_understood() -> None:
    assert from_log(LINES, weights_bytes=7, n_outputs=8, n_vocab=128_000) == LOGGED


def test_the_table_wins_only_when_it_agrees() -> None:
    rows = [Row("CPU", 5, 128 << 20, 38807790), Row("CUDA0", 2, 0, 266862590), Row("X", 0, 0, 0)]
    assert merge(rows, LOGGED) == Breakdown(
        {"CPU": 5, "CUDA0": 2}, 128 << 20, {"CPU": 38807790, "CUDA0": 266862590}, 4096000, "table"
    )
    assert merge([Row("CPU", 5, 1, 2)], LOGGED) is LOGGED
    assert merge([], LOGGED) is LOGGED


def test_the_reason_in_the_log() -> None:
    log = Log()
    log.add(1, b"debug")
    log.add(2, b"loading ")
    log.add(5, b"...\n")
    assert log.text() == ["loading ..."]
    assert log.reason() == "llama.cpp gave no reason"
    log.add(3, b"hm\n")
    assert log.reason() == "hm"
    log.add(4, b"failed to allocate buffer\n")
    assert log.reason() == "failed to allocate buffer"
    assert log.says_memory()


@pytest.mark.parametrize(
    ("siblings", "quota", "expected"),
    [
        (["0", "1", "2", "3"], None, 4),
        (["0-1", "0-1", "2-3", "2-3"], None, 2),
        (["0", "1", "2", "3"], "250000 100000", 2),
        (["0", "1", "2", "3"], "50000 100000", 1),
        (["0", "1", "2", "3"], "max 100000", 4),
        ([], None, 4),
    ],
)
def test_threads(
    siblings: list[str],
    quota: str | None,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3})
    for cpu, text in enumerate(siblings):
        folder = tmp_path / f"cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text + "\n")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    n, reason = default_threads(tmp_path, tmp_path)
    assert n == expected
    assert ("quota" in reason) == (quota is not None and "max" not in quota)


@pytest.mark.parametrize(
    "change",
    [
        {"n_seq_max": 0},
        {"n_seq_max": 257, "n_batch": 512},
        {"n_batch": 3},
        {"n_ubatch": 0},
        {"n_ubatch": 513},
        {"n_ctx": 3},
        {"n_threads": 0},
        {"type_v": "q4_k"},
    ],
)
def test_settings_that_would_abort_are_refused(change: dict[str, int]) -> None:
    good = ContextOptions(n_ctx=512, n_seq_max=4, n_batch=512, n_ubatch=512, n_threads=1)
    good.check()
    with pytest.raises(ConfigError):
        replace(good, **change).check()  # type: ignore[arg-type]
