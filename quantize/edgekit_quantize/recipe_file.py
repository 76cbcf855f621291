"""A recipe as a file: a file type and overrides, with the reasons they were chosen for.

filetype = "Q4_K_M"
reasons = ["..."]
output = "Q6_K"            # optional, as are embedding and pure
[tensors]                  # in this order; the first pattern that is found counts
'^blk\\.(0|1)\\.attn_v\\.weight$' = "Q6_K"
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

from edgekit_quantize.errors import BadRecipeError, IoFailedError, MissingFileError
from edgekit_quantize.recipe import Overrides
from edgekit_quantize.tensor_types import find_file_type, find_tensor_type

MAX_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to make of a model, and why."""

    filetype: str
    overrides: Overrides
    reasons: tuple[str, ...] = ()


def read_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises MissingFileError, IoFailedError, BadRecipeError (`bad_recipe`)."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise _bad(path, f"it is longer than {MAX_BYTES} bytes")
        record = tomllib.loads(raw.decode())
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no file {path}", code="no_such_file") from error
    except OSError as error:
        raise IoFailedError(f"cannot read {path}: {error.strerror}", code="io_error") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _bad(path, str(error)) from error
    unknown = set(record) - {"filetype", "reasons", "tensors", "output", "embedding", "pure"}
    if unknown:
        raise _bad(path, f"it has the unknown key {sorted(unknown)[0]}")
    tensors, reasons = record.get("tensors", {}), record.get("reasons", [])
    texts = [record.get("filetype"), record.get("output", ""), record.get("embedding", "")]
    if isinstance(tensors, dict):
        texts += tensors.values()
    shaped = isinstance(tensors, dict) and isinstance(reasons, list)
    if not shaped or not all(isinstance(text, str) for text in (*texts, *reasons)):
        raise _bad(path, "filetype, output, embedding, reasons and the types must be texts")
    if not isinstance(record.get("pure", False), bool):
        raise _bad(path, "pure must be true or false")
    overrides = Overrides(
        tensors=tuple((pattern, find_tensor_type(kind).name) for pattern, kind in tensors.items()),
        output=record.get("output"),
        embedding=record.get("embedding"),
        pure=record.get("pure", False),
    )
    return Recipe(find_file_type(record["filetype"]).name, overrides, tuple(reasons))


def recipe_text(recipe: Recipe) -> str:
    """Return the file's text; `read_recipe` gives the same recipe again."""
    # A TOML basic string is a JSON string.
    lines = [
        f"filetype = {json.dumps(recipe.filetype)}",
        "reasons = [",
        *(f"    {json.dumps(reason)}," for reason in recipe.reasons),
        "]",
    ]
    wanted = recipe.overrides
    lines += [f"output = {json.dumps(wanted.output)}"] if wanted.output else []
    lines += [f"embedding = {json.dumps(wanted.embedding)}"] if wanted.embedding else []
    lines += ["pure = true"] if wanted.pure else []
    lines += ["", "[tensors]"]
    lines += [f"{json.dumps(pattern)} = {json.dumps(kind)}" for pattern, kind in wanted.tensors]
    return "\n".join(lines) + "\n"


def _bad(path: Path, what: str) -> BadRecipeError:
    return BadRecipeError(
        f"{path.name} is no recipe: {what}",
        code="bad_recipe",
        hint="`edgekit quantize --target-size 4GB --recipe-out FILE` writes one",
    )
