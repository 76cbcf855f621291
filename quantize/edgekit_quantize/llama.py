"""The one place here that imports llama_cpp: ggml's row kernels, with checks.

The functions are exported by the shared library but not wrapped by llama-cpp-python. ctypes
drops the GIL for each call, so threads quantize in parallel.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import llama_cpp
import numpy as np

from edgekit_quantize.errors import QuantizeError
from edgekit_quantize.tensor_types import TENSOR_TYPES, TensorType, row_bytes

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Bytes = npt.NDArray[np.uint8]
    Words = npt.NDArray[np.uint16]

VERSION: str = llama_cpp.__version__

_P = ctypes.c_void_p
_I64 = ctypes.c_int64
_SIGNATURES = {
    "ggml_quantize_init": ([ctypes.c_int], None),
    "ggml_quantize_chunk": (
        [ctypes.c_int, _P, _P, _I64, _I64, _I64, _P],
        ctypes.c_size_t,
    ),
    "ggml_quantize_requires_imatrix": ([ctypes.c_int], ctypes.c_bool),
    "ggml_validate_row_data": ([ctypes.c_int, _P, ctypes.c_size_t], ctypes.c_bool),
    "ggml_row_size": ([ctypes.c_int, _I64], ctypes.c_size_t),
    "ggml_bf16_to_fp32_row": ([_P, _P, _I64], None),
    "ggml_fp16_to_fp32_row": ([_P, _P, _I64], None),
}


class Ggml:
    """ggml's row functions on numpy arrays. Every array is checked before its address is used."""

    def __init__(self) -> None:
        """Bind the functions.

        Raises QuantizeError (code `engine`) when the installed library lacks one, or disagrees
        with our table of block sizes.
        """
        library = llama_cpp.llama_cpp._lib
        self._call = {}
        for name, (arguments, result) in _SIGNATURES.items():
            try:
                function = getattr(library, name)
            except AttributeError as error:
                raise _engine(f"llama-cpp-python {VERSION} does not export {name}") from error
            function.argtypes, function.restype = arguments, result
            self._call[name] = function

    def prepare(self, kind: TensorType) -> None:
        """Build ggml's tables for `kind`. Call it once before threads start."""
        if self._call["ggml_quantize_requires_imatrix"](kind.id):
            raise _engine(f"{kind.name} cannot be made without an importance matrix")
        if self._call["ggml_row_size"](kind.id, kind.block) != kind.block_bytes:
            raise _engine(f"llama-cpp-python {VERSION} has other {kind.name} blocks than edgekit")
        self._call["ggml_quantize_init"](kind.id)

    def widen(self, source: Words, dtype: str, out: Floats) -> None:
        """Convert BF16 or F16 words to float32 values."""
        count = _same(source.size, out.size)
        name = {"BF16": "ggml_bf16_to_fp32_row", "F16": "ggml_fp16_to_fp32_row"}[dtype]
        self._call[name](_address(source, np.uint16), _address(out, np.float32), count)

    def quantize(self, kind: TensorType, values: Floats, out: Bytes) -> None:
        """Encode rows: `values` is (rows, columns), `out` their bytes in the type `kind`."""
        rows, columns = values.shape
        size = _same(rows * row_bytes(kind, columns), out.size)
        written = self._call["ggml_quantize_chunk"](
            kind.id, _address(values, np.float32), _address(out, np.uint8), 0, rows, columns, None
        )
        _same(written, size)

    def finite(self, kind: str, data: npt.NDArray[np.generic]) -> bool:
        """Say whether whole rows of a type hold neither NaN nor infinity (in values or scales)."""
        address = _address(data, data.dtype)
        return bool(
            self._call["ggml_validate_row_data"](TENSOR_TYPES[kind].id, address, data.nbytes)
        )


def _engine(message: str) -> QuantizeError:
    return QuantizeError(
        message, code="engine", hint="install the llama-cpp-python version edgekit asks for"
    )


def _address(array: npt.NDArray[np.generic], dtype: npt.DTypeLike) -> int:
    if array.dtype != dtype or not array.flags.c_contiguous or not array.ctypes.data:
        raise QuantizeError("an array is not what ggml expects", code="internal")
    return int(array.ctypes.data)


def _same(one: int, other: int) -> int:
    if one != other:
        raise QuantizeError(f"sizes differ: {one} and {other}", code="internal")
    return one
