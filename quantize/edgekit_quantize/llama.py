"""The one place here that imports llama_cpp: ggml's row kernels, and running a model, with checks.

The kernels are exported by the shared library but not wrapped by llama-cpp-python. ctypes
drops the GIL for each call, so threads quantize in parallel.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import llama_cpp
import numpy as np

from edgekit_quantize.errors import EngineFailedError, QuantizeError
from edgekit_quantize.products import SIGNATURES as PRODUCT_SIGNATURES
from edgekit_quantize.products import Product, ProductReader
from edgekit_quantize.tensor_types import TENSOR_TYPES, TensorType, row_bytes

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Bytes = npt.NDArray[np.uint8]
    Words = npt.NDArray[np.uint16]

VERSION: str = llama_cpp.__version__

_P = ctypes.c_void_p
_I64 = ctypes.c_int64
_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
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
    "ggml_get_type_traits": ([ctypes.c_int], _P),
}


class _TypeTraits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block", _I64),
        ("block_interleave", _I64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, _P, _P, _I64)),
        ("from_float", _P),
    )


_WARN = 3


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
            self._call[name] = _bound(library, name, arguments, result)

    def prepare(self, kind: TensorType) -> None:
        """Build ggml's tables for `kind`. Call it once before threads start."""
        if self._call["ggml_row_size"](kind.id, kind.block) != kind.block_bytes:
            raise _engine(f"llama-cpp-python {VERSION} has other {kind.name} blocks than edgekit")
        self._call["ggml_quantize_init"](kind.id)

    def widen(self, source: Words, dtype: str, out: Floats) -> None:
        """Convert BF16 or F16 words to float32 values."""
        count = _same(source.size, out.size)
        name = {"BF16": "ggml_bf16_to_fp32_row", "F16": "ggml_fp16_to_fp32_row"}[dtype]
        self._call[name](_address(source, np.uint16), _address(out, np.float32), count)

    def quantize(
        self, kind: TensorType, values: Floats, out: Bytes, importance: Floats | None = None
    ) -> None:
        """Encode rows: `values` is (rows, columns), `out` their bytes in the type `kind`.

        `importance` is the mean square of each column's inputs, where it is known.
        """
        rows, columns = values.shape
        size = _same(rows * row_bytes(kind, columns), out.size)
        weights = None
        if importance is not None:
            _same(importance.size, columns)
            weights = _address(importance, np.float32)
        elif self._call["ggml_quantize_requires_imatrix"](kind.id):
            # ggml would end the process.
            raise _engine(f"{kind.name} cannot be made without an importance matrix")
        source, target = _address(values, np.float32), _address(out, np.uint8)
        written = self._call["ggml_quantize_chunk"](
            kind.id, source, target, 0, rows, columns, weights
        )
        _same(written, size)

    def dequantize(self, kind: TensorType, data: Bytes, out: Floats) -> None:
        """Decode whole rows of any type to float32."""
        size = _same(data.size, row_bytes(kind, out.size))
        if kind.name == "F32":
            out.view(np.uint8).reshape(-1)[:] = data
            return
        traits = _TypeTraits.from_address(self._call["ggml_get_type_traits"](kind.id))
        _same(traits.block_bytes * (out.size // kind.block), size)
        traits.to_float(_address(data, np.uint8), _address(out, np.float32), out.size)

    def finite(self, kind: str, data: npt.NDArray[np.generic]) -> bool:
        """Say whether whole rows of a type hold neither NaN nor infinity (in values or scales)."""
        address = _address(data, data.dtype)
        return bool(
            self._call["ggml_validate_row_data"](TENSOR_TYPES[kind].id, address, data.nbytes)
        )


def _bound(library: Any, name: str, arguments: list[Any], result: Any) -> Callable[..., Any]:
    try:
        function = getattr(library, name)
    except AttributeError as error:
        raise _engine(f"llama-cpp-python {VERSION} does not export {name}") from error
    function.argtypes, function.restype = arguments, result
    return function  # type: ignore[no-any-return]


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


class Row(NamedTuple):
    """One token to run: where it stands in which sequence, and whether its logits are wanted."""

    token: int
    position: int
    sequence: int
    wanted: bool


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How a model is run. `n_ctx` is the cells that all sequences share."""

    n_ctx: int
    n_seq: int = 1
    n_batch: int = 512
    threads: int = 1
    use_extra_bufts: bool = True
    n_gpu_layers: int = 0


class Runner:
    """A GGUF that is loaded and can be run. llama.cpp may end the process: use it in a child."""

    def __init__(
        self,
        path: Path,
        settings: RunSettings,
        observe: Callable[[Product], None] | None = None,
    ) -> None:
        """Load. `observe` is given each product of a block's weight right after it was computed.

        Raises EngineFailedError (`bad_model`) with llama.cpp's own words.
        """
        self.settings = settings
        self._model = self._context = None
        self._failed: BaseException | None = None
        self._log: deque[str] = deque(maxlen=4)
        # ctypes keeps no reference to a callback that it hands out: these two must live on.
        self._on_log = llama_cpp.llama_log_callback(self._keep)
        self._on_node = llama_cpp.llama_cpp.ggml_backend_sched_eval_callback(
            self._looker(observe) if observe else 0
        )
        llama_cpp.llama_log_set(self._on_log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = settings.n_gpu_layers
        params.use_extra_bufts = settings.use_extra_bufts
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise self._said(path)
        try:
            self._vocab = llama_cpp.llama_model_get_vocab(self._model)
            self.n_vocab = int(llama_cpp.llama_vocab_n_tokens(self._vocab))
            self._context = llama_cpp.llama_init_from_model(self._model, self._context_params())
            if not self._context:
                raise self._said(path)
            self._batch = llama_cpp.llama_batch_init(settings.n_batch, 0, 1)
        except BaseException:
            self.close()
            raise

    def _context_params(self) -> object:
        settings = self.settings
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = settings.n_ctx, settings.n_seq
        params.n_batch = params.n_ubatch = settings.n_batch
        params.n_outputs_max = settings.n_batch
        params.n_threads = params.n_threads_batch = settings.threads
        # Flash attention on a CPU divides its work by threads; without it results do not
        # depend on how many there are.
        params.flash_attn_type = 0
        params.kv_unified = True
        params.no_perf = True
        params.cb_eval = self._on_node
        return params

    def close(self) -> None:
        if self._context:
            llama_cpp.llama_batch_free(self._batch)
            llama_cpp.llama_free(self._context)
        if self._model:
            llama_cpp.llama_model_free(self._model)
        self._model = self._context = None

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def first(self) -> list[int]:
        """The token that this model wants before any text: [bos], or none."""
        wants = llama_cpp.llama_vocab_get_add_bos(self._vocab)
        return [int(llama_cpp.llama_vocab_bos(self._vocab))] if wants else []

    def is_end(self, token: int) -> bool:
        """Say whether a token ends an answer."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Turn text into ids; `special`: control tokens may be written out in it."""
        raw = text.encode()
        ids = (llama_cpp.llama_token * (len(raw) + 8))()
        n = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), ids, len(ids), False, special)
        if n < 0:
            raise EngineFailedError(f"llama_tokenize returned {n}", code="tokenizer_failed")
        return list(ids[:n])

    def text(self, tokens: Sequence[int]) -> str:
        """Turn ids back into text, control tokens included."""
        buffer = ctypes.create_string_buffer(256)
        out = b""
        for token in tokens:
            if not 0 <= token < self.n_vocab:
                raise EngineFailedError(f"no token {token}", code="internal")
            n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, True)
            out += buffer.raw[: max(n, 0)]
        return out.decode("utf-8", "replace")

    def clear(self) -> None:
        """Forget all sequences."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def decode(self, rows: Sequence[Row]) -> Floats:
        """Run rows; return logits [wanted rows, n_vocab], valid until the next call.

        Raises EngineFailedError when llama.cpp fails, or whatever `observe` raised.
        """
        batch, settings = self._batch, self.settings
        if not 0 < len(rows) <= settings.n_batch:
            raise EngineFailedError(f"a batch of {len(rows)} rows", code="internal")
        wanted = 0
        for i, row in enumerate(rows):
            if not (0 <= row.token < self.n_vocab and 0 <= row.sequence < settings.n_seq):
                raise EngineFailedError(f"row {row} is out of range", code="internal")
            batch.token[i], batch.pos[i] = row.token, row.position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row.sequence
            batch.logits[i] = row.wanted
            wanted += row.wanted
        batch.n_tokens = len(rows)
        code = llama_cpp.llama_decode(self._context, batch)
        if self._failed is not None:
            raise self._failed
        if code != 0:
            raise EngineFailedError(
                f"llama_decode returned {code}: {'; '.join(self._log)}", code="decode_failed"
            )
        if not wanted:
            return np.empty((0, self.n_vocab), np.float32)
        pointer = llama_cpp.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, (wanted, self.n_vocab))

    def _keep(self, level: int, text: bytes | None, _: object) -> None:
        if level >= _WARN and text:
            self._log.append(text.decode("utf-8", "replace").strip())

    def _said(self, path: Path) -> EngineFailedError:
        words = "; ".join(self._log) or "llama.cpp gave no reason"
        return EngineFailedError(f"{path.name}: {words}", code="bad_model")

    def _looker(self, observe: Callable[[Product], None]) -> Callable[[int, bool, object], bool]:
        library = llama_cpp.llama_cpp._lib

        def bind(name: str) -> Callable[..., object]:
            return _bound(library, name, *PRODUCT_SIGNATURES[name])

        reader = ProductReader(bind)

        def look(node: int, ask: bool, _: object) -> bool:
            if self._failed is not None:
                return False
            try:
                if ask:
                    return reader.wanted(node)
                observe(reader.read(node))
            except BaseException as error:  # a callback cannot raise through C
                self._failed = error
                return False
            return True

        return look
