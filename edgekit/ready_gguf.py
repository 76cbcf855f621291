"""A finished GGUF: what it says of itself, checked, and whether it is the model that was named."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgekit.errors import BadDataError, MissingInputError, from_foreign
from edgekit.facts import ModelCard

if TYPE_CHECKING:
    from edgekit_quantize.gguf_header import GgufHeader

_PART: Final = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class ReadyGguf:
    """What a reader wants to know. `types`: bytes and count by tensor type, most bytes first."""

    path: Path
    parts: tuple[Path, ...]
    architecture: str | None
    filetype: str | None
    types: tuple[tuple[str, int, int], ...]
    template_sha256: str | None
    vocabulary: int | None
    n_ctx_train: int | None
    file_bytes: int
    metadata: Mapping[str, object]

    @property
    def summary(self) -> str:
        """One line: file type, what the tensors are stored as, whether there is a template."""
        total = sum(size for _, size, _ in self.types) or 1
        shares = ", ".join(
            f"{name} {size / total:.0%}" for name, size, _ in self.types[:3] if size / total > 0.005
        )
        template = "its own chat template" if self.template_sha256 else "no chat template"
        return (
            f"{self.architecture} {self.filetype or 'of no known file type'} ({shares}); {template}"
        )


def inspect(path: Path) -> ReadyGguf:
    """Read and check the headers of a GGUF and of its further parts; no native code runs.

    Raises:
        MissingInputError: no such file, or a part of several is missing.
        BadDataError: damaged, or no GGUF.
    """
    from edgekit_quantize.errors import QuantizeError
    from edgekit_quantize.gguf_header import read_header
    from edgekit_quantize.tensor_types import FILE_TYPES

    parts = _parts(path)
    try:
        headers = [read_header(part) for part in parts]
    except QuantizeError as error:
        raise from_foreign(error) from error
    first = headers[0]
    number = first.metadata.get("general.file_type")
    filetype = next((f.name for f in FILE_TYPES.values() if f.number == number), None)
    template = first.metadata.get("tokenizer.chat_template")
    tokens = first.metadata.get("tokenizer.ggml.tokens")
    return ReadyGguf(
        path=parts[0],
        parts=parts,
        architecture=first.architecture,
        filetype=filetype,
        types=_types(headers),
        template_sha256=_digest(template),
        vocabulary=len(tokens) if isinstance(tokens, tuple | list) else None,
        n_ctx_train=_number(first, "context_length"),
        file_bytes=sum(header.file_bytes for header in headers),
        metadata=first.metadata,
    )


def check_same(card: ModelCard, found: ReadyGguf) -> None:
    """Refuse a file whose shape is another model's, since all figures would be wrong.

    Raises BadDataError.
    """
    from edgekit.shape import text_config

    config, arch = text_config(card.config), found.architecture
    pairs = {
        "num_hidden_layers": found.metadata.get(f"{arch}.block_count"),
        "hidden_size": found.metadata.get(f"{arch}.embedding_length"),
        "num_attention_heads": found.metadata.get(f"{arch}.attention.head_count"),
        "vocab_size": found.vocabulary,
    }
    for key, value in pairs.items():
        known = config.get(key)
        # Some files pad the vocabulary; some count a layer for multi-token prediction.
        loose = key in ("vocab_size", "num_hidden_layers")
        if not isinstance(known, int) or not isinstance(value, int):
            continue
        if value != known and not (loose and abs(value - known) <= max(1, known // 100)):
            raise BadDataError(
                f"{found.path} is not {card.id}: its {key} is {value}, {card.id} has {known}",
                code="source_is_another_model",
                hint="pass the file of that model, or run it alone with edgekit serve FILE",
            )


def as_record(found: ReadyGguf) -> dict[str, object]:
    """Return the JSON form."""
    return {
        "path": str(found.path),
        "parts": [part.name for part in found.parts],
        "architecture": found.architecture,
        "filetype": found.filetype,
        "tensor_types": [{"type": n, "bytes": b, "tensors": c} for n, b, c in found.types],
        "chat_template_sha256": found.template_sha256,
        "vocabulary": found.vocabulary,
        "n_ctx_train": found.n_ctx_train,
        "file_bytes": found.file_bytes,
    }


def model_bytes(path: Path) -> int:
    """Return the size of a model's file, or of all its files when `path` is the first of several.

    Raises MissingInputError for a part that is not there, and OSError as reading does.
    """
    return sum(part.stat().st_size for part in _parts(path))


def _parts(path: Path) -> tuple[Path, ...]:
    match = _PART.fullmatch(path.name)
    if match is None:
        return (path,)
    total = int(match[3])
    parts = tuple(
        path.with_name(f"{match[1]}-{i:05d}-of-{match[3]}.gguf") for i in range(1, total + 1)
    )
    for part in parts:
        if not part.is_file():
            raise MissingInputError(
                f"{part} is missing: the model is cut into {total} files",
                code="missing_shard",
                hint="put all parts into one folder",
            )
    return parts or (path,)


def _types(headers: list[GgufHeader]) -> tuple[tuple[str, int, int], ...]:
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for header in headers:
        for tensor in header.tensors:
            sizes[tensor.type.name] += tensor.bytes
            counts[tensor.type.name] += 1
    return tuple((name, size, counts[name]) for name, size in sizes.most_common())


def _digest(template: object) -> str | None:
    return hashlib.sha256(template.encode()).hexdigest() if isinstance(template, str) else None


def _number(header: GgufHeader, key: str) -> int | None:
    value = header.metadata.get(f"{header.architecture}.{key}")
    return value if isinstance(value, int) else None
