"""A catalogue entry of the user's own, written from a checkpoint's config.json.

From a folder, or from a hub repository of which only config.json and README.md are fetched. What
neither says stays unknown: nothing about the licence is guessed.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgekit.errors import BadDataError, CannotCreateError, UsageError, from_foreign
from edgekit.facts import AbsentModel, ModelCard
from edgekit.shape import shape, text_config
from edgekit.source import read_config

_REPOSITORY: Final = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_LICENCE: Final = re.compile(r"^license:\s*[\"']?([\w.+-]+)", re.MULTILINE)
_ALLOW: Final = (
    *("config.json", "generation_config.json", "*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tekken.json", "vocab.json"),
    *("merges.txt", "special_tokens_map.json", "chat_template.jinja", "LICENSE*", "NOTICE*"),
    "README.md",
)


@dataclass(frozen=True, slots=True)
class Found:
    """What a checkpoint says of itself. `source` is the table of where its weights are."""

    name: str
    config: Mapping[str, object]
    source: Mapping[str, object]
    licence: str | None


def add(place: str, name: str | None, *, replace: bool = False) -> Path:
    """Write the entry of a folder or a repository (`org/name` or `org/name@COMMIT`).

    Raises:
        MissingInputError, BadDataError: no checkpoint, or one that cannot be planned.
        UsageError: a name that is taken (`name_taken`) or cannot be one.
        CannotCreateError: the user's catalogue cannot be written.
        DeniedError, BusyError, IoFailedError: see `hub.list_files`.
    """
    found = _from_hub(place) if _is_repository(place) else _from_folder(Path(place).expanduser())
    entry = _id(name or found.name)
    text = entry_text(entry, name or found.name, found)
    target = user_folder() / "models" / f"{entry}.toml"
    _refuse_taken(entry, target, replace)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, target)
    except OSError as error:
        raise CannotCreateError(
            f"{target} cannot be written: {error.strerror}",
            code="catalogue_unwritable",
            hint="make the folder writable, or name another with EDGEKIT_CATALOGUE",
        ) from error
    from edgekit import catalogue

    catalogue.forget()
    return target


def user_folder() -> Path:
    """Where the user's entries are kept; EDGEKIT_CATALOGUE moves it."""
    from edgekit.paths import config_dir

    return Path(os.environ.get("EDGEKIT_CATALOGUE") or config_dir())


def entry_text(entry: str, name: str, found: Found) -> str:
    """The TOML of an entry.

    Raises:
        BadDataError: a config of no shape that can be planned.
    """
    from edgekit_quantize import for_config
    from edgekit_quantize.errors import QuantizeError

    s = shape(found.config)
    try:
        architecture = for_config(found.config)
        tensors = architecture.tensors(found.config)
    except QuantizeError as error:
        raise from_foreign(error) from error
    longest = text_config(found.config).get("max_position_embeddings")
    if not isinstance(longest, int) or longest < 1:
        raise BadDataError(
            "config.json does not say max_position_embeddings",
            code="bad_config",
            hint="copy the checkpoint's own config.json",
        )
    params = sum(math.prod(tensor.shape) for tensor in tensors)
    nulls = _nulls(found.config)
    licence = f"{found.licence}, as its README.md says" if found.licence else "not known"
    lines = [
        f"id = {_value(entry)}",
        f"name = {_value(name)}",
        f"gguf_arch = {_value(architecture.name)}",
        f"params = {params}   # of the text model, {s.n_layer} layers",
        f"n_ctx_train = {longest}",
        "# tools, fim, aliases, notes: add what you know of them",
        *([f"config_nulls = {_value(nulls)}"] if nulls else []),
        "",
        "[licence]",
        f"name = {_value(licence)}",
        "# commercial_use, conditions: read the text and say so here",
        "acceptance_required = true",
        "",
        "[[sources]]",
        *(f"{key} = {_value(value)}" for key, value in found.source.items()),
        "",
        *_table("config", found.config),
    ]
    return "\n".join(lines) + "\n"


def _from_folder(folder: Path) -> Found:
    config = read_config(folder)
    absolute = folder.resolve()
    size = sum(f.stat().st_size for f in absolute.glob("*.safetensors"))
    source: dict[str, object] = {"kind": "folder", "location": str(absolute)}
    if size:
        source["bytes"] = size
    readme = absolute / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    return Found(absolute.name, config, source, _licence_in(text))


def _from_hub(place: str) -> Found:
    """Only the names, sizes and two small files of a repository."""
    from edgekit import hub
    from edgekit.named import peek

    match = _REPOSITORY.fullmatch(place)
    assert match is not None
    repository, revision = match.groups()
    if hub.offline_asked():
        raise hub.unavailable([repository])
    listing = hub.list_files(repository, revision, _ALLOW)
    there = {file.name for file in listing.files}
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        here = Path(folder)
        peek(listing, ["config.json", *({"README.md"} & there)], here)
        config = read_config(here)
        readme = here / "README.md"
        text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    source = {
        "kind": "hub",
        "location": repository,
        "revision": listing.revision,
        "allow": [f.name for f in listing.files],
        "bytes": sum(f.size for f in listing.files if f.name.endswith(".safetensors")),
    }
    return Found(repository.split("/")[1], config, source, _licence_in(text))


def _is_repository(place: str) -> bool:
    return not Path(place).expanduser().exists() and _REPOSITORY.fullmatch(place) is not None


def _licence_in(readme: str) -> str | None:
    """The licence that the front matter of a model card names."""
    if not readme.startswith("---"):
        return None
    found = _LICENCE.search(readme[3:].split("\n---", 1)[0])
    return found.group(1).lower() if found else None


def _id(name: str) -> str:
    slug = re.sub(r"[^a-z0-9.]+", "-", name.strip().lower()).strip("-.")
    if not slug or len(slug) > 80:
        raise UsageError(
            f"{name!r} cannot name a model",
            code="bad_model_name",
            hint="pass --name with letters, digits, dots and dashes, such as my-model",
        )
    return slug


def _refuse_taken(entry: str, target: Path, replace: bool) -> None:
    from edgekit.catalogue import load_absent, load_models

    taken: list[ModelCard | AbsentModel] = [*load_models().values(), *load_absent().values()]
    for known in taken:
        if entry in (known.id, *known.aliases) and not (replace and entry == known.id):
            raise UsageError(
                f"{entry!r} is a name of {known.id} in the catalogue",
                code="name_taken",
                hint="pass --name with another"
                + (", or --force to replace that entry" if entry == known.id else ""),
            )
    if target.exists() and not replace:
        raise UsageError(
            f"{target} exists", code="name_taken", hint="pass --force to write it again"
        )


def _nulls(values: Mapping[str, object], above: str = "") -> list[str]:
    """The paths of what is null, which TOML cannot spell; see `config_nulls`."""
    found = []
    for key, value in values.items():
        if value is None and "." not in key:
            found.append(f"{above}{key}")
        elif isinstance(value, Mapping) and "." not in key:
            found += _nulls(value, f"{above}{key}.")
    return found


def _table(name: str, values: Mapping[str, object]) -> list[str]:
    """A TOML table and those inside it."""
    lines, inner = [f"[{name}]"], []
    for key, value in values.items():
        spelled = key if _BARE_KEY.fullmatch(key) else _value(key)
        if isinstance(value, Mapping):
            inner += ["", *_table(f"{name}.{spelled}", value)]
        elif value is not None:
            lines.append(f"{spelled} = {_value(value)}")
    return [*lines, *inner]


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise _odd("half a surrogate pair in a text")
        # TOML and JSON spell strings alike, but for this one character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, float) and not math.isfinite(value):
        raise _odd("a number that is not finite")
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    if isinstance(value, Mapping):
        pairs = (f"{_value(str(k))} = {_value(v)}" for k, v in value.items() if v is not None)
        return "{ " + ", ".join(pairs) + " }"
    raise _odd("null inside a list" if value is None else f"a {type(value).__name__}")


def _odd(what: str) -> BadDataError:
    return BadDataError(
        f"config.json holds {what}",
        code="bad_config",
        hint="copy the checkpoint's own config.json",
    )
