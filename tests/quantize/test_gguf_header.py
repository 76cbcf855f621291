"""The GGUF reader and writer against gguf-py, and the reader against mutated headers."""

import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_quantize import gguf_header
from edgekit_quantize.architectures import TensorSpec
from edgekit_quantize.errors import BadGgufError, MissingFileError, QuantizeError
from edgekit_quantize.gguf_header import parse_header, read_header
from edgekit_quantize.gguf_write import encode_header, lay_out
from edgekit_quantize.metadata import (
    KeyValue,
    ValueType,
    boolean,
    f32,
    i32,
    i32s,
    string,
    strings,
    u32,
)
from edgekit_quantize.tensor_types import TENSOR_TYPES, align

KEYS = [
    string("general.architecture", "llama"),
    u32("llama.block_count", 2),
    i32("negative", -3),
    f32("eps", 0.5),
    boolean("flag", True),
    strings("tokens", ["a", "bé", "", "🚀"]),
    i32s("kinds", [1, -2, 3]),
    KeyValue("wide", ValueType.UINT64, 2**63),
    KeyValue("halves", ValueType.ARRAY, (0.5, 1.5), ValueType.FLOAT32),
    KeyValue("bits", ValueType.ARRAY, (True, False), ValueType.BOOL),
]
SPECS = [TensorSpec("token_embd.weight", (256, 3)), TensorSpec("output_norm.weight", (5,))]
TENSORS = lay_out(SPECS, [TENSOR_TYPES["Q4_K"], TENSOR_TYPES["F32"]])


def whole_file() -> bytes:
    header = encode_header(KEYS, TENSORS)
    return header + bytes(align(TENSORS[-1].offset + TENSORS[-1].bytes))


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(whole_file())
    header = read_header(path)
    assert header.metadata == {entry.key: entry.value for entry in KEYS}
    assert header.types == {entry.key: entry.type for entry in KEYS}
    assert list(header.tensors) == TENSORS
    assert header.architecture == "llama"
    assert header.data_offset == len(encode_header(KEYS, TENSORS))


def test_gguf_py_reads_ours(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(whole_file())
    reader = gguf.GGUFReader(path)
    for entry in KEYS:
        value = reader.get_field(entry.key).contents()
        assert (tuple(value) if isinstance(value, list) else value) == entry.value
    assert [(t.name, t.tensor_type.name, int(t.n_bytes)) for t in reader.tensors] == [
        (t.name, t.type.name, t.bytes) for t in TENSORS
    ]


def test_we_read_gguf_pys(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(7)
    writer.add_token_list(["x", "y"])
    writer.add_tensor("a.weight", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("b.weight", np.zeros(5, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(tmp_path / "m.gguf")
    assert header.metadata["llama.block_count"] == 7
    assert header.metadata["tokenizer.ggml.tokens"] == ("x", "y")
    assert [(t.name, t.type.name, t.shape) for t in header.tensors] == [
        ("a.weight", "F32", (4, 3)),
        ("b.weight", "F16", (5,)),
    ]


def header_of(n_tensors: int, n_keys: int, body: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + body


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def key(name: str, kind: int, body: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + body


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"GGML" + bytes(40), "not_gguf"),
        (header_of(0, 0, b"", version=1), "bad_header"),
        (header_of(0, 0, b"", version=3 << 24), "bad_header"),
        (header_of(2**40, 0, b""), "bad_header"),
        (header_of(0, 2**62, b""), "bad_header"),
        (header_of(0, 5, b""), "truncated"),
        (header_of(0, 1, struct.pack("<Q", 2**60)), "bad_header"),
        (header_of(0, 1, struct.pack("<Q", 60_000)), "truncated"),
        (header_of(0, 1, key("k", 99, b"")), "bad_header"),
        (header_of(0, 1, key("k", 7, b"\2")), "bad_header"),
        (header_of(0, 1, key("k", 8, struct.pack("<Q", 2**40))), "bad_header"),
        (header_of(0, 1, key("k", 8, struct.pack("<Q", 2) + b"\xff\xff")), "bad_header"),
        (header_of(0, 1, key("k", 9, struct.pack("<IQ", 9, 1))), "bad_header"),
        (header_of(0, 1, key("k", 9, struct.pack("<IQ", 0, 2**50))), "bad_header"),
        (header_of(0, 1, key("k", 9, struct.pack("<IQ", 12, 2**24))), "truncated"),
        (header_of(0, 1, key("k", 9, struct.pack("<IQ", 8, 2**24))), "truncated"),
        (header_of(0, 1, key("k", 9, struct.pack("<IQ", 8, 1) + text("ab")[:-1])), "truncated"),
        (header_of(0, 2, key("k", 0, b"1") * 2), "bad_header"),
        (header_of(0, 1, key("general.alignment", 4, struct.pack("<I", 33))), "bad_header"),
        (header_of(0, 1, key("general.alignment", 4, struct.pack("<I", 0))), "bad_header"),
        (header_of(1, 0, tensor("t", (4,), 0, 0)), "truncated"),
        (header_of(1, 0, tensor("t", (4,), 0, 2**63)), "truncated"),
        (header_of(1, 0, tensor("t", (4,), 0, 8) + bytes(99)), "bad_tensor"),
        (header_of(1, 0, tensor("t", (4,), 77, 0) + bytes(99)), "bad_tensor"),
        (header_of(1, 0, tensor("t", (255,), 12, 0) + bytes(999)), "bad_tensor"),
        (header_of(1, 0, tensor("t", (0, 4), 0, 0) + bytes(99)), "bad_tensor"),
        (header_of(1, 0, tensor("t", (2**39,) * 4, 0, 0) + bytes(99)), "bad_tensor"),
        (header_of(1, 0, tensor("t", (1,) * 5, 0, 0) + bytes(99)), "bad_tensor"),
        (header_of(1, 0, tensor("t" * 64, (4,), 0, 0) + bytes(99)), "bad_header"),
        (header_of(2, 0, tensor("t", (4,), 0, 0) * 2 + bytes(99)), "bad_tensor"),
        (
            header_of(2, 0, tensor("t", (16,), 0, 0) + tensor("u", (4,), 0, 32) + bytes(199)),
            "overlap",
        ),
    ],
)
def test_each_defect_has_its_code(raw: bytes, code: str) -> None:
    with pytest.raises(BadGgufError) as caught:
        parse_header(raw)
    assert caught.value.code == code
    assert caught.value.exit_code == 65


def test_files_that_are_not_there_or_too_short(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        read_header(tmp_path / "none.gguf")
    (tmp_path / "short.gguf").write_bytes(b"GGUF")
    with pytest.raises(BadGgufError):
        read_header(tmp_path / "short.gguf")


def test_every_truncation_is_refused() -> None:
    raw = whole_file()
    last = TENSORS[-1]
    padding = align(last.bytes) - last.bytes
    for length in range(len(raw) - padding):
        with pytest.raises(BadGgufError):
            parse_header(raw[:length], length)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutations_never_crash_nor_allocate(data: st.DataObject) -> None:
    raw = bytearray(whole_file())
    header_bytes = len(encode_header(KEYS, TENSORS))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(4, header_bytes - 1))
        junk = data.draw(
            st.binary(min_size=1, max_size=9)
            | st.integers(0, 2**64 - 1).map(lambda n: n.to_bytes(8, "little"))
        )
        raw[at : at + len(junk)] = junk
    tracemalloc.start()
    try:
        parse_header(bytes(raw))
    except BadGgufError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20


def test_the_writer_refuses_what_ggml_would() -> None:
    with pytest.raises(QuantizeError, match="twice"):
        encode_header([u32("k", 1), u32("k", 2)], [])
    long_name = lay_out([TensorSpec("t" * 64, (4,))], [TENSOR_TYPES["F32"]])
    with pytest.raises(QuantizeError, match="too long"):
        encode_header([], long_name)
    with pytest.raises(QuantizeError, match="array"):
        encode_header([KeyValue("k", ValueType.ARRAY, "abc", ValueType.STRING)], [])


def test_a_large_array_stays_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_header, "MAX_ARRAY_ITEMS", 3)
    raw = encode_header([i32s("one", [1, 2]), i32s("two", [3, 4])], [])
    with pytest.raises(BadGgufError, match="allowed"):
        parse_header(raw)
