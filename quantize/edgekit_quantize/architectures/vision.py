"""Vision parts that become a GGUF of their own, which llama.cpp loads beside the language model.

Two kinds: Mistral's Pixtral tower and Gemma 3's SigLIP tower, each with its projector. Names and
keys are those that llama.cpp's `clip` loader asks for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from edgekit_quantize.architectures import native
from edgekit_quantize.architectures.base import Config, Part
from edgekit_quantize.architectures.matching import match
from edgekit_quantize.architectures.towers import (
    BREAK,
    EMBEDDINGS,
    Images,
    Tower,
    pixtral,
    siglip,
)
from edgekit_quantize.errors import BadCheckpointError

_NATIVE_NAMES = (
    (r"vision_encoder\.(.*)\.attention\.w([qkvo])\.", r"vision_tower.\1.attention.\2_proj."),
    (r"vision_encoder\.(.*)\.feed_forward\.w1\.", r"vision_tower.\1.feed_forward.gate_proj."),
    (r"vision_encoder\.(.*)\.feed_forward\.w2\.", r"vision_tower.\1.feed_forward.down_proj."),
    (r"vision_encoder\.(.*)\.feed_forward\.w3\.", r"vision_tower.\1.feed_forward.up_proj."),
    (r"vision_encoder\.", "vision_tower."),
    (r"vision_language_adapter\.w_in\.", "multi_modal_projector.linear_1."),
    (r"vision_language_adapter\.w_out\.", "multi_modal_projector.linear_2."),
    (r"patch_merger\.", "multi_modal_projector.patch_merger."),
    (r"pre_mm_projector_norm\.", "multi_modal_projector.norm."),
)
_PREFIXES = (
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("vision_tower.vision_model.", "vision_tower."),
)
_STORED_EMBEDDINGS = (
    "language_model.model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
    "tok_embeddings.weight",
)


def kind(config: Config) -> str:
    """Return `pixtral` or `gemma3`.

    Raises BadCheckpointError (code `no_vision`) for a model without a vision part that we convert.
    """
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    if isinstance(config.get("vision_config"), Mapping):
        if first == "Mistral3ForConditionalGeneration":
            return "pixtral"
        if first == "Gemma3ForConditionalGeneration":
            return "gemma3"
        raise BadCheckpointError(
            f"edgekit does not convert the vision part of {first!r:.60} yet",
            code="no_vision",
            hint="the language part converts without it; vision parts of Mistral Small 3.1, 3.2, "
            "Devstral Small 2, Ministral 3 and Gemma 3 convert",
        )
    raise BadCheckpointError(
        "the model has no vision part",
        code="no_vision",
        hint="convert the language part alone",
    )


def tower(config: Config, stored: Iterable[str], images: Images) -> Tower:
    """Return the vision part of a checkpoint that stores `stored`.

    Raises BadCheckpointError: `no_vision`, `bad_config`, `missing_tensor`, `unknown_tensor`.
    """
    names = list(stored)
    found = pixtral(config, images) if kind(config) == "pixtral" else siglip(config, images)
    own: dict[str, str] = {}
    for name in names:
        if (ours := _own_name(name)) is not None and own.setdefault(ours, name) != name:
            raise BadCheckpointError(
                f"{own[ours]!r} and {name!r} are the same tensor",
                code="duplicate_tensor",
                hint="fetch the checkpoint again into an empty folder",
            )
    embedding = [name for name in _STORED_EMBEDDINGS if name in names]
    needed = {part.source for source in found.sources for part in source.parts}
    if embedding and EMBEDDINGS in needed:
        own[EMBEDDINGS] = embedding[0]
    sources = match(found.sources, own)
    if native.LAYOUT in config:
        # Rows of Q and K are in llama.cpp's order already.
        sources = [
            source
            if source.spec.name == BREAK
            else replace(source, parts=tuple(Part(part.source) for part in source.parts))
            for source in sources
        ]
    return replace(found, sources=tuple(sources))


def _own_name(name: str) -> str | None:
    """Return the name of a vision tensor in transformers' newest layout, None for all others."""
    for pattern, instead in _NATIVE_NAMES:
        if found := re.match(pattern, name):
            return found.expand(instead) + name[found.end() :]
    for prefix, other in _PREFIXES:
        if name.startswith(prefix):
            name = other + name.removeprefix(prefix)
    if name.startswith("vision_tower.head.") or not name.startswith(
        ("vision_tower.", "multi_modal_projector.")
    ):
        return None
    return name
