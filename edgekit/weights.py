"""Bytes of a model's tensors in a file type, by place, before any of it is downloaded.

The recipe's own rules on the tensors that the config's architecture lists. A table is kept for
each config and file type, since a report asks for it once for every device.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from edgekit.errors import from_foreign
from edgekit.facts import ModelCard
from edgekit.shape import Shape, shape

if TYPE_CHECKING:
    from edgekit_quantize.architectures import RecipeParams, TensorSpec
    from edgekit_quantize.tensor_types import TensorType

HEADER_BYTES_PER_TOKEN: Final = 40
"""Texts, types and merges of a vocabulary in a GGUF header; 31 for pocket, 36 for tekken's."""

_TABLES: Final = ("token_embd", "per_layer_token_embd")
"""Tensors of which a token reads one row; they stay on the host."""

_AMX_BYTES: Final = {"Q8_0": 4, "Q4_K": 4, "Q5_K": 4, "IQ4_XS": 2}
"""What llama.cpp's AMX layout adds to each block of a matrix; dry loads of all file types agree
to the byte."""

_AMX_TYPES: Final = frozenset({"Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"})
"""Types that AMX lays out anew (ggml-cpu/amx/common.h); not the experts of a mixture."""

_REPACKED_TYPES: Final = frozenset({"Q4_0", "Q4_K", "IQ4_NL"})
"""Types that other x86 and ARM processors lay out anew (ggml-cpu/repack.cpp)."""


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Tensor bytes by place: embeddings, each layer, output. Each tensor is padded to 32.

    There is one for each config and file type, so that it can be told by what it is and need not
    be compared layer by layer.
    """

    filetype: str
    embedding: int
    layers: tuple[int, ...]
    output: int
    tied: bool
    packing: int
    """Bytes more when a CPU with AMX repacks the matrices."""
    shape: Shape
    experts: int
    """The part of `layers` that is routed experts, of which a token reads only those used."""
    copied: int = 0
    """The part of `layers` that a CPU lays out anew; the file's own pages stay mapped beside it
    until somebody needs their memory."""
    copied_amx: int = 0
    """The same on a CPU with AMX."""

    @property
    def total(self) -> int:
        """The data section of the GGUF."""
        return self.embedding + sum(self.layers) + self.output

    @property
    def read_per_token(self) -> int:
        """Bytes read for one decoded token: all but the embedding table, of which one row, and
        the experts that are not used."""
        read = sum(self.layers) + (self.embedding if self.tied else self.output)
        mixture = self.shape.experts
        if mixture is None:
            return read
        return read - self.experts + self.experts * mixture.used // mixture.count


def weights(card: ModelCard, filetype: str) -> Weights:
    """Tensor bytes of a model in a file type: exact, for a model that edgekit converts.

    For one that only llama.cpp runs (`gguf_arch` in the catalogue), its tensors are listed from
    the shape, see `tensor_list`.

    Raises:
        BadDataError: a config or an architecture that cannot be planned.
        UsageError: no such file type.
    """
    return _weights(config_key(card), card.gguf_arch, filetype)


_keys: dict[int, tuple[Mapping[str, object], str]] = {}
"""By identity: the catalogue hands out one config for each model, and keeping it here keeps its
identity from being given to another."""


def config_key(card: ModelCard) -> str:
    """A model's config as JSON with sorted keys, under which the tables are kept."""
    known = _keys.get(id(card.config))
    if known is None or known[0] is not card.config:
        if len(_keys) >= 1024:
            _keys.clear()
        known = _keys[id(card.config)] = card.config, json.dumps(card.config, sort_keys=True)
    return known[1]


@lru_cache(maxsize=8192)
def _weights(config_json: str, gguf_arch: str | None, filetype: str) -> Weights:
    from edgekit_quantize import recipe, tensor_types
    from edgekit_quantize.errors import QuantizeError

    try:
        kept, free, params, s = _sorted(config_json, gguf_arch)
        # Some file types exist only with an importance matrix, and a few rules look at that.
        weighed = tensor_types.find_file_type(filetype).needs_imatrix
        kinds = recipe.assign(free, filetype, params, imatrix=weighed)
    except QuantizeError as error:
        raise from_foreign(error) from error
    sums = replace(kept, layers=list(kept.layers))
    for tensor, kind in zip(free, kinds, strict=True):
        sums.add(tensor, kind)
    tied = all(tensor.name != "output.weight" for tensor in free)
    if tied:
        # With AMX the output is a copy of the embeddings, which themselves stay as they are.
        for tensor, kind in zip(free, kinds, strict=True):
            if tensor.name == "token_embd.weight" and kind.name in _AMX_TYPES:
                blocks = math.prod(tensor.shape) // kind.block
                sums.packing += blocks * (kind.block_bytes + _AMX_BYTES.get(kind.name, 0))
    return Weights(
        filetype,
        sums.embedding,
        tuple(sums.layers),
        sums.output,
        tied,
        sums.packing,
        s,
        sums.experts,
        sums.copied,
        sums.copied_amx,
    )


@dataclass(slots=True)
class _Sums:
    """Bytes so far, by place."""

    layers: list[int]
    embedding: int = 0
    output: int = 0
    experts: int = 0
    packing: int = 0
    copied: int = 0
    copied_amx: int = 0

    def add(self, tensor: TensorSpec, kind: TensorType) -> None:
        # Rows are whole blocks, the recipe sees to it; each tensor starts at a multiple of 32.
        blocks = math.prod(tensor.shape) // kind.block
        size = -(-blocks * kind.block_bytes // 32) * 32
        if tensor.name.startswith(_TABLES):
            self.embedding += size
            return
        is_expert = "_exps." in tensor.name
        if not is_expert:
            self.packing += blocks * _AMX_BYTES.get(kind.name, 0)
        if tensor.name.startswith("blk."):
            repacked = size if kind.name in _REPACKED_TYPES else 0
            self.copied += repacked
            amx = size if kind.name in _AMX_TYPES else 0
            self.copied_amx += repacked if is_expert else amx
            self.layers[int(tensor.name.split(".", 2)[1])] += size
            self.experts += size if is_expert else 0
        else:
            self.output += size


@lru_cache(maxsize=512)
def _sorted(
    config_json: str, gguf_arch: str | None
) -> tuple[_Sums, list[TensorSpec], RecipeParams, Shape]:
    """What keeps its type under every recipe, summed up, and the tensors that do not."""
    from edgekit_quantize import recipe

    tensors, params, s = _tensors(config_json, gguf_arch)
    kept, free = _Sums([0] * s.n_layer), []
    for tensor in tensors:
        if recipe.quantizable(tensor):
            free.append(tensor)
        else:
            kept.add(tensor, recipe.stored_type(tensor))
    return kept, free, params, s


@lru_cache(maxsize=512)
def _tensors(
    config_json: str, gguf_arch: str | None
) -> tuple[list[TensorSpec], RecipeParams, Shape]:
    """The tensors of a config, the recipe's parameters, and the shape."""
    from edgekit_quantize import architectures
    from edgekit_quantize.errors import QuantizeError

    config = json.loads(config_json)
    try:
        architecture = architectures.for_config(config)
        found = architecture.tensors(config), architecture.recipe_params(config)
    except QuantizeError:
        if gguf_arch is None:
            raise
        from edgekit.tensor_list import listed_tensors

        found = listed_tensors(config, gguf_arch)
    s = shape(config)
    # Some vocabularies are cut to the tokens there are (Gemma 3).
    rows = next((t.shape[1] for t in found[0] if t.name == "token_embd.weight"), s.n_vocab)
    return *found, s if rows == s.n_vocab else replace(s, n_vocab=rows)


def tensor_specs(config_json: str, gguf_arch: str | None) -> list[TensorSpec]:
    """The tensors of a config, given as JSON with sorted keys. Raises as `weights`."""
    from edgekit_quantize.errors import QuantizeError

    try:
        return _tensors(config_json, gguf_arch)[0]
    except QuantizeError as error:
        raise from_foreign(error) from error


def file_bytes(card: ModelCard, table: Weights) -> int:
    """The GGUF with its header; a header that is not known is estimated from the vocabulary."""
    header = card.header_bytes
    if header is None:
        header = HEADER_BYTES_PER_TOKEN * table.shape.n_vocab
    return table.total + header
