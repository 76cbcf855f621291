"""What edgekit knows about models, devices and file types: TOML in, frozen records out.

Three layers, later over earlier: the built-in facts of `edgekit_profiles`, the system's folder
(`/etc/xdg/edgekit` on Linux), the user's folder (`~/.config/edgekit`). `EDGEKIT_CATALOGUE` names
one folder that takes the place of the last two. Each may hold `models/` and `devices/`; a file
with the id of an earlier entry replaces it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgekit.device_toml import read_device, read_families, read_published
from edgekit.errors import ConfigError, MissingInputError, UsageError
from edgekit.facts import (
    GIB,
    AbsentModel,
    Device,
    Evidence,
    Family,
    FileType,
    Licence,
    ModelCard,
    Published,
    Source,
)
from edgekit.facts_toml import read_filetypes, read_model
from edgekit.shelf import Shelf
from edgekit.tables import load_toml

if TYPE_CHECKING:
    from edgekit.benchmark_shapes import BenchmarkShape

__all__ = [
    "AbsentModel",
    "Device",
    "Evidence",
    "Family",
    "FileType",
    "Licence",
    "ModelCard",
    "Published",
    "Source",
    "find_benchmark_shape",
    "find_device",
    "find_filetype",
    "find_model",
    "forget",
    "load_absent",
    "load_devices",
    "load_families",
    "load_filetypes",
    "load_instances",
    "load_models",
    "load_published",
    "match_device",
    "named_models",
    "split_model_name",
]


SYSTEM_FOLDER: Final = Path("/etc/edgekit")


@dataclass(frozen=True, slots=True)
class _Loaded:
    models: Shelf[ModelCard | AbsentModel]
    devices: Shelf[Device]


def load_models() -> dict[str, ModelCard]:
    """All models by id, sorted.

    Raises:
        ConfigError: a file is wrong, or two entries claim one name.
    """
    found = _load(_folders()).models.all()
    return {m.id: m for m in found if isinstance(m, ModelCard)}


def load_absent() -> dict[str, AbsentModel]:
    """Names that no public weights carry, by id. Raises as `load_models`."""
    found = _load(_folders()).models.all()
    return {m.id: m for m in found if isinstance(m, AbsentModel)}


def load_devices() -> dict[str, Device]:
    """All devices by id, sorted. Raises as `load_models`."""
    return {device.id: device for device in _load(_folders()).devices.all()}


def find_model(name: str) -> ModelCard:
    """One model by id, alias or hub repository id, in any case.

    Raises:
        MissingInputError: unknown (`model_unknown`, with the nearest names), or a name that no
            public weights carry (`model_not_published`, with the nearest real models).
    """
    wanted = name.strip().lower()
    shelf = _load(_folders()).models
    found = shelf.find(wanted)
    if isinstance(found, AbsentModel):
        nearest = ", ".join(_with_repository(shelf, entry) for entry in found.nearest)
        raise MissingInputError(
            found.why.rstrip("."),
            code="model_not_published",
            hint=f"what exists: {nearest}; if you have weights under this name, pass --source DIR",
        )
    if found is not None:
        return found
    for card in load_models().values() if "/" in wanted else ():
        if wanted in {s.location.lower() for s in card.sources if s.kind == "hub"}:
            return card
    raise _unknown("model", name, shelf.names())


def named_models(name: str) -> tuple[AbsentModel | None, tuple[ModelCard, ...]]:
    """The model of a name; for a name that no public weights carry, that and the nearest real ones.

    Raises:
        MissingInputError: unknown, with the nearest names.
    """
    shelf = _load(_folders()).models
    absent = shelf.find(name.strip().lower())
    if not isinstance(absent, AbsentModel):
        return None, (find_model(name),)
    nearest = (shelf.find(entry) for entry in absent.nearest)
    return absent, tuple(card for card in nearest if isinstance(card, ModelCard))


def find_benchmark_shape(name: str) -> BenchmarkShape:
    """The shape of a model by the name that a table of measurements gives it.

    Raises:
        MissingInputError: no shape of that name is known.
    """
    from edgekit import benchmark_shapes

    return benchmark_shapes.find(name)


def forget() -> None:
    """Read the folders again at the next question; entries have changed."""
    _load.cache_clear()


def find_device(name: str) -> Device:
    """One device by id or alias; `NAME@GIB` picks a memory size where the device has several.

    `NAME*2` is two of them, `ONE+OTHER` one of each; the name of a cloud machine is its devices.

    Raises:
        MissingInputError: unknown, with the nearest names.
        UsageError: a memory size this device is not sold with; devices that cannot be grouped.
    """
    from edgekit.device_group import resolve

    shelf = _load(_folders()).devices
    return resolve(name, _one_device, load_instances(), lambda own: shelf.find(own) is not None)


@cache
def load_instances() -> dict[str, str]:
    """Cloud machines by name, in small letters, as a device or several (`nvidia-a10g*4`).

    Raises:
        ConfigError: `instances.toml` is wrong.
    """
    root = load_toml(_builtin() / "instances.toml")
    found: dict[str, str] = {}
    for maker in root.keys():  # noqa: SIM118 - a Table is not a dict
        table = root.table(maker)
        found |= {own: table.text(own) for own in table.keys()}  # noqa: SIM118
    return found


def _one_device(name: str) -> Device:
    wanted, _, size = name.strip().lower().partition("@")
    shelf = _load(_folders()).devices
    device = shelf.find(wanted)
    if device is not None:
        return _with_memory(device, size, name) if size else device
    raise _unknown("device", name, shelf.names())


def match_device(vendor: str, reported_name: str, gpu_cores: int | None = None) -> Device | None:
    """The entry for a device as its driver names it, or None when no entry claims the name."""
    found = [
        device
        for device in _load(_folders()).devices.all()
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


@cache
def load_published() -> dict[str, Published]:
    """How published rows of a device lie against its family, by device.

    Raises:
        ConfigError: `published_speeds.toml` is wrong.
    """
    return read_published(load_toml(_builtin() / "published_speeds.toml"))


def _with_repository(shelf: Shelf[ModelCard | AbsentModel], entry: str) -> str:
    card = shelf.find(entry)
    sources = card.sources if isinstance(card, ModelCard) else ()
    location = next((s.location for s in sources), None)
    return f"{entry} ({location})" if location else entry


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
    return _Loaded(
        Shelf("model", [f / "models" for f in folders], _read_model, _builtin()),
        Shelf("device", [f / "devices" for f in folders], _read_device, _builtin()),
    )


def _read_model(path: Path) -> ModelCard | AbsentModel:
    return read_model(load_toml(path))


def _read_device(path: Path) -> Device:
    return read_device(load_toml(path), load_families(), load_published())


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
