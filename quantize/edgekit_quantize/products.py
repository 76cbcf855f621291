"""What a matrix product of a running graph looks like from outside: ggml's struct, read by ctypes.

llama.cpp calls back for each node of its graph. A node is a `ggml_tensor`; what it multiplies are
its sources. Only those are read here, and only after the struct was found to be as expected.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from edgekit_quantize.errors import EngineFailedError

if TYPE_CHECKING:
    import numpy.typing as npt

N = TypeVar("N", bound=np.generic)

F32, I32 = 0, 26
"""Type numbers of ggml."""


class GgmlTensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h, as of ggml 0.25."""


GgmlTensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(GgmlTensor) * 10),
    ("view_src", ctypes.POINTER(GgmlTensor)),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]

SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "ggml_op_desc": ([ctypes.c_void_p], ctypes.c_char_p),
    "ggml_get_name": ([ctypes.c_void_p], ctypes.c_char_p),
    "ggml_nbytes": ([ctypes.c_void_p], ctypes.c_size_t),
    "ggml_backend_tensor_get": (
        [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t],
        None,
    ),
}


@dataclass(frozen=True, slots=True)
class Product:
    """One product of a weight with activations, just computed.

    `inputs` has the axes (outer, rows, columns) where the product is dense, with the weight's own
    matrices along `outer` modulo `n_matrices`. With experts it has (tokens, slots, columns), and
    `experts` says (tokens, slots) which expert each row went to. `key` is the same for products
    of one graph that share their activations.
    """

    weight: str
    n_matrices: int
    inputs: npt.NDArray[np.float32]
    experts: npt.NDArray[np.int32] | None
    key: int


class ProductReader:
    """Reads products through the library's own functions, so that they may lie on a device."""

    def __init__(self, bind: Callable[[str], Callable[..., object]]) -> None:
        """`bind(name)` gives a function of SIGNATURES, its types set."""
        self._call = {name: bind(name) for name in SIGNATURES}

    def wanted(self, node: int) -> bool:
        """Say whether a node multiplies a weight of a block with F32 activations."""
        if self._call["ggml_op_desc"](node) not in (b"MUL_MAT", b"MUL_MAT_ID"):
            return False
        tensor = GgmlTensor.from_address(node)
        weight, inputs = tensor.src[0], tensor.src[1]
        if not weight or not inputs or inputs.contents.type != F32:
            return False
        name = weight_name(weight.contents.name)
        return name.startswith("blk.") and name.endswith(".weight")

    def read(self, node: int) -> Product:
        """Copy what a wanted node multiplied. Raises EngineFailedError for a struct unlike ours."""
        tensor = GgmlTensor.from_address(node)
        weight, inputs = tensor.src[0].contents, tensor.src[1].contents
        key = ctypes.addressof(inputs)
        if self._call["ggml_get_name"](ctypes.addressof(weight)) != weight.name:
            raise _unlike()
        shape = list(weight.ne)
        values: npt.NDArray[np.float32] = self._copy(inputs, np.float32)
        experts = None
        if self._call["ggml_op_desc"](node) == b"MUL_MAT_ID":
            ids = tensor.src[2].contents
            if ids.type != I32 or inputs.ne[3] != 1 or ids.ne[1] != inputs.ne[2]:
                raise _unlike()
            experts = self._copy(ids, np.int32)[0, 0]
            values = values[0]
        else:
            values = values.reshape(-1, *values.shape[2:])
        return Product(weight_name(weight.name), shape[2] * shape[3], values, experts, key)

    def _copy(self, tensor: GgmlTensor, kind: type[N]) -> npt.NDArray[N]:
        """Return a tensor's values, slowest axis first, copied to this memory."""
        dtype = np.dtype(kind)
        address, shape, strides = ctypes.addressof(tensor), tensor.ne[::-1], tensor.nb[::-1]
        n_bytes = self._call["ggml_nbytes"](address)
        last = sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + dtype.itemsize
        # The struct's own figures against the library's: another layout would not agree.
        if n_bytes != last or strides[-1] != dtype.itemsize or min(shape) < 1:
            raise _unlike()
        raw = np.empty(last, np.uint8)
        self._call["ggml_backend_tensor_get"](address, raw.ctypes.data, 0, last)
        return np.ndarray(tuple(shape), dtype, raw, strides=tuple(strides))


def weight_name(name: bytes) -> str:
    """Return the weight's name without what the scheduler puts around it.

    A copy on another device is called `CUDA0#blk.0.attn_q.weight#0`.
    """
    parts = name.decode("utf-8", "replace").split("#")
    return parts[1] if len(parts) > 1 else parts[0]


def _unlike() -> EngineFailedError:
    return EngineFailedError(
        "the installed llama.cpp describes its tensors in another way than edgekit expects",
        code="engine",
        hint="install the llama-cpp-python version edgekit asks for",
    )
