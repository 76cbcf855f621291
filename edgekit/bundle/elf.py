"""What a compiled library asks of the system: other libraries and versions of their symbols.

A small reader of ELF64 little-endian files, all that Linux on x86-64 and Arm has. Source: the
System V ABI, chapter 5 (dynamic section), and the Linux Standard Base (symbol versions).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

_LOAD, _DYNAMIC = 1, 2
_NEEDED, _STRTAB, _STRSZ, _SONAME = 1, 5, 10, 14
_VERNEED, _VERNEEDNUM = 0x6FFFFFFE, 0x6FFFFFFF
_VERSION = re.compile(r"GLIBC_(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class Needs:
    """`libraries` by soname; `glibc` is the newest version of a symbol that is used."""

    soname: str | None
    libraries: tuple[str, ...]
    glibc: tuple[int, int] | None


def needs_of(data: bytes) -> Needs | None:
    """Read a library; None for what is no such file, or a damaged one."""
    try:
        return _read(data)
    except (struct.error, IndexError, ValueError):
        return None


def _read(data: bytes) -> Needs | None:
    if data[:6] != b"\x7fELF\x02\x01":
        return None
    (offset,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQQQ", data, offset + i * size) for i in range(count)]

    def place(address: int) -> int:
        for kind, _, start, virtual, _, length, *_ in segments:
            if kind == _LOAD and virtual <= address < virtual + length:
                return int(start + address - virtual)
        raise ValueError(address)

    tags: dict[int, list[int]] = {}
    for kind, _, start, _, _, length, *_ in segments:
        if kind == _DYNAMIC:
            for tag, value in struct.iter_unpack("<qQ", data[start : start + length // 16 * 16]):
                tags.setdefault(tag, []).append(value)
    if _STRTAB not in tags:
        return Needs(None, (), None)
    strings = place(tags[_STRTAB][0])

    def text(at: int) -> str:
        return data[strings + at : data.index(b"\0", strings + at)].decode()

    versions: list[tuple[int, int]] = []
    if _VERNEED in tags:
        at = place(tags[_VERNEED][0])
        for _ in range(tags[_VERNEEDNUM][0]):
            _, auxiliaries, _, first, following = struct.unpack_from("<HHIII", data, at)
            inner = at + first
            for _ in range(auxiliaries):
                _, _, _, name, step = struct.unpack_from("<IHHII", data, inner)
                if match := _VERSION.match(text(name)):
                    versions.append((int(match[1]), int(match[2])))
                inner += step
            at += following
    names = tuple(text(value) for value in tags.get(_NEEDED, ()))
    own = text(tags[_SONAME][0]) if _SONAME in tags else None
    return Needs(own, names, max(versions, default=None))
