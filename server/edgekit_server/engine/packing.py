"""Dataclasses to plain values and back, each value checked against the type of its field."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from edgekit_server.errors import WireError

_T = TypeVar("_T")


def plain(value: object) -> object:
    """Return what msgpack can pack: dataclass -> dict by field name, path -> text."""
    if isinstance(value, Path):
        return os.fsencode(value)  # a path is bytes: it need not be UTF-8
    if is_dataclass(value):
        return {name: getattr(value, name) for name in _field_names(cast(Hashable, type(value)))}
    raise TypeError(f"{type(value).__name__} has no form on the wire")


@cache
def _field_names(kind: Hashable) -> tuple[str, ...]:
    return tuple(f.name for f in fields(cast(Any, kind)))


@cache
def _schema(key: Hashable) -> tuple[dict[str, Callable[[Any], Any]], frozenset[str]]:
    """Return a converter per field of a class, and the names that have no default."""
    kind = cast(Any, key)
    hints = get_type_hints(kind)
    converters = {f.name: _converter(hints[f.name], f.name) for f in fields(kind)}
    required = (
        f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING
    )
    return converters, frozenset(required)


def build(kind: type[_T], values: dict[str, Any]) -> _T:
    """Make an instance from its fields; WireError if they are not what belongs there."""
    converters, required = _schema(cast(Hashable, kind))
    if not required <= values.keys():
        raise WireError(f"{kind.__name__} lacks {', '.join(sorted(required - values.keys()))}")
    try:
        return kind(**{name: converters[name](value) for name, value in values.items()})
    except KeyError as error:
        raise WireError(f"{kind.__name__} has no field {error.args[0]!r}") from error


def _converter(hint: Any, name: str) -> Callable[[Any], Any]:
    """Return a function that checks a plain value against a type and gives it that type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _union(args, name)
    if origin is list:
        item = _converter(args[0], name)
        return lambda value: [item(v) for v in _typed(value, list, name)]
    if origin is tuple:
        if args[1:] == (Ellipsis,):
            item = _converter(args[0], name)
            return lambda value: tuple(item(v) for v in _typed(value, list, name))
        items = [_converter(arg, name) for arg in args]
        return lambda value: tuple(
            convert(v) for convert, v in _paired(items, _typed(value, list, name), name)
        )
    if origin is dict:
        key, item = (_converter(arg, name) for arg in args)
        return lambda value: {key(k): item(v) for k, v in _typed(value, dict, name).items()}
    if hint is float:
        return lambda value: float(_typed(value, (float, int), name))
    if hint is Path:
        return lambda value: Path(os.fsdecode(_typed(value, bytes, name)))
    if is_dataclass(hint) and isinstance(hint, type):
        return lambda value: build(hint, _typed(value, dict, name))
    return lambda value: _typed(value, hint, name)


def _union(args: tuple[Any, ...], name: str) -> Callable[[Any], Any]:
    """First alternative that fits; an alternative None is tried first."""
    choices = [_converter(arg, name) for arg in args if arg is not NoneType]
    optional = NoneType in args

    def convert(value: Any) -> Any:
        if value is None and optional:
            return None
        for choice in choices[:-1]:
            try:
                return choice(value)
            except WireError:
                continue
        return choices[-1](value)

    return convert


def _typed(value: Any, kind: type | tuple[type, ...], name: str) -> Any:
    """Return the value if it has the type; a bool is not a number here."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise WireError(f"{name}: {type(value).__name__} is not what belongs there")
    return value


def _paired(
    items: list[Callable[[Any], Any]], values: list[Any], name: str
) -> list[tuple[Callable[[Any], Any], Any]]:
    if len(items) != len(values):
        raise WireError(f"{name}: {len(values)} items, not {len(items)}")
    return list(zip(items, values, strict=True))
