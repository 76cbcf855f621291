"""From a probed machine to a device id of the catalogue: by exact name, or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from edgekit.machine import Accelerator, Machine

_MARKS: Final = re.compile(r"\((?:r|tm|c)\)|[®™©]", re.IGNORECASE)
# Older drivers leave the vendor's name out ("Tesla T4", "A10G"), newer ones put it in front.
_VENDORS: Final = frozenset({"nvidia", "amd", "apple", "intel"})


def normalise(name: str) -> str:
    """Case, spacing, trademark signs and a leading vendor's name do not tell devices apart."""
    words = _MARKS.sub(" ", name).casefold().split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in _VENDORS else words)


def probe_names(accelerator: Accelerator) -> tuple[str, ...]:
    """The names under which a catalogue may list this device.

    Apple sells one chip with several GPU sizes, so there the core count is part of the name; the
    bare name is used only if the count is unknown.
    """
    cores = accelerator.gpu_cores if accelerator.vendor == "apple" else None
    return catalogue_names((accelerator.name,), cores)


def catalogue_names(reported: Sequence[str], gpu_cores: int | None) -> tuple[str, ...]:
    """Reported names in the spelling that `match_profile` compares, core count included."""
    if gpu_cores is None:
        return tuple(reported)
    return tuple(
        spelling.format(name=name, cores=gpu_cores)
        for name in reported
        for spelling in (
            "{name} ({cores})",
            "{name} ({cores}-core GPU)",
            "{name} ({cores} GPU cores)",
        )
    )


def match_profile(machine: Machine, devices: Iterable[tuple[str, Sequence[str]]]) -> str | None:
    """The id of the one catalogue device that this machine is; None if none or several match.

    `devices` are (id, names) pairs. Names are compared whole, never by substring: an A10G is not
    an A10, a 4090 D is not a 4090, and a slice of an H100 is not an H100. With several
    accelerators all must be the same device. Without one the CPU's model name is looked up.
    """
    ids: dict[str, set[str]] = {}
    for device, names in devices:
        for name in names:
            ids.setdefault(normalise(name), set()).add(device)
    if machine.accelerators:
        wanted = [probe_names(a) for a in machine.accelerators]
    else:
        wanted = [(machine.host.cpu.model,)] if machine.host.cpu.model else []
    found: set[str | None] = set()
    for names in wanted:
        matches = {i for name in names for i in ids.get(normalise(name), ())}
        found.add(matches.pop() if len(matches) == 1 else None)
    return found.pop() if len(found) == 1 else None
