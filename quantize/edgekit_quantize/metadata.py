"""Typed key-value pairs, the way a GGUF header carries them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

Scalar = int | float | bool | str
Value = Scalar | Sequence[Scalar]


class ValueType(IntEnum):
    """The type numbers of the GGUF format."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One entry. `item` is the element type when `type` is ARRAY, else None."""

    key: str
    type: ValueType
    value: Value
    item: ValueType | None = None


def u32(key: str, value: int) -> KeyValue:
    return KeyValue(key, ValueType.UINT32, value)


def i32(key: str, value: int) -> KeyValue:
    return KeyValue(key, ValueType.INT32, value)


def f32(key: str, value: float) -> KeyValue:
    return KeyValue(key, ValueType.FLOAT32, float(value))


def boolean(key: str, value: bool) -> KeyValue:
    return KeyValue(key, ValueType.BOOL, value)


def string(key: str, value: str) -> KeyValue:
    return KeyValue(key, ValueType.STRING, value)


def booleans(key: str, values: Sequence[bool]) -> KeyValue:
    return KeyValue(key, ValueType.ARRAY, tuple(values), ValueType.BOOL)


def strings(key: str, values: Sequence[str]) -> KeyValue:
    return KeyValue(key, ValueType.ARRAY, tuple(values), ValueType.STRING)


def i32s(key: str, values: Sequence[int]) -> KeyValue:
    return KeyValue(key, ValueType.ARRAY, tuple(values), ValueType.INT32)


def f32s(key: str, values: Sequence[float]) -> KeyValue:
    return KeyValue(key, ValueType.ARRAY, tuple(values), ValueType.FLOAT32)
