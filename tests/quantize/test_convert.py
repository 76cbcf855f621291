"""Conversion against llama.cpp, byte for byte, and everything that can go wrong on the way."""

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

import edgekit_quantize.output as output
from edgekit_quantize import FILE_TYPES, convert, read_header, weights_bytes
from edgekit_quantize.errors import (
    BadCheckpointError,
    BusyError,
    CannotCreateError,
    QuantizeError,
    UnknownFileTypeError,
)
from tests.support import llama_oracle
from tests.support.checkpoints import make_checkpoint, write_safetensors

NUMBERS = {name: file_type.number for name, file_type in FILE_TYPES.items()}
PLAIN = [name for name, file_type in FILE_TYPES.items() if not file_type.needs_imatrix]
"""Types that need no importance matrix; test_bit_identity.py has the others."""
# fmt: off
COMMON = [
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "IQ4_XS",
    "Q3_K_M", "Q2_K",
]
# fmt: on
POCKET = Path(__file__).parents[2] / "profiles" / "edgekit_profiles" / "pocket"


def assert_identical(folder: Path, work: Path, names: list[str]) -> None:
    """Each direct conversion is the very file llama.cpp makes from our BF16 GGUF."""
    convert(folder, work / "bf16.gguf", "BF16", threads=2)
    targets = {name: work / f"theirs-{name}.gguf" for name in names}
    llama_oracle.quantize(work / "bf16.gguf", targets, NUMBERS)
    for name, theirs in targets.items():
        ours = work / f"ours-{name}.gguf"
        done = convert(folder, ours, name, threads=2)
        one, other = read_header(ours), read_header(theirs)
        assert one.metadata == other.metadata, name
        assert one.tensors == other.tensors, name
        assert ours.read_bytes() == theirs.read_bytes(), name
        assert done.sha256 == hashlib.sha256(ours.read_bytes()).hexdigest()
        assert done.file_bytes == ours.stat().st_size
        ours.unlink()
        theirs.unlink()


SMALL_SHAPES: dict[str, dict[str, object]] = {
    "grouped queries": {
        "layers": 4,
        "heads": 8,
        "kv_heads": 2,
        "head_dim": 32,
        "ffn": 256,
        "vocab": 300,
    },
    "tied, one shard": {"tied": True, "shards": 1, "heads": 4, "kv_heads": 4},
    "rows of 32": {"hidden": 96, "ffn": 160, "heads": 3, "kv_heads": 3, "head_dim": 32},
    "qwen2": {"architecture": "Qwen2ForCausalLM"},
    "llama with biases and llama3 rope": {
        "architecture": "LlamaForCausalLM",
        "extra_config": {
            "attention_bias": True,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 1024,
            },
        },
    },
}


@pytest.mark.parametrize("shape", SMALL_SHAPES)
def test_small_shapes_are_llama_quantizes_files(shape: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", **SMALL_SHAPES[shape])  # type: ignore[arg-type]
    every = shape in ("grouped queries", "rows of 32")
    names = PLAIN if every else ["F32", "F16", "Q6_K", "Q4_K_M", "Q4_0"]
    if shape == "rows of 32":
        # Both refuse blocks of 128 there, see test_bit_identity.py.
        names = [name for name in names if name != "Q1_0"]
    assert_identical(folder, tmp_path, names)


@pytest.mark.parametrize("names", [COMMON, pytest.param(PLAIN, marks=pytest.mark.slow)])
def test_pocket_is_llama_quantizes_file(names: list[str], tmp_path: Path) -> None:
    assert_identical(POCKET, tmp_path, names)


@pytest.mark.parametrize("names", [["Q8_0"], pytest.param(COMMON, marks=pytest.mark.slow)])
def test_128k_vocabulary_untied(names: list[str], tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", vocab=131072, layers=1)
    assert_identical(folder, tmp_path, names)


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_other_floats_quantize_as_their_own_gguf(dtype: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", dtype=dtype)
    convert(folder, tmp_path / "source.gguf", dtype, threads=1)
    done = convert(folder, tmp_path / "ours.gguf", "Q4_K_M", threads=1)
    llama_oracle.quantize(tmp_path / "source.gguf", {"Q4_K_M": tmp_path / "theirs.gguf"}, NUMBERS)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    assert any(dtype in reason for reason in done.reasons)


def test_rotary_rows_and_the_rest_by_hand(tmp_path: Path) -> None:
    """The BF16 file against an independent reading of the checkpoint with torch."""
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    folder = make_checkpoint(
        tmp_path / "c", heads=4, kv_heads=2, head_dim=64, layers=1,
        extra_config={"attention_bias": True},
    )  # fmt: skip
    convert(folder, tmp_path / "m.gguf", "BF16", threads=1)
    stored = {}
    for shard in folder.glob("*.safetensors"):
        stored |= safetensors.load_file(shard)
    header = read_header(tmp_path / "m.gguf")
    raw = (tmp_path / "m.gguf").read_bytes()
    names = {
        "blk.0.attn_q.weight": ("model.layers.0.self_attn.q_proj.weight", 4),
        "blk.0.attn_k.weight": ("model.layers.0.self_attn.k_proj.weight", 2),
        "blk.0.attn_v.weight": ("model.layers.0.self_attn.v_proj.weight", None),
        "blk.0.attn_q.bias": ("model.layers.0.self_attn.q_proj.bias", 4),
        "output_norm.weight": ("model.norm.weight", None),
        "output.weight": ("lm_head.weight", None),
    }
    for tensor in header.tensors:
        if tensor.name not in names:
            continue
        source, heads = names[tensor.name]
        expected = stored[source]
        if heads is not None:
            halves = expected.reshape(heads, 2, len(expected) // heads // 2, -1)
            expected = halves.swapaxes(1, 2).reshape(expected.shape)
        if tensor.type.name == "F32":
            expected = expected.float()
        start = header.data_offset + tensor.offset
        assert raw[start : start + tensor.bytes] == (
            expected.contiguous().view(torch.uint8).numpy().tobytes()
        )


@pytest.mark.parametrize("filetype", ["BF16", "Q4_K_M", "Q2_K"])
def test_llama_cpp_loads_and_generates(filetype: str, tmp_path: Path) -> None:
    folder = POCKET if (POCKET / "config.json").is_file() else make_checkpoint(tmp_path / "c")
    convert(folder, tmp_path / "m.gguf", filetype, threads=1)
    answer = llama_oracle.call(
        {"do": "generate", "model": str(tmp_path / "m.gguf"), "prompt": "def add(a, b):", "n": 5}
    )
    assert len(answer["output"]) >= 1
    assert answer["prompt"][0] == 1, "the start token is added"
    assert answer["fim"] == [14, 16, 15]
    assert answer["metadata"]["tokenizer.ggml.pre"] == "tekken"
    assert answer["metadata"]["edgekit.source.digest"].startswith("sha256:")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "my-tiny-v2", vocab=300)


def test_the_result_says_what_was_made(tiny: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    done = convert(
        tiny, tmp_path / "m.gguf", "q4_k_m", threads=2, progress=lambda a, b: seen.append((a, b))
    )
    config = json.loads((tiny / "config.json").read_text())
    assert done.filetype == "Q4_K_M"
    assert done.tensor_bytes == weights_bytes(config, "Q4_K_M")
    header = read_header(done.path)
    assert header.data_offset + done.tensor_bytes == done.file_bytes
    assert header.metadata["general.name"] == "My Tiny v2"
    assert header.metadata["general.file_type"] == 15
    assert header.metadata["edgekit.source.digest"] == done.source_digest
    assert len(header.tensors) == done.n_tensors
    assert any("tekken" in reason for reason in done.reasons)
    assert any("Q6_K" in reason for reason in done.reasons)
    counts = [count for count, _ in seen]
    assert counts == sorted(counts)
    assert seen[-1][0] == seen[-1][1]


def test_the_same_bytes_on_any_number_of_threads(tiny: Path, tmp_path: Path) -> None:
    first = convert(tiny, tmp_path / "one.gguf", "Q4_K_M", threads=1)
    second = convert(tiny, tmp_path / "three.gguf", "Q4_K_M", threads=3)
    assert first.sha256 == second.sha256


def test_name_and_known_digests(tiny: Path, tmp_path: Path) -> None:
    plain = convert(tiny, tmp_path / "a.gguf", "Q8_0", threads=1)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tiny.iterdir()}
    told = convert(tiny, tmp_path / "b.gguf", "Q8_0", threads=1, digests=digests, name="Other")
    assert told.source_digest == plain.source_digest
    assert read_header(told.path).metadata["general.name"] == "Other"


def test_licence_of_the_model_card(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "c"))
    card = '---\nlicense: other\nlicense_name: "mnpl"\ntags:\n- x\n---\n# Card\nlicense: not this'
    (folder / "README.md").write_text(card)
    convert(folder, tmp_path / "m.gguf", "Q8_0", threads=1)
    metadata = read_header(tmp_path / "m.gguf").metadata
    assert metadata["general.license"] == "other"
    assert metadata["general.license.name"] == "mnpl"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_existing_file_is_replaced_or_kept(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"old")
    with pytest.raises(UnknownFileTypeError):
        convert(tiny, tmp_path / "m.gguf", "Q3_XXL", threads=1)
    assert (tmp_path / "m.gguf").read_bytes() == b"old"
    (tmp_path / ".m.gguf.partial").write_bytes(b"left by a killed process" * 10_000)
    done = convert(tiny, tmp_path / "m.gguf", "Q8_0", threads=1)
    assert done.sha256 == hashlib.sha256((tmp_path / "m.gguf").read_bytes()).hexdigest()
    assert files(tmp_path) == ["m.gguf"]


def test_disk_too_small_is_said_before_writing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(CannotCreateError, match="1 bytes free") as caught:
        convert(tiny, tmp_path / "m.gguf", "Q8_0", threads=1)
    assert (caught.value.code, caught.value.exit_code) == ("disk_full", 73)
    assert files(tmp_path) == []


def test_disk_full_on_the_way(tiny: Path, tmp_path: Path) -> None:
    """A real refusal of the kernel: the file may not grow beyond 300 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(CannotCreateError) as caught:
            convert(tiny, tmp_path / "m.gguf", "F32", threads=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (caught.value.code, caught.value.exit_code) == ("disk_full", 73)
    assert files(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small file system")
def test_disk_that_another_writer_fills_meanwhile(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system of 256 KiB that seemed to have room when it was asked."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount here")
    try:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 0, 2**40))
        with pytest.raises(CannotCreateError) as caught:
            convert(tiny, disk / "m.gguf", "F32", threads=2)
        assert (caught.value.code, caught.value.exit_code) == ("disk_full", 73)
        assert files(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_write_that_fails(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.write, []

    def failing(fd: int, data: bytes) -> int:
        calls.append(fd)
        if len(calls) == 5:
            raise OSError(5, "Input/output error")
        return real(fd, data)

    monkeypatch.setattr(output.os, "write", failing)
    with pytest.raises(QuantizeError) as caught:
        convert(tiny, tmp_path / "m.gguf", "Q8_0", threads=2)
    assert (caught.value.code, caught.value.exit_code) == ("io_error", 74)
    assert files(tmp_path) == []


def test_places_one_cannot_write(tiny: Path, tmp_path: Path) -> None:
    for destination in (tmp_path, tmp_path / "no" / "m.gguf", tmp_path / "file" / "m.gguf"):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(CannotCreateError) as caught:
            convert(tiny, destination, "Q8_0", threads=1)
        assert caught.value.exit_code == 73


def test_two_writers_of_one_destination(tmp_path: Path) -> None:
    with output.PartialFile(tmp_path / "m.gguf", 1) as first:
        first.write(b"abc")
        with pytest.raises(BusyError) as caught:
            output.PartialFile(tmp_path / "m.gguf", 1)
        assert caught.value.exit_code == 75
        first.sync()
        first.commit()
    assert (tmp_path / "m.gguf").read_bytes() == b"abc"
    assert files(tmp_path) == ["m.gguf"]


def test_interrupt_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tiny, tmp_path / "m.gguf", "Q4_K_M", threads=2, progress=interrupt)
    assert files(tmp_path) == []


def test_ctrl_c_in_a_real_process(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", vocab=20_000)
    (tmp_path / "out").mkdir()
    code = (
        "import sys\nfrom pathlib import Path\nfrom edgekit_quantize import convert\n"
        "said = []\n"
        "def progress(done, total):\n"
        "    if done > total * 0.6 and not said:\n"
        "        said.append(1); print('ready', flush=True)\n"
        "convert(Path(sys.argv[1]), Path(sys.argv[2]), 'IQ4_XS', threads=1, progress=progress)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "out" / "m.gguf")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(output.__file__).parents[1])},
    )
    with child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == b"ready\n"
        assert ".m.gguf.partial" in files(tmp_path / "out")
        child.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in child.stderr.read()
    assert files(tmp_path / "out") == []


def rewritten(folder: Path, name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> None:
    """Replace one tensor of a single-shard checkpoint."""
    from edgekit_quantize.safetensors import SafetensorsFile

    path = folder / "model-00001-of-00001.safetensors"
    file = SafetensorsFile(path)
    tensors = {t.name: (t.dtype, t.shape, bytes(file.view(t))) for t in file.tensors.values()}
    file.close()
    tensors[name] = (dtype, shape, data)
    write_safetensors(path, tensors)


@pytest.mark.parametrize(
    ("dtype", "shape", "data", "code"),
    [
        ("BF16", (128,), bytes(256), "bad_shape"),
        ("BF16", (1, 256), bytes(512), "bad_shape"),
        ("F8_E4M3", (256,), bytes(256), "bad_dtype"),
        ("F64", (256,), bytes(2048), "bad_dtype"),
        ("BF16", (256,), b"\xc0\x7f" * 256, "not_finite"),
        ("F32", (256,), np.full(256, np.inf, np.float32).tobytes(), "not_finite"),
    ],
)
def test_tensors_that_do_not_fit(
    dtype: str, shape: tuple[int, ...], data: bytes, code: str, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path / "c", vocab=300, shards=1)
    rewritten(folder, "model.norm.weight", dtype, shape, data)
    (tmp_path / "out").mkdir()
    with pytest.raises(BadCheckpointError) as caught:
        convert(folder, tmp_path / "out" / "m.gguf", "Q4_0", threads=1)
    assert (caught.value.code, caught.value.exit_code) == (code, 65)
    assert "model.norm.weight" in str(caught.value)
    assert files(tmp_path / "out") == []


def test_a_mixed_checkpoint_converts(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", vocab=300, shards=1)
    rewritten(folder, "model.norm.weight", "F32", (256,), np.ones(256, np.float32).tobytes())
    convert(folder, tmp_path / "m.gguf", "Q4_0", threads=1)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "unknown_architecture"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized_checkpoint"),
        ({"vocab_size": 200}, "bad_shape"),
        ({"num_hidden_layers": 3}, "missing_tensor"),
        ({"num_hidden_layers": 1}, "unknown_tensor"),
        ({"hidden_size": 128}, "bad_shape"),
    ],
)
def test_configs_that_do_not_fit(
    changes: dict[str, object], code: str, tiny: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "c"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    (tmp_path / "out").mkdir()
    with pytest.raises(BadCheckpointError) as caught:
        convert(folder, tmp_path / "out" / "m.gguf", "Q8_0", threads=1)
    assert (caught.value.code, caught.value.exit_code) == (code, 65)
    assert files(tmp_path / "out") == []


def test_planning_needs_neither_numpy_nor_llama_cpp() -> None:
    code = (
        "import sys\n"
        "sys.modules['numpy'] = sys.modules['llama_cpp'] = None\n"
        "from edgekit_quantize import weights_bytes, convert, read_header\n"
    )
    path = str(Path(output.__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})
