"""Which stored tensors are scales of others, and what they cover.

Checkpoints with FP8 weights hold a scale beside each: one per 128 x 128 block (DeepSeek), one per
tensor (Mistral), one per row (compressed-tensors). Scales of activations serve FP8 arithmetic,
which we do not do, and are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from edgekit_quantize.architectures import Config
from edgekit_quantize.architectures.views import Dims
from edgekit_quantize.errors import BadCheckpointError

UNUSED = ("activation_scale", ".qscale_act", ".input_scale", ".k_scale", ".v_scale")

_WEIGHT_OF = (
    ("_scale_inv", ""),
    (".qscale_weight", ".weight"),
    (".weight_scale", ".weight"),
    ("_scales", "_blocks"),
)
"""Ending of a scale's name -> what stands there in its weight's name."""

_UNDONE = ("fp8", "mxfp4")


@dataclass(frozen=True, slots=True)
class Scales:
    """`of` maps a weight to its scale; `names` is what remains: the model's own tensors."""

    of: Mapping[str, str]
    names: frozenset[str]


def find_scales(stored: Collection[str]) -> Scales:
    """Tell scales from weights by name."""
    of = {}
    for name in stored:
        for ending, instead in _WEIGHT_OF:
            if name.endswith(ending) and (weight := name.removesuffix(ending) + instead) in stored:
                of[weight] = name
    scales = set(of.values())
    names = frozenset(n for n in stored if n not in scales and not n.endswith(UNUSED))
    return Scales(of, names)


def check_method(config: Config) -> None:
    """Raise BadCheckpointError (code `quantized_checkpoint`) for weights we cannot undo.

    FP8 and MXFP4 say all there is to know in the stored tensors; integer schemes do not.
    """
    settings = config.get("quantization_config")
    if settings is None:
        return
    method = settings.get("quant_method") if isinstance(settings, Mapping) else settings
    form = settings.get("format") if isinstance(settings, Mapping) else None
    if method in _UNDONE or (method, form) == ("compressed-tensors", "float-quantized"):
        return
    raise BadCheckpointError(
        f"the checkpoint is already quantized ({method!r} in config.json's quantization_config)",
        code="quantized_checkpoint",
        hint="use the model's BF16 checkpoint",
    )


def scale_block(name: str, weight: Dims, scale: Dims, config: Config) -> Dims:
    """Return how many values along each axis of `weight` share a scale.

    Raises BadCheckpointError (code `bad_scale`) when the scale's shape covers it in no way.
    """
    settings = config.get("quantization_config")
    sizes = settings.get("weight_block_size") if isinstance(settings, Mapping) else None
    extents = (*scale, *(1,) * (len(weight) - len(scale)))
    if len(extents) == len(weight):
        if isinstance(sizes, list) and all(type(s) is int and s > 0 for s in sizes):
            lead = len(weight) - len(sizes)
            block = (*weight[:lead], *sizes)
            covered = tuple(-(-n // b) for n, b in zip(weight[lead:], sizes, strict=True))
            if lead == 0 and covered == extents:
                return block
            if lead > 0 and (covered == extents[lead:] and extents[:lead] == weight[:lead]):
                return (*(1,) * lead, *sizes)
        if all(e in (1, n) for n, e in zip(weight, extents, strict=True)):
            return tuple(n if e == 1 else 1 for n, e in zip(weight, extents, strict=True))
    raise BadCheckpointError(
        f"the scale of {name!r} has the shape {list(scale)}, which does not cover {list(weight)}",
        code="bad_scale",
        hint="config.json and weights are of different models; fetch both again",
    )
