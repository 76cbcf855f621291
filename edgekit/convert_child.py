"""The child that converts: `python -m edgekit.convert_child`, one request, JSON lines back.

Converting maps foreign files and runs native code on them: a shard that shrinks under us is a
SIGBUS, which no process survives. So it happens here and not in the command itself.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType

from edgekit import child
from edgekit.errors import from_foreign

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

        made = convert(
            Path(str(request["source"])),
            Path(str(request["destination"])),
            str(request["filetype"]),
            threads=threads if isinstance(threads, int) else None,
            progress=progress,
            split_bytes=split_bytes if isinstance(split_bytes, int) else None,
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
                "file_bytes": made.file_bytes,
                "tensor_bytes": made.tensor_bytes,
                "n_tensors": made.n_tensors,
                "seconds": made.seconds,
                "source_digest": made.source_digest,
                "sha256": made.sha256,
                "reasons": list(made.reasons),
            }
        }
    )
    return 0


def _stop(number: int, _frame: FrameType | None) -> None:
    # The parent asks twice, by the pipe and by the signal; the second must not break the tidying.
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
