"""Tiny checkpoints made by transformers' own classes: real names, real layouts, random weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support import transformers_child
from tests.support.checkpoints import write_tokenizer

VOCAB = 300
"""At least the 276 tokens that the synthetic tokenizer needs."""


def save(
    config: Mapping[str, Any],
    folder: Path,
    seed: int,
    *,
    dtype: str = "float32",
    gain: float = 1.0,
    published: Mapping[str, Any] | None = None,
    vocab: int = VOCAB,
    max_shard_size: str = "1GB",
) -> Path:
    """Write a seeded checkpoint into `folder` (created) and return it.

    `config` holds what a config.json holds: `architectures[0]` names the class of transformers,
    `model_type` its config, the rest are the settings. Matrices have the variance
    `gain`^2 / columns, vectors are what the class starts with plus noise. `published` replaces
    keys of the config.json written (None deletes one): repositories write it in older forms than
    transformers does. `vocab` is the size of the tokenizer beside the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    transformers_child.call(
        {
            "do": "save",
            "config": dict(config),
            "folder": str(folder),
            "seed": seed,
            "dtype": dtype,
            "gain": gain,
            "max_shard_size": max_shard_size,
        }
    )
    write_tokenizer(folder, vocab)
    if published:
        edit_config(folder, published)
    return folder


def edit_config(folder: Path, changes: Mapping[str, Any]) -> None:
    """Change keys of config.json; None deletes a key."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
