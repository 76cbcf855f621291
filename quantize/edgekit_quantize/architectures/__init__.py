"""Model families: config.json -> names, shapes, row orders and GGUF keys."""

from __future__ import annotations

from edgekit_quantize.architectures import (
    deepseek2,
    gemma3,
    gptoss,
    llama,
    llama4,
    mistral3,
    mixtral,
    muse_glimmer,
    native,
    phi3,
    qwen2,
    qwen3,
    qwen3moe,
)
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
    **dict.fromkeys(mistral3.CLASSES, mistral3.MISTRAL3),
    **dict.fromkeys(phi3.CLASSES, phi3.PHI3),
    **dict.fromkeys(gemma3.CLASSES, gemma3.GEMMA3),
    **dict.fromkeys(qwen2.CLASSES, qwen2.QWEN2),
    **dict.fromkeys(qwen3.CLASSES, qwen3.QWEN3),
    **dict.fromkeys(qwen3moe.CLASSES, qwen3moe.QWEN3MOE),
    **dict.fromkeys(mixtral.CLASSES, mixtral.MIXTRAL),
    **dict.fromkeys(llama4.CLASSES, llama4.LLAMA4),
    **dict.fromkeys(deepseek2.CLASSES, deepseek2.DEEPSEEK2),
    **dict.fromkeys(gptoss.CLASSES, gptoss.GPT_OSS),
    **dict.fromkeys(muse_glimmer.CLASSES, muse_glimmer.MUSE_GLIMMER),
}
_KNOWN_MODEL_TYPES: dict[str, Architecture] = {
    **dict.fromkeys(llama.MODEL_TYPES, llama.LLAMA),
    **dict.fromkeys(mistral3.MODEL_TYPES, mistral3.MISTRAL3),
    **dict.fromkeys(phi3.MODEL_TYPES, phi3.PHI3),
    **dict.fromkeys(gemma3.MODEL_TYPES, gemma3.GEMMA3),
    **dict.fromkeys(qwen2.MODEL_TYPES, qwen2.QWEN2),
    **dict.fromkeys(qwen3.MODEL_TYPES, qwen3.QWEN3),
    **dict.fromkeys(qwen3moe.MODEL_TYPES, qwen3moe.QWEN3MOE),
    **dict.fromkeys(mixtral.MODEL_TYPES, mixtral.MIXTRAL),
    **dict.fromkeys(llama4.MODEL_TYPES, llama4.LLAMA4),
    **dict.fromkeys(deepseek2.MODEL_TYPES, deepseek2.DEEPSEEK2),
    **dict.fromkeys(gptoss.MODEL_TYPES, gptoss.GPT_OSS),
    **dict.fromkeys(muse_glimmer.MODEL_TYPES, muse_glimmer.MUSE_GLIMMER),
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
            f"architecture {wanted!r:.80} is not one edgekit converts",
            code="unknown_architecture",
            hint="supported: " + ", ".join(KNOWN_CLASSES),
        )
    return native.Native(found) if native.LAYOUT in config else found
