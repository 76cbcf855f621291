"""One door to all editors of text, and the proof that an edit did what was asked and no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgekit.connect import jsonc, toml_text, yaml_text
from edgekit.connect.values import Edit, NotEditableError, apply

BOM = "\ufeff"
_EDITORS: dict[str, Any] = {"jsonc": jsonc, "yaml": yaml_text, "toml": toml_text}
FORMATS = (*_EDITORS, "text")


def edit_text(kind: str, text: str | None, edits: Sequence[Edit]) -> str:
    """Return the text of a file (None: there is none) with the edits done.

    The result is read back and compared with the same edits on the data of the old text, so
    that a file which an editor of ours misunderstands is left alone.

    Raises NotEditableError.
    """
    if kind == "text":
        return str(edits[-1].value) if edits else text or ""
    mark = BOM if text and text.startswith(BOM) else ""
    old = (text or "").removeprefix(BOM)
    editor = _EDITORS[kind]
    wanted = apply(editor.load(old), edits)
    if editor.load(old) == wanted:
        return text or ""
    new = str(editor.edit(old, edits))
    if editor.load(new) != wanted:
        raise NotEditableError("an edit came out differently from what was meant")
    return mark + new
