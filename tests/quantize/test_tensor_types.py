import ctypes

import gguf
import llama_cpp
import pytest

from edgekit_quantize.errors import QuantizeError, UnknownFileTypeError
from edgekit_quantize.tensor_types import (
    FILE_TYPES,
    TENSOR_TYPES,
    align,
    find_file_type,
    find_tensor_type,
    row_bytes,
    tensor_bytes,
)


def test_block_table_is_ggmls() -> None:
    sizes = {kind.name: (int(kind), *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGML_QUANT_SIZES}
    # gguf-py's Q8_1 carries two f32, ggml's two f16: an activation type no file stores.
    sizes.pop("Q8_1")
    for name, expected in sizes.items():
        kind = TENSOR_TYPES[name]
        assert (kind.id, kind.block, kind.block_bytes) == expected, name


def test_file_type_numbers_are_llama_cpps() -> None:
    listed = gguf.LlamaFileType.__members__
    for name, file_type in FILE_TYPES.items():
        member = "ALL_F32" if name == "F32" else f"MOSTLY_{name}"
        assert file_type.number == getattr(llama_cpp, f"LLAMA_FTYPE_{member}"), name
        # gguf-py's list ends before the newest.
        assert name == "Q2_0" or file_type.number == int(listed[member]), name
    # All that llama.h has, but for NVFP4: llama_model_quantize makes no such file.
    theirs = {int(v) for k, v in vars(llama_cpp.llama_cpp).items() if k.startswith("LLAMA_FTYPE_")}
    assert theirs - {f.number for f in FILE_TYPES.values()} == {39, 1024}


def test_the_newest_block_is_ggmls() -> None:
    """Q2_0, which gguf-py does not list: 64 values in a half and 16 bytes."""
    call = llama_cpp.llama_cpp._lib.ggml_row_size
    call.argtypes, call.restype = [ctypes.c_int, ctypes.c_int64], ctypes.c_size_t
    for kind in TENSOR_TYPES.values():
        assert call(kind.id, kind.block) == kind.block_bytes, kind.name


def test_types_of_weights_by_name() -> None:
    assert find_tensor_type("q6_k") is TENSOR_TYPES["Q6_K"]
    for name in ("Q8_K", "I32", "Q9"):
        with pytest.raises(UnknownFileTypeError, match="no weights are stored"):
            find_tensor_type(name)


@pytest.mark.parametrize(
    ("name", "n", "expected"),
    [("F32", 3, 12), ("BF16", 3, 6), ("Q8_0", 64, 68), ("Q4_K", 512, 288), ("Q6_K", 256, 210)],
)
def test_row_bytes(name: str, n: int, expected: int) -> None:
    assert row_bytes(TENSOR_TYPES[name], n) == expected


def test_row_bytes_refuses_part_of_a_block() -> None:
    with pytest.raises(QuantizeError, match="whole number"):
        row_bytes(TENSOR_TYPES["Q4_K"], 257)


def test_tensor_bytes_counts_all_dimensions() -> None:
    assert tensor_bytes(TENSOR_TYPES["F16"], (4, 3, 2)) == 48


def test_align() -> None:
    assert [align(n) for n in (0, 1, 32, 33)] == [0, 32, 32, 64]


def test_bits_per_weight() -> None:
    assert TENSOR_TYPES["Q4_K"].bits_per_weight == 4.5
    assert not TENSOR_TYPES["BF16"].quantized
    assert TENSOR_TYPES["Q8_0"].quantized


def test_file_type_names() -> None:
    assert find_file_type("q4_k_m") is FILE_TYPES["Q4_K_M"]
    with pytest.raises(UnknownFileTypeError) as caught:
        find_file_type("Q4_K_XL")
    assert caught.value.hint is not None
    assert "Q4_K_M" in caught.value.hint
