"""The child that converts: `python -m edgekit.convert_child`, one request, JSON lines back.

Converting maps foreign files and runs native code on them: a shard that shrinks under us is a
SIGBUS, which no process survives. So it happens here and not in the command itself.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from edgekit import child
from edgekit.errors import from_foreign

if TYPE_CHECKING:
    from edgekit_quantize.recipe_file import Recipe

REPORT_EVERY_S = 0.1


def main() -> int:
    """Convert as asked; the last answer is `made` or `error`."""
    signal.signal(signal.SIGTERM, _stop)
    request = child.read_request()
    last = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= REPORT_EVERY_S or done == total:
            last = now
            child.answer({"done": done, "total": total})

    threads, split_bytes = request.get("threads"), request.get("split_bytes")
    try:
        from edgekit_quantize import convert
        from edgekit_quantize.recipe_file import recipe_text

        wanted = request.get("wanted")
        wanted = wanted if isinstance(wanted, dict) else {}
        recipe = _recipe(request, wanted, progress)
        made = convert(
            Path(str(request["source"])),
            Path(str(request["destination"])),
            recipe.filetype,
            threads=threads if isinstance(threads, int) else None,
            progress=progress,
            split_bytes=split_bytes if isinstance(split_bytes, int) else None,
            imatrix=_path(wanted.get("imatrix")),
            overrides=recipe.overrides,
            vision=wanted.get("vision") is True,
        )
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        mapped = from_foreign(error)
        child.answer_error(mapped)
        return mapped.exit_code
    child.answer(
        {
            "made": {
                "path": str(made.path),
                "filetype": made.filetype,
                "file_bytes": made.file_bytes,
                "tensor_bytes": made.tensor_bytes,
                "n_tensors": made.n_tensors,
                "seconds": made.seconds,
                "source_digest": made.source_digest,
                "sha256": made.sha256,
                "reasons": [*recipe.reasons, *made.reasons],
                "recipe": recipe_text(recipe) if recipe.reasons else None,
            }
        }
    )
    return 0


def _recipe(
    request: Mapping[str, object],
    wanted: Mapping[str, Any],
    progress: Callable[[int, int], None],
) -> Recipe:
    """Return what was asked for, or the best mix for a target; that one carries reasons."""
    from edgekit_quantize.recipe import Overrides
    from edgekit_quantize.recipe_file import Recipe

    if wanted.get("target_bytes") is None and wanted.get("target_bpw") is None:
        overrides = Overrides(
            tensors=tuple((str(p), str(t)) for p, t in wanted.get("tensors", ())),
            output=wanted.get("output"),
            embedding=wanted.get("embedding"),
            pure=bool(wanted.get("pure")),
        )
        return Recipe(str(request["filetype"]), overrides)
    from edgekit_quantize.recipe_fit import Target, fit_size

    threads = request.get("threads")
    mix = fit_size(
        Path(str(request["source"])),
        Target(wanted.get("target_bytes"), wanted.get("target_bpw")),
        imatrix=_path(wanted.get("imatrix")),
        threads=threads if isinstance(threads, int) else os.cpu_count() or 1,
        progress=progress,
    )
    return Recipe(mix.filetype, mix.overrides, mix.reasons)


def _path(text: object) -> Path | None:
    return Path(text) if isinstance(text, str) else None


def _stop(number: int, _frame: FrameType | None) -> None:
    # The parent asks twice, by the pipe and by the signal; the second must not break the tidying.
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
