"""Names in a checkpoint against the names a model needs.

A model with a vision part wraps its language part, so `model.layers.0...` is stored as
`language_model.model.layers.0...` or `model.language_model.layers.0...`, depending on the
version of transformers that wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from edgekit_quantize.architectures.base import (
    Config,
    Part,
    TensorSource,
    bad_config,
    flag,
    listed,
)
from edgekit_quantize.errors import BadCheckpointError

UNUSED = (".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias")
"""Endings of buffers that old checkpoints hold and no model reads."""

_WRAPPERS = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
)

_VISION = (
    "vision_tower.",
    "vision_model.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.vision_model.",
    "model.multi_modal_projector.",
    "model.vision_adapter.",
    "model.vision_projection.",
)


@dataclass(frozen=True, slots=True)
class Stored:
    """`of` maps a text model's own name to the name it is stored under."""

    of: Mapping[str, str]
    left_out: tuple[str, ...] = ()


def language_part(stored: Iterable[str], *, wrapped: bool) -> Stored:
    """Find the language part's tensors. Only a `wrapped` model may have a vision part.

    Raises BadCheckpointError (code `duplicate_tensor`) when two names mean one tensor.
    """
    found: dict[str, str] = {}
    left_out = []
    for name in stored:
        if name.endswith(UNUSED):
            continue
        if wrapped and name.startswith(_VISION):
            left_out.append(name)
            continue
        own = unwrapped(name) if wrapped else name
        if own in found:
            raise BadCheckpointError(
                f"{found[own]!r} and {name!r} are the same tensor",
                code="duplicate_tensor",
                hint="fetch the checkpoint again into an empty folder",
            )
        found[own] = name
    return Stored(found, tuple(left_out))


def unwrapped(name: str) -> str:
    """Return the name that a text model of its own gives this tensor."""
    for prefix, instead in _WRAPPERS:
        if name.startswith(prefix):
            return instead + name.removeprefix(prefix)
    return name


def text_config(config: Config) -> Config:
    """Return the language part's settings: `text_config` over what stands around it."""
    inner = config.get("text_config")
    if inner is None:
        return config
    if not isinstance(inner, Mapping):
        raise bad_config(f"config.json: text_config must be an object, is {inner!r:.60}")
    return {**config, **inner}


def may_be_tied(config: Config) -> bool:
    """Say whether the output matrix may be missing: outer or inner config ties it."""
    return flag(config, "tie_word_embeddings", False) or flag(
        text_config(config), "tie_word_embeddings", False
    )


def match(wanted: Sequence[TensorSource], stored: Mapping[str, str]) -> list[TensorSource]:
    """Return `wanted` with the stored names in place of the model's own.

    Raises BadCheckpointError, code `missing_tensor` or `unknown_tensor`.
    """
    expected = {part.source for source in wanted for part in source.parts}
    if missing := sorted(expected - stored.keys()):
        raise missing_tensors(f"the checkpoint lacks {len(missing)} tensors: {listed(missing)}")
    if extra := sorted(stored[name] for name in stored.keys() - expected):
        raise BadCheckpointError(
            f"the checkpoint has {len(extra)} tensors this architecture does not use: "
            f"{listed(extra)}",
            code="unknown_tensor",
            hint="convert a plain checkpoint: no adapters, vision parts or quantized weights",
        )
    return [
        replace(source, parts=tuple(Part(stored[p.source], p.view) for p in source.parts))
        for source in wanted
    ]


def has_output(config: Config, stored: Mapping[str, str]) -> bool:
    """Say whether there is an output matrix of its own: the stored tensors decide.

    As in llama.cpp, `tie_word_embeddings` with `lm_head.weight` converts as well. Raises
    BadCheckpointError (code `missing_tensor`) when it is neither stored nor tied.
    """
    if "lm_head.weight" in stored:
        return True
    if not may_be_tied(config):
        raise missing_tensors(
            "the checkpoint stores no lm_head.weight and config.json does not tie it to the "
            "embeddings"
        )
    return False


def missing_tensors(message: str) -> BadCheckpointError:
    return BadCheckpointError(
        message, code="missing_tensor", hint="fetch the checkpoint again; a shard may be missing"
    )


def vision_note(left_out: Sequence[str]) -> list[str]:
    """Say in plain words that a vision part stays behind."""
    if not left_out:
        return []
    return [f"the vision part is left out ({len(left_out)} tensors): the model answers text only"]
