"""Views of stored tensors, FP8 with scales and MXFP4, against numpy and torch on whole arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_quantize.architectures.views import (
    Split,
    Swap,
    Take,
    View,
    rope_pairs,
    viewed_shape,
)
from edgekit_quantize.errors import BadCheckpointError
from edgekit_quantize.safetensors import SafetensorsFile
from edgekit_quantize.scales import check_method, find_scales, scale_block
from edgekit_quantize.stored import FP8_VALUES, Stored, StoredPart, apply
from tests.support.checkpoints import write_safetensors

SHAPE = (3, 8, 6)
VIEWS: dict[str, View] = {
    "as stored": (),
    "transposed": (Swap(1, 2),),
    "a half, transposed": (Take(1, 4, 8), Swap(1, 2)),
    "odd rows": (Take(1, 1, 8, 2),),
    "one matrix of three": (Take(0, 1, 2),),
    "rotary order of a matrix": (Take(0, 0, 1), Split(1, (2, 2, 2)), Swap(2, 3)),
}


def part(folder: Path, dtype: str, values: np.ndarray, view: View, **scales: object) -> StoredPart:
    file = folder / "t.safetensors"
    write_safetensors(file, {"t": (dtype, values.shape, values.tobytes())})
    shard = SafetensorsFile(file)
    return StoredPart(Stored(shard, shard.tensors["t"]), view, **scales)  # type: ignore[arg-type]


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_rows_through_a_view_are_numpys(view: View, tmp_path: Path) -> None:
    values = np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE)
    seen = part(tmp_path, "BF16", values, view)
    expected = apply(values, view)
    assert viewed_shape(SHAPE, view) == expected.shape
    flat = expected.reshape(-1, expected.shape[-1])
    assert seen.rows == len(flat)
    np.testing.assert_array_equal(seen.floats(0, seen.rows), flat)
    np.testing.assert_array_equal(seen.floats(1, 3), flat[1:3])


def test_rows_of_an_unaligned_tensor_are_copied_alone(tmp_path: Path) -> None:
    """A header of odd length puts every value off its place; a copy of it all would not do."""
    file = tmp_path / "t.safetensors"
    values = np.arange(4000, dtype=np.float32).reshape(1000, 4)
    header = b'{"t":{"dtype":"F32","shape":[1000,4],"data_offsets":[0,16000]}} '
    for pad in range(4):
        text = header + b" " * pad
        file.write_bytes(len(text).to_bytes(8, "little") + text + values.tobytes())
        shard = SafetensorsFile(file)
        stored = Stored(shard, shard.tensors["t"])
        mapped = np.frombuffer(shard.view(shard.tensors["t"]), np.uint8)
        assert stored.array().ctypes.data == mapped.ctypes.data
        rows = StoredPart(stored, ()).floats(7, 9)
        assert rows.flags.aligned
        np.testing.assert_array_equal(rows, values[7:9])


@given(
    st.lists(
        st.one_of(
            st.builds(Swap, st.integers(-1, 4), st.integers(-1, 4)),
            st.builds(Take, st.integers(-1, 4), st.integers(-2, 9), st.integers(-2, 9)),
            st.builds(
                Split, st.integers(-1, 4), st.lists(st.integers(0, 4), max_size=3).map(tuple)
            ),
        ),
        max_size=4,
    )
)
def test_a_view_either_fits_or_is_refused(steps: list[Split | Take | Swap]) -> None:
    view = tuple(steps)
    expected = viewed_shape(SHAPE, view)
    if expected is not None:
        assert apply(np.zeros(SHAPE), view).shape == expected


@pytest.mark.parametrize("name", ["F8_E4M3", "F8_E5M2"])
def test_fp8_codes_mean_what_torch_reads(name: str) -> None:
    torch = pytest.importorskip("torch")
    dtype = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}[name]
    theirs = torch.arange(256, dtype=torch.uint8).view(dtype).float().numpy()
    theirs[np.isinf(theirs)] = np.nan
    np.testing.assert_array_equal(FP8_VALUES[name], theirs)


@pytest.mark.parametrize(
    ("shape", "scale", "block"),
    [
        ((8, 6), (2, 2), (4, 4)),
        ((8, 6), (8, 1), None),
        ((8, 6), (8,), None),
        ((8, 6), (), None),
        ((3, 8, 6), (3, 2, 2), (4, 4)),
        ((3, 8, 6), (3, 1, 1), None),
    ],
    ids=["blocks", "rows", "rows without an axis", "whole", "blocks of experts", "experts"],
)
def test_fp8_is_multiplied_by_its_scale(
    shape: tuple[int, ...],
    scale: tuple[int, ...],
    block: tuple[int, int] | None,
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(7)
    codes = rng.integers(0, 126, shape).astype(np.uint8)
    factors = rng.random(scale, dtype=np.float32)
    factors = np.asarray(factors, dtype=np.float32)
    write_safetensors(tmp_path / "s", {"s": ("F32", scale, factors.tobytes())})
    shard = SafetensorsFile(tmp_path / "s")
    config = {"quantization_config": {"weight_block_size": list(block) if block else None}}
    view: View = (Swap(len(shape) - 2, len(shape) - 1),)
    seen = part(
        tmp_path,
        "F8_E4M3",
        codes,
        view,
        scales=Stored(shard, shard.tensors["s"]),
        block=scale_block("t", shape, scale, config),
    )
    whole = factors.reshape(*scale, *(1,) * (len(shape) - len(scale)))
    if block:
        for axis, size in zip((-2, -1), block, strict=True):
            whole = whole.repeat(size, axis)
        whole = whole[..., : shape[-2], : shape[-1]]
    expected = (FP8_VALUES["F8_E4M3"][codes] * whole).swapaxes(-1, -2)
    flat = expected.reshape(-1, expected.shape[-1])
    assert seen.float_dtype == "F32"
    np.testing.assert_array_equal(seen.floats(0, seen.rows), flat)
    np.testing.assert_array_equal(seen.floats(2, 5), flat[2:5])


def test_mxfp4_is_repacked_bit_by_bit(tmp_path: Path) -> None:
    """Against gguf's own reading of the blocks, with the meaning of each code written out."""
    import gguf

    rng = np.random.default_rng(3)
    experts, rows, blocks = 2, 6, 3
    codes = rng.integers(0, 16, (experts, rows, blocks, 32)).astype(np.uint8)
    packed = codes[..., 0::2] | codes[..., 1::2] << 4
    exponents = rng.integers(120, 134, (experts, rows, blocks)).astype(np.uint8)
    write_safetensors(tmp_path / "s", {"s": ("U8", exponents.shape, exponents.tobytes())})
    shard = SafetensorsFile(tmp_path / "s")
    view: View = (Take(1, 1, rows, 2),)
    scales = Stored(shard, shard.tensors["s"])
    seen = part(tmp_path, "U8", packed, view, scales=scales)
    assert seen.rows == experts * rows // 2
    raw = seen.mxfp4_blocks(0, seen.rows).reshape(seen.rows, -1)
    values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.MXFP4)
    e2m1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    signed = np.where(codes & 8, -1, 1) * e2m1[codes & 7]
    expected = signed * np.exp2(exponents.astype(np.float32) - 127)[..., None]
    expected = expected[:, 1::2].reshape(seen.rows, -1)
    np.testing.assert_array_equal(values, expected)


def test_scales_are_told_from_weights() -> None:
    stored = [
        "a.weight", "a.weight_scale_inv", "a.activation_scale", "b.weight", "b.qscale_weight",
        "b.qscale_act", "experts.gate_up_proj", "experts.gate_up_proj_scale_inv",
        "e.down_proj_blocks", "e.down_proj_scales", "alone.weight_scale", "norm.weight",
    ]  # fmt: skip
    scales = find_scales(stored)
    assert scales.of == {
        "a.weight": "a.weight_scale_inv",
        "b.weight": "b.qscale_weight",
        "experts.gate_up_proj": "experts.gate_up_proj_scale_inv",
        "e.down_proj_blocks": "e.down_proj_scales",
    }
    assert scales.names == {
        "a.weight", "b.weight", "experts.gate_up_proj", "e.down_proj_blocks",
        "alone.weight_scale", "norm.weight",
    }  # fmt: skip


def test_a_scale_that_covers_nothing_is_refused() -> None:
    config = {"quantization_config": {"weight_block_size": [4, 4]}}
    for weight, scale in [((8, 8), (3, 2)), ((8, 8), (2, 2, 2)), ((4, 8, 8), (3, 2, 2))]:
        with pytest.raises(BadCheckpointError) as error:
            scale_block("t", weight, scale, config)
        assert error.value.code == "bad_scale"


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", None, 7])
def test_integer_schemes_are_refused(method: object) -> None:
    with pytest.raises(BadCheckpointError) as error:
        check_method({"quantization_config": {"quant_method": method}})
    assert error.value.code == "quantized_checkpoint"


def test_rope_pairs_fits_only_whole_heads() -> None:
    assert viewed_shape((24, 5), rope_pairs(3, 8)) == (3, 4, 2, 5)
    assert viewed_shape((25, 5), rope_pairs(3, 8)) is None
