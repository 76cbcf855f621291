"""Where weights are to come from, as people write it. Pure but for a look at the disk.

./folder            a checkpoint on this machine, used where it lies
./model.gguf        a finished file on this machine, used where it lies
org/name[@REV]      a repository of the hub (`hub:` may stand before it)
org/name/x.gguf     one finished file of a repository
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgekit.errors import MissingInputError, UsageError
from edgekit.facts import ModelCard

_REFERENCE: Final = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})"
    r"(?P<file>(?:/[^/@]+)+\.gguf)?(?:@(?P<revision>[\w./-]{1,100}))?",
    re.ASCII,
)
_PART: Final = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class Want:
    """What to fetch: a repository, a revision (None: main), patterns (none: one checkpoint)."""

    repository: str
    revision: str | None
    allow: tuple[str, ...] = ()

    @property
    def file(self) -> str | None:
        """The GGUF that is wanted, when it is one file."""
        only = self.allow[0] if len(self.allow) == 1 else ""
        return only if only.endswith(".gguf") else None


def hub_reference(text: str) -> Want | None:
    """Read `[hub:]org/name[/file.gguf][@REV]`; None when it is nothing of the kind."""
    match = _REFERENCE.fullmatch(text.removeprefix("hub:"))
    if match is None or ".." in match["repository"]:
        return None
    file = (match["file"] or "")[1:]
    allow: tuple[str, ...] = ()
    if file:
        # A model in several files is fetched whole, whichever part is named.
        part = _PART.fullmatch(file)
        allow = (f"{part[1]}-*-of-{part[2]}.gguf",) if part else (file,)
    return Want(match["repository"], match["revision"], allow)


def want_of(card: ModelCard, revision: str | None = None) -> Want | None:
    """Return what the catalogue says to fetch of a model; None when it lies on no hub."""
    for source in card.sources:
        if source.kind == "hub":
            return Want(source.location, revision or source.revision, source.allow)
    return None


def parse_origin(text: str) -> Path | Want:
    """Read what was given as a source; what exists on this machine comes first.

    Raises MissingInputError for what is neither there nor a reference, UsageError for a file that
    is no GGUF.
    """
    path = Path(text).expanduser()
    if not text.startswith("hub:") and path.exists():
        if path.is_file() and path.suffix.lower() != ".gguf":
            raise UsageError(
                f"{path} is neither a folder nor a GGUF",
                code="bad_source",
                hint="pass a checkpoint's folder, a .gguf file, or a repository such as org/name",
            )
        return path
    looks_local = path.is_absolute() or text.startswith((".", "~")) or "\\" in text
    want = None if looks_local else hub_reference(text)
    if want is None:
        raise MissingInputError(
            f"{text} is not on this machine, and no repository of a hub is called like that",
            code="source_missing",
            hint="pass a folder with config.json and safetensors, a .gguf file, or a repository "
            "such as org/name@COMMIT",
        )
    return want
