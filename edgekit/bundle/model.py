"""A model inside a bundle: GGUF files as layers, and one record that says what they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgekit.bundle.layout import (
    DOC,
    FILE_PATH,
    MODEL_ARTIFACT,
    MODEL_CONFIG,
    REF_NAME,
    WEIGHT,
    WEIGHT_CONFIG,
    Descriptor,
    Layout,
    Manifest,
    encode,
)
from edgekit.errors import BadDataError, from_foreign
from edgekit.facts import ModelCard
from edgekit.store import Entry, plain_record

SCHEMA: Final = "edgekit.bundled-model/1"
RECORD: Final = "edgekit.model.json"
SPLIT_BYTES: Final = 3_900_000_000
"""Under FAT32's 4 GiB and under what registries take as one layer."""


@dataclass(frozen=True, slots=True)
class BundledModel:
    """What a bundle holds of one model. `files` are the GGUF's layers in order."""

    entry: Entry
    name: str
    licence: str
    files: tuple[Descriptor, ...]
    documents: Mapping[str, Descriptor]

    @property
    def file_bytes(self) -> int:
        return sum(file.size for file in self.files)


def add_model(
    layout: Layout,
    card: ModelCard,
    entry: Entry,
    gguf: Path,
    documents: Mapping[str, bytes],
    *,
    split_bytes: int = SPLIT_BYTES,
    progress: Callable[[int], None] | None = None,
) -> Descriptor:
    """Write a model's blobs and return its manifest for the index.

    `documents` (licence texts, records) become layers under their names. Raises EdgekitError
    when the file is damaged or the disk full.
    """
    from edgekit_quantize.errors import QuantizeError
    from edgekit_quantize.resplit import pieces
    from edgekit_quantize.splits import split_path

    plain = Path(f"{card.id}-{entry.filetype}.gguf")
    try:
        parts = pieces(gguf, split_bytes)
    except QuantizeError as error:
        raise from_foreign(error) from error
    weights = [
        layout.add(
            part.chunks(),
            WEIGHT,
            {FILE_PATH: split_path(plain, part.number, part.count).name},
            progress,
            key=f"{entry.sha256} {part.number} {part.count} {part.file_bytes}",
        )
        for part in parts
    ]
    record = layout.add([encode(_record(card, entry, weights))], WEIGHT_CONFIG, {FILE_PATH: RECORD})
    texts = [layout.add([text], DOC, {FILE_PATH: name}) for name, text in sorted(documents.items())]
    layers = [*weights, record, *texts]
    config = layout.add_json(_config(card, entry, layers), MODEL_CONFIG)
    annotations = {
        REF_NAME: f"{card.id}-{entry.filetype}",
        "org.opencontainers.image.title": card.name,
        "org.opencontainers.image.licenses": card.licence.spdx or card.licence.name,
    }
    return layout.add_manifest(MODEL_ARTIFACT, config, layers, annotations)


def read_model(layout: Layout, manifest: Manifest) -> BundledModel:
    """Return what a model's manifest holds. Raises BadDataError (`bad_layout`)."""
    named = manifest.named()
    if RECORD not in named:
        raise _bad("it has no record")
    record = layout.json(named[RECORD])
    try:
        digests = [str(digest) for digest in record["files"]]
        entry = Entry(**record["entry"])
        name, licence = str(record["name"]), str(record["licence"])
    except (KeyError, TypeError) as error:
        raise _bad("its record is incomplete") from error
    if record.get("schema") != SCHEMA:
        raise _bad(f"its record is {record.get('schema')!r}")
    weights = {layer.digest: layer for layer in manifest.layers if layer.media_type == WEIGHT}
    if sorted(digests) != sorted(weights):
        raise _bad("its record and its layers name different files")
    texts = {n: layer for n, layer in named.items() if layer.media_type == DOC}
    return BundledModel(entry, name, licence, tuple(weights[d] for d in digests), texts)


def models_of(layout: Layout) -> list[BundledModel]:
    """Return every model of a layout, in the index's order. Raises as `read_model`."""
    return [
        read_model(layout, layout.manifest(descriptor))
        for descriptor in layout.index()
        if descriptor.artifact_type == MODEL_ARTIFACT
    ]


def _record(card: ModelCard, entry: Entry, weights: Sequence[Descriptor]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "name": card.name,
        "licence": card.licence.name,
        "entry": plain_record(entry),
        "files": [weight.digest for weight in weights],
    }


def _config(card: ModelCard, entry: Entry, layers: Sequence[Descriptor]) -> dict[str, Any]:
    """ModelPack's configuration: what a registry shows of the model."""
    return {
        "descriptor": {
            "name": card.id,
            "title": card.name,
            "licenses": [card.licence.spdx or card.licence.name],
            "revision": entry.source,
        },
        "config": {
            "architecture": "transformer",
            "format": "gguf",
            "paramSize": f"{card.params / 1e9:.3g}B",
            "quantization": entry.filetype,
        },
        "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in layers]},
    }


def _bad(why: str) -> BadDataError:
    return BadDataError(
        f"a model in the bundle cannot be used: {why}",
        code="bad_layout",
        hint="get the bundle again from its maker",
    )
