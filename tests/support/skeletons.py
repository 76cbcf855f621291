"""GGUF files of real models' shapes without their weights: a header and a hole of the right size.

The engine's dry load reads only headers, so it can be asked what it would allocate for a model
of any size. The vocabulary is the first tokens of a small one, then fillers.
"""

from __future__ import annotations

from pathlib import Path

from edgekit.facts import ModelCard
from edgekit_quantize import architectures, recipe
from edgekit_quantize.gguf_write import encode_header, lay_out
from edgekit_quantize.metadata import KeyValue, i32s, string, strings, u32
from edgekit_quantize.tensor_types import align
from tests.support.gguf_models import MERGES, vocabulary

NORMAL, CONTROL = 1, 3


def write_skeleton(card: ModelCard, filetype: str, path: Path) -> Path:
    """Write the sparse file of `card` in `filetype`, as the converter would lay it out."""
    architecture = architectures.for_config(card.config)
    specs = architecture.tensors(card.config)
    kinds = recipe.assign(specs, filetype, architecture.recipe_params(card.config))
    placed = lay_out(specs, kinds)
    n_vocab = next(s.shape[1] for s in specs if s.name == "token_embd.weight")
    keys = [string("general.architecture", architecture.name)]
    keys += architecture.metadata(card.config)
    header = encode_header([*keys, *_vocabulary(n_vocab)], placed)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + align(placed[-1].offset + placed[-1].bytes))
    return path


def _vocabulary(n_vocab: int) -> list[KeyValue]:
    tokens = vocabulary()
    tokens += [f"filler{i}" for i in range(n_vocab - len(tokens))]
    types = [CONTROL if i < 3 else NORMAL for i in range(n_vocab)]
    return [
        string("tokenizer.ggml.model", "gpt2"),
        string("tokenizer.ggml.pre", "tekken"),
        strings("tokenizer.ggml.tokens", tokens),
        i32s("tokenizer.ggml.token_type", types),
        strings("tokenizer.ggml.merges", list(MERGES)),
        u32("tokenizer.ggml.bos_token_id", 1),
        u32("tokenizer.ggml.eos_token_id", 2),
    ]
