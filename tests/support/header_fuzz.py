"""A child that reads mutated headers: `python -m tests.support.header_fuzz KIND SEED COUNT FILE`.

Its address space may grow by 256 MiB over what it has once everything is imported, and each case
may take two seconds. Only this package's errors and a good header are answers; anything else,
a MemoryError included, ends the child with a traceback that names the case.
"""

from __future__ import annotations

import random
import re
import resource
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from edgekit_quantize.errors import QuantizeError
from edgekit_quantize.gguf_header import parse_header, read_header
from edgekit_quantize.safetensors import SafetensorsFile

ROOM_BYTES = 256 << 20
CASE_SECONDS = 2
_NUMBERS = (
    0, 1, 2, 7, 8, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
_JSON = (
    b"-1", b"1e400", b"null", b"true", b'""', b"[]", b"{}", b"0.5", b"9" * 400, b"[[[[[[[[",
    b'"\\ud800"', b"NaN", b'{"dtype":"F32"}', b"18446744073709551615", b"[" * 5000, b"Infinity",
)  # fmt: skip


def mutate(header: bytes, rng: random.Random, *, is_json: bool) -> bytes:
    """Return a header with one to four changes of the kinds that break parsers."""
    out = bytearray(header)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out)) if out else 0
        choice = rng.choice((6, 7, 8)) if rng.random() < 0.7 else rng.randrange(9)
        if choice == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif choice == 1:
            width = rng.choice((4, 8))
            number = rng.choice(_NUMBERS) & (1 << 8 * width) - 1
            out[at : at + width] = number.to_bytes(width, "little")
        elif choice == 2:
            del out[at : at + rng.choice((1, 2, 8, 64, 4096))]
        elif choice == 3:
            length = rng.choice((1, 8, 100, 5000))
            out[at:at] = out[at : at + length]
        elif choice == 4:
            del out[at:]
        elif choice == 5:
            out[at:at] = rng.randbytes(rng.choice((1, 7, 300)))
        elif is_json:
            numbers = list(re.finditer(rb"\d+|\[[^\]]*\]|\"[A-Z0-9_]+\"", out[8:]))
            if numbers:
                found = rng.choice(numbers)
                out[8 + found.start() : 8 + found.end()] = rng.choice(_JSON)
        else:
            out[at : at + 8] = rng.choice(_NUMBERS).to_bytes(8, "little")
    if is_json and rng.random() < 0.9:
        # Make the length field true again, so that the JSON itself is reached.
        out[:8] = max(len(out) - 8, 0).to_bytes(8, "little")
    return bytes(out)


def read_safetensors(data: bytes, folder: Path) -> None:
    file = folder / "case.safetensors"
    file.write_bytes(data)
    SafetensorsFile(file).close()


def read_gguf(data: bytes, folder: Path) -> None:
    file = folder / "case.gguf"
    file.write_bytes(data)
    read_header(file)
    parse_header(data)


def main() -> int:
    kind, seed, count, sample = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    read: Callable[[bytes, Path], None] = {"safetensors": read_safetensors, "gguf": read_gguf}[kind]
    data = Path(sample).read_bytes()
    if kind == "gguf":
        head = parse_header(data).data_offset
    else:
        head = 8 + int.from_bytes(data[:8], "little")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, used + ROOM_BYTES))
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        for number in range(seed, seed + count):
            is_json = kind == "safetensors"
            case = mutate(data[:head], random.Random(number), is_json=is_json) + data[head:]
            signal.alarm(CASE_SECONDS)
            try:
                read(case, Path(name))
                outcomes["read"] += 1
            except QuantizeError as error:
                outcomes[error.code] += 1
            except BaseException:
                print(f"case {number}", file=sys.stderr)
                raise
            signal.alarm(0)
    print(dict(outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
