"""What a conversion will write, decided and checked before a byte is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgekit_quantize import architectures
from edgekit_quantize.architectures import Architecture, TensorSource
from edgekit_quantize.architectures.views import viewed_shape
from edgekit_quantize.checkpoint import Checkpoint
from edgekit_quantize.errors import BadCheckpointError
from edgekit_quantize.gguf_header import GgufTensor
from edgekit_quantize.gguf_write import lay_out
from edgekit_quantize.imatrix_file import ImatrixFile, Importance
from edgekit_quantize.importance import importance_reasons, match_importance
from edgekit_quantize.recipe import NO_OVERRIDES, Overrides, choose, type_reasons
from edgekit_quantize.scales import check_method
from edgekit_quantize.tensor_types import FileType
from edgekit_quantize.tokenizer import Tokenizer, read_tokenizer

FLOAT_DTYPES = ("F32", "F16", "BF16")
SCALED_DTYPES = ("F8_E4M3", "F8_E5M2", "U8")
"""FP8, and MXFP4's packed nibbles: read together with their scales."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Names, types, places and vocabulary of the file to write, decided from shapes alone."""

    architecture: Architecture
    sources: tuple[TensorSource, ...]
    tensors: tuple[GgufTensor, ...]
    tokenizer: Tokenizer
    importance: tuple[Importance | None, ...]
    reasons: tuple[str, ...]


def plan_conversion(
    checkpoint: Checkpoint,
    file_type: FileType,
    imatrix: ImatrixFile | None = None,
    overrides: Overrides = NO_OVERRIDES,
) -> Plan:
    """Decide names, types and places, and find all that is wrong before a byte is written."""
    config = checkpoint.config
    architecture = architectures.for_config(config)
    check_method(config)
    names = checkpoint.scales.names
    sources = tuple(architecture.sources(config, names))
    for source in sources:
        check_stored(checkpoint, source)
    specs = [source.spec for source in sources]
    vocab = next(spec.shape[1] for spec in specs if spec.name == "token_embd.weight")
    tokenizer = read_tokenizer(checkpoint.folder, config, vocab, architecture.name)
    params = architecture.recipe_params(config)
    chosen = choose(specs, file_type.name, params, imatrix=imatrix is not None, overrides=overrides)
    tensors = tuple(lay_out(specs, [choice.type for choice in chosen]))
    importance = match_importance(tensors, file_type, imatrix)
    weighed = importance_reasons(tensors, importance, imatrix) if imatrix is not None else ()
    reasons = (
        tokenizer.reason,
        *architecture.notes(config, names),
        *type_reasons(specs, chosen, file_type),
        *weighed,
        *_dtype_reasons(checkpoint, sources),
    )
    return Plan(architecture, sources, tensors, tokenizer, tuple(importance), reasons)


def check_stored(checkpoint: Checkpoint, source: TensorSource) -> None:
    """Raise BadCheckpointError where a stored tensor is not what the architecture asks for."""
    columns, wanted = source.spec.shape[0], math.prod(source.spec.shape)
    found = 0
    for part in source.parts:
        stored = checkpoint.tensor(part.source)
        scaled = part.source in checkpoint.scales.of
        if stored.dtype not in FLOAT_DTYPES and not (scaled and stored.dtype in SCALED_DTYPES):
            raise BadCheckpointError(
                f"tensor {stored.name!r} is stored as {stored.dtype}",
                code="bad_dtype",
                hint="edgekit converts F32, F16 and BF16 weights, and FP8 and MXFP4 with their "
                "scales; use the BF16 checkpoint",
            )
        packed = stored.dtype == "U8"
        shape = (*stored.shape[:-1], stored.shape[-1] * 2) if packed else stored.shape
        seen = viewed_shape(shape, part.view)
        row = seen and (math.prod(seen[-2:]) if packed else seen[-1])
        whole = len(source.parts) > 1 or part.view or packed or shape == source.spec.shape[::-1]
        if not seen or not whole or (len(source.spec.shape) > 1 and row != columns):
            raise _bad_shape(stored.name, stored.shape, source.spec.shape)
        found += math.prod(seen)
    if source.parts and found != wanted:
        name = source.parts[0].source
        raise _bad_shape(name, checkpoint.tensor(name).shape, source.spec.shape)


def _bad_shape(name: str, stored: tuple[int, ...], wanted: tuple[int, ...]) -> BadCheckpointError:
    return BadCheckpointError(
        f"tensor {name!r} has the shape {list(stored)}, config.json asks for {list(wanted[::-1])}",
        code="bad_shape",
        hint="config.json and weights are of different models; fetch both again",
    )


def _dtype_reasons(checkpoint: Checkpoint, sources: Sequence[TensorSource]) -> Iterator[str]:
    dtypes = {checkpoint.tensor(part.source).dtype for s in sources for part in s.parts}
    if dtypes != {"BF16"}:
        yield f"weights are stored as {', '.join(sorted(dtypes))} and quantized from those values"
