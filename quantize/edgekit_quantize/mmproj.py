"""Plan the GGUF of a model's vision part: the file that llama.cpp calls mmproj."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit_quantize.architectures import Config, RecipeParams, TensorSource, TensorSpec
from edgekit_quantize.architectures.base import bad_config, integer
from edgekit_quantize.architectures.matching import text_config
from edgekit_quantize.architectures.towers import Images, Tower
from edgekit_quantize.architectures.vision import kind, tower
from edgekit_quantize.checkpoint import Checkpoint, read_json
from edgekit_quantize.errors import UnknownFileTypeError
from edgekit_quantize.gguf_write import lay_out
from edgekit_quantize.metadata import KeyValue
from edgekit_quantize.planning import Plan, check_stored
from edgekit_quantize.scales import check_method
from edgekit_quantize.tensor_types import TENSOR_TYPES, FileType, TensorType
from edgekit_quantize.tokenizer import Tokenizer, read_tokenizer

FILE_TYPES = ("F16", "BF16", "F32")

_COLOURS = {
    "pixtral": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "gemma3": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and deviation of each colour where the repository names none: the image processors'
defaults in transformers (PixtralImageProcessor, Gemma3ImageProcessor)."""


@dataclass(frozen=True, slots=True)
class VisionPart:
    """A vision part in the place of an architecture."""

    found: Tower
    name: str = "clip"

    def tensors(self, config: Config) -> list[TensorSpec]:  # noqa: ARG002
        return [source.spec for source in self.found.sources]

    def sources(self, config: Config, stored: Iterable[str]) -> list[TensorSource]:  # noqa: ARG002
        return list(self.found.sources)

    def recipe_params(self, config: Config) -> RecipeParams:  # noqa: ARG002
        return RecipeParams(self.name, 0, 0, 0)

    def metadata(self, config: Config) -> list[KeyValue]:  # noqa: ARG002
        return list(self.found.keys)

    def notes(self, config: Config, stored: Iterable[str]) -> list[str]:  # noqa: ARG002
        return []


def plan_vision(checkpoint: Checkpoint, file_type: FileType) -> Plan:
    """Decide what the vision part's file will hold; see `planning.plan_conversion`.

    Raises UnknownFileTypeError for block types, and BadCheckpointError, code `no_vision` among
    others.
    """
    if file_type.name not in FILE_TYPES:
        raise UnknownFileTypeError(
            f"a vision part is not written as {file_type.name}",
            code="vision_filetype",
            hint="choose " + ", ".join(FILE_TYPES),
        )
    config = checkpoint.config
    check_method(config)
    images, reason = read_images(checkpoint.folder, config)
    found = tower(config, checkpoint.scales.names, images)
    for source in found.sources:
        check_stored(checkpoint, source)
    specs = [source.spec for source in found.sources]
    types = [tensor_type(found, spec, file_type) for spec in specs]
    tensors = tuple(lay_out(specs, types))
    return Plan(
        architecture=VisionPart(found),
        sources=found.sources,
        tensors=tensors,
        tokenizer=Tokenizer((), "", ""),
        importance=(None,) * len(tensors),
        reasons=(f"the vision part alone ({kind(config)}), {len(tensors)} tensors", reason),
    )


def tensor_type(found: Tower, spec: TensorSpec, file_type: FileType) -> TensorType:
    """Return the type llama.cpp's converter gives a vision tensor in a file of `file_type`."""
    name = file_type.default.name
    if len(spec.shape) == 1 or spec.name in found.wide:
        name = "F32"
    elif spec.name in found.half:
        name = "F16"
    elif spec.name in found.careful and name != "F16":
        name = "F32"
    return TENSOR_TYPES[name]


def read_images(folder: Path, config: Config) -> tuple[Images, str]:
    """Return how pictures are prepared, and where that is said."""
    settings: dict[str, object] = {}
    said = "the class's own defaults"
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            read = read_json(folder / name)
            inner = read.get("image_processor")
            settings |= {**read, **(inner if isinstance(inner, Mapping) else {})}
            said = name
    which = kind(config)
    mean, std = _COLOURS[which]
    images = Images(
        mean=_triple(settings, "image_mean", mean),
        std=_triple(settings, "image_std", std),
        tokens_per_image=integer(
            {**config, **settings}, "image_seq_length", "mm_tokens_per_image", default=256
        ),
        break_token=_break_token(folder, config) if which == "pixtral" else None,
    )
    return images, f"colours by {said}"


def _triple(settings: Config, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    value = settings.get(key)
    if value is None:
        return default
    if (
        not isinstance(value, list)
        or len(value) != 3
        or not all(type(part) in (int, float) and abs(part) < 1e6 for part in value)
    ):
        raise bad_config(f"preprocessor_config.json: {key} must be three numbers")
    return tuple(float(part) for part in value)


def _break_token(folder: Path, config: Config) -> int | None:
    """Return the id of the token that ends a row of picture tokens."""
    size = integer(text_config(config), "vocab_size")
    for entry in read_tokenizer(folder, config, size, "mistral3").metadata:
        if entry.key == "tokenizer.ggml.tokens" and isinstance(entry.value, tuple):
            return entry.value.index("[IMG_BREAK]") if "[IMG_BREAK]" in entry.value else None
    return None
