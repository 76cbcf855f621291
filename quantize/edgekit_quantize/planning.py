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
from edgekit_quantize.recipe import assign, quantizable
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
    reasons: tuple[str, ...]


def plan_conversion(checkpoint: Checkpoint, file_type: FileType) -> Plan:
    """Decide names, types and places, and find all that is wrong before a byte is written."""
    config = checkpoint.config
    architecture = architectures.for_config(config)
    check_method(config)
    names = checkpoint.scales.names
    sources = tuple(architecture.sources(config, names))
    for source in sources:
        _check_stored(checkpoint, source)
    specs = [source.spec for source in sources]
    vocab = next(spec.shape[1] for spec in specs if spec.name == "token_embd.weight")
    tokenizer = read_tokenizer(checkpoint.folder, config, vocab, architecture.name)
    types = assign(specs, file_type.name, architecture.recipe_params(config))
    tensors = tuple(lay_out(specs, types))
    reasons = (
        tokenizer.reason,
        *architecture.notes(config, names),
        *_type_reasons(checkpoint, tensors, sources, file_type),
    )
    return Plan(architecture, sources, tensors, tokenizer, reasons)


def _check_stored(checkpoint: Checkpoint, source: TensorSource) -> None:
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


def _type_reasons(
    checkpoint: Checkpoint,
    tensors: Sequence[GgufTensor],
    sources: Sequence[TensorSource],
    file_type: FileType,
) -> Iterator[str]:
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.type.name] = counts.get(tensor.type.name, 0) + 1
    mix = ", ".join(f"{counts[kind]} {kind}" for kind in sorted(counts))
    yield f"{file_type.name} by llama-quantize's rules: {mix}"
    if file_type.default.quantized:
        for tensor, source in zip(tensors, sources, strict=True):
            if quantizable(source.spec) and tensor.shape[0] % file_type.default.block:
                yield (
                    f"{tensor.name} is {tensor.type.name}: rows of {tensor.shape[0]} are no whole "
                    f"{file_type.default.name} blocks of {file_type.default.block}"
                )
    dtypes = {checkpoint.tensor(part.source).dtype for s in sources for part in s.parts}
    if dtypes != {"BF16"}:
        yield f"weights are stored as {', '.join(sorted(dtypes))} and quantized from those values"
