"""A model of several GGUF files: which ones belong to the first.

llama.cpp finds them by their names. We resolve the names ourselves and pass the files they lead
to, so that links may lead anywhere: to files named by content, on another disk.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from edgekit_server.errors import BadModelError, ModelMissingError

_NAME: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)")


def files_of(path: Path) -> list[Path]:
    """Return the files of the model whose first file is `path`, in order, links resolved.

    One that is in no series is alone. Raises ModelMissingError for one that is not there,
    BadModelError (bad_model) for a file that is not the first of its series.
    """
    found = _NAME.fullmatch(path.name)
    if found is None:
        return [path]
    count = int(found["count"])
    if int(found["number"]) != 1:
        raise BadModelError(f"{path.name} is not the first of the model's {count} files")
    files = []
    for number in range(1, count + 1):
        name = path.with_name(f"{found['stem']}-{number:05d}-of-{count:05d}{found['suffix']}")
        if not name.is_file():
            to = f", which {name.name} leads to" if name.is_symlink() else ""
            raise ModelMissingError(f"there is no file {name.resolve()}{to}")
        files.append(name.resolve())
    return files


def total_bytes(path: Path) -> int:
    """Return the size of all files of a model. Raises as `files_of`, and OSError."""
    return sum(file.stat().st_size for file in files_of(path))
