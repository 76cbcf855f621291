"""`edgekit bundle install`: from the medium into the store, or served where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cli import output

if TYPE_CHECKING:
    from edgekit.bundle.install import Installed
    from edgekit.store import Store


def install(
    root: Path, trust: Sequence[Path], *, in_place: bool, dry_run: bool, json: bool
) -> None:
    """Install every model of a bundle; say how to serve it. Raises what `install` raises."""
    from edgekit import paths
    from edgekit.bundle.acceptance import adopt_acceptances
    from edgekit.bundle.install import install as bring
    from edgekit.bundle.keys import load_trust
    from edgekit.store import Store
    from edgekit.units import format_bytes

    store = Store(paths.store_dir())
    trusted = load_trust(paths.config_dir(), tuple(trust))
    if dry_run:
        from edgekit.bundle.install import room_for
        from edgekit.bundle.opened import open_bundle

        found = open_bundle(root, trusted)
        room = room_for(found, store, in_place=in_place)
        record = {
            "schema": "edgekit.bundle-install-plan/1",
            "path": str(root),
            "store": str(store.root),
            "in_place": in_place,
            "signer": found.seal.signer,
            "file_bytes": room.file_bytes,
            "copy_bytes": room.copy_bytes,
            "needed_bytes": room.needed_bytes,
            "free_bytes": room.free_bytes,
            "enough": room.enough,
            "models": [{"model": m.entry.model, "filetype": m.entry.filetype, "files": len(m.files),
                        "file_bytes": m.file_bytes} for m in found.models],
        }  # fmt: skip
        if json:
            output.emit(record)
            return
        output.say("Signature", found.seal.reason)
        for model in found.models:
            size = format_bytes(model.file_bytes)
            output.say("Model", f"{model.entry.model} {model.entry.filetype}, {size}")
        free = "an unknown number" if room.free_bytes is None else f"{room.free_bytes:,}"
        text = f"{room.copy_bytes:,} bytes would be copied; {free} are free"
        output.say("Disk", text + ("" if room.enough else f", {room.needed_bytes:,} are needed"))
        return
    with output.StepLines(quiet=json) as lines:
        lines.begin("fetch", str(root))
        done = bring(root, store, trusted, in_place=in_place, progress=lines.progress)
        lines.end("verify", f"{done.reason}; every byte of the models holds what was signed")
    accepted: list[str] = []
    if done.signer is not None:
        entries = [one.entry for one in done.models]
        accepted = adopt_acceptances(entries, store, paths.data_dir())
    if json:
        output.emit(_record(done, store))
        return
    for one in done.models:
        size = format_bytes(one.entry.file_bytes)
        ways = " and ".join(dict.fromkeys(_WORDS[way] for way in one.how))
        output.say("Model", f"{one.entry.model} {one.entry.filetype}, {size}: {ways}")
    for name in accepted:
        output.say("Licence", f"{name}: accepted where the bundle was made; the record is kept")
    written = format_bytes(done.copied_bytes)
    output.say("Store", f"{store.root}, {written} written")
    for one in done.models:
        output.say("Next", f"edgekit deploy {one.entry.model}:{one.entry.filetype} --offline")


_WORDS = {
    "reflink": "shared with the bundle (reflink)",
    "hardlink": "shared with the bundle (hard link)",
    "copy": "copied",
    "in place": "served from where it lies",
    "kept": "was here already",
}


def _record(done: Installed, store: Store) -> dict[str, object]:
    return {
        "schema": "edgekit.bundle-install/1",
        "path": str(done.root),
        "store": str(store.root),
        "signer": done.signer,
        "reason": done.reason,
        "copied_bytes": done.copied_bytes,
        "models": [
            {
                "model": one.entry.model,
                "filetype": one.entry.filetype,
                "file_bytes": one.entry.file_bytes,
                "path": str(one.path),
                "how": list(one.how),
                "medium": one.entry.medium,
            }
            for one in done.models
        ],
    }
