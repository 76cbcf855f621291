"""From what was typed, or stands in the `[models]` table, to the plans of a deployment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cli.options import device_for, model_and_filetype

if TYPE_CHECKING:
    from edgekit.machine import Machine
    from edgekit.plan import Plan
    from edgekit.pull import Options
    from edgekit.several import Wanted


@dataclass(frozen=True, slots=True)
class Target:
    """One of the models to deploy. `beside`: what becomes of it beside the others."""

    plan: Plan
    wanted: Wanted
    beside: str | None


def models_wanted(
    names: list[str],
    source: Path | None,
    filetype: str | None,
    users: int,
    ctx: int | None,
    offload: int | None,
    options: Options | None = None,
) -> list[tuple[Wanted, Path | None]]:
    """Return each model with its folder or GGUF: those named, else those of the `[models]` table.

    `options`: how to ask a hub about a model that the catalogue does not know.

    Raises UsageError when there are none, or one twice, or one folder for several.
    """
    from edgekit import paths
    from edgekit.cli.model_table import Entry, read_entries
    from edgekit.errors import UsageError
    from edgekit.named import find_named
    from edgekit.pull import Options
    from edgekit.several import Wanted

    entries = [Entry(name, source=source) for name in names] or read_entries()
    if not entries:
        raise UsageError(
            "no model is named",
            code="no_model",
            hint="edgekit deploy MODEL, or a [models] table in config.toml",
        )
    if source is not None and len(names) != 1:
        raise UsageError(
            "--source is the folder of one model, so name that model alone",
            code="source_of_one",
            hint="with several, put `source` into the [models] table of config.toml",
        )
    found: list[tuple[Wanted, Path | None]] = []
    for entry in entries:
        name, kind = model_and_filetype(entry.name, entry.filetype or filetype)
        named = find_named(name, entry.source, paths.store_dir(), options or Options())
        card = named.card
        if named.filetype and kind and kind != named.filetype:
            raise UsageError(
                f"{named.place} is {named.filetype}, not {kind}",
                code="two_filetypes",
                hint="leave the file type out: a finished GGUF is served as it is",
            )
        if any(card.id == other.card.id for other, _ in found):
            raise UsageError(
                f"{card.id} is named twice", code="same_name", hint="name each model once"
            )
        found.append(
            (
                Wanted(
                    card,
                    users=entry.users or users,
                    n_ctx=entry.ctx or ctx,
                    filetype=named.filetype or kind,
                    n_gpu_layers=offload if entry.offload is None else entry.offload,
                    roles=entry.roles,
                    pinned=entry.pin,
                ),
                named.place,
            )
        )
    return found


def make(
    wanted: list[tuple[Wanted, Path | None]],
    host: str,
    port: int,
    device: str,
    dry_run: bool,
    tune: bool,
    prove: bool = True,
    offline: bool = False,
) -> tuple[list[Target], Machine | None, int | None]:
    """Choose and plan; the last value is the memory for all. UsageError for a foreign device."""
    from edgekit import paths
    from edgekit.budget import device_budget
    from edgekit.catalogue import find_device
    from edgekit.errors import UsageError
    from edgekit.fetch_step import check_obtainable
    from edgekit.plan import make_plan
    from edgekit.several import share, with_roles
    from edgekit.store import Store

    if not dry_run and find_device(device).id != "this":
        raise UsageError(
            f"cannot deploy to {find_device(device).name} from here",
            code="other_device",
            hint="add --dry-run to see its plan, or leave --device out",
        )
    target, machine = device_for(device)
    shares = share(with_roles([model for model, _ in wanted]), target)
    store = Store(paths.store_dir())
    targets: list[Target] = []
    for found, (_, folder) in zip(shares, wanted, strict=True):
        model = found.wanted
        plan = make_plan(
            model.card,
            target,
            found.choice,
            store,
            host=host,
            port=port,
            folder=folder,
            tune=tune,
            prove=prove,
        )
        if not dry_run:
            check_obtainable(plan, offline=offline)
        purpose = f"for {' and '.join(model.roles)}, " if model.roles else ""
        beside = f"{purpose}{found.reason}" if len(shares) > 1 else None
        targets.append(Target(plan, model, beside))
    return targets, machine, device_budget(target).bytes
