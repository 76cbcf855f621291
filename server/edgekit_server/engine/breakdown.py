"""Bytes per device of a context: from llama.cpp's own table, or from its log.

The table is a C++ function without a C name. Where the library exports it and the standard
library is libstdc++ (Linux), its std::map is read in place; elsewhere, and when the two sources
disagree, the log's lines are used.
"""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

SYMBOL = "_Z26llama_get_memory_breakdownPK13llama_context"
MAX_ROWS = 64
MIB = 1024 * 1024
_COMPUTE = re.compile(r":\s+(\S+)\s+compute buffer size =\s+([\d.]+) MiB")
_KV = re.compile(r"(?:kv_cache|memory_recurrent)\S*: size =\s+([\d.]+) MiB")


@dataclass(frozen=True, slots=True)
class Row:
    """What one buffer type holds, in bytes."""

    device: str
    weights: int
    kv: int
    compute: int


@dataclass(frozen=True, slots=True)
class Breakdown:
    weights_bytes: dict[str, int]
    kv_bytes: int
    compute_bytes: dict[str, int]
    output_bytes: int
    basis: str
    """`table` (exact) or `log` (rounded to 0.01 MiB; all weights under "all")."""


def read_table(
    call: Callable[[ctypes.Array[ctypes.c_uint64]], None], name: Callable[[int], bytes]
) -> list[Row]:
    """Walk the std::map that `call` writes into six words (libstdc++'s red-black tree).

    Words of the map: 2 the root node, 5 the count. Words of a node: 2 and 3 its children, from
    4 on the pair: buffer type, then weights, KV and compute in bytes. The nodes are never
    freed: this runs once, in a short-lived process.
    """
    words = (ctypes.c_uint64 * 6)()
    call(words)
    root, count = words[2], words[5]
    rows: list[Row] = []
    stack = [root] if root and count <= MAX_ROWS else []
    while stack and len(rows) < count:
        node = (ctypes.c_uint64 * 8).from_address(stack.pop())
        rows.append(Row(name(node[4]).decode(), int(node[5]), int(node[6]), int(node[7])))
        stack += [child for child in (node[2], node[3]) if child]
    return rows


def from_log(
    lines: Sequence[str], *, weights_bytes: int, n_outputs: int, n_vocab: int
) -> Breakdown:
    """Read the sizes that a context prints while it is made. Pure.

    The output buffer is 4 bytes per logit and output row, which the log rounds to 0.01 MiB.
    """
    text = "\n".join(lines)
    compute: Counter[str] = Counter()
    for device, mib in _COMPUTE.findall(text):
        compute[device] += _bytes(mib)
    return Breakdown(
        weights_bytes={"all": weights_bytes},
        kv_bytes=sum(map(_bytes, _KV.findall(text))),
        compute_bytes=dict(compute),
        output_bytes=4 * n_vocab * n_outputs,
        basis="log",
    )


def merge(rows: Sequence[Row], log: Breakdown) -> Breakdown:
    """Prefer the table if its sums agree with the log, whose figures are rounded. Pure."""
    compute = sum(row.compute for row in rows)
    kv = sum(row.kv for row in rows)
    logged = sum(log.compute_bytes.values())
    if not rows or abs(compute - logged) > MIB or abs(kv - log.kv_bytes) > MIB:
        return log
    return Breakdown(
        weights_bytes=_sums((row.device, row.weights) for row in rows),
        kv_bytes=kv,
        compute_bytes=_sums((row.device, row.compute) for row in rows),
        output_bytes=log.output_bytes,
        basis="table",
    )


def _sums(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for device, n in pairs:
        if n:
            total[device] += n
    return dict(total)


def _bytes(mib: str) -> int:
    return round(float(mib) * MIB)
