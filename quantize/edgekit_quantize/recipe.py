"""Which tensor gets which type: the rules of llama-quantize (src/llama-quant.cpp), without imatrix.

Two counters run in the order `quantize_order`: the attention-value tensors and the
feed-forward-down tensors seen so far. They stand for the layer in the rules below.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgekit_quantize import architectures
from edgekit_quantize.architectures import Config, RecipeParams, TensorSpec, quantize_order
from edgekit_quantize.tensor_types import (
    TENSOR_TYPES,
    FileType,
    TensorType,
    align,
    find_file_type,
    tensor_bytes,
)

_KEPT = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "attn_rel_b.weight",
    ".position_embd",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
)
"""Parts of names whose tensors keep their type: norms, routers, tiny or positional matrices."""

_KEPT_NAMES = ("position_embd.weight", "token_types.weight")

_SMALLER = {
    "IQ4_XS": "IQ4_NL",
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
"""Block-256 type -> block-32 type, for rows that are no multiple of 256."""


def stored_type(tensor: TensorSpec) -> TensorType:
    """Return the type a BF16 GGUF holds the tensor in: vectors and norms F32, matrices BF16."""
    if (
        len(tensor.shape) < 2
        or not tensor.name.endswith(".weight")
        or tensor.name.endswith(("_norm.weight", "ffn_gate_inp.weight"))
    ):
        return TENSOR_TYPES["F32"]
    return TENSOR_TYPES["BF16"]


def quantizable(tensor: TensorSpec) -> bool:
    """Say whether llama-quantize may change the tensor's type."""
    if not any(size > 1 for size in tensor.shape[1:]) or not tensor.name.endswith("weight"):
        return False
    return tensor.name not in _KEPT_NAMES and not any(part in tensor.name for part in _KEPT)


def assign(tensors: Sequence[TensorSpec], filetype: str, hparams: RecipeParams) -> list[TensorType]:
    """Return the type of each tensor, aligned with `tensors`, as llama-quantize chooses them.

    The input's order does not matter: the rules run in llama-quantize's own order. Raises
    UnknownFileTypeError.
    """
    state = _State(find_file_type(filetype), hparams, tensors)
    order = sorted(range(len(tensors)), key=lambda i: quantize_order(tensors[i].name))
    types = [TENSOR_TYPES["F32"]] * len(tensors)
    for i in order:
        types[i] = state.choose(tensors[i])
    return types


def weights_bytes(config: Config, filetype: str) -> int:
    """Return the bytes of the GGUF's data section for a model known by its config.json alone.

    Every tensor starts at a multiple of 32, as in the file; the header is not counted. Raises
    BadCheckpointError for a config that makes no sense, UnknownFileTypeError.
    """
    architecture = architectures.for_config(config)
    tensors = architecture.tensors(config)
    types = assign(tensors, filetype, architecture.recipe_params(config))
    return sum(
        align(tensor_bytes(kind, tensor.shape)) for tensor, kind in zip(tensors, types, strict=True)
    )


def _more_bits(i: int, n: int) -> bool:
    """Every third layer in the middle, all in the first and last eighth."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


class _State:
    """The counters, and one rule per role."""

    def __init__(
        self, file_type: FileType, hparams: RecipeParams, tensors: Sequence[TensorSpec]
    ) -> None:
        self.file_type = file_type
        self.hparams = hparams
        self.tied = all(tensor.name != "output.weight" for tensor in tensors)
        self.n_attn_v = sum(_is_attn_v(tensor.name) for tensor in tensors)
        self.i_attn_v = 0
        self.i_ffn_down = 0

    def choose(self, tensor: TensorSpec) -> TensorType:
        if tensor.native is not None:
            return TENSOR_TYPES[tensor.native]
        if not quantizable(tensor):
            return stored_type(tensor)
        default = self.file_type.default
        if not default.quantized:
            return default
        return _fit(self._mixed(tensor, default.name), tensor.shape[0])

    def _mixed(self, tensor: TensorSpec, default: str) -> str:
        name, label = tensor.name, self.file_type.name
        if name == "output.weight" or (self.tied and name == "token_embd.weight"):
            if tensor.shape[0] % TENSOR_TYPES[default].block:
                return "Q8_0"
            return default if default == "Q8_0" else "Q6_K"
        if name == "token_embd.weight":
            return default
        if _is_attn_v(name):
            return self._attn_v(label, default)
        if "attn_k.weight" in name:
            return "Q8_0" if self.hparams.n_expert == 8 else default
        if "attn_output.weight" in name:
            return self._attn_output(label, default)
        if "ffn_down" in name:
            return self._ffn_down(label, default, name)
        return default

    def _attn_v(self, label: str, default: str) -> str:
        i, self.i_attn_v = self.i_attn_v, self.i_attn_v + 1
        grouped = self.hparams.n_head // self.hparams.n_head_kv >= 4
        chosen = default
        if label == "Q2_K":
            chosen = "Q4_K" if grouped else "Q3_K"
        elif label == "Q3_K_M":
            chosen = "Q5_K" if i < 2 else "Q4_K"
        elif label == "IQ4_XS" and grouped:
            chosen = "Q5_K"
        elif label in ("Q4_K_M", "Q5_K_M") and _more_bits(i, self.n_attn_v):
            chosen = "Q6_K"
        elif label == "Q4_K_S" and i < 4:
            chosen = "Q5_K"
        if self._is_70b() and chosen in ("Q3_K", "Q4_K"):
            chosen = "Q5_K"
        return "Q8_0" if self.hparams.n_expert == 8 else chosen

    def _is_70b(self) -> bool:
        """llama.cpp's LLM_TYPE_70B: 80 layers, and for `llama` fewer key-value heads than heads."""
        if self.hparams.n_layer != 80 or self.hparams.arch not in ("llama", "qwen2"):
            return False
        return self.hparams.arch == "qwen2" or self.hparams.n_head != self.hparams.n_head_kv

    def _attn_output(self, label: str, default: str) -> str:
        if self.hparams.n_expert == 8:
            mixes = ("Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_XS")
            return "Q5_K" if label in mixes else default
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K"}.get(label, default)

    def _ffn_down(self, label: str, default: str, name: str) -> str:
        i, self.i_ffn_down = self.i_ffn_down, self.i_ffn_down + 1
        if self.hparams.n_expert > 1:
            i = quantize_order(name)[0]
        n = self.hparams.n_layer
        if label == "Q2_K":
            return "Q3_K"
        if label == "Q3_K_M":
            return "Q5_K" if i < n // 16 else "Q4_K"
        if label in ("Q4_K_M", "Q5_K_M") and _more_bits(i, n):
            return "Q6_K"
        if label in ("IQ4_XS", "Q4_K_S") and i < n // 8:
            return "Q5_K"
        return default


def _is_attn_v(name: str) -> bool:
    return any(part in name for part in ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight"))


def _fit(name: str, columns: int) -> TensorType:
    """Step down to a smaller block, then to F16, until rows are whole blocks."""
    kind = TENSOR_TYPES[name]
    if columns % kind.block == 0:
        return kind
    kind = TENSOR_TYPES[_SMALLER.get(name, name)]
    return kind if columns % kind.block == 0 else TENSOR_TYPES["F16"]
