"""Edit TOML; tomlkit keeps comments, order and spelling."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

from edgekit.connect.values import Edit, NotEditableError, Pick


def load(text: str) -> Any:
    """Return the document as plain data. Raises NotEditableError."""
    try:
        return tomllib.loads(text.removeprefix("\ufeff"))
    except tomllib.TOMLDecodeError as error:
        raise NotEditableError(f"not TOML: {error}") from None


def edit(text: str, edits: Sequence[Edit]) -> str:
    """Return the text with the edits done. Raises NotEditableError."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(text)
        if document.as_string() != text:
            raise NotEditableError("this TOML cannot be written back as it stands")
        for one in edits:
            _set(document, one)
        return document.as_string()
    except TOMLKitError as error:
        raise NotEditableError(f"not TOML: {error}") from None


def _set(document: Any, one: Edit) -> None:
    import tomlkit

    table: Any = document
    *parents, last = one.path
    for depth, step in enumerate(parents):
        if isinstance(step, Pick):
            raise NotEditableError("lists of tables are not edited")
        if step not in table:
            # A table that only holds tables needs no header of its own.
            is_super = depth + 1 < len(parents) or isinstance(one.value, dict)
            table[step] = tomlkit.table(is_super_table=is_super)
        table = table[step]
        if not hasattr(table, "keys"):
            raise NotEditableError(f"a table was expected at {step!r}")
    assert isinstance(last, str)
    if last not in table or table[last] != one.value:
        table[last] = one.value
