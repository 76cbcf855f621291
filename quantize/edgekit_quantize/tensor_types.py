"""Block sizes of the ggml tensor types, and the file types built from them.

The table is ggml's `type_traits` (ggml/src/ggml.c) and llama.cpp's `llama_ftype`
(include/llama.h). Sizes are always computed from it, never from a "bits per weight".
"""

from __future__ import annotations

from dataclasses import dataclass

from edgekit_quantize.errors import QuantizeError, UnknownFileTypeError

ALIGNMENT = 32
"""Bytes that every tensor's offset in the data section is a multiple of (GGUF's default)."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """How one tensor is stored: `block` values take `block_bytes` bytes."""

    name: str
    id: int
    block: int
    block_bytes: int

    @property
    def bits_per_weight(self) -> float:
        return self.block_bytes * 8 / self.block

    @property
    def quantized(self) -> bool:
        """True for block formats, as ggml's `is_quantized` (plain floats and integers: False)."""
        return self.block > 1


@dataclass(frozen=True, slots=True)
class FileType:
    """A named mix of tensor types: `number` is `general.file_type`, `default` the common type.

    `needs_imatrix`: llama-quantize refuses to make it without an importance matrix.
    """

    name: str
    number: int
    default: TensorType
    needs_imatrix: bool = False


_ROWS = """
F32 0 1 4|F16 1 1 2|Q4_0 2 32 18|Q4_1 3 32 20|Q5_0 6 32 22|Q5_1 7 32 24|Q8_0 8 32 34|Q8_1 9 32 36
Q2_K 10 256 84|Q3_K 11 256 110|Q4_K 12 256 144|Q5_K 13 256 176|Q6_K 14 256 210|Q8_K 15 256 292
IQ2_XXS 16 256 66|IQ2_XS 17 256 74|IQ3_XXS 18 256 98|IQ1_S 19 256 50|IQ4_NL 20 32 18
IQ3_S 21 256 110|IQ2_S 22 256 82|IQ4_XS 23 256 136|I8 24 1 1|I16 25 1 2|I32 26 1 4|I64 27 1 8
F64 28 1 8|IQ1_M 29 256 56|BF16 30 1 2|TQ1_0 34 256 54|TQ2_0 35 256 66|MXFP4 39 32 17
NVFP4 40 64 36|Q1_0 41 128 18|Q2_0 42 64 18
"""


def _parse_rows() -> dict[str, TensorType]:
    table = {}
    for cell in _ROWS.strip().replace("\n", "|").split("|"):
        name, number, block, block_bytes = cell.split()
        table[name] = TensorType(name, int(number), int(block), int(block_bytes))
    return table


TENSOR_TYPES: dict[str, TensorType] = _parse_rows()
TENSOR_TYPES_BY_ID: dict[int, TensorType] = {t.id: t for t in TENSOR_TYPES.values()}

_MIXES = """
F32 0 F32|F16 1 F16|BF16 32 BF16|Q8_0 7 Q8_0|Q6_K 18 Q6_K|Q5_K_M 17 Q5_K|Q5_K_S 16 Q5_K|Q5_1 9 Q5_1
Q5_0 8 Q5_0|Q4_K_M 15 Q4_K|Q4_K_S 14 Q4_K|IQ4_NL 25 IQ4_NL|IQ4_XS 30 IQ4_XS|Q4_1 3 Q4_1|Q4_0 2 Q4_0
MXFP4_MOE 38 MXFP4|Q3_K_L 13 Q3_K|Q3_K_M 12 Q3_K|Q3_K_S 11 Q3_K|IQ3_M 27 IQ3_S|IQ3_S 26 IQ3_S
IQ3_XS 22 IQ3_S *|IQ3_XXS 23 IQ3_XXS *|Q2_K 10 Q2_K|Q2_K_S 21 Q2_K *|IQ2_M 29 IQ2_S *
IQ2_S 28 IQ2_XS *|IQ2_XS 20 IQ2_XS *|IQ2_XXS 19 IQ2_XXS *|Q2_0 41 Q2_0|TQ2_0 37 TQ2_0|TQ1_0 36 TQ1_0
IQ1_M 31 IQ1_M *|IQ1_S 24 IQ1_S *|Q1_0 40 Q1_0
"""


def _parse_mixes() -> dict[str, FileType]:
    table = {}
    for cell in _MIXES.strip().replace("\n", "|").split("|"):
        name, number, default, *star = cell.split()
        table[name] = FileType(name, int(number), TENSOR_TYPES[default], bool(star))
    return table


FILE_TYPES: dict[str, FileType] = _parse_mixes()
"""Every file type that llama_model_quantize makes, those of more bits first."""

_NO_WEIGHTS = ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K")


def find_tensor_type(name: str) -> TensorType:
    """Return the tensor type called `name` (case does not matter) that a weight may have.

    Raises UnknownFileTypeError naming the known ones.
    """
    found = TENSOR_TYPES.get(name.upper())
    if found is None or found.name in _NO_WEIGHTS:
        known = ", ".join(kind for kind in TENSOR_TYPES if kind not in _NO_WEIGHTS)
        raise UnknownFileTypeError(
            f"no weights are stored as {name!r}",
            code="unknown_tensor_type",
            hint="known tensor types: " + known,
        )
    return found


def find_file_type(name: str) -> FileType:
    """Return the file type called `name` (case does not matter).

    Raises UnknownFileTypeError naming the known ones.
    """
    found = FILE_TYPES.get(name.upper())
    if found is None:
        raise UnknownFileTypeError(
            f"no file type is called {name!r}",
            code="unknown_file_type",
            hint="known file types: " + ", ".join(FILE_TYPES),
        )
    return found


def row_bytes(tensor_type: TensorType, n: int) -> int:
    """Return the bytes of one row of `n` values (ggml's `ggml_row_size`).

    Raises QuantizeError when `n` is not a whole number of blocks.
    """
    if n % tensor_type.block:
        raise QuantizeError(
            f"a row of {n} values is not a whole number of {tensor_type.name} blocks of "
            f"{tensor_type.block}",
            code="row_not_blocks",
        )
    return n // tensor_type.block * tensor_type.block_bytes


def tensor_bytes(tensor_type: TensorType, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor; `shape` is in ggml order, row length first."""
    rows = 1
    for size in shape[1:]:
        rows *= size
    return rows * row_bytes(tensor_type, shape[0])


def align(offset: int, to: int = ALIGNMENT) -> int:
    """Return `offset` rounded up to a multiple of `to`."""
    return -(-offset // to) * to
