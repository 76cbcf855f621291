"""20,000 damaged headers: an error or a header, within 256 MiB and two seconds each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit_quantize import convert
from edgekit_quantize.errors import BadCheckpointError
from edgekit_quantize.safetensors import MAX_TENSORS, SafetensorsFile
from tests.support.checkpoints import make_checkpoint

SHARDS = 4
PER_SHARD = 2500


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small real file of each kind, its data section cut to nothing it needs."""
    work = tmp_path_factory.mktemp("samples")
    folder = make_checkpoint(work, vocab=300, hidden=32, ffn=32, head_dim=16, layers=1, shards=1)
    convert(folder, work / "sample.gguf", "F32")
    (weights,) = folder.glob("*.safetensors")
    return {"safetensors": weights, "gguf": work / "sample.gguf"}


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
@pytest.mark.parametrize("shard", range(SHARDS))
def test_damaged_headers_are_errors(kind: str, shard: int, samples: dict[str, Path]) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.support.header_fuzz"),
            *(kind, str(shard * PER_SHARD), str(PER_SHARD), str(samples[kind])),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = eval(done.stdout)
    assert sum(outcomes.values()) == PER_SHARD
    # The mutations reach deep: several kinds of damage are told apart.
    assert len(outcomes) >= 4


def header_of(count: int, tail: bytes) -> bytes:
    entry = b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
    raw = b"{" + b"".join(entry % i for i in range(count)).rstrip(b",") + tail + b"}"
    return len(raw).to_bytes(8, "little") + raw


@pytest.mark.parametrize(
    "data",
    [
        (10**9).to_bytes(8, "little") + b"{" + b" " * 64,
        header_of(MAX_TENSORS * 2, b""),
        header_of(1, b"," + json.dumps({"a": [[]] * 700_000}).encode()[1:-1]),
        header_of(0, b'"\xf0\x9f\x98\x80":' + b"[" * 100_000),
        header_of(0, b'"t":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}'),
        header_of(0, b'"t":{"dtype":"F32","shape":[1e3],"data_offsets":[0,4000]}'),
        header_of(0, b'"t":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}'),
    ],
    ids=["claims a gigabyte", "too many", "empty lists", "deep", "negative", "float", "overflow"],
)
def test_bombs_are_refused(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "bomb.safetensors"
    file.write_bytes(data)
    with pytest.raises(BadCheckpointError):
        SafetensorsFile(file)


def test_a_json_bomb_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, vocab=300, hidden=32, ffn=32, head_dim=16, layers=1)
    (folder / "config.json").write_bytes(b'{"a":[' + b"[]," * (5 << 20) + b"0]}")
    with pytest.raises(BadCheckpointError) as error:
        convert(folder, tmp_path / "out.gguf", "Q8_0")
    assert error.value.code == "bad_json"
    assert not (tmp_path / "out.gguf").exists()


def test_code_in_a_repository_is_never_run(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, vocab=300, hidden=32, ffn=32, head_dim=16, layers=1)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("modeling_evil.py", "sitecustomize.py", "conftest.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    convert(folder, tmp_path / "out.gguf", "Q8_0")
    assert not (tmp_path / "ran").exists()
