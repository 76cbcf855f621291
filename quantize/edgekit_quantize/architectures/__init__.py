"""Model families: config.json -> names, shapes, row orders and GGUF keys."""

from __future__ import annotations

from edgekit_quantize.architectures import llama, qwen2
from edgekit_quantize.architectures.base import (
    Architecture,
    Config,
    Part,
    RecipeParams,
    TensorSource,
    TensorSpec,
    quantize_order,
)
from edgekit_quantize.errors import BadCheckpointError

__all__ = [
    "KNOWN_CLASSES",
    "Architecture",
    "Config",
    "Part",
    "RecipeParams",
    "TensorSource",
    "TensorSpec",
    "for_config",
    "quantize_order",
]

KNOWN_CLASSES: dict[str, Architecture] = {
    **dict.fromkeys(llama.CLASSES, llama.LLAMA),
    **dict.fromkeys(qwen2.CLASSES, qwen2.QWEN2),
}
_KNOWN_MODEL_TYPES: dict[str, Architecture] = {
    **dict.fromkeys(llama.MODEL_TYPES, llama.LLAMA),
    **dict.fromkeys(qwen2.MODEL_TYPES, qwen2.QWEN2),
}


def for_config(config: Config) -> Architecture:
    """Return the family of a `config.json`, by `architectures`, else by `model_type`.

    Raises BadCheckpointError (code `unknown_architecture`) naming what it found and what is
    known. A class name that is present and unknown is never overruled by `model_type`.
    """
    named = config.get("architectures")
    if isinstance(named, list) and named:
        wanted = named[0]
        found = KNOWN_CLASSES.get(wanted) if isinstance(wanted, str) else None
    else:
        wanted = config.get("model_type")
        found = _KNOWN_MODEL_TYPES.get(wanted) if isinstance(wanted, str) else None
    if found is None:
        raise BadCheckpointError(
            f"architecture {wanted!r} is not one edgekit converts",
            code="unknown_architecture",
            hint="supported: " + ", ".join(KNOWN_CLASSES),
        )
    return found
