"""Weights in a folder of the user's: which model they are, and whether they are the one named."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from edgekit.catalogue import find_model, load_absent, named_models
from edgekit.errors import BadDataError, MissingInputError, UsageError, from_foreign
from edgekit.facts import AbsentModel, Licence, ModelCard
from edgekit.memory import HEADER_BYTES_PER_TOKEN
from edgekit.shape import text_config

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
_UNREAD: Final = Licence(
    name="not known: read the licence in the folder",
    spdx=None,
    commercial_use=None,
    acceptance_required=False,
    conditions=None,
)
_SAME: Final = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)
"""What must agree with the catalogue, or its memory figures are of another model."""


def card_for(name: str, folder: Path | None) -> ModelCard:
    """Return the card of a model by name, or one made from `folder` for a name without weights.

    Raises:
        MissingInputError: no such model and no folder, or no checkpoint in the folder.
        BadDataError: the folder's config.json is broken, of an unknown shape or another model's.
        UsageError: an unknown name that cannot name a model.
    """
    try:
        card = find_model(name)
    except MissingInputError:
        if folder is None:
            raise
        return _from_folder(_id(name), folder)
    if folder is not None:
        _check_same(card, read_config(folder), folder)
    return card


def cards_for(name: str, folder: Path | None) -> tuple[AbsentModel | None, tuple[ModelCard, ...]]:
    """Return what a report is to judge under a name.

    That is the model itself; for a name without weights, and no folder, the nearest real models
    and the entry that says so; for a shape that public measurements name, a card without weights.

    `folder` may be a hub's repository too: its config.json is asked for.

    Raises as `card_for` and `named.find_named`.
    """
    if folder is not None:
        from edgekit import paths
        from edgekit.named import find_named
        from edgekit.pull import Options

        return None, (find_named(name, folder, paths.store_dir(), Options()).card,)
    try:
        return named_models(name)
    except MissingInputError:
        from edgekit import benchmark_shapes

        found = benchmark_shapes.load().get(name.strip().lower())
        if found is None:
            raise
        return None, (found.card(),)


def read_config(folder: Path) -> dict[str, object]:
    """Read a checkpoint's config.json. Raises MissingInputError, BadDataError."""
    file = folder / "config.json"
    if not folder.is_dir():
        raise MissingInputError(
            f"{folder} is not a folder",
            code="source_missing",
            hint="pass the folder that holds config.json and the safetensors files",
        )
    try:
        config = json.loads(file.read_bytes())
    except OSError as error:
        raise MissingInputError(
            f"{file} cannot be read: {error.strerror}",
            code="checkpoint_missing",
            hint="pass the folder of a Hugging Face checkpoint, which holds config.json",
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadDataError(
            f"{file} is not JSON: {error}", code="bad_config", hint="copy the checkpoint again"
        ) from error
    if not isinstance(config, dict):
        raise BadDataError(
            f"{file} holds no JSON object", code="bad_config", hint="copy the checkpoint again"
        )
    return config


def _check_same(card: ModelCard, config: Mapping[str, object], folder: Path) -> None:
    ours, theirs = text_config(card.config), text_config(config)
    for key in _SAME:
        known, found = ours.get(key), theirs.get(key)
        if None not in (known, found) and known != found:
            raise BadDataError(
                f"{folder} is not {card.id}: its {key} is {found}, {card.id} has {known}",
                code="source_is_another_model",
                hint="pass the folder of that model, or deploy this one under a name of its own",
            )


def _from_folder(name: str, folder: Path) -> ModelCard:
    from edgekit_quantize import for_config
    from edgekit_quantize.errors import QuantizeError

    config = read_config(folder)
    try:
        architecture = for_config(config)
        tensors = architecture.tensors(config)
    except QuantizeError as error:
        raise from_foreign(error) from error
    params = 0
    for tensor in tensors:
        count = 1
        for size in tensor.shape:
            count *= size
        params += count
    text = text_config(config)
    longest, vocab = text.get("max_position_embeddings"), text.get("vocab_size")
    if not isinstance(longest, int) or longest < 1 or not isinstance(vocab, int):
        raise BadDataError(
            f"{folder / 'config.json'} does not say vocab_size and max_position_embeddings",
            code="bad_config",
            hint="copy the checkpoint's own config.json there",
        )
    return ModelCard(
        id=name,
        name=name,
        aliases=(),
        config=config,
        sources=(),
        licence=_UNREAD,
        params=params,
        n_ctx_train=longest,
        tools=None,
        fim=None,
        header_bytes=HEADER_BYTES_PER_TOKEN * vocab,
        notes=None,
        path=folder,
        gguf_arch=architecture.name,
    )


def _id(name: str) -> str:
    wanted = name.strip().lower()
    for absent in load_absent().values():
        if wanted in (absent.id, *absent.aliases):
            return absent.id
    if not _NAME.fullmatch(wanted):
        raise UsageError(
            f"{name!r} cannot name a model",
            code="bad_model_name",
            hint="use letters, digits, dots and dashes, such as my-model",
        )
    return wanted
