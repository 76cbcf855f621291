"""The chat templates of a checkpoint folder, as GGUF keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from edgekit_quantize.metadata import KeyValue, string, strings
from edgekit_quantize.vocabulary import damaged, optional_object, read_bounded

MAX_TEMPLATE_BYTES = 4 << 20
MAX_NAMED = 64


def template_keys(folder: Path, settings: Mapping[str, object]) -> list[KeyValue]:
    """Return the keys for the folder's templates; none where there are none.

    tokenizer_config.json wins over chat_template.jinja (with additional_chat_templates/*.jinja),
    which wins over chat_template.json, as in llama.cpp's converter. Raises BadCheckpointError.
    """
    template = settings.get("chat_template")
    if template is None:
        template = _from_files(folder)
    if template is None:
        return []
    if isinstance(template, str):
        return [string("tokenizer.chat_template", template)]
    if not isinstance(template, list):
        raise damaged("tokenizer_config.json: chat_template is neither a text nor a list")
    return _named_keys(template)


def _from_files(folder: Path) -> object:
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        default = _read(jinja)
        more = sorted((folder / "additional_chat_templates").glob("*.jinja"))
        if not more:
            return default
        if len(more) > MAX_NAMED:
            raise damaged(f"additional_chat_templates holds {len(more)} files")
        named = [{"name": path.stem, "template": _read(path)} for path in more]
        return [{"name": "default", "template": default}, *named]
    return optional_object(folder / "chat_template.json").get("chat_template")


def _read(path: Path) -> str:
    try:
        return read_bounded(path, MAX_TEMPLATE_BYTES).decode()
    except UnicodeDecodeError as error:
        raise damaged(f"{path.name} is no UTF-8 text") from error


def _named_keys(templates: list[object]) -> list[KeyValue]:
    named: dict[str, str] = {}
    for entry in templates:
        name = entry.get("name") if isinstance(entry, Mapping) else None
        text = entry.get("template") if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or not isinstance(text, str):
            raise damaged("tokenizer_config.json: a chat template has no name or no text")
        named[re.sub(r"[^A-Za-z0-9]", "_", name)] = text
    default = named.pop("default", None)
    keys = [string(f"tokenizer.chat_template.{name}", named[name]) for name in sorted(named)]
    if named:
        keys.append(strings("tokenizer.chat_templates", sorted(named)))
    if default is not None:
        keys.append(string("tokenizer.chat_template", default))
    return keys
