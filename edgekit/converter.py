"""Convert a checkpoint in a child process, so that what kills the child is an error here."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit import child
from edgekit.errors import EdgekitError, EngineFailedError, IoFailedError
from edgekit.preflight import check_installed

if TYPE_CHECKING:
    from edgekit_quantize.recipe import Overrides


@dataclass(frozen=True, slots=True)
class Made:
    """The finished file. `tensor_bytes` is its data section, `sha256` the digest of all of it.

    `recipe` is the text of the mix that was found for a target size, else None.
    """

    path: Path
    filetype: str
    file_bytes: int
    tensor_bytes: int
    n_tensors: int
    seconds: float
    source_digest: str
    sha256: str
    reasons: tuple[str, ...]
    recipe: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a person wants other than a file type by the rules.

    `tensor_types` are pairs of pattern and type. A target is the whole file in bytes, or bits
    per weight of its tensors, and excludes the others.
    """

    filetype: str | None = None
    imatrix: Path | None = None
    tensor_types: tuple[tuple[str, str], ...] = ()
    output: str | None = None
    embedding: str | None = None
    pure: bool = False
    recipe: Path | None = None
    target_bytes: int | None = None
    target_bpw: float | None = None
    vision: bool = False
    """The model's vision part in place of its language part."""

    @property
    def searched(self) -> bool:
        return self.target_bytes is not None or self.target_bpw is not None


def overrides_of(wanted: Wanted) -> tuple[str | None, Overrides]:
    """Return the file type and overrides: the recipe file's, and before them what was typed.

    Raises what reading a recipe raises.
    """
    from edgekit_quantize.recipe import NO_OVERRIDES, Overrides
    from edgekit_quantize.recipe_file import read_recipe

    kind, more = wanted.filetype, NO_OVERRIDES
    if wanted.recipe is not None:
        found = read_recipe(wanted.recipe)
        kind, more = found.filetype, found.overrides
    return kind, Overrides(
        tensors=(*wanted.tensor_types, *more.tensors),
        output=wanted.output or more.output,
        embedding=wanted.embedding or more.embedding,
        pure=wanted.pure or more.pure,
    )


def convert(
    source: Path,
    destination: Path,
    filetype: str,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    split_bytes: int | None = None,
    wanted: Wanted | None = None,
) -> Made:
    """Convert the checkpoint folder `source` to the GGUF `destination`, whole or not at all.

    `progress(done_bytes, total_bytes)` counts source bytes, hashed and converted. `split_bytes`
    cuts the result into files of at most that size; the path returned is the first of them. With
    a target in `wanted`, `filetype` is not looked at.

    Raises:
        EngineFailedError: the converter is not installed, or died.
        IoFailedError: the source changed while it was read.
        EdgekitError: what the converter said: bad data, disk full, ..., mapped.
    """
    check_installed("numpy", "llama_cpp", "edgekit_quantize")
    request: dict[str, object] = {
        "source": str(source),
        "destination": str(destination),
        "filetype": filetype,
        "threads": threads,
        "split_bytes": split_bytes,
        "wanted": _as_json(wanted) if wanted is not None else None,
    }
    ended = child.ask("edgekit.convert_child", request, progress)
    made = ended.answer.get("made")
    if not ended.ok or not isinstance(made, dict):
        discard_partial(destination)
        raise _died(ended.signal, ended.words, source)
    return _made(made, filetype)


def _as_json(wanted: Wanted) -> dict[str, object]:
    _, overrides = overrides_of(wanted)
    return {
        "imatrix": str(wanted.imatrix) if wanted.imatrix is not None else None,
        "tensors": [list(pair) for pair in overrides.tensors],
        "output": overrides.output,
        "embedding": overrides.embedding,
        "pure": overrides.pure,
        "target_bytes": wanted.target_bytes,
        "target_bpw": wanted.target_bpw,
        "vision": wanted.vision,
    }


def discard_partial(destination: Path) -> None:
    """Remove what a killed converter left beside `destination`, unless another is writing it."""
    name = re.escape(destination.stem) + r"(-\d{5}-of-\d{5})?" + re.escape(destination.suffix)
    for partial in destination.parent.glob(".*.partial"):
        if re.fullmatch(rf"\.{name}\.partial", partial.name):
            _discard(partial)


def _discard(partial: Path) -> None:
    try:
        import fcntl
    except ImportError:
        return
    with contextlib.suppress(OSError):
        fd = os.open(partial, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()
        finally:
            os.close(fd)


def _made(found: Mapping[str, object], filetype: str) -> Made:
    numbers = {n: int(str(found[n])) for n in ("file_bytes", "tensor_bytes", "n_tensors")}
    reasons, recipe = found.get("reasons"), found.get("recipe")
    return Made(
        path=Path(str(found["path"])),
        filetype=str(found.get("filetype") or filetype),
        **numbers,
        seconds=float(str(found["seconds"])),
        source_digest=str(found["source_digest"]),
        sha256=str(found["sha256"]),
        reasons=tuple(map(str, reasons)) if isinstance(reasons, list) else (),
        recipe=recipe if isinstance(recipe, str) else None,
    )


def _died(signal: str | None, last_words: str | None, source: Path) -> EdgekitError:
    if signal == "SIGBUS":
        return IoFailedError(
            f"a file of {source} got shorter or could not be read while it was converted (SIGBUS)",
            code="source_changed",
            hint="check that the copy of the checkpoint is complete, then run the command again",
        )
    if signal == "SIGKILL":
        return EngineFailedError(
            "the converter was killed from outside, most likely for lack of memory",
            code="converter_died",
            hint="free some memory, then run the same command again",
        )
    how = f"of {signal}" if signal else "without an answer"
    words = f": {last_words}" if last_words else ""
    return EngineFailedError(
        f"the converter died {how}{words}",
        code="converter_died",
        hint="edgekit doctor says what is wrong with the engine and how to mend it",
    )
