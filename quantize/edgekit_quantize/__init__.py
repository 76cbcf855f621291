"""Weights in, GGUF out. Knows nothing of edgekit or of serving.

Importing this package needs neither numpy nor llama_cpp; converting does.
"""

from edgekit_quantize.architectures import Architecture, TensorSpec, for_config
from edgekit_quantize.convert import Converted, convert
from edgekit_quantize.errors import QuantizeError
from edgekit_quantize.gguf_header import GgufHeader, read_header
from edgekit_quantize.recipe import assign, weights_bytes
from edgekit_quantize.tensor_types import FILE_TYPES, FileType, TensorType, row_bytes

__all__ = [
    "FILE_TYPES",
    "Architecture",
    "Converted",
    "FileType",
    "GgufHeader",
    "QuantizeError",
    "TensorSpec",
    "TensorType",
    "assign",
    "convert",
    "for_config",
    "read_header",
    "row_bytes",
    "weights_bytes",
]
