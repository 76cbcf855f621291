"""`edgekit bundle push` and `edgekit pull oci://…`: a bundle's folder by way of a registry."""

from __future__ import annotations

from pathlib import Path

from edgekit.cli import output


def push(root: Path, to: str, *, offline: bool, json: bool) -> None:
    """Send a bundle to a registry. Raises EdgekitError."""
    from edgekit.bundle.oci_address import parse_address
    from edgekit.bundle.transfer import push as send
    from edgekit.units import format_bytes

    address = parse_address(to)
    _refuse(str(address), offline)
    with output.StepLines(quiet=json) as lines:
        lines.begin("push", str(root))
        moved = send(root, address)
        lines.end("push", f"{moved.files} files, {format_bytes(moved.moved_bytes)} sent")
    if json:
        record = {"address": str(address), "digest": moved.digest, "files": moved.files}
        output.emit(
            {"schema": "edgekit.push/1", **record, "bytes": moved.bytes, "sent": moved.moved_bytes}
        )
        return
    output.say("Digest", moved.digest)


def pull(source: str, target: Path | None, *, offline: bool, json: bool) -> None:
    """Bring a bundle's folder out of a registry. Raises EdgekitError."""
    from edgekit import paths
    from edgekit.bundle.oci_address import parse_address
    from edgekit.bundle.transfer import pull as bring
    from edgekit.units import format_bytes

    address = parse_address(source)
    _refuse(str(address), offline)
    folder = target or Path(f"{address.repository.rpartition('/')[2]}.edgekit")
    blobs = paths.store_dir() / "blobs"
    with output.StepLines(quiet=json) as lines:
        lines.begin("fetch", str(address))
        moved = bring(
            address,
            folder,
            here=lambda sha256: (blobs / f"{sha256}.gguf",),
            progress=lines.progress,
        )
        lines.end("fetch", f"{moved.files} files, {format_bytes(moved.moved_bytes)} fetched")
    if json:
        record = {"address": str(address), "digest": moved.digest, "path": str(folder)}
        fetched = {"bytes": moved.bytes, "fetched_bytes": moved.moved_bytes}
        output.emit({"schema": "edgekit.bundle-pull/1", **record, **fetched})
        return
    output.say("Bundle", f"{folder}; edgekit bundle check {folder} says who made it")


def _refuse(address: str, offline: bool) -> None:
    from edgekit.errors import MissingInputError
    from edgekit.hub import offline_asked

    if offline or offline_asked():
        raise MissingInputError(
            f"{address} lies in a registry, and the network is not to be used",
            code="offline",
            hint="run it without --offline and EDGEKIT_OFFLINE",
        )
