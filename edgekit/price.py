"""What a device costs, where a price was found for what is looked at; else None, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from edgekit.facts import GIB, Device

NONE_FOUND: Final = "no price found"
_MACHINES: Final = frozenset(
    ("apple-silicon", "unified-soc", "edge-soc", "mini-pc", "sbc", "laptop-soc")
)
_BASE: Final = re.compile(r"\bbase\b", re.IGNORECASE)
_DATE: Final = re.compile(r"\b20\d\d(-\d\d)?\b")


@dataclass(frozen=True, slots=True)
class Price:
    """USD for the device, or for all cards of a group. `note` says whence, or what is missing.

    The note speaks of one card.
    """

    usd: float | None
    date: str | None
    note: str


def is_machine(device: Device) -> bool:
    """Whether it is bought as a whole machine; a card or a processor needs one around it."""
    return device.kind in _MACHINES


def price_of(device: Device) -> Price:
    """The price of a device as it stands, with its memory.

    A price of "the base model" belongs to the smallest memory the device is sold with. Where the
    sizes are not known, nor is the price of the one looked at.
    """
    note = (device.price_note or "").strip()
    if device.price_usd is None:
        return Price(None, device.price_date, _unpriced(note))
    if _BASE.search(note):
        smallest = min(device.memory_options_gib, default=None)
        if smallest is None or device.memory_bytes != smallest * GIB:
            size = "this memory" if not device.memory_bytes else _size(device.memory_bytes)
            text = f"{NONE_FOUND} with {size}; {device.price_usd:,.0f} USD is for: {note}"
            return Price(None, device.price_date, text)
    text = note or "source not stated"
    if device.price_date and not _DATE.search(text):
        text = f"{text}, {device.price_date}"
    if not device.price_date and not _DATE.search(text):
        text += ", undated"
    return Price(device.price_usd, device.price_date, text)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / GIB:.0f} GiB"


def _unpriced(note: str) -> str:
    """The catalogue's note without the words that say the same; rents and the like stay."""
    rest = re.sub(r"^no purchase price found( in public pages)?[;,]?\s*", "", note)
    return f"{NONE_FOUND}; {rest}" if rest else NONE_FOUND
