"""Hostile safetensors: each defect is a typed error, and a mutated header never crashes."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit_quantize.errors import BadCheckpointError, MissingFileError, QuantizeError
from edgekit_quantize.safetensors import SafetensorsFile
from tests.support.checkpoints import write_safetensors

Header = dict[str, Any]


def valid_header() -> Header:
    return {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]},
    }


def write(path: Path, header: Header | bytes, data: bytes = bytes(20)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_reads_what_was_written(tmp_path: Path) -> None:
    tensors = {
        "x": ("BF16", (2, 2), b"abcdefgh"),
        "y": ("U8", (3,), b"123"),
        "z": ("F32", (0,), b""),
    }
    write_safetensors(tmp_path / "m.safetensors", tensors)
    file = SafetensorsFile(tmp_path / "m.safetensors")
    assert file.tensors["x"].shape == (2, 2)
    assert bytes(file.view(file.tensors["x"])) == b"abcdefgh"
    assert bytes(file.view(file.tensors["x"], 2, 4)) == b"cd"
    file.forget(file.tensors["x"])
    assert bytes(file.view(file.tensors["y"])) == b"123"
    file.close()


def test_close_survives_a_held_view(tmp_path: Path) -> None:
    file = SafetensorsFile(write(tmp_path / "m.safetensors", valid_header()))
    view = file.view(file.tensors["a"])
    file.close()
    assert len(view) == 12


def edit(key: str, field: str, value: object) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        header[key][field] = value

    return change


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (edit("b", "data_offsets", [8, 16]), "overlap"),
        (edit("a", "data_offsets", [4, 16]), "hole"),
        (edit("b", "data_offsets", [16, 24]), "truncated"),
        (edit("b", "data_offsets", [10**12, 10**12 + 8]), "out_of_bounds"),
        (edit("b", "data_offsets", [20, 12]), "bad_tensor"),
        (edit("b", "data_offsets", [-8, 0]), "bad_tensor"),
        (edit("b", "data_offsets", [12.0, 20.0]), "bad_tensor"),
        (edit("b", "data_offsets", [True, 20]), "bad_tensor"),
        (edit("b", "data_offsets", [12, 20, 28]), "bad_tensor"),
        (edit("b", "shape", [3]), "bad_tensor"),
        (edit("b", "shape", [2**62, 2**62]), "bad_tensor"),
        (edit("b", "shape", "2"), "bad_tensor"),
        (edit("b", "shape", [1] * 9), "bad_tensor"),
        (edit("b", "dtype", "F4"), "bad_tensor"),
        (edit("b", "dtype", None), "bad_tensor"),
        (lambda header: header.pop("b"), "hole"),
        (lambda header: header["b"].pop("shape"), "bad_header"),
        (lambda header: header.update(b=[]), "bad_header"),
    ],
)
def test_each_defect_has_its_code(
    change: Callable[[Header], None], code: str, tmp_path: Path
) -> None:
    header = valid_header()
    change(header)
    with pytest.raises(BadCheckpointError) as caught:
        SafetensorsFile(write(tmp_path / "m.safetensors", header))
    assert caught.value.code == code
    assert caught.value.exit_code == 65
    assert "m.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "truncated"),
        (b"1234567", "truncated"),
        ((10**6).to_bytes(8, "little") + b"{}", "truncated"),
        ((2**63).to_bytes(8, "little") + b"{}", "bad_header"),
        ((2).to_bytes(8, "little") + b"[]", "bad_header"),
        ((4).to_bytes(8, "little") + b'{"a"', "bad_header"),
        ((3).to_bytes(8, "little") + b"{\xff}", "bad_header"),
        ((100_000).to_bytes(8, "little") + b'{"a":' * 20_000, "bad_header"),
    ],
)
def test_torn_files(raw: bytes, code: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw)
    with pytest.raises(BadCheckpointError) as caught:
        SafetensorsFile(path)
    assert caught.value.code == code


def test_a_name_that_comes_twice(tmp_path: Path) -> None:
    entry = json.dumps({"dtype": "U8", "shape": [20], "data_offsets": [0, 20]})
    text = f'{{"a": {entry}, "a": {entry}}}'.encode()
    with pytest.raises(BadCheckpointError, match="twice") as caught:
        SafetensorsFile(write(tmp_path / "m.safetensors", text))
    assert caught.value.code == "duplicate_tensor"


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", valid_header())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadCheckpointError) as caught:
        SafetensorsFile(path)
    assert caught.value.code == "truncated"


def test_missing_and_special_files(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError) as caught:
        SafetensorsFile(tmp_path / "model-00002-of-00003.safetensors")
    assert caught.value.code == "missing_shard"
    assert caught.value.exit_code == 66
    with pytest.raises(QuantizeError):
        SafetensorsFile(tmp_path)


quick = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def opens_or_refuses(path: Path) -> None:
    tracemalloc.start()
    try:
        SafetensorsFile(path).close()
    except QuantizeError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 << 20, f"reading a {path.stat().st_size}-byte file took {peak} bytes"


@quick
@given(
    key=st.sampled_from(["a", "b"]),
    field=st.sampled_from(["dtype", "shape", "data_offsets", "extra"]),
    value=json_values | st.lists(st.integers(-(2**70), 2**70), max_size=3),
)
def test_any_field_may_hold_anything(key: str, field: str, value: object, tmp_path: Path) -> None:
    header = valid_header()
    header[key][field] = value
    opens_or_refuses(write(tmp_path / "m.safetensors", header))


@quick
@given(at=st.integers(0, 200), junk=st.binary(min_size=1, max_size=12), cut=st.integers(0, 60))
def test_bytes_may_be_anything(at: int, junk: bytes, cut: int, tmp_path: Path) -> None:
    raw = bytearray(write(tmp_path / "m.safetensors", valid_header()).read_bytes())
    at %= len(raw)
    raw[at : at + len(junk)] = junk
    (tmp_path / "m.safetensors").write_bytes(raw[: len(raw) - cut])
    opens_or_refuses(tmp_path / "m.safetensors")
