"""Native objects that may be used until they are freed, and never again: C would not notice."""

from __future__ import annotations

from typing import Any


class Pointer:
    """An attribute that holds a C pointer. Reading it when it is NULL raises ValueError."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._slot = f"_{name}"

    def __set__(self, owner: Any, value: Any) -> None:
        setattr(owner, self._slot, value)

    def __get__(self, owner: Any, kind: type) -> Any:
        value = getattr(owner, self._slot, None)
        if not value:
            raise ValueError(f"this {kind.__name__} was closed, or never made")
        return value


def forget(owner: Any, *names: str) -> Any:
    """Clear these Pointers; return what the first one held, None if it was clear."""
    held = getattr(owner, f"_{names[0]}", None)
    for name in names:
        setattr(owner, name, None)
    return held
