"""pocket as a tool: a proven small model file that tells whether the engine works here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.store import Store, fingerprint

FILETYPE = "Q4_K_M"
"""Its Q4_K and Q6_K tensors go through the kernels that a bad build breaks."""


def folder() -> Path:
    """Return the checkpoint folder that ships inside edgekit."""
    import edgekit_profiles

    return Path(edgekit_profiles.__file__).parent / "pocket"


@contextmanager
def canary_model(store: Store) -> Iterator[Path | None]:
    """Give pocket as a GGUF: the store's, or one made for the moment; None if it cannot be made."""
    try:
        entry = store.find("pocket", FILETYPE, fingerprint(folder()))
    except EdgekitError:
        entry = None  # a damaged store is another command's business
    if entry is not None:
        yield store.path(entry)
        return
    # In a child, since the quantizing kernels of a bad build would end this process.
    from edgekit.converter import convert

    with tempfile.TemporaryDirectory(prefix="edgekit-") as place:
        made: Path | None = Path(place) / "pocket.gguf"
        try:
            convert(folder(), Path(place) / "pocket.gguf", FILETYPE)
        except EdgekitError:
            made = None
        yield made
