"""What edgekit knows about models, devices and file types: TOML in, frozen records out.

Three layers, later over earlier: the built-in facts of `edgekit_profiles`, the system's folder
(`/etc/xdg/edgekit` on Linux), the user's folder (`~/.config/edgekit`). `EDGEKIT_CATALOGUE` names
one folder that takes the place of the last two. Each may hold `models/` and `devices/`; a file
with the id of an earlier entry replaces it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Final

from edgekit.errors import ConfigError, MissingInputError, UsageError
from edgekit.facts import (
    GIB,
    AbsentModel,
    Device,
    Family,
    FileType,
    Licence,
    ModelCard,
    Rate,
    Source,
)
from edgekit.facts_toml import read_device, read_families, read_filetypes, read_model
from edgekit.tables import load_toml

__all__ = [
    "AbsentModel",
    "Device",
    "Family",
    "FileType",
    "Licence",
    "ModelCard",
    "Rate",
    "Source",
    "find_device",
    "find_filetype",
    "find_model",
    "load_absent",
    "load_devices",
    "load_families",
    "load_filetypes",
    "load_models",
    "match_device",
    "split_model_name",
]


SYSTEM_FOLDER: Final = Path("/etc/edgekit")


@dataclass(frozen=True, slots=True)
class _Loaded:
    models: dict[str, ModelCard] = field(default_factory=dict)
    absent: dict[str, AbsentModel] = field(default_factory=dict)
    devices: dict[str, Device] = field(default_factory=dict)


def load_models() -> dict[str, ModelCard]:
    """All models by id, sorted.

    Raises:
        ConfigError: a file is wrong, or two entries claim one name.
    """
    return dict(_load(_folders()).models)


def load_absent() -> dict[str, AbsentModel]:
    """Names that no public weights carry, by id. Raises as `load_models`."""
    return dict(_load(_folders()).absent)


def load_devices() -> dict[str, Device]:
    """All devices by id, sorted. Raises as `load_models`."""
    return dict(_load(_folders()).devices)


def find_model(name: str) -> ModelCard:
    """One model by id, alias or hub repository id, in any case.

    Raises:
        MissingInputError: unknown (`model_unknown`, with the nearest names), or a name that no
            public weights carry (`model_not_published`, with the nearest real models).
    """
    loaded = _load(_folders())
    wanted = name.strip().lower()
    for card in loaded.models.values():
        repositories = {s.location.lower() for s in card.sources if s.kind == "hub"}
        if wanted in {card.id, *card.aliases} | repositories:
            return card
    for absent in loaded.absent.values():
        if wanted in {absent.id, *absent.aliases}:
            raise MissingInputError(
                absent.why.rstrip("."),
                code="model_not_published",
                hint=f"what exists: {', '.join(absent.nearest)}; "
                "if you have weights under this name, pass --source DIR",
            )
    raise _unknown("model", name, [(m.id, *m.aliases) for m in loaded.models.values()])


def find_device(name: str) -> Device:
    """One device by id or alias; `NAME@GIB` picks a memory size where the device has several.

    Raises:
        MissingInputError: unknown, with the nearest names.
        UsageError: a memory size this device is not sold with.
    """
    wanted, _, size = name.strip().lower().partition("@")
    loaded = _load(_folders())
    for device in loaded.devices.values():
        if wanted in {device.id, *device.aliases}:
            return _with_memory(device, size, name) if size else device
    raise _unknown("device", name, [(d.id, *d.aliases) for d in loaded.devices.values()])


def match_device(vendor: str, reported_name: str, gpu_cores: int | None = None) -> Device | None:
    """The entry for a device as its driver names it, or None when no entry claims the name."""
    found = [
        device
        for device in _load(_folders()).devices.values()
        if device.vendor == vendor
        and _spelled(vendor, reported_name) in {_spelled(vendor, n) for n in device.reported_names}
        and (gpu_cores is None or device.gpu_cores in (None, gpu_cores))
    ]
    # Two variants of one name (30 or 38 cores) cannot be told apart by the name alone.
    return found[0] if len(found) == 1 else None


def split_model_name(text: str) -> tuple[str, str | None]:
    """`mistral-3-small:Q4_K_M` -> ("mistral-3-small", "Q4_K_M").

    Raises:
        UsageError: no model before the colon.
        MissingInputError: not a file type we know.
    """
    model, colon, filetype = text.partition(":")
    if not model:
        raise UsageError(
            f"{text!r} names no model", code="bad_model_name", hint="write MODEL or MODEL:FILETYPE"
        )
    return model, find_filetype(filetype).id if colon else None


@cache
def load_filetypes() -> dict[str, FileType]:
    """All file types by name, best quality first.

    Raises:
        ConfigError: `filetypes.toml` is wrong.
    """
    return read_filetypes(load_toml(_builtin() / "filetypes.toml"))


def find_filetype(name: str) -> FileType:
    """One file type, in any case.

    Raises:
        MissingInputError: unknown, with the nearest names.
    """
    known = load_filetypes()
    found = known.get(name.strip().upper())
    if found is None:
        raise _unknown("file type", name, [(f,) for f in known])
    return found


@cache
def load_families() -> dict[str, Family]:
    """Constants of the speed formulas by family.

    Raises:
        ConfigError: `families.toml` is wrong.
    """
    return read_families(load_toml(_builtin() / "families.toml"))


def _spelled(vendor: str, name: str) -> str:
    """Older drivers leave the vendor out ("A10"), newer ones put it first ("NVIDIA A10")."""
    return " ".join(name.casefold().split()).removeprefix(f"{vendor} ")


def _builtin() -> Path:
    import edgekit_profiles

    return Path(next(iter(edgekit_profiles.__path__)))


def _folders() -> tuple[Path, ...]:
    override = os.environ.get("EDGEKIT_CATALOGUE")
    if override:
        folder = Path(override)
        if not folder.is_dir():
            raise ConfigError(
                f"EDGEKIT_CATALOGUE names {override}, which is not a folder",
                code="bad_catalogue_folder",
                hint="point it at a folder with models/ or devices/ inside, or unset it",
            )
        return (_builtin(), folder)
    from edgekit.paths import config_dir

    own = config_dir()
    return (_builtin(), own) if own == SYSTEM_FOLDER else (_builtin(), SYSTEM_FOLDER, own)


@cache
def _load(folders: tuple[Path, ...]) -> _Loaded:
    models: dict[str, ModelCard | AbsentModel] = {}
    devices: dict[str, Device] = {}
    for folder in folders:
        for path in sorted((folder / "models").glob("*.toml")):
            model = read_model(load_toml(path))
            models[model.id] = model
        for path in sorted((folder / "devices").glob("*.toml")):
            device = read_device(load_toml(path), load_families())
            devices[device.id] = device
    _refuse_clashes("model", ((m.id, m.aliases) for m in models.values()))
    _refuse_clashes("device", ((d.id, d.aliases) for d in devices.values()))
    return _Loaded(
        models={i: m for i, m in sorted(models.items()) if isinstance(m, ModelCard)},
        absent={i: m for i, m in sorted(models.items()) if isinstance(m, AbsentModel)},
        devices=dict(sorted(devices.items())),
    )


def _with_memory(device: Device, size: str, asked: str) -> Device:
    if not size.isdigit() or int(size) not in device.memory_options_gib:
        sold = ", ".join(f"{device.id}@{g}" for g in device.memory_options_gib)
        raise UsageError(
            f"{asked!r}: {device.name} has no such memory size",
            code="bad_memory_size",
            hint=f"known sizes: {sold}" if sold else f"write {device.id}, it has one size",
        )
    return replace(
        device, id=f"{device.id}@{size}", memory_bytes=int(size) * GIB, usable_bytes=None
    )


def _refuse_clashes(kind: str, entries: Iterable[tuple[str, tuple[str, ...]]]) -> None:
    owners: dict[str, str] = {}
    for entry, aliases in entries:
        for name in (entry, *aliases):
            owner = owners.setdefault(name, entry)
            if owner != entry:
                raise ConfigError(
                    f"the {kind} name {name!r} is claimed by {owner} and by {entry}",
                    code="ambiguous_name",
                    hint="remove it from the aliases of one of them",
                )


def _unknown(kind: str, name: str, known: Iterable[tuple[str, ...]]) -> MissingInputError:
    import difflib

    names = [n for group in known for n in group]
    near = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=3, cutoff=0.5)
    shown = [n for n in names if n.lower() in near] or sorted({*names})[:8]
    return MissingInputError(
        f"no {kind} is called {name!r}",
        code=f"{kind.replace(' ', '_')}_unknown",
        hint=f"{'did you mean' if near else 'known names include'} {', '.join(shown)}",
    )
