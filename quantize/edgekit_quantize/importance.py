"""Which importance each tensor of a model is quantized with, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgekit_quantize.architectures.base import listed
from edgekit_quantize.errors import BadImatrixError, BadRecipeError
from edgekit_quantize.gguf_header import GgufTensor
from edgekit_quantize.imatrix_file import ImatrixFile, Importance
from edgekit_quantize.recipe import without_importance
from edgekit_quantize.recipe_rules import EMBEDDINGS
from edgekit_quantize.tensor_types import FileType


def match_importance(
    tensors: Sequence[GgufTensor], file_type: FileType, imatrix: ImatrixFile | None
) -> list[Importance | None]:
    """Return the importance of each tensor, aligned with `tensors`.

    None for what is not quantized and where nothing is known. As in llama-quantize, an entry of
    another size than the tensor's inputs is an error, but for the token embeddings.

    Raises BadRecipeError (`imatrix_required`) where a type needs what is not there, and
    BadImatrixError (`other_model`).
    """
    known = {} if imatrix is None else imatrix.tensors
    named = [(tensor.name, tensor.type) for tensor in tensors]
    missing = without_importance(named, file_type.name, known)
    if missing:
        where = "no importance matrix was given" if imatrix is None else f"{imatrix.name} has none"
        raise BadRecipeError(
            f"{file_type.name} needs an importance for {listed(missing)}; {where}",
            code="imatrix_required",
            hint="collect one with `edgekit imatrix`, pass it with --imatrix, or choose a type "
            "that needs none, such as Q2_K or Q4_K_M",
        )
    found: list[Importance | None] = []
    for tensor in tensors:
        entry = known.get(tensor.name) if tensor.type.quantized else None
        if entry is not None and entry.size != _inputs(tensor):
            if tensor.name not in EMBEDDINGS:
                raise BadImatrixError(
                    f"the importance of {tensor.name} has {entry.size} values, "
                    f"the tensor has {_inputs(tensor)} inputs",
                    code="other_model",
                    hint="pass the importance matrix that was collected with this very model",
                )
            entry = None
        found.append(entry)
    return found


def _inputs(tensor: GgufTensor) -> int:
    return tensor.shape[0] * (tensor.shape[2] if len(tensor.shape) > 2 else 1)


def importance_reasons(
    tensors: Sequence[GgufTensor], found: Sequence[Importance | None], imatrix: ImatrixFile
) -> Iterator[str]:
    """Say how much of the model the matrix covers, and what it leaves out."""
    pairs = [(t, e) for t, e in zip(tensors, found, strict=True) if t.type.quantized]
    with_it = [tensor for tensor, entry in pairs if entry is not None]
    yield f"{imatrix.name} weighs {len(with_it)} of {len(pairs)} quantized tensors"
    ends = (*EMBEDDINGS, "output.weight")
    without = [t.name for t, entry in pairs if entry is None and t.name not in ends]
    if without:
        yield f"no importance for {listed(without)}: quantized without"
    unreached = {
        tensor.name: int((entry.divisors <= 0).sum())
        for tensor, entry in pairs
        if entry is not None and len(entry.divisors) > 1
    }
    names = [name for name, count in unreached.items() if count]
    if names:
        total = sum(unreached.values())
        experts = "1 expert" if total == 1 else f"{total} experts"
        were = "was" if total == 1 else "were"
        yield f"{experts} of {listed(names)} {were} never reached by the calibration text"
